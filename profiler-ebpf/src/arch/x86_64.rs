//! x86_64: offsets in `struct pt_regs` (linux/arch/x86/include/asm/ptrace.h) and the step.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use profiler_common::record::OTHER_REGISTER_WORDS;
use profiler_common::step::{Machine, Registers, step_x86_64};

use crate::{settings, task::word};

const RBP: u64 = 32;
const RBX: u64 = 40;
const RIP: u64 = 128;
const CS: u64 = 136;
const RSP: u64 = 152;
/// The privilege level in a code segment selector: 0 in the kernel, 3 in user space.
const CS_PRIVILEGE: u64 = 3;
/// `__USER32_CS` (linux/arch/x86/include/asm/segment.h).
const USER32_CS: u64 = 0x23;

/// Whether the event hit kernel mode. `context` is a `struct bpf_perf_event_data`, which begins
/// with the registers.
#[inline(always)]
pub(crate) fn in_kernel_mode(context: *const u8) -> bool {
    // SAFETY: the verifier allows aligned 8-byte reads of the registers in the context.
    let cs = unsafe { context.add(CS as usize).cast::<u64>().read_volatile() };
    cs & CS_PRIVILEGE == 0
}

/// Whether the saved registers are those of 32-bit code.
#[inline(always)]
pub(crate) fn is_32_bit(saved: u64) -> bool {
    word(saved, CS) == USER32_CS
}

/// The registers saved at `saved`.
#[inline(always)]
pub(crate) fn registers(saved: u64) -> Registers {
    let (pc, sp) = (word(saved, RIP), word(saved, RSP));
    Registers { pc, sp, fp: word(saved, RBP), lr: word(saved, RBX), interrupted: 0, exact: 1 }
}

/// r11 to rdi, in one piece: they stand in this order (`profiler_common::row::OTHER_REGISTERS`).
/// `other` has room for `OTHER_REGISTER_WORDS` words.
#[inline(always)]
pub(crate) fn read_other_registers(saved: u64, other: *mut u64) {
    const R11: u64 = 48;
    let from = saved.wrapping_add(R11) as *const _;
    // SAFETY: the callers' buffer has room for 72 bytes; the helper checks the address, and clears the
    // buffer when it can't be read.
    unsafe { bpf_probe_read_kernel(other.cast(), (OTHER_REGISTER_WORDS * 8) as u32, from) };
}

/// The base of fs in a task.
#[inline(always)]
pub(crate) fn thread_pointer(task: u64) -> u64 {
    word(task, settings::task_fsbase())
}

/// One unwinding step; see `profiler_common::step`.
#[inline(always)]
pub(crate) fn step<M: Machine>(rule: u64, registers: &mut Registers, machine: &mut M) -> u64 {
    step_x86_64(rule, registers, machine)
}
