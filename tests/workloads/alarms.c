/* A timer whose signal interrupts short functions wherever they are, often: in their first and last
 * instructions, too. `alarms CPU_MS [altstack]` */

#include <signal.h>
#include <string.h>
#include <sys/time.h>

#include "work.h"

#define PERIOD_US 100
/* About 20 us. */
#define UNIT 16000u

static char other_stack[1 << 16];

LEAF_OF(handler_leaf, UNIT)
LINK(handler_outer, handler_leaf)

static void on_signal(int signal) {
    sink = handler_outer((uint64_t)signal);
    BARRIER();
}

KEPT uint64_t leaf(uint64_t x) {
    BARRIER();
    return x * 7 + 1;
}

/* Saves what calls keep. */
KEPT uint64_t saving(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    uint64_t e = leaf(a), f = leaf(b), g = leaf(c), h = leaf(d);
    return a ^ b ^ c ^ d ^ e ^ f ^ g ^ h;
}

KEPT uint64_t variable(uint64_t x) {
    volatile char some[1 + x % 64];
    some[0] = 1;
    return saving(x, x + 1, x + 2, x + 3) + (uint64_t)some[0];
}

KEPT uint64_t aligned(uint64_t x) {
    volatile uint64_t line[8] __attribute__((aligned(128)));
    line[x % 8] = x;
    return variable(x) + line[x % 8];
}

KEPT uint64_t caller(uint64_t x) {
    for (int i = 0; i < 100000; i++)
        x = aligned(x);
    return x;
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    stack_t other = {.ss_sp = other_stack, .ss_size = sizeof other_stack};
    struct sigaction action = {.sa_handler = on_signal};
    if (argc > 2 && !strcmp(argv[2], "altstack"))
        action.sa_flags = SA_ONSTACK;
    struct itimerval often = {.it_value = {.tv_usec = PERIOD_US}, .it_interval = {.tv_usec = PERIOD_US}};
    if (sigaltstack(&other, NULL) || sigaction(SIGALRM, &action, NULL) ||
        setitimer(ITIMER_REAL, &often, NULL))
        return 1;
    while (cpu_ms() < enough)
        sink = caller(sink);
    struct itimerval never = {0};
    return setitimer(ITIMER_REAL, &never, NULL);
}
