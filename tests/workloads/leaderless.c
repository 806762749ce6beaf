/* The first thread ends, another goes on. `leaderless CPU_MS` */

#define _GNU_SOURCE
#include <pthread.h>

#include "work.h"

static uint64_t enough;

LEAF(leaf)
LINK(outer, leaf)

static void *heir(void *unused) {
    (void)unused;
    while (cpu_ms() < enough)
        sink = outer(sink);
    exit(0);
}

int main(int argc, char **argv) {
    pthread_t thread;
    enough = argument_ms(argc, argv, 1, 4000);
    if (pthread_create(&thread, NULL, heir, NULL))
        return 1;
    pthread_exit(NULL);
}
