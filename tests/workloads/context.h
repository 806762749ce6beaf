/* Two stacks for makecontext. */

#ifndef CONTEXT_H
#define CONTEXT_H

#include <ucontext.h>

static char stacks[2][1 << 16];

/* Makes a context that runs `body` on that stack, then `next`; not 0 when it cannot. */
static inline int make(ucontext_t *context, char (*stack)[1 << 16], void (*body)(void), ucontext_t *next) {
    int failed = getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = sizeof *stack;
    context->uc_link = next;
    makecontext(context, body, 0);
    return failed;
}

#endif
