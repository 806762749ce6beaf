/* A recursion, after a moment without one. `deep CPU_MS DEPTH` */

#include "work.h"

#define MS_BEFORE 300u

LEAF(leaf)

KEPT uint64_t deeper(uint64_t x, uint64_t depth) {
    uint64_t y = depth > 1 ? deeper(x + 1, depth - 1) : leaf(x);
    BARRIER();
    return y ^ x;
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 3000);
    uint64_t depth = argument_ms(argc, argv, 2, 100);
    while (cpu_ms() < enough)
        sink = cpu_ms() < MS_BEFORE ? leaf(sink) : deeper(sink, depth);
    return 0;
}
