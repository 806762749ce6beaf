// Exceptions in flight, through frames with destructors: most of the time is the unwinder's, some is
// a destructor's and some is the handler's. `thrower CPU_MS`

#include <stdexcept>

#include "work.h"

// About 2 us.
#define UNIT 2000u

KEPT void in_destructor() {
    uint64_t x = sink;
    SPIN(x, UNIT);
}

KEPT void in_handler() {
    uint64_t x = sink;
    SPIN(x, UNIT);
}

struct Guard {
    KEPT ~Guard() {
        in_destructor();
        BARRIER();
    }
};

KEPT void thrower(uint64_t x) {
    Guard guard;
    if (x != 77)
        throw std::runtime_error(x % 2 ? "odd" : "even");
}

KEPT void through(uint64_t x, uint64_t depth) {
    Guard guard;
    if (depth > 0)
        through(x, depth - 1);
    else
        thrower(x);
    BARRIER();
}

KEPT void catcher(uint64_t x) {
    try {
        through(x, 3);
    } catch (const std::exception &error) {
        in_handler();
        sink = static_cast<uint64_t>(error.what()[0]);
    }
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    while (cpu_ms() < enough)
        for (uint64_t i = 0; i < 100; i++)
            catcher(i);
    return 0;
}
