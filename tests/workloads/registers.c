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

/* As in Camellia: what is in the frame is rsp after all registers were pushed. */
__asm__(".text\n.p2align 4\n.globl pushed\n.type pushed, @function\n"
        "pushed:\n"
        ".cfi_startproc\n"
        "push %rbx\n"
        ".cfi_def_cfa_offset 16\n"
        ".cfi_offset rbx, -16\n"
        "push %rbp\n"
        ".cfi_def_cfa_offset 24\n"
        ".cfi_offset rbp, -24\n"
        "push %r12\npush %r13\npush %r14\npush %r15\n"
        ".cfi_def_cfa_offset 56\n"
        "mov %rsp, %rbp\n"
        ".cfi_def_cfa_register rbp\n"
        "sub $88, %rsp\n"
        "and $-64, %rsp\n"
        "mov %rbp, 48(%rsp)\n"
        /* DW_OP_breg7 48, DW_OP_deref, DW_OP_plus_uconst 56 */
        ".cfi_escape 0x0f, 5, 0x77, 48, 0x06, 0x23, 56\n"
        "mov $1, %ebp\n"
        "call leaf\n"
        "mov 48(%rsp), %rcx\n"
        ".cfi_def_cfa rcx, 56\n"
        "mov 40(%rcx), %rbx\n"
        ".cfi_restore rbx\n"
        "mov 32(%rcx), %rbp\n"
        ".cfi_restore rbp\n"
        "lea 48(%rcx), %rsp\n"
        ".cfi_def_cfa rsp, 8\n"
        "ret\n"
        ".cfi_endproc\n"
        ".size pushed, .-pushed\n");
uint64_t pushed(uint64_t);
LINK(with_pushed, pushed)

/* As in Montgomery multiplication: the caller's rsp is behind as many words as r9 says. Nobody knows r9 any
 * more when another function was called. */
#define INDEXED(name, words, body)                                                                 \
    __asm__(".text\n.p2align 4\n.globl " #name "\n.type " #name ", @function\n"                    \
            #name ":\n"                                                                            \
            ".cfi_startproc\n"                                                                     \
            "mov %rsp, %rax\n"                                                                     \
            ".cfi_def_cfa_register rax\n"                                                          \
            "push %rbp\n"                                                                          \
            ".cfi_offset rbp, -16\n"                                                               \
            "mov $" #words ", %r9d\n"                                                              \
            "sub $(" #words " * 8 + 16), %rsp\n"                                                   \
            "and $-1024, %rsp\n"                                                                   \
            "mov %rax, 8(%rsp,%r9,8)\n" /* DW_OP_breg7 8, DW_OP_breg9 0, DW_OP_lit8, DW_OP_mul,     \
                                           DW_OP_plus, DW_OP_deref, DW_OP_plus_uconst 8 */         \
            ".cfi_escape 0x0f, 10, 0x77, 8, 0x79, 0, 0x38, 0x1e, 0x22, 0x06, 0x23, 8\n" body       \
            "mov 8(%rsp,%r9,8), %rsi\n"                                                            \
            ".cfi_def_cfa rsi, 8\n"                                                                \
            "mov -8(%rsi), %rbp\n"                                                                 \
            ".cfi_restore rbp\n"                                                                   \
            "mov %rsi, %rsp\n"                                                                     \
            ".cfi_def_cfa rsp, 8\n"                                                                \
            "ret\n"                                                                                \
            ".cfi_endproc\n"                                                                       \
            ".size " #name ", .-" #name "\n");                                                     \
    uint64_t name(uint64_t);                                                                       \
    LINK(with_##name, name)

#define WORK "xor %ebp, %ebp\n1: inc %ebp\ncmp $8000000, %ebp\njne 1b\n"
INDEXED(indexed, 6, WORK)
INDEXED(indexed_far, 700, WORK)
INDEXED(indexed_calls, 6, "call leaf\nmov $6, %r9d\n")
#endif

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    while (cpu_ms() < enough) {
        with_rax(), with_rcx(), with_rdx(), with_rsi(), with_rdi();
        with_r8(), with_r9(), with_r10(), with_r11();
        sink = with_known(sink);
        sink = with_strange(sink);
        sink = with_pushed(sink);
        sink = with_indexed(sink);
        sink = with_indexed_far(sink);
        sink = with_indexed_calls(sink);
    }
    return 0;
}
