//! Every thread of the followed processes, as it is now: for `spanflame dump`.

use aya_ebpf::bindings::{seq_file, task_struct};
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::{bpf_get_task_stack, bpf_probe_read_kernel as read_kernel, bpf_seq_write};
use profiler_common::limits::MAX_KERNEL_FRAMES;
use profiler_common::thread::{
    FLAG_32_BIT, FLAG_ON_CPU, FLAG_USER, HEADER_WORDS, MAX_WORDS, shape_word, word as at,
};

use crate::barrier::opaque;
use crate::maps::THREAD;
use crate::sample::is_followed;
use crate::task::{half, registers_of, word};
use crate::{arch, settings};

/// `struct bpf_iter__task` (linux/kernel/bpf/task_iter.c).
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    task: *mut task_struct,
}

/// The start of `struct bpf_iter_meta` (linux/include/linux/bpf.h).
#[repr(C)]
struct Meta {
    seq: *mut seq_file,
}

/// Writes the record of one thread. At the end of the list there is none.
#[inline(always)]
pub(crate) fn run(context: *const Context) {
    // SAFETY: the context of an iterator over tasks; volatile, so that each word is read as the verifier
    // knows it.
    let task = unsafe { (&raw const (*context).task).read_volatile() };
    if task.is_null() {
        return;
    }
    // The same pointer as a number: to the verifier a pointer with an offset would be another thing.
    // SAFETY: a word of the context; the helper checks the address.
    let address = unsafe { bpf_probe_read_kernel((&raw const (*context).task).cast::<u64>()) }.unwrap_or(0);
    let process = half(address, settings::task_tgid());
    if !is_followed(process) {
        return;
    }
    let Some(record) = THREAD.get_ptr_mut(0) else { return };
    // SAFETY: the one value of the map: a loaded object has one reader of its iterator at a time.
    let record = unsafe { &mut *record };
    let on_cpu = is_on_cpu(address);
    record[at::PID_TID] = u64::from(process) | u64::from(half(address, settings::task_pid())) << 32;
    record[at::SWITCHES] = word(address, settings::task_nvcsw()) + word(address, settings::task_nivcsw());
    read(&raw mut record[at::COMM], 16, address.wrapping_add(settings::task_comm()));
    let (mut flags, mut frames) = (u64::from(FLAG_ON_CPU), 0);
    if !on_cpu {
        flags = user_registers(task, address, record);
        frames = kernel_stack(task, record);
    }
    record[at::SHAPE] = shape_word(flags, frames);
    let bytes = opaque((HEADER_WORDS as u64 + frames) * 8);
    if bytes > MAX_WORDS as u64 * 8 {
        return;
    }
    // SAFETY: the context's `meta`, and its first member, which the verifier knows for what it is.
    let seq = unsafe { (&raw const (*(&raw const (*context).meta).read_volatile()).seq).read_volatile() };
    // SAFETY: the first `bytes` bytes of the record; a full buffer makes the kernel come again.
    unsafe { bpf_seq_write(seq, record.as_ptr().cast(), bytes as u32) };
}

/// Whether a CPU runs it: 1 or 0 in an `int`, in a byte since 7.3. Where the kernel does not tell, there is
/// one CPU, and we run on it.
#[inline(always)]
fn is_on_cpu(task: u64) -> bool {
    settings::task_on_cpu() != 0 && half(task, settings::task_on_cpu()) & 0xff != 0
}

/// Puts the registers of user space into the record, and returns what is to be said of them.
#[inline(always)]
fn user_registers(task: *mut task_struct, address: u64, record: &mut [u64; MAX_WORDS]) -> u64 {
    if word(address, settings::task_mm()) == 0 {
        return 0;
    }
    let saved = registers_of(task, address);
    let registers = arch::registers(saved);
    record[at::REGISTERS] = registers.pc;
    record[at::REGISTERS + 1] = registers.sp;
    record[at::REGISTERS + 2] = registers.fp;
    record[at::REGISTERS + 3] = registers.lr;
    record[at::THREAD_POINTER] = arch::thread_pointer(address);
    arch::read_other_registers(saved, &raw mut record[at::OTHER_REGISTERS]);
    let narrow = if arch::is_32_bit(saved) { FLAG_32_BIT } else { 0 };
    // A kernel thread with a borrowed mm, or an io_uring worker, never was in user space.
    let user = if registers.pc == 0 { 0 } else { FLAG_USER };
    u64::from(user | narrow)
}

/// Puts the kernel stack into the record and returns its number of frames.
#[inline(always)]
fn kernel_stack(task: *mut task_struct, record: &mut [u64; MAX_WORDS]) -> u64 {
    const BYTES: u32 = (MAX_KERNEL_FRAMES * 8) as u32;
    let frames = (&raw mut record[HEADER_WORDS]).cast();
    // SAFETY: `BYTES` bytes behind the header of a record of `MAX_WORDS` words; the task is the context's.
    let written = unsafe { bpf_get_task_stack(task, frames, BYTES, 0) };
    if written > 0 { (written as u64 >> 3) & 127 } else { 0 }
}

#[inline(always)]
fn read(to: *mut u64, bytes: u32, from: u64) {
    // SAFETY: the callers' `to` has room for `bytes` bytes; the helper checks the address, and clears
    // them when it can't be read.
    unsafe { read_kernel(to.cast(), bytes, from as *const _) };
}
