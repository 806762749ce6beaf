/* A process that lives for a moment. `brief CPU_MS` */

#include "work.h"

/* Shorter rounds than elsewhere: 150 ms are to be met. */
KEPT uint64_t leaf(uint64_t x) {
    SPIN(x, ROUNDS_OF_LEAF / 2);
    return x;
}

LINK(inner, leaf)
LINK(outer, inner)

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 150);
    while (cpu_ms() < enough)
        sink = outer(sink);
    return 0;
}
