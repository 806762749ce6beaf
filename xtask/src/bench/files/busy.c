/* Work of known shapes, without frame pointers, on two CPUs' worth of time, until it is killed.
 * `busy deep`         two processes, whose recursions are 5, 50, 200, 500 and 990 frames deep by turns
 * `busy lives RATE`   RATE processes a second: fork, exec, some ms of work
 * `busy live MS`      one such life
 * `busy many COUNT`   COUNT processes, which work 2 ms by turns */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile uint64_t sink;

static uint64_t now_ns(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void sleep_until_ns(uint64_t at) {
    struct timespec time = {(time_t)(at / 1000000000u), (long)(at % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) != 0) {
    }
}

__attribute__((noinline)) static void spin_ms(uint64_t ms) {
    uint64_t end = now_ns(CLOCK_PROCESS_CPUTIME_ID) + ms * 1000000u;
    while (now_ns(CLOCK_PROCESS_CPUTIME_ID) < end)
        for (int i = 0; i < 20000; i++)
            sink = sink * 6364136223846793005u + 1;
}

__attribute__((noinline)) static uint64_t deeper(unsigned depth) {
    if (depth <= 1) {
        spin_ms(100);
        return sink;
    }
    uint64_t below = deeper(depth - 1);
    __asm__ volatile("" ::: "memory");
    return below ^ depth;
}

static pid_t child(void) {
    pid_t pid = fork();
    if (pid == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    return pid;
}

static void deep(void) {
    static const unsigned depths[] = {5, 50, 200, 500, 990};
    child();
    for (unsigned i = 0;; i++)
        sink ^= deeper(depths[i % 5]);
}

static void lives(const char *self, uint64_t rate) {
    char ms[24];
    /* Two CPUs have 2000 ms a second; starting one takes about one. */
    snprintf(ms, sizeof ms, "%lu", (unsigned long)(1600 / rate - 1));
    uint64_t start = now_ns(CLOCK_MONOTONIC);
    for (uint64_t i = 1;; i++) {
        if (child() == 0) {
            execl(self, self, "live", ms, (char *)NULL);
            _exit(1);
        }
        while (waitpid(-1, NULL, WNOHANG) > 0) {
        }
        sleep_until_ns(start + i * 1000000000u / rate);
    }
}

static void many(uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        if (child() != 0)
            continue;
        for (uint64_t at = now_ns(CLOCK_MONOTONIC) + i * 2000000u;; at += count * 1000000u) {
            sleep_until_ns(at);
            spin_ms(2);
        }
    }
    for (;;)
        pause();
}

int main(int argc, char **argv) {
    uint64_t number = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
    if (argc > 1 && strcmp(argv[1], "deep") == 0)
        deep();
    else if (argc > 2 && number > 0 && strcmp(argv[1], "lives") == 0)
        lives(argv[0], number);
    else if (argc > 2 && strcmp(argv[1], "live") == 0)
        spin_ms(number);
    else if (argc > 2 && number > 0 && strcmp(argv[1], "many") == 0)
        many(number);
    else
        return 2;
    return 0;
}
