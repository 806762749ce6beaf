/* A signal interrupts code that was made at run time: `made outer` calls `made inner`, which counts down, both
 * with frame pointers. `jit-signal CPU_MS` */

#include <signal.h>
#include <stdio.h>
#include <sys/time.h>
#include <unistd.h>

#include "bridge.h"
#include "work.h"

#define INNER_AT 64u
#define PERIOD_US 10000
/* About 4 ms each. */
#define ROUNDS_OF_INNER 10000000u
#define ROUNDS_OF_HANDLER 3000000u

#ifdef __x86_64__
static const unsigned char counting_code[] = {
    0x55,             /* push rbp */
    0x48, 0x89, 0xe5, /* mov rbp, rsp */
    0x48, 0xff, 0xcf, /* dec rdi */
    0x75, 0xfb,       /* jnz to it */
    0x5d,             /* pop rbp */
    0xc3,             /* ret */
};
#else
static const uint32_t counting_code[] = {
    0xa9bf7bfd, /* stp x29, x30, [sp, #-16]! */
    0x910003fd, /* mov x29, sp */
    0xf1000400, /* subs x0, x0, #1 */
    0x54ffffe1, /* b.ne to it */
    0xa8c17bfd, /* ldp x29, x30, [sp], #16 */
    0xd65f03c0, /* ret */
};
#endif

LEAF_OF(handler_leaf, ROUNDS_OF_HANDLER)
LINK(handler_outer, handler_leaf)

static void on_signal(int signal) {
    sink = handler_outer((uint64_t)signal);
    BARRIER();
}

KEPT uint64_t enter(bridge *outer, uint64_t (*inner)(uint64_t)) {
    uint64_t y = outer(inner, ROUNDS_OF_INNER);
    BARRIER();
    return y + 1;
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    char *page = writable_page();
    if (!page)
        return 1;
    memcpy(page, bridge_code, sizeof bridge_code);
    memcpy(page + INNER_AT, counting_code, sizeof counting_code);
    if (make_executable(page))
        return 1;
    char path[64];
    snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
    FILE *map = fopen(path, "w");
    if (!map)
        return 1;
    fprintf(map, "%lx %x made outer\n%lx %x made inner\n", (unsigned long)page, INNER_AT,
            (unsigned long)page + INNER_AT, INNER_AT);
    fclose(map);
    struct sigaction action = {.sa_handler = on_signal};
    struct itimerval often = {.it_value = {.tv_usec = PERIOD_US}, .it_interval = {.tv_usec = PERIOD_US}};
    if (sigaction(SIGPROF, &action, NULL) || setitimer(ITIMER_PROF, &often, NULL))
        return 1;
    while (cpu_ms() < enough)
        sink = enter((bridge *)page, (uint64_t(*)(uint64_t))(page + INNER_AT));
    struct itimerval never = {0};
    return setitimer(ITIMER_PROF, &never, NULL);
}
