/* Code that is written while the program runs, with a frame pointer and no unwind tables, calls back
 * into the program. `generated CPU_MS` */

#include <string.h>
#include <sys/mman.h>

#include "work.h"

LEAF(leaf)

typedef uint64_t bridge(uint64_t (*callee)(uint64_t), uint64_t x);

#ifdef __x86_64__
static const unsigned char code[] = {
    0x55,             /* push rbp */
    0x48, 0x89, 0xe5, /* mov rbp, rsp */
    0x48, 0x89, 0xf8, /* mov rax, rdi */
    0x48, 0x89, 0xf7, /* mov rdi, rsi */
    0xff, 0xd0,       /* call rax */
    0x5d,             /* pop rbp */
    0xc3,             /* ret */
};
#else
static const uint32_t code[] = {
    0xa9bf7bfd, /* stp x29, x30, [sp, #-16]! */
    0x910003fd, /* mov x29, sp */
    0xaa0003e2, /* mov x2, x0 */
    0xaa0103e0, /* mov x0, x1 */
    0xd63f0040, /* blr x2 */
    0xa8c17bfd, /* ldp x29, x30, [sp], #16 */
    0xd65f03c0, /* ret */
};
#endif

KEPT uint64_t enter(bridge *generated, uint64_t x) {
    uint64_t y = generated(leaf, x);
    BARRIER();
    return y ^ x;
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return 1;
    memcpy(page, code, sizeof code);
    __builtin___clear_cache(page, page + sizeof code);
    if (mprotect(page, 4096, PROT_READ | PROT_EXEC))
        return 1;
    while (cpu_ms() < enough)
        sink = enter((bridge *)page, sink);
    return 0;
}
