/* Works in a library that has no unwind tables. With FRAME_POINTER_IN_USE the register still points
 * to the frame of the library's caller. `through_bare CPU_MS` */

#include "work.h"

uint64_t bare_outer(uint64_t x);

#ifdef FRAME_POINTER_IN_USE
KEPT uint64_t enter(uint64_t x) {
    volatile char some[1 + x % 5000];
    some[0] = 1;
    uint64_t y = bare_outer(x);
    return y + (uint64_t)some[0];
}
#else
LINK(enter, bare_outer)
#endif

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    while (cpu_ms() < enough)
        sink = enter(sink);
    return 0;
}
