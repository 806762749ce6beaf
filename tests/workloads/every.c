/* A few of everything that moves the stack pointer, for single steps: some thousand instructions and
 * an end. */

#define _GNU_SOURCE
#include <alloca.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <ucontext.h>
#endif

#define KEPT __attribute__((noinline, noclone))
#define BARRIER() __asm__ volatile("" ::: "memory")

static volatile uint64_t sink;

KEPT static uint64_t leaf(uint64_t x) { return x * 7 + 1; }

/* The last call is a jump where the compiler makes it one. */
KEPT static uint64_t passes_on(uint64_t x) { return leaf(x + 1); }

KEPT static uint64_t recursive(uint64_t depth) {
    uint64_t y = depth ? recursive(depth - 1) : passes_on(depth);
    BARRIER();
    return y + 1;
}

KEPT static uint64_t many_registers(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f,
                                    uint64_t g, uint64_t h) {
    uint64_t x = passes_on(a) + b, y = passes_on(c) + d, z = passes_on(e) + f;
    x ^= recursive(2) + g;
    return x * y + z * h + a + b + c + d + e + f;
}

KEPT static uint64_t with_array(uint64_t x) {
    volatile char some[1 + x % 300];
    some[x % sizeof some] = 1;
    uint64_t y = passes_on(x);
    return y + (uint64_t)some[x % sizeof some];
}

KEPT static uint64_t with_alloca(uint64_t x) {
    uint64_t sum = 0;
    for (uint64_t i = 1; i < 4; i++) {
        volatile char *some = alloca(i * 100 + x % 10);
        some[i] = (char)i;
        sum += passes_on((uint64_t)some[i]);
    }
    return sum;
}

KEPT static uint64_t aligned_frame(uint64_t x) {
    volatile uint64_t line[8] __attribute__((aligned(256)));
    line[x % 8] = x;
    uint64_t y = with_array(x);
    return y + line[y % 8];
}

KEPT static uint64_t aligned_and_variable(uint64_t x) {
    volatile uint64_t line[8] __attribute__((aligned(128)));
    volatile char some[1 + x % 100];
    line[x % 8] = x;
    some[x % sizeof some] = 2;
    uint64_t y = aligned_frame(x);
    return y + line[y % 8] + (uint64_t)some[y % sizeof some];
}

KEPT static uint64_t big_frame(uint64_t x) {
    volatile char big[200000];
    big[x % sizeof big] = 1;
    uint64_t y = passes_on(x);
    return y + (uint64_t)big[y % sizeof big];
}

/* The unlikely part is far away in a section of its own. */
KEPT static uint64_t hot_and_cold(uint64_t x) {
    if (__builtin_expect(x % 64 == 63, 0)) {
        char text[64];
        snprintf(text, sizeof text, "%d %s %g", (int)x, "text", (double)x);
        return (uint64_t)text[0] + passes_on(x);
    }
    return leaf(x);
}

KEPT static int sum_of(int count, ...) {
    va_list list;
    va_start(list, count);
    int sum = 0;
    while (count--)
        sum += (int)va_arg(list, double);
    va_end(list);
    return sum;
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

KEPT static uint64_t library(uint64_t x) {
    uint64_t numbers[12];
    for (unsigned i = 0; i < 12; i++)
        numbers[i] = (x + i * 7919) % 31;
    qsort(numbers, 12, sizeof *numbers, by_value);
    char text[200];
    memset(text, 'x', sizeof text);
    memmove(text + 3, text, 150);
    text[199] = 0;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    void *block = malloc(1000 + x % 100);
    block = realloc(block, 5000);
    free(block);
    return numbers[3] + strlen(text) + (uint64_t)now.tv_sec + strtoull("1234", NULL, 10) + (uint64_t)sum_of(2, 1.0, 2.0);
}

static jmp_buf place;

KEPT static void jumps(uint64_t depth) {
    if (depth)
        jumps(depth - 1);
    else
        longjmp(place, 1);
    BARRIER();
}

KEPT static uint64_t jumped_to(void) {
    if (!setjmp(place))
        jumps(5);
    return passes_on(1);
}

static sigjmp_buf handled;
static char other_stack[1 << 16];

static void on_signal(int signal) {
    sink += recursive(3) + (uint64_t)signal;
    BARRIER();
}

static void with_details(int signal, siginfo_t *details, void *context) {
    (void)context;
    sink += recursive(2) + (uint64_t)details->si_signo + (uint64_t)signal;
    raise(SIGUSR1);
    BARRIER();
}

static void leaves(int signal) {
    sink += recursive(2);
    siglongjmp(handled, signal);
}

KEPT static void signals(void) {
    stack_t other = {.ss_sp = other_stack, .ss_size = sizeof other_stack};
    struct sigaction simple = {.sa_handler = on_signal}, detailed = {.sa_sigaction = with_details}, left = {.sa_handler = leaves};
    detailed.sa_flags = SA_SIGINFO | SA_ONSTACK;
    left.sa_flags = SA_ONSTACK;
    if (sigaltstack(&other, NULL) || sigaction(SIGUSR1, &simple, NULL) || sigaction(SIGUSR2, &detailed, NULL) ||
        sigaction(SIGILL, &left, NULL))
        exit(1);
    raise(SIGUSR1);
    raise(SIGUSR2);
    for (int i = 0; i < 2; i++)
        if (!sigsetjmp(handled, 1))
            __builtin_trap();
    sink += passes_on(3);
}

#ifdef __GLIBC__
static ucontext_t back, there;
static char coroutine_stack[1 << 16];

static void coroutine(int x) {
    for (int i = 0; i < 3; i++) {
        sink += recursive((uint64_t)x);
        swapcontext(&there, &back);
    }
}

KEPT static void coroutines(void) {
    getcontext(&there);
    there.uc_stack.ss_sp = coroutine_stack;
    there.uc_stack.ss_size = sizeof coroutine_stack;
    there.uc_link = &back;
    makecontext(&there, (void (*)(void))coroutine, 1, 4);
    for (int i = 0; i < 4; i++) {
        swapcontext(&back, &there);
        sink += passes_on((uint64_t)i);
    }
}
#else
static void coroutines(void) {}
#endif

KEPT static void child(void) {
    pid_t pid = vfork();
    if (pid == 0)
        _exit(0);
    if (pid < 0 || waitpid(pid, NULL, 0) != pid)
        exit(1);
}

/* Frames of assembly: the CFA in a register that calls change, stored on the stack, behind odd
 * prologues (as in OpenSSL). */
uint64_t in_rax(uint64_t (*callee)(uint64_t), uint64_t x);
uint64_t stored(uint64_t (*callee)(uint64_t), uint64_t x);
uint64_t popped_early(uint64_t (*callee)(uint64_t), uint64_t x);
__asm__(".text\n"
        ".globl in_rax\n.type in_rax, @function\nin_rax:\n.cfi_startproc\n"
        "mov %rsp, %rax\n.cfi_def_cfa_register %rax\n"
        "push %rbx\n.cfi_offset %rbx, -16\n"
        "push %rbp\n.cfi_offset %rbp, -24\n"
        "sub $72, %rsp\n"
        "lea 16(%rsi), %rbp\n"
        "mov %rbp, %rbx\n"
        "mov %rax, %rsp\n.cfi_def_cfa_register %rsp\n"
        "mov -16(%rsp), %rbp\n.cfi_restore %rbp\n"
        "mov -8(%rsp), %rbx\n.cfi_restore %rbx\n"
        "mov %rdi, %rax\n mov %rsi, %rdi\n"
        "jmp *%rax\n"
        ".cfi_endproc\n.size in_rax, .-in_rax\n"
        ".globl stored\n.type stored, @function\nstored:\n.cfi_startproc\n"
        "mov %rsp, %rax\n.cfi_def_cfa_register %rax\n"
        "push %rbp\n.cfi_offset %rbp, -16\n"
        "sub $100, %rsp\n"
        "and $-64, %rsp\n"
        "mov %rax, 24(%rsp)\n"
        ".cfi_escape 0x0f, 5, 0x77, 24, 0x06, 0x23, 8\n"
        "mov %rdi, %rax\n mov %rsi, %rdi\n"
        "mov %rsi, %rbp\n"
        "call *%rax\n"
        "mov 24(%rsp), %rsi\n.cfi_def_cfa %rsi, 8\n"
        "mov -8(%rsi), %rbp\n.cfi_restore %rbp\n"
        "lea (%rsi), %rsp\n.cfi_def_cfa_register %rsp\n"
        "ret\n"
        ".cfi_endproc\n.size stored, .-stored\n"
        ".globl popped_early\n.type popped_early, @function\npopped_early:\n.cfi_startproc\n"
        "push %rbp\n.cfi_adjust_cfa_offset 8\n.cfi_offset %rbp, -16\n"
        "push %rbx\n.cfi_adjust_cfa_offset 8\n"
        "sub $8, %rsp\n.cfi_adjust_cfa_offset 8\n"
        "mov %rdi, %rax\n mov %rsi, %rdi\n mov %rsi, %rbp\n"
        "call *%rax\n"
        "add $8, %rsp\n.cfi_adjust_cfa_offset -8\n"
        "pop %rbx\n.cfi_adjust_cfa_offset -8\n"
        "test %rax, %rax\n"
        ".cfi_remember_state\n"
        "je 1f\n"
        "pop %rbp\n.cfi_adjust_cfa_offset -8\n.cfi_restore %rbp\n"
        "ret\n"
        "1:\n.cfi_restore_state\n"
        "pop %rbp\n.cfi_adjust_cfa_offset -8\n.cfi_restore %rbp\n"
        "ret\n"
        ".cfi_endproc\n.size popped_early, .-popped_early\n");

int main(void) {
    sink += many_registers(1, 2, 3, 4, 5, 6, 7, 8);
    sink += with_array(5) + with_alloca(6) + aligned_and_variable(7) + big_frame(8);
    sink += hot_and_cold(1) + hot_and_cold(63);
    sink += library(9) + jumped_to();
    sink += in_rax(leaf, 1) + stored(recursive, 1) + popped_early(passes_on, 1);
    signals();
    coroutines();
    child();
    return 0;
}
