//! aarch64: offsets in `struct user_pt_regs` (linux/arch/arm64/include/uapi/asm/ptrace.h) and the
//! step.

use profiler_common::step::{Machine, Registers, step_aarch64};

use crate::{settings, task::word};

const X29: u64 = 232;
const X30: u64 = 240;
const SP: u64 = 248;
const PC: u64 = 256;
const PSTATE: u64 = 264;
/// `PSR_MODE_MASK` without `PSR_MODE32_BIT`: the exception level; 0 is user space.
const EXCEPTION_LEVEL: u64 = 0xf;
/// `PSR_MODE32_BIT`.
const MODE_32_BIT: u64 = 0x10;

/// Whether the event hit kernel mode. `context` is a `struct bpf_perf_event_data`, which begins
/// with the registers.
#[inline(always)]
pub(crate) fn in_kernel_mode(context: *const u8) -> bool {
    // SAFETY: the verifier allows aligned 8-byte reads of the registers in the context.
    let pstate = unsafe { context.add(PSTATE as usize).cast::<u64>().read_volatile() };
    pstate & EXCEPTION_LEVEL != 0
}

/// Whether the saved registers are those of 32-bit code.
#[inline(always)]
pub(crate) fn is_32_bit(saved: u64) -> bool {
    word(saved, PSTATE) & MODE_32_BIT != 0
}

/// The registers saved at `saved`.
#[inline(always)]
pub(crate) fn registers(saved: u64) -> Registers {
    let lr = word(saved, X30) & !settings::pointer_auth_mask();
    Registers { pc: word(saved, PC), sp: word(saved, SP), fp: word(saved, X29), lr, interrupted: 0, exact: 1 }
}

/// No CFA counts from other registers than sp and x29.
#[inline(always)]
pub(crate) fn read_other_registers(_saved: u64, _other: *mut u64) {}

/// No rule needs it.
#[inline(always)]
pub(crate) fn thread_pointer(_task: u64) -> u64 {
    0
}

/// One unwinding step; see `profiler_common::step`.
#[inline(always)]
pub(crate) fn step<M: Machine>(rule: u64, registers: &mut Registers, machine: &mut M) -> u64 {
    step_aarch64(rule, registers, machine, settings::pointer_auth_mask())
}
