/* The C library's functions that are written in assembly. `strings CPU_MS` */

#include <string.h>

#include "work.h"

#define BYTES (1u << 20)

static char from[BYTES], to[BYTES];

KEPT uint64_t copy(uint64_t x) {
    memcpy(to, from + x % 64, BYTES - 64);
    BARRIER();
    return x + (uint64_t)to[x % BYTES];
}

KEPT uint64_t measure(uint64_t x) {
    uint64_t y = strlen(from);
    BARRIER();
    return x + y;
}

KEPT uint64_t find(uint64_t x) {
    const char *found = memchr(from + x % 64, 1, BYTES - 64);
    BARRIER();
    return x + (found != NULL);
}

KEPT uint64_t compare(uint64_t x) {
    int order = strcmp(from, to);
    BARRIER();
    return x + (uint64_t)order;
}

KEPT uint64_t fill(uint64_t x) {
    memset(to, 'x', BYTES - 1);
    BARRIER();
    return x + 1;
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    memset(from, 'x', BYTES - 1);
    while (cpu_ms() < enough)
        for (int i = 0; i < 20; i++) {
            sink = copy(sink);
            sink = measure(sink);
            sink = find(sink);
            sink = compare(sink);
            sink = fill(sink);
        }
    return 0;
}
