/* Two named threads with chains of their own while main waits. `threads CPU_MS` (of each) */

#define _GNU_SOURCE
#include <pthread.h>

#include "work.h"

static uint64_t enough;

LEAF(grind)
LINK(crush, grind)
LEAF(pour)
LINK(brew, pour)

static void *mill(void *name) {
    pthread_setname_np(pthread_self(), name);
    while (cpu_ms() < enough)
        sink = crush(sink);
    return NULL;
}

static void *pot(void *name) {
    pthread_setname_np(pthread_self(), name);
    while (cpu_ms() < enough)
        sink = brew(sink);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[2];
    enough = argument_ms(argc, argv, 1, 2000);
    if (pthread_create(&threads[0], NULL, mill, "mill") || pthread_create(&threads[1], NULL, pot, "pot"))
        return 1;
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    return 0;
}
