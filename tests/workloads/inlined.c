/* All the work in a function inlined into one inlined into `outer`. `inlined CPU_MS` */

#include "work.h"

#define INLINED static inline __attribute__((always_inline))

INLINED uint64_t inner(uint64_t x) {
    SPIN(x, ROUNDS_OF_LEAF);
    return x;
}

INLINED uint64_t middle(uint64_t x) { return inner(x) + 1; }

KEPT uint64_t outer(uint64_t x) { return middle(x) ^ 5; }

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    while (cpu_ms() < enough)
        sink = outer(sink);
    return 0;
}
