/* A signal handler that works, above what it interrupted. `handler CPU_MS [altstack|entry]`:
 * altstack runs it on a stack of its own, entry interrupts a function at its first instruction. The
 * signal comes after 0.3 s. */

#include <signal.h>
#include <string.h>
#include <sys/time.h>

#include "work.h"

static volatile sig_atomic_t done;
static uint64_t enough;
static char other_stack[1 << 16];

LEAF(handler_leaf)
LINK(handler_outer, handler_leaf)

#ifdef __x86_64__
/* Between functions without CFI: an address before it has no or another unwind row. */
__asm__(".text\n"
        "nop\n nop\n nop\n nop\n"
        ".globl trap_at_entry\n"
        ".type trap_at_entry, @function\n"
        "trap_at_entry:\n"
        ".cfi_startproc\n"
        "ud2\n"
        "ret\n"
        ".cfi_endproc\n"
        ".size trap_at_entry, .-trap_at_entry\n");
#else
__asm__(".text\n"
        "nop\n nop\n"
        ".globl trap_at_entry\n"
        ".type trap_at_entry, %function\n"
        "trap_at_entry:\n"
        ".cfi_startproc\n"
        "udf #0\n"
        "ret\n"
        ".cfi_endproc\n"
        ".size trap_at_entry, .-trap_at_entry\n");
#endif
void trap_at_entry(void);

static void on_signal(int signal) {
    (void)signal;
    while (cpu_ms() < enough)
        sink = handler_outer(sink);
    done = 1;
    if (signal == SIGILL)
        _Exit(0);
    BARRIER();
}

KEPT void interrupted(void) {
    while (!done)
        sink = sink + 1;
}

KEPT void trapped(void) {
    trap_at_entry();
    BARRIER();
}

KEPT void caller(int at_entry) {
    if (at_entry)
        trapped();
    else
        interrupted();
    BARRIER();
}

int main(int argc, char **argv) {
    const char *how = argc > 2 ? argv[2] : "";
    enough = argument_ms(argc, argv, 1, 4000);
    stack_t other = {.ss_sp = other_stack, .ss_size = sizeof other_stack};
    struct sigaction action = {.sa_handler = on_signal};
    if (!strcmp(how, "altstack"))
        action.sa_flags = SA_ONSTACK;
    struct itimerval soon = {.it_value = {.tv_usec = 300000}};
    if (sigaltstack(&other, NULL) || sigaction(SIGALRM, &action, NULL) || sigaction(SIGILL, &action, NULL))
        return 1;
    int at_entry = !strcmp(how, "entry");
    if (!at_entry && setitimer(ITIMER_REAL, &soon, NULL))
        return 1;
    caller(at_entry);
    return 0;
}
