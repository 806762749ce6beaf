/* A short chain in a program with a large unwind table. `bulky CPU_MS` */

#include "work.h"

/* 100,000 functions that nobody calls, and two rows of the table for each. */
__asm__(".text\n"
        ".rept 100000\n"
        ".cfi_startproc\n"
        "nop\n"
        ".cfi_adjust_cfa_offset 16\n"
        "nop\n"
        ".cfi_adjust_cfa_offset -16\n"
        ".cfi_endproc\n"
        ".endr\n");

/* Shorter rounds than elsewhere: half a second is to be met. */
LEAF_OF(leaf, ROUNDS_OF_LEAF / 2)
LINK(inner, leaf)
LINK(outer, inner)

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 500);
    while (cpu_ms() < enough)
        sink = outer(sink);
    return 0;
}
