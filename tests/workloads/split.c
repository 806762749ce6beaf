/* A quarter of the time below `light`, three below `heavy`; the leaf and the depth are the same.
 * `split CPU_MS` */

#include "work.h"

/* About 10 us: many turns between two samples. */
#define UNIT 8000u

KEPT uint64_t leaf(uint64_t x, uint32_t rounds) {
    SPIN(x, rounds);
    return x;
}

KEPT uint64_t light(uint64_t x) {
    uint64_t y = leaf(x, UNIT);
    BARRIER();
    return y ^ x;
}

KEPT uint64_t heavy(uint64_t x) {
    uint64_t y = leaf(x, 3 * UNIT);
    BARRIER();
    return y ^ x;
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    while (cpu_ms() < enough)
        for (int i = 0; i < 100; i++) {
            sink = light(sink);
            sink = heavy(sink);
        }
    return 0;
}
