/* Assembly whose CFA counts from other registers than rsp and rbp, or is an expression: as OpenSSL and
 * gcc have it. `registers CPU_MS` */

#include "work.h"

LEAF(leaf)

#ifdef __x86_64__
/* The caller's rsp is kept in a register while rsp is aligned; no call. */
#define KEPT_IN(reg)                                                                               \
    __asm__(".text\n.p2align 4\n.globl in_" #reg "\n.type in_" #reg ", @function\n"                \
            "in_" #reg ":\n"                                                                       \
            ".cfi_startproc\n"                                                                     \
            "mov %rsp, %" #reg "\n"                                                                \
            ".cfi_def_cfa " #reg ", 8\n"                                                           \
            "push %rbp\n"                                                                          \
            ".cfi_offset rbp, -16\n"                                                               \
            "and $-64, %rsp\n"                                                                     \
            "sub $1024, %rsp\n"                                                                    \
            "xor %ebp, %ebp\n"                                                                     \
            "1: inc %ebp\n"                                                                        \
            "cmp $8000000, %ebp\n"                                                                 \
            "jne 1b\n"                                                                             \
            "mov -8(%" #reg "), %rbp\n"                                                            \
            ".cfi_restore rbp\n"                                                                   \
            "mov %" #reg ", %rsp\n"                                                                \
            ".cfi_def_cfa rsp, 8\n"                                                                \
            "ret\n"                                                                                \
            ".cfi_endproc\n"                                                                       \
            ".size in_" #reg ", .-in_" #reg "\n");                                                 \
    void in_##reg(void);                                                                           \
    KEPT void with_##reg(void) {                                                                   \
        in_##reg();                                                                                \
        BARRIER();                                                                                 \
    }

KEPT_IN(rax)
KEPT_IN(rcx)
KEPT_IN(rdx)
KEPT_IN(rsi)
KEPT_IN(rdi)
KEPT_IN(r8)
KEPT_IN(r9)
KEPT_IN(r10)
KEPT_IN(r11)

/* The caller's rsp is in the frame; an expression says so, and then another one that says it in a way
 * that no compiler has: rsp + 24, read, plus 4, plus 4. */
#define EXPRESSION(name, cfa)                                                                      \
    __asm__(".text\n.p2align 4\n.globl " #name "\n.type " #name ", @function\n"                    \
            #name ":\n"                                                                            \
            ".cfi_startproc\n"                                                                     \
            "mov %rsp, %rax\n"                                                                     \
            ".cfi_def_cfa rax, 8\n"                                                                \
            "and $-64, %rsp\n"                                                                     \
            "sub $64, %rsp\n"                                                                      \
            "mov %rax, 24(%rsp)\n"                                                                 \
            ".cfi_escape " cfa "\n"                                                                \
            "call leaf\n"                                                                          \
            "mov 24(%rsp), %rcx\n"                                                                 \
            ".cfi_def_cfa rcx, 8\n"                                                                \
            "mov %rcx, %rsp\n"                                                                     \
            ".cfi_def_cfa rsp, 8\n"                                                                \
            "ret\n"                                                                                \
            ".cfi_endproc\n"                                                                       \
            ".size " #name ", .-" #name "\n");                                                     \
    uint64_t name(uint64_t);                                                                       \
    LINK(with_##name, name)

/* DW_CFA_def_cfa_expression, length; DW_OP_breg7 24, DW_OP_deref, DW_OP_plus_uconst 8 */
EXPRESSION(known, "0x0f, 5, 0x77, 24, 0x06, 0x23, 8")
/* ...; DW_OP_lit4, DW_OP_plus, DW_OP_lit4, DW_OP_plus */
EXPRESSION(strange, "0x0f, 7, 0x77, 24, 0x06, 0x34, 0x22, 0x34, 0x22")
#endif

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    while (cpu_ms() < enough) {
        with_rax(), with_rcx(), with_rdx(), with_rsi(), with_rdi();
        with_r8(), with_r9(), with_r10(), with_r11();
        sink = with_known(sink);
        sink = with_strange(sink);
    }
    return 0;
}
