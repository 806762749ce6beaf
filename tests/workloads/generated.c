/* Code that is written while the program runs, with a frame pointer and no unwind tables, calls back
 * into the program. `generated CPU_MS` */

#include <string.h>
#include <sys/mman.h>

#include "bridge.h"
#include "work.h"

LEAF(leaf)

KEPT uint64_t enter(bridge *generated, uint64_t x) {
    uint64_t y = generated(leaf, x);
    BARRIER();
    return y ^ x;
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return 1;
    memcpy(page, bridge_code, sizeof bridge_code);
    __builtin___clear_cache(page, page + sizeof bridge_code);
    if (mprotect(page, 4096, PROT_READ | PROT_EXEC))
        return 1;
    while (cpu_ms() < enough)
        sink = enter((bridge *)page, sink);
    return 0;
}
