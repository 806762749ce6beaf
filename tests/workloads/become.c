/* Works, then becomes another program in the same process. `become CPU_MS PROGRAM ARGUMENTS` */

#include <unistd.h>

#include "work.h"

LEAF(first_leaf)
LINK(first_middle, first_leaf)
LINK(first_outer, first_middle)

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 2000);
    while (cpu_ms() < enough)
        sink = first_outer(sink);
    if (argc > 2)
        execv(argv[2], argv + 2);
    return 1;
}
