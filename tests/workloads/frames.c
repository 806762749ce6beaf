/* Stack frames of every shape: an array of variable length, alloca, a realigned frame, one of 200
 * KB, and a function with 410 KB of code; after a moment without them. `frames CPU_MS` */

#include <alloca.h>
#include <string.h>

#include "work.h"

#define MS_BEFORE 300u

LEAF(leaf)

KEPT uint64_t long_code(uint64_t x) {
    __asm__ volatile(".rept 205000\n\tnop\n\t.endr");
    uint64_t y = leaf(x);
    __asm__ volatile(".rept 205000\n\tnop\n\t.endr");
    return y ^ x;
}

KEPT uint64_t big_frame(uint64_t x) {
    volatile char big[200000];
    big[x % sizeof big] = 1;
    uint64_t y = long_code(x);
    return y + (uint64_t)big[y % sizeof big];
}

KEPT uint64_t aligned_frame(uint64_t x) {
    volatile uint64_t line[8] __attribute__((aligned(256)));
    line[x % 8] = x;
    uint64_t y = big_frame(x);
    return y + line[y % 8];
}

#ifdef __x86_64__
/* As if its caller had not kept the ABI. */
KEPT __attribute__((force_align_arg_pointer)) uint64_t realigned(uint64_t x) {
    typedef double vector __attribute__((vector_size(32)));
    volatile vector some = {(double)x, 1, 2, 3};
    uint64_t y = aligned_frame(x);
    return y + (uint64_t)some[y % 4];
}
#else
LINK(realigned, aligned_frame)
#endif

/* Both at once: gcc keeps the address of the arguments in a register of its own (DRAP). */
KEPT uint64_t aligned_and_variable(uint64_t x) {
    volatile uint64_t line[8] __attribute__((aligned(128)));
    volatile char *some = alloca(1 + x % 1000);
    some[0] = 1;
    line[x % 8] = x;
    uint64_t y = realigned(x);
    return y + line[y % 8] + (uint64_t)some[0];
}

KEPT uint64_t with_alloca(uint64_t x) {
    volatile char *some = alloca(1 + x % 5000);
    some[0] = 1;
    uint64_t y = aligned_and_variable(x);
    return y + (uint64_t)some[0];
}

KEPT uint64_t with_array(uint64_t x) {
    volatile char some[1 + x % 5000];
    some[0] = 1;
    uint64_t y = with_alloca(x);
    return y + (uint64_t)some[0];
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    while (cpu_ms() < enough)
        sink = cpu_ms() < MS_BEFORE ? leaf(sink) : with_array(sink);
    return 0;
}
