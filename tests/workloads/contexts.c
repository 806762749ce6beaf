/* Two stacks made by makecontext and the first one, in turn. `contexts CPU_MS` */

#include <ucontext.h>

#include "work.h"

/* About 1 ms. */
#define UNIT 800000u
#define STACK_BYTES (1 << 16)

static uint64_t enough;
static ucontext_t first, ping, pong;
static char stacks[2][STACK_BYTES];

KEPT uint64_t leaf(uint64_t x) {
    SPIN(x, UNIT);
    return x;
}

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

static int make(ucontext_t *context, char *stack, void (*body)(void)) {
    int failed = getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = STACK_BYTES;
    makecontext(context, body, 0);
    return failed;
}

int main(int argc, char **argv) {
    enough = argument_ms(argc, argv, 1, 4000);
    if (make(&ping, stacks[0], ping_body) || make(&pong, stacks[1], pong_body))
        return 1;
    while (cpu_ms() < enough) {
        sink = in_first(sink);
        swapcontext(&first, &ping);
    }
    return 0;
}
