/* Calls of a library through its program's linkage table, so many that samples hit the table.
 * `stubs CPU_MS` */

#include "work.h"

#define CALLS 2000000

uint64_t stub_target(uint64_t x);

KEPT uint64_t caller(uint64_t x) {
    for (int i = 0; i < CALLS; i++)
        x = stub_target(x);
    return x;
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    while (cpu_ms() < enough)
        sink = caller(sink);
    return 0;
}
