//! Fields of kernel structures, at the offsets that user space found in the kernel's BTF.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::task_struct;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf, bpf_task_pt_regs};
use aya_ebpf::programs::PerfEventContext;

use crate::{arch, settings};

/// The word at `address + offset` in kernel memory; 0 when it can't be read.
#[inline(always)]
pub(crate) fn word(address: u64, offset: u64) -> u64 {
    // SAFETY: `bpf_probe_read_kernel` checks the address and fails rather than fault.
    unsafe { bpf_probe_read_kernel(address.wrapping_add(offset) as *const u64) }.unwrap_or(0)
}

/// The 32-bit word at `address + offset` in kernel memory; 0 when it can't be read.
#[inline(always)]
pub(crate) fn half(address: u64, offset: u64) -> u32 {
    // SAFETY: `bpf_probe_read_kernel` checks the address and fails rather than fault.
    unsafe { bpf_probe_read_kernel(address.wrapping_add(offset) as *const u32) }.unwrap_or(0)
}

/// The current `task_struct`.
#[inline(always)]
pub(crate) fn current() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

/// Where the current task's user registers are saved, also while it runs in the kernel.
#[inline(always)]
pub(crate) fn user_registers(task: u64) -> u64 {
    if settings::has_task_pt_regs() != 0 {
        // SAFETY: the helper has no preconditions; it returns the running task.
        let task = unsafe { bpf_get_current_task_btf() };
        // SAFETY: `task` comes straight from `bpf_get_current_task_btf`, as the verifier demands.
        return unsafe { bpf_task_pt_regs(task) } as u64;
    }
    word(task, settings::task_stack()).wrapping_add(settings::stack_to_pt_regs())
}

/// Where the user registers of a task are saved that is not running. `address` is `task` as a number.
#[inline(always)]
pub(crate) fn registers_of(task: *mut task_struct, address: u64) -> u64 {
    if settings::has_task_pt_regs() != 0 {
        // SAFETY: `task` is what the verifier knows for a task.
        return unsafe { bpf_task_pt_regs(task) } as u64;
    }
    word(address, settings::task_stack()).wrapping_add(settings::stack_to_pt_regs())
}

/// Whether the event hit kernel mode.
#[inline(always)]
pub(crate) fn in_kernel_mode(ctx: &PerfEventContext) -> bool {
    arch::in_kernel_mode(ctx.as_ptr().cast())
}
