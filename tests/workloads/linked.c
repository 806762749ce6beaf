/* Two contexts that come to their end, again and again: the first one goes on with the second one, that with
 * `main` (uc_link). `linked CPU_MS` */

#include "context.h"
#include "work.h"

/* About 1 ms. */
#define UNIT 800000u

static ucontext_t back, one, two;

LEAF_OF(leaf, UNIT)
LINK(in_one, leaf)
LINK(in_two, leaf)
LINK(in_first, leaf)

static void one_body(void) {
    sink = in_one(sink);
    BARRIER();
}

static void two_body(void) {
    sink = in_two(sink);
    BARRIER();
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    while (cpu_ms() < enough) {
        if (make(&two, &stacks[1], two_body, &back) || make(&one, &stacks[0], one_body, &two))
            return 1;
        sink = in_first(sink);
        if (swapcontext(&back, &one))
            return 1;
    }
    return 0;
}
