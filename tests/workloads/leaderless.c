/* The first thread ends, another goes on; with a library it works in there half of the time, above a
   frame that is larger than the copy of a stack. `leaderless CPU_MS [LIBRARY]` */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

#include "work.h"

typedef uint64_t function(uint64_t);

static uint64_t enough;
static const char *library;

LEAF(leaf)
LINK(outer, leaf)

KEPT uint64_t roomy(function *plugin, uint64_t x) {
    volatile char room[40000];
    room[0] = (char)x;
    uint64_t y = plugin(x);
    BARRIER();
    return y ^ (uint64_t)room[0];
}

static void *heir(void *unused) {
    (void)unused;
    while (cpu_ms() < (library ? enough / 2 : enough))
        sink = outer(sink);
    if (library) {
        void *loaded = dlopen(library, RTLD_NOW);
        function *plugin = loaded ? (function *)dlsym(loaded, "plugin_entry") : NULL;
        if (!plugin) {
            fprintf(stderr, "leaderless: %s\n", dlerror());
            exit(1);
        }
        while (cpu_ms() < enough)
            sink = roomy(plugin, sink);
    }
    exit(0);
}

int main(int argc, char **argv) {
    pthread_t thread;
    enough = argument_ms(argc, argv, 1, 4000);
    library = argc > 2 ? argv[2] : NULL;
    if (pthread_create(&thread, NULL, heir, NULL))
        return 1;
    pthread_exit(NULL);
}
