/* Two stacks made by makecontext and the first one, in turn. `contexts CPU_MS` */

#include "context.h"
#include "work.h"

/* About 1 ms. */
#define UNIT 800000u

static uint64_t enough;
static ucontext_t first, ping, pong;

LEAF_OF(leaf, UNIT)
LINK(in_ping, leaf)
LINK(in_pong, leaf)
LINK(in_first, leaf)

static void ping_body(void) {
    for (;;) {
        sink = in_ping(sink);
        swapcontext(&ping, &pong);
    }
}

static void pong_body(void) {
    for (;;) {
        sink = in_pong(sink);
        swapcontext(&pong, &first);
    }
}

int main(int argc, char **argv) {
    enough = argument_ms(argc, argv, 1, 4000);
    if (make(&ping, &stacks[0], ping_body, NULL) || make(&pong, &stacks[1], pong_body, NULL))
        return 1;
    while (cpu_ms() < enough) {
        sink = in_first(sink);
        swapcontext(&first, &ping);
    }
    return 0;
}
