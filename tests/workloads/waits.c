/* Threads that wait, each in a system call of its own, below thread_NAME, outer, inner; and one that
 * runs. The deep one has DEPTH frames of 512 bytes below it. `waits DEPTH [EXTRA]`: so many more threads
 * that read. */

#include <pthread.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "work.h"

static int pipes[2];
static int epoll;
static pthread_mutex_t locked = PTHREAD_MUTEX_INITIALIZER;
static uint64_t depth;

KEPT uint64_t deeper(uint64_t x, uint64_t left) {
    volatile char room[512];
    char byte;
    room[0] = (char)x;
    uint64_t y = left > 1 ? deeper(x + 1, left - 1) : (uint64_t)read(pipes[0], &byte, 1);
    BARRIER();
    return y ^ (uint64_t)room[0];
}

/* The system call, or what leads there. */
#define WAITS(name, wait)                                                                          \
    KEPT uint64_t name##_inner(uint64_t x) {                                                       \
        wait;                                                                                      \
        return x;                                                                                  \
    }                                                                                              \
    LINK(name##_outer, name##_inner)                                                               \
    static void *name##_thread(void *unused) {                                                     \
        prctl(PR_SET_NAME, #name);                                                                 \
        sink = name##_outer(sink);                                                                 \
        return unused;                                                                             \
    }

WAITS(reader, char byte; x += (uint64_t)read(pipes[0], &byte, 1))
WAITS(sleeper, struct timespec long_time = {.tv_sec = 1000}; nanosleep(&long_time, NULL))
WAITS(locker, pthread_mutex_lock(&locked))
WAITS(poller, struct epoll_event event; x += (uint64_t)epoll_wait(epoll, &event, 1, -1))
WAITS(deep, x += deeper(x, depth))
WAITS(runner, for (;;) SPIN(x, ROUNDS_OF_LEAF))

static void *named_thread(void *unused) {
    prctl(PR_SET_NAME, "a\x1b[2Jb\nc");
    sink = reader_outer(sink);
    return unused;
}

int main(int argc, char **argv) {
    depth = argument_ms(argc, argv, 1, 100);
    uint64_t extra = argument_ms(argc, argv, 2, 0);
    epoll = epoll_create1(0);
    if (epoll < 0 || pipe(pipes) != 0)
        return 1;
    pthread_mutex_lock(&locked);
    void *(*const threads[])(void *) = {reader_thread, sleeper_thread, locker_thread, poller_thread,
                                        deep_thread,   runner_thread,  named_thread};
    const uint64_t kinds = sizeof threads / sizeof *threads;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    for (uint64_t at = 0; at < kinds + extra; at++) {
        pthread_t thread;
        if (pthread_create(&thread, at < kinds ? NULL : &small, threads[at < kinds ? at : 0], NULL) != 0)
            return 1;
    }
    for (;;)
        pause();
}
