/* A process that lives for a moment, and perhaps becomes another program then.
   `brief CPU_MS [PROGRAM ARGUMENTS]` */

#include <unistd.h>

#include "work.h"

/* Shorter rounds than elsewhere: 150 ms are to be met. */
LEAF_OF(leaf, ROUNDS_OF_LEAF / 2)
LINK(inner, leaf)
LINK(outer, inner)

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 150);
    while (cpu_ms() < enough)
        sink = outer(sink);
    if (argc > 2)
        execv(argv[2], argv + 2);
    return argc > 2;
}
