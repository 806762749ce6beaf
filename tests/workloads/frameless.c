/* Code that is written while the program runs, keeps no frame pointer, and calls back into the program: the
 * frame pointer is still that of a function further up, which called others in between. `frameless CPU_MS` */

#include "bridge.h"
#include "work.h"

#ifdef __x86_64__
static const unsigned char frameless_code[] = {
    0x48, 0x83, 0xec, 0x08, /* sub rsp, 8 */
    0x48, 0x89, 0xf8,       /* mov rax, rdi */
    0x48, 0x89, 0xf7,       /* mov rdi, rsi */
    0xff, 0xd0,             /* call rax */
    0x48, 0x83, 0xc4, 0x08, /* add rsp, 8 */
    0xc3,                   /* ret */
};
#else
static const uint32_t frameless_code[] = {
    0xf81f0ffe, /* str x30, [sp, #-16]! */
    0xaa0003e2, /* mov x2, x0 */
    0xaa0103e0, /* mov x0, x1 */
    0xd63f0040, /* blr x2 */
    0xf84107fe, /* ldr x30, [sp], #16 */
    0xd65f03c0, /* ret */
};
#endif

static bridge *generated;

LEAF(leaf)
LEAF(own_leaf)

KEPT uint64_t enter(uint64_t x) {
    uint64_t y = generated(leaf, x);
    BARRIER();
    return y ^ x;
}

LINK(middle, enter)

/* Keeps a frame pointer, for its array. */
KEPT uint64_t outer(uint64_t x) {
    volatile char some[1 + x % 100];
    some[0] = 1;
    return middle(x) + own_leaf(x) + (uint64_t)some[0];
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    char *page = writable_page();
    if (!page)
        return 1;
    memcpy(page, frameless_code, sizeof frameless_code);
    if (make_executable(page))
        return 1;
    generated = (bridge *)page;
    while (cpu_ms() < enough)
        sink = outer(sink);
    return 0;
}
