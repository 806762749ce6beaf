/* A coroutine whose stack is switched by assembly without unwind tables, as libraries have it. Nothing
 * says who called its entry: nobody did. `switches CPU_MS` */

#include "work.h"

/* About 1 ms, and many switches for which there is next to no work. */
#define UNIT 800000u
#define SWITCHES 20000
#define STACK_WORDS 4096

#ifdef __x86_64__
__asm__(".text\n"
        ".globl switch_stacks, coroutine_entry\n"
        ".type switch_stacks, @function\n"
        "switch_stacks:\n"
        "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "mov %rsp, (%rdi)\n"
        "mov %rsi, %rsp\n"
        "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n"
        "ret\n"
        ".size switch_stacks, .-switch_stacks\n"
        ".type coroutine_entry, @function\n"
        "coroutine_entry:\n"
        "call *%rbx\n"
        "ud2\n"
        ".size coroutine_entry, .-coroutine_entry\n");
#define SAVED_WORDS 6
#define SAVED_RBX 4
#endif

void switch_stacks(uint64_t **from, uint64_t *to);
void coroutine_entry(void);

static uint64_t stack[STACK_WORDS] __attribute__((aligned(16)));
static uint64_t *outside, *inside;

LEAF_OF(leaf, UNIT)
LINK(in_coroutine, leaf)
LINK(in_first, leaf)

KEPT void go_outside(void) {
    switch_stacks(&inside, outside);
    BARRIER();
}

KEPT void go_inside(void) {
    switch_stacks(&outside, inside);
    BARRIER();
}

static void body(void) {
    for (;;) {
        sink = in_coroutine(sink);
        for (int i = 0; i < SWITCHES; i++)
            go_outside();
    }
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    uint64_t *top = stack + STACK_WORDS - 2;
    *top = (uint64_t)coroutine_entry;
    inside = top - SAVED_WORDS;
    inside[SAVED_RBX] = (uint64_t)body;
    while (cpu_ms() < enough) {
        sink = in_first(sink);
        for (int i = 0; i < SWITCHES; i++)
            go_inside();
    }
    return 0;
}
