/* Works for a while, then loads a library and works there. `host CPU_MS LIBRARY [memfd]`: from a copy in memory
 * that has no path. */

#define _GNU_SOURCE

#include <dlfcn.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "work.h"

#define MS_BEFORE 1000u

typedef uint64_t function(uint64_t);

LEAF(host_leaf)

KEPT uint64_t call(function *plugin, uint64_t x) {
    uint64_t y = plugin(x);
    BARRIER();
    return y ^ x;
}

/* A path to a copy of a file in memory. */
static const char *copy(const char *file) {
    static char path[64], buffer[65536];
    FILE *from = fopen(file, "r");
    int to = memfd_create("library", 0);
    size_t length;
    while (from && to >= 0 && (length = fread(buffer, 1, sizeof buffer, from)) > 0)
        if (write(to, buffer, length) != (ssize_t)length)
            abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", to);
    return path;
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    while (cpu_ms() < MS_BEFORE)
        sink = host_leaf(sink);
    const char *file = argc > 3 ? copy(argv[2]) : argc > 2 ? argv[2] : "";
    void *library = dlopen(file, RTLD_NOW);
    function *plugin = library ? (function *)dlsym(library, "plugin_entry") : NULL;
    if (!plugin) {
        fprintf(stderr, "host: %s\n", dlerror());
        return 1;
    }
    while (cpu_ms() < enough)
        sink = call(plugin, sink);
    return 0;
}
