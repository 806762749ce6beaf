/* Code that is further from its caller than 4 GiB: the linker is told where. `far CPU_MS` */

#include "work.h"

#define FAR KEPT __attribute__((section(".far")))

LEAF(leaf)

FAR uint64_t far_inner(uint64_t x) {
    uint64_t y = leaf(x + 1);
    SPIN(y, ROUNDS_OF_LEAF);
    return y ^ x;
}

FAR uint64_t far_outer(uint64_t x) {
    volatile uint64_t room[40];
    room[x % 40] = x;
    uint64_t y = far_inner(x + 1);
    BARRIER();
    return y ^ room[x % 40];
}

LINK(caller, far_outer)

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    while (cpu_ms() < enough)
        sink = caller(sink);
    return 0;
}
