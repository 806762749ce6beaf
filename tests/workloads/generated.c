/* Code that is written while the program runs, with a frame pointer and no unwind tables, calls back
 * into the program. `generated CPU_MS` */

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
    char *page = writable_page();
    if (!page)
        return 1;
    memcpy(page, bridge_code, sizeof bridge_code);
    if (make_executable(page))
        return 1;
    while (cpu_ms() < enough)
        sink = enter((bridge *)page, sink);
    return 0;
}
