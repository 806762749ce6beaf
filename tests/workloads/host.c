/* Works for a while, then loads a library and works there. `host CPU_MS LIBRARY` */

#include <dlfcn.h>
#include <stdio.h>

#include "work.h"

#define MS_BEFORE 1000u

typedef uint64_t function(uint64_t);

LEAF(host_leaf)

KEPT uint64_t call(function *plugin, uint64_t x) {
    uint64_t y = plugin(x);
    BARRIER();
    return y ^ x;
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    while (cpu_ms() < MS_BEFORE)
        sink = host_leaf(sink);
    void *library = argc > 2 ? dlopen(argv[2], RTLD_NOW) : NULL;
    function *plugin = library ? (function *)dlsym(library, "plugin_entry") : NULL;
    if (!plugin) {
        fprintf(stderr, "host: %s\n", dlerror());
        return 1;
    }
    while (cpu_ms() < enough)
        sink = call(plugin, sink);
    return 0;
}
