//! The start of a sample: who runs, the kernel stack, and the registers to unwind from.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_get_current_comm, bpf_get_smp_processor_id, bpf_get_stack};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::programs::PerfEventContext;
use profiler_common::counter::Counter;
use profiler_common::limits::{MAX_KERNEL_FRAMES, SCRATCH_WORDS};
use profiler_common::range::{ProcessEntry, table_header};
use profiler_common::record::{HEADER_WORDS, StopReason, word};
use profiler_common::search::Extent;
use profiler_common::step::Registers;

use crate::finish::finish;
use crate::maps::{FOLLOWED, PROCESSES, PROGRAMS, RANGES, WALK, Walk, count, scratch};
use crate::unwind::chunk_word;
use crate::{arch, settings, task};

/// Takes one sample.
#[inline(always)]
pub(crate) fn run(ctx: &PerfEventContext) {
    count(Counter::SamplesTaken);
    let pid_tgid = bpf_get_current_pid_tgid();
    let process = (pid_tgid >> 32) as u32;
    if pid_tgid as u32 == 0 {
        return count(Counter::FilteredIdle);
    }
    if settings::sample_all() == 0 && !is_followed(process) {
        return count(Counter::FilteredProcess);
    }
    let (Some(record), Some(walk)) = (scratch(), WALK.get_ptr_mut(0)) else {
        return count(Counter::LostNoScratch);
    };
    // SAFETY: this CPU's elements of the two maps, which only the sampling programs use; a perf
    // program is not interrupted by another one (`bpf_prog_active`).
    let (record, walk) = unsafe { (&mut *record, &mut *walk) };
    write_header(record, pid_tgid);
    walk.kernel_mode = u64::from(task::in_kernel_mode(ctx));
    walk.kernel_frames = if walk.kernel_mode == 0 { 0 } else { kernel_stack(ctx, record) };
    walk.user_frames = 0;
    walk.runs = 0;
    walk.how = 0;
    walk.process = ProcessEntry { first_range: 0, extent: Extent(0), generation: 0, whole_stack: 0 };
    walk.registers = Registers { pc: 0, sp: 0, fp: 0, lr: 0, interrupted: 0, exact: 1 };

    let stop = start_walk(process, walk);
    walk.first = walk.registers;
    if stop == StopReason::Complete && settings::unwind() != 0 {
        // SAFETY: the context is this program's own.
        unsafe { PROGRAMS.tail_call(ctx, 0) };
        // A tail call returns only when it failed.
        return count(Counter::LostTailCall);
    }
    if stop != StopReason::NoUserStack && stop != StopReason::Process32Bit {
        record[HEADER_WORDS + (walk.kernel_frames as usize & 127)] =
            walk.registers.pc | profiler_common::record::FRAME_EXACT;
        walk.user_frames = 1;
    }
    finish(record, walk, stop);
}

/// Whether the process is one of those to look at.
#[inline(always)]
pub(crate) fn is_followed(process: u32) -> bool {
    match FOLLOWED.get_ptr(process) {
        // SAFETY: a value of the map that the look-up just returned; one 4-byte load.
        Some(followed) => unsafe { *followed != 0 },
        None => false,
    }
}

#[inline(always)]
fn write_header(record: &mut [u64; SCRATCH_WORDS], pid_tgid: u64) {
    // SAFETY: the helper has no preconditions.
    record[word::TIME_NS] = unsafe { bpf_ktime_get_ns() };
    record[word::PID_TID] = pid_tgid.rotate_left(32);
    // SAFETY: the helper has no preconditions.
    record[word::CPU_GENERATION] = u64::from(unsafe { bpf_get_smp_processor_id() });
    let comm = (&raw mut record[word::COMM]).cast();
    // SAFETY: 16 bytes, two words of the record; on failure the helper clears them.
    unsafe { bpf_get_current_comm(comm, 16) };
}

/// Puts the kernel stack into the record and returns its number of frames.
#[inline(always)]
fn kernel_stack(ctx: &PerfEventContext, record: &mut [u64; SCRATCH_WORDS]) -> u64 {
    const BYTES: u32 = (MAX_KERNEL_FRAMES * 8) as u32;
    let frames = (&raw mut record[HEADER_WORDS]).cast();
    // SAFETY: `BYTES` bytes behind the header of a record of `SCRATCH_WORDS` words.
    let written = unsafe { bpf_get_stack(ctx.as_ptr(), frames, BYTES, 0) };
    if written > 0 { (written as u64 >> 3) & 127 } else { 0 }
}

/// Reads the user registers and finds the process's ranges. `Complete` means: ready to unwind.
#[inline(always)]
fn start_walk(process: u32, walk: &mut Walk) -> StopReason {
    let task = task::current();
    let memory = task::word(task, settings::task_mm());
    if memory == 0 {
        return StopReason::NoUserStack;
    }
    if walk.kernel_mode != 0 && task::word(memory, settings::mm_end_code()) == 0 {
        // In an exec: the registers are the old program's, the memory is the new one's.
        return StopReason::NoUserStack;
    }
    let saved = task::user_registers(task);
    if arch::is_32_bit(saved) {
        return StopReason::Process32Bit;
    }
    walk.registers = arch::registers(saved);
    arch::read_other_registers(saved, walk.other.as_mut_ptr());
    if walk.registers.pc == 0 {
        // A kernel thread with a borrowed mm, or an io_uring worker: never was in user space.
        return StopReason::NoUserStack;
    }
    let Some(entry) = PROCESSES.get_ptr(process) else { return StopReason::NoTable };
    // SAFETY: a value of the map that the look-up just returned. User space may replace it meanwhile:
    // then the header does not fit.
    walk.process = unsafe { *entry };
    let Some(ranges) = RANGES.get_ptr(0) else { return StopReason::NoTable };
    let at = u64::from(walk.process.first_range).wrapping_sub(1) * 4;
    let [owner, length] = table_header(process, &walk.process);
    if chunk_word(ranges, at) != owner || chunk_word(ranges, at + 1) != length {
        count(Counter::StaleRangeTable);
        // No state of the tables was used.
        walk.process.generation = 0;
        return StopReason::NoTable;
    }
    StopReason::Complete
}
