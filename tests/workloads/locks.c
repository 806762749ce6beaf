/* Threads that compute, lock, print and sleep, all through the C library. `locks CPU_MS` (of each) */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>

#include "work.h"

#define THREADS 4

static pthread_mutex_t mutex;
static uint64_t enough;

LEAF(grind)
LINK(crush, grind)

static void *computing(void *unused) {
    while (cpu_ms() < enough)
        sink = crush(sink);
    return unused;
}

static void *locking(void *unused) {
    struct timespec past = {0, 0};
    while (cpu_ms() < enough)
        for (int i = 0; i < 1000; i++) {
            if (pthread_mutex_lock(&mutex))
                abort();
            if (pthread_mutex_timedlock(&mutex, &past) != ETIMEDOUT && pthread_mutex_unlock(&mutex))
                abort();
            if (pthread_mutex_unlock(&mutex))
                abort();
        }
    return unused;
}

static void *printing(void *unused) {
    char text[64];
    while (cpu_ms() < enough)
        for (int i = 0; i < 1000; i++)
            sink += (uint64_t)snprintf(text, sizeof text, "%d %lx %s", i, (long)i, "text");
    return unused;
}

static void *sleeping(void *unused) {
    const struct timespec moment = {0, 1000};
    while (cpu_ms() < enough)
        for (int i = 0; i < 100; i++) {
            poll(NULL, 0, 0);
            nanosleep(&moment, NULL);
        }
    return unused;
}

int main(int argc, char **argv) {
    void *(*const bodies[THREADS])(void *) = {computing, locking, printing, sleeping};
    pthread_t threads[THREADS];
    pthread_mutexattr_t recursive;
    enough = argument_ms(argc, argv, 1, 2000);
    if (pthread_mutexattr_init(&recursive) ||
        pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE) ||
        pthread_mutex_init(&mutex, &recursive))
        return 1;
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, bodies[i], NULL))
            return 1;
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
