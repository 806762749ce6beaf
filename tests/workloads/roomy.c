/* A program with frames of which the middle is never touched, so that its pages are not there: of one, and of more than
   a stack copy has room for.
   `roomy CPU_MS` */

#include "work.h"

/* Uses both ends of a buffer of so many bytes while it calls. */
#define ROOM(name, callee, bytes)                                                                  \
    KEPT uint64_t name(uint64_t x) {                                                               \
        volatile char room[bytes];                                                                 \
        room[0] = room[(bytes) - 1] = (char)x;                                                     \
        uint64_t y = callee(x + 1);                                                                \
        return y ^ (uint64_t)room[0] ^ (uint64_t)room[(bytes) - 1];                                \
    }

/* Short rounds: 20 ms are to be met. */
LEAF_OF(leaf, ROUNDS_OF_LEAF / 16)
ROOM(large, leaf, 30000)
LINK(middle, large)
ROOM(larger, middle, 60000)

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 150);
    while (cpu_ms() < enough)
        sink = larger(sink);
    return 0;
}
