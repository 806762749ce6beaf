/* Two libraries in turn, each where the other one was; fails where they are not. A turn takes 400 ms, or as long as is
 * said, but one call at least. `swap CPU_MS ONE OTHER [CPU_MS_OF_A_TURN]` */

#define _GNU_SOURCE

#include <dlfcn.h>
#include <stdio.h>

#include "work.h"

#define MS_OF_A_TURN 400u

typedef uint64_t function(uint64_t);

KEPT uint64_t call(function *entry, uint64_t x) {
    uint64_t y = entry(x);
    BARRIER();
    return y ^ x;
}

static function *entry(void *library, const char *name) { return library ? (function *)dlsym(library, name) : NULL; }

int main(int argc, char **argv) {
    static const char *const names[] = {"plugin_entry", "twin_entry"};
    uint64_t enough = argument_ms(argc, argv, 1, 4000), of_turn = argument_ms(argc, argv, 4, MS_OF_A_TURN);
    Dl_info at;
    void *place = NULL;
    for (int turn = 0; argc > 3 && cpu_ms() < enough; turn = !turn) {
        void *library = dlopen(argv[2 + turn], RTLD_NOW);
        function *work = entry(library, names[turn]);
        if (!work || !dladdr((void *)work, &at)) {
            fprintf(stderr, "swap: %s\n", dlerror());
            return 1;
        }
        if (place && place != at.dli_fbase) {
            fprintf(stderr, "swap: at %p and at %p\n", place, at.dli_fbase);
            return 1;
        }
        place = at.dli_fbase;
        uint64_t end = cpu_ms() + of_turn;
        do
            sink = call(work, sink);
        while (cpu_ms() < end);
        dlclose(library);
    }
    return 0;
}
