/* What the workloads share: work for the CPU, when it is enough, and calls that stay calls. */

#ifndef WORK_H
#define WORK_H

#include <stdint.h>
#include <stdlib.h>
#include <time.h>

/* About 20 ms: long beside the system call that asks whether it is enough. */
#define ROUNDS_OF_LEAF 16000000u

/* Never inlined, never copied under another name. */
#define KEPT __attribute__((noinline, noclone))

/* After a call: the compiler cannot turn it into a jump. */
#define BARRIER() __asm__ volatile("" ::: "memory")

static volatile uint64_t sink;

#define SPIN(x, rounds)                                                                            \
    do {                                                                                           \
        for (uint32_t i_ = 0; i_ < (rounds); i_++)                                                 \
            x = x * 6364136223846793005u + 1442695040888963407u;                                   \
        sink = x;                                                                                  \
    } while (0)

#define LEAF_OF(name, rounds)                                                                      \
    KEPT uint64_t name(uint64_t x) {                                                               \
        SPIN(x, rounds);                                                                           \
        return x;                                                                                  \
    }

#define LEAF(name) LEAF_OF(name, ROUNDS_OF_LEAF)

#define LINK(name, callee)                                                                         \
    KEPT uint64_t name(uint64_t x) {                                                               \
        uint64_t y = callee(x + 1);                                                                \
        BARRIER();                                                                                 \
        return y ^ x;                                                                              \
    }

/* CPU time of the calling thread, so that a busy machine does not mean fewer samples. */
static inline uint64_t cpu_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
}

/* The argument at that place as a number of milliseconds. */
static inline uint64_t argument_ms(int argc, char **argv, int at, uint64_t otherwise) {
    return argc > at ? strtoull(argv[at], NULL, 10) : otherwise;
}

#endif
