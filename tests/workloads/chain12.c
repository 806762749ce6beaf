/* A call chain of known shape, without frame pointers: main, f01 ... f12, leaf. All time is spent
 * in leaf. `chain12 SECONDS` ends by itself after that many seconds (0: after one round). */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* A tenth of a second natively, so that next to no sample falls between two rounds; short enough
 * under emulation to end in time. */
#define ROUNDS_OF_LEAF 64000000u

/* The asm after each call keeps the compiler from turning it into a jump. */
#define BARRIER() __asm__ volatile("" ::: "memory")

static volatile uint64_t sink;

__attribute__((noinline)) static uint64_t leaf(uint64_t x) {
    for (uint32_t i = 0; i < ROUNDS_OF_LEAF; i++)
        x = x * 6364136223846793005u + 1442695040888963407u;
    sink = x;
    return x;
}

#define LINK(name, callee)                                                                         \
    __attribute__((noinline)) static uint64_t name(uint64_t x) {                                   \
        uint64_t y = callee(x + 1);                                                                \
        BARRIER();                                                                                 \
        return y ^ x;                                                                              \
    }

LINK(f12, leaf)
LINK(f11, f12)
LINK(f10, f11)
LINK(f09, f10)
LINK(f08, f09)
LINK(f07, f08)
LINK(f06, f07)
LINK(f05, f06)
LINK(f04, f05)
LINK(f03, f04)
LINK(f02, f03)
LINK(f01, f02)

int main(int argc, char **argv) {
    time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 10);
    uint64_t x = 1;
    uint64_t rounds = 0;
    do {
        x = f01(x);
        rounds++;
    } while (time(NULL) < end);
    printf("chain12: %llu rounds\n", (unsigned long long)rounds);
    return 0;
}
