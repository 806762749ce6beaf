//! The maps. User space sets the sizes of `ROWS`, `RECORDS` and `SCRATCH` before it loads the object.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use profiler_common::counter::{COUNT, Counter};
use profiler_common::limits::{CHUNK_BYTES, MAX_EXECS, MAX_PROCESSES, SCRATCH_WORDS};
use profiler_common::range::ProcessEntry;
use profiler_common::step::Registers;
use profiler_common::thread;

/// A chunk of rows or ranges.
pub(crate) type Chunk = [u64; CHUNK_BYTES / 8];

/// The walk that a CPU is on, between two runs of the unwinder.
#[repr(C)]
pub(crate) struct Walk {
    /// The registers of the frame to unwind next.
    pub(crate) registers: Registers,
    /// The registers of the first frame.
    pub(crate) first: Registers,
    /// Where the process's ranges are.
    pub(crate) process: ProcessEntry,
    /// 1: the sample hit kernel mode.
    pub(crate) kernel_mode: u64,
    /// Kernel frames in the record; the user frames follow them.
    pub(crate) kernel_frames: u64,
    /// User frames in the record.
    pub(crate) user_frames: u64,
    /// Runs of the unwinder so far.
    pub(crate) runs: u64,
    /// `FRAME_BY_FRAME_POINTER` for the next frame, or 0.
    pub(crate) how: u64,
    /// The other registers when the sample was taken (`profiler_common::row::OTHER_REGISTERS`).
    pub(crate) other: [u64; 16],
    /// What the last read of user memory brought.
    pub(crate) read: [u64; 64],
}

/// Unwind rows of all executables.
#[map]
pub(crate) static ROWS: Array<Chunk> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Range tables of all processes.
#[map]
pub(crate) static RANGES: Array<Chunk> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Where the range table of a process is.
#[map]
pub(crate) static PROCESSES: HashMap<u32, ProcessEntry> = HashMap::with_max_entries(MAX_PROCESSES as u32, 0);

/// The processes to sample unless all are: 1, or 0 while its first exec is awaited.
#[map]
pub(crate) static FOLLOWED: HashMap<u32, u32> = HashMap::with_max_entries(MAX_PROCESSES as u32, 0);

/// When a process last began to run another program, `CLOCK_MONOTONIC` in ns: user space gives no table to a
/// process that is not what it knows any more.
#[map]
pub(crate) static EXECS: LruHashMap<u32, u64> = LruHashMap::with_max_entries(MAX_EXECS as u32, 0);

/// The record that each CPU is making.
#[map]
static SCRATCH: Array<[u64; SCRATCH_WORDS]> = Array::with_max_entries(1, 0);

/// The walk that a CPU is on.
#[map]
pub(crate) static WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// The record that the iterator over threads is making.
#[map]
pub(crate) static THREAD: Array<[u64; thread::MAX_WORDS]> = Array::with_max_entries(1, 0);

/// What `profiler_common::counter::Counter` names.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNT as u32, 0);

/// Index 0: the unwinder.
#[map]
pub(crate) static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Finished records, on their way to user space.
#[map]
pub(crate) static RECORDS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// The record that this CPU is making.
#[inline(always)]
pub(crate) fn scratch() -> Option<*mut [u64; SCRATCH_WORDS]> {
    // SAFETY: the helper has no preconditions.
    SCRATCH.get_ptr_mut(unsafe { bpf_get_smp_processor_id() })
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU value, and each counter is written by programs of one kind only: a
        // sample that interrupts a tracepoint program adds to others, and no sample interrupts a
        // sample (`bpf_prog_active`).
        unsafe { *value += 1 };
    }
}
