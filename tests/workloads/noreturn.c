/* A call that is the last instruction of its function: its return address is in the next one.
 * `noreturn CPU_MS` */

#include "work.h"

static uint64_t enough;

LEAF(leaf)

KEPT __attribute__((noreturn)) void endless(void) {
    while (cpu_ms() < enough)
        sink = leaf(sink);
    exit(0);
}

/* Its frame differs from that of the next function. */
KEPT __attribute__((noreturn)) void last_call(uint64_t x) {
    volatile uint64_t room[40];
    room[x % 40] = x;
    endless();
}

KEPT uint64_t next_function(uint64_t x) { return x * 3; }

KEPT void caller(uint64_t x) {
    if (x == 77)
        sink = next_function(x);
    last_call(x);
}

int main(int argc, char **argv) {
    enough = argument_ms(argc, argv, 1, 4000);
    caller((uint64_t)argc);
}
