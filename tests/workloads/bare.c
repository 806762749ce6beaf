/* A library that is built without unwind tables, with or without frame pointers. gcc gives a leaf no
 * frame of its own unless it has something to put there: LEAF_WITH_FRAME does that. */

#include "work.h"

#ifdef LEAF_WITH_FRAME
KEPT uint64_t bare_leaf(uint64_t x) {
    volatile uint64_t some[40];
    some[x % 40] = x;
    SPIN(x, ROUNDS_OF_LEAF);
    return x ^ some[x % 40];
}
#else
LEAF(bare_leaf)
#endif
LINK(bare_middle, bare_leaf)
LINK(bare_outer, bare_middle)
