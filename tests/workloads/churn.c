/* Ten thousand times a second a mapping that can be executed comes and goes. `churn SECONDS FILE` */

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "work.h"

int main(int argc, char **argv) {
    time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 4);
    int file = argc > 2 ? open(argv[2], O_RDONLY) : -1;
    if (file < 0)
        return 1;
    while (time(NULL) < end) {
        for (int i = 0; i < 100; i++) {
            void *page = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
            if (page == MAP_FAILED || munmap(page, 4096))
                return 1;
        }
        usleep(10000);
    }
    return 0;
}
