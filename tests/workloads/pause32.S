/* A 32-bit program that waits. System call 29 is pause (linux/arch/x86/entry/syscalls/syscall_32.tbl). */

    .globl _start
_start:
    movl $29, %eax
    int $0x80
    jmp _start

    .section .note.GNU-stack, "", @progbits
