/* A BPF program that adds numbers, run for some time, and gone when this ends. `bpf CPU_MS` */

#define _GNU_SOURCE
#include <linux/bpf.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "work.h"

static int bpf(int command, union bpf_attr *attributes) {
    return syscall(SYS_bpf, command, attributes, sizeof *attributes);
}

static int load(void) {
    struct bpf_insn program[] = {
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 0},
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_1, .imm = 2000},
        {.code = BPF_ALU64 | BPF_ADD | BPF_X, .dst_reg = BPF_REG_0, .src_reg = BPF_REG_1},
        {.code = BPF_ALU64 | BPF_SUB | BPF_K, .dst_reg = BPF_REG_1, .imm = 1},
        {.code = BPF_JMP | BPF_JNE | BPF_K, .dst_reg = BPF_REG_1, .off = -3, .imm = 0},
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 0},
        {.code = BPF_JMP | BPF_EXIT},
    };
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
    attributes.insns = (uintptr_t)program;
    attributes.insn_cnt = sizeof program / sizeof *program;
    attributes.license = (uintptr_t)"GPL";
    strcpy(attributes.prog_name, "sum_up");
    return bpf(BPF_PROG_LOAD, &attributes);
}

int main(int argc, char **argv) {
    static char packet[64];
    uint64_t enough = argument_ms(argc, argv, 1, 2000);
    int program = load();
    if (program < 0)
        return 1;
    while (cpu_ms() < enough) {
        union bpf_attr attributes;
        memset(&attributes, 0, sizeof attributes);
        attributes.test.prog_fd = program;
        attributes.test.data_in = (uintptr_t)packet;
        attributes.test.data_size_in = sizeof packet;
        attributes.test.repeat = 10000;
        if (bpf(BPF_PROG_TEST_RUN, &attributes) != 0)
            return 1;
    }
    return 0;
}
