/* Zeroes where a return address is looked for: one that is none, as call frame information does not know what a function
   has pushed; then the one that ends the stack of a coroutine.
   `zero CPU_MS` */

#include "work.h"

/* Where it loops, its call frame information is wrong. */
__asm__(".pushsection .text\n"
        ".type astray, @function\n"
        "astray:\n"
        "\t.cfi_startproc\n"
        "\tpushq $0\n"
        "\tmovl $8000000, %eax\n"
        "1:\timulq $3, %rdi, %rdi\n"
        "\tdecl %eax\n"
        "\tjnz 1b\n"
        "\taddq $8, %rsp\n"
        "\tret\n"
        "\t.cfi_endproc\n"
        ".size astray, . - astray\n"
        ".popsection\n");
void astray(uint64_t x);

LEAF_OF(leaf, ROUNDS_OF_LEAF / 2)
LINK(middle, leaf)

static uint64_t enough;

KEPT static void coroutine(void) {
    while (cpu_ms() < enough)
        sink = middle(sink);
    exit(0);
}

static char stack[65536] __attribute__((aligned(16)));

int main(int argc, char **argv) {
    enough = argument_ms(argc, argv, 1, 2000);
    while (cpu_ms() < enough / 2)
        astray(3);
    __asm__ volatile("movq %0, %%rsp\n\tpushq $0\n\tjmp *%1" ::"r"(stack + sizeof stack), "r"(coroutine) : "memory");
    __builtin_unreachable();
}
