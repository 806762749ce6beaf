/* A function of which gcc moves a part to another section: the part calls what is rarely called.
 * `cold CPU_MS` */

#include "work.h"

LEAF(leaf)

KEPT __attribute__((cold)) void rarely_called(void) { BARRIER(); }

/* The registers that it saves are on the stack in both parts. */
KEPT uint64_t in_two_parts(uint64_t x, uint64_t *some) {
    volatile uint64_t room[9];
    room[x % 9] = x;
    uint64_t y = x * 3;
    if (__builtin_expect(*some > 1, 0)) {
        rarely_called();
        y += leaf(x);
        SPIN(y, ROUNDS_OF_LEAF);
        rarely_called();
    }
    some[0] += 1;
    return y ^ room[y % 9];
}

KEPT uint64_t caller(uint64_t x, uint64_t *some) {
    uint64_t y = in_two_parts(x, some);
    BARRIER();
    return y ^ x;
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    uint64_t some = 7;
    while (cpu_ms() < enough)
        sink = caller(sink, &some);
    return 0;
}
