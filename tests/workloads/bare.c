/* A library that is built without unwind tables, with or without frame pointers. gcc gives a leaf no
 * frame of its own unless it has something to put there: LEAF_WITH_FRAME does that.
 *
 * Where the stack pointer is follows from gcc's code. With UNCLEAR it does not: then it is assembly that
 * moves it by a register, and keeps frame pointers (FRAMES) or not. */

#include "work.h"

#if defined UNCLEAR && defined __x86_64__
uint64_t bare_leaf(uint64_t x);
uint64_t bare_middle(uint64_t x);
uint64_t bare_outer(uint64_t x);

#define FUNCTION(name, body)                                                                                           \
    __asm__(".text\n.globl " #name "\n.hidden " #name "_\n.type " #name ", @function\n" #name ":\n" #name "_:\n" body  \
            ".size " #name ", .-" #name "\n");
/* About 20 ms. */
#define WORK "mov $16000000, %ecx\n2: imul $1103515245, %rdi, %rdi\n add $12345, %rdi\n dec %ecx\n jnz 2b\n"

/* The stack is moved by 16 on one way and not on the other, and given back by another register: all that
 * leads on is the frame pointer. */
#define FRAME(body)                                                                                                    \
    "push %rbp\n mov %rsp, %rbp\n test %rdi, %rdi\n je 1f\n sub $16, %rsp\n1:\n" body                                  \
    "mov %rbp, %rcx\n mov %rcx, %rsp\n pop %rbp\n ret\n"
/* Nothing does. */
#define NO_FRAME(body) "mov $24, %ecx\n sub %rcx, %rsp\n" body "mov $24, %ecx\n add %rcx, %rsp\n ret\n"

#ifdef FRAMES
#define LINKING FRAME
#else
#define LINKING NO_FRAME
#endif
#ifdef LEAF_WITH_FRAME
#define LEAVING FRAME
#else
#define LEAVING NO_FRAME
#endif
FUNCTION(bare_leaf, LEAVING(WORK "mov %rdi, %rax\n"))
FUNCTION(bare_middle, LINKING("call bare_leaf_\n"))
FUNCTION(bare_outer, LINKING("call bare_middle_\n"))
#else
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
#endif
