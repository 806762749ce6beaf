/* Maps a file to be executed again and again, hundred thousands of times a second, between rounds of
 * work. `storm CPU_MS FILE` */

#include <fcntl.h>
#include <sys/mman.h>

#include "work.h"

#define TURNS 5000

LEAF(leaf)
LINK(outer, leaf)

KEPT int storm(int file) {
    for (int i = 0; i < TURNS; i++) {
        void *page = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
        if (page == MAP_FAILED || munmap(page, 4096))
            return -1;
    }
    return 0;
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    int file = argc > 2 ? open(argv[2], O_RDONLY) : -1;
    if (file < 0)
        return 1;
    while (cpu_ms() < enough) {
        if (storm(file))
            return 1;
        for (int i = 0; i < 4; i++)
            sink = outer(sink);
    }
    return 0;
}
