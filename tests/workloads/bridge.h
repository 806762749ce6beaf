/* Code to be written at run time: it sets up a frame pointer and calls `callee(x)`. */

#ifndef BRIDGE_H
#define BRIDGE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef uint64_t bridge(uint64_t (*callee)(uint64_t), uint64_t x);

#ifdef __x86_64__
static const unsigned char bridge_code[] = {
    0x55,             /* push rbp */
    0x48, 0x89, 0xe5, /* mov rbp, rsp */
    0x48, 0x89, 0xf8, /* mov rax, rdi */
    0x48, 0x89, 0xf7, /* mov rdi, rsi */
    0xff, 0xd0,       /* call rax */
    0x5d,             /* pop rbp */
    0xc3,             /* ret */
};
/* Where the call is. */
#define BRIDGE_CALL 10u
#else
static const uint32_t bridge_code[] = {
    0xa9bf7bfd, /* stp x29, x30, [sp, #-16]! */
    0x910003fd, /* mov x29, sp */
    0xaa0003e2, /* mov x2, x0 */
    0xaa0103e0, /* mov x0, x1 */
    0xd63f0040, /* blr x2 */
    0xa8c17bfd, /* ldp x29, x30, [sp], #16 */
    0xd65f03c0, /* ret */
};
#define BRIDGE_CALL 16u
#endif

#define PAGE_BYTES 4096u

/* A page to write code into; NULL when there is none. */
static inline char *writable_page(void) {
    char *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return page == MAP_FAILED ? NULL : page;
}

/* What was written into the page can be run from now on; not 0 when it cannot. */
static inline int make_executable(char *page) {
    __builtin___clear_cache(page, page + PAGE_BYTES);
    return mprotect(page, PAGE_BYTES, PROT_READ | PROT_EXEC);
}

#endif
