/* Asks for the time, which is done in the vDSO. `clock CPU_MS` */

#include "work.h"

KEPT uint64_t ask(uint64_t x) {
    struct timespec now;
    for (int i = 0; i < 100000; i++) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        x += (uint64_t)now.tv_nsec;
    }
    return x;
}

LINK(caller, ask)

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    while (cpu_ms() < enough)
        sink = caller(sink);
    return 0;
}
