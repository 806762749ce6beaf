//! Every bound that both sides rely on, with its unit, its reason and what happens beyond it.

/// Unwound frames in one run of the unwinder program; then it tail-calls itself.
/// 32 runs of 31 frames are the 990 that are asked for; what they cost the verifier is in the manifest
/// beside the objects.
pub const FRAMES_PER_PROGRAM: usize = 31;

/// Runs of the unwinder program for one sample. The kernel allows 33 tail calls
/// (`MAX_TAIL_CALL_CNT`); one stays free for context readers. Deeper stacks are cut and say so.
pub const UNWINDER_RUNS: usize = 32;

/// User frames in one sample, at most.
pub const MAX_USER_FRAMES: usize = FRAMES_PER_PROGRAM * UNWINDER_RUNS;

/// Kernel frames in one sample, at most: `PERF_MAX_STACK_DEPTH` (`kernel.perf_event_max_stack`).
pub const MAX_KERNEL_FRAMES: usize = 127;

/// Bytes of user stack copied with a sample whose unwinding could not go on in the kernel.
/// Deeper parts of the stack are not seen for such a sample, and the sample says so.
/// Starting interpreters and compilers at work were seen to have more than 16 KiB.
pub const MAX_STACK_COPY_BYTES: usize = 48 * 1024;

/// Bytes of a page of a stack copy, on all architectures: one that is larger in the kernel is several here.
pub const STACK_COPY_PAGE_BYTES: usize = 4096;

/// Pages in which a stack copy looks for these bytes, 128 KiB: each has a bit in half a word. Those that can't be read
/// are left out, so frames with large buffers that are hardly used have their callers in the copy.
pub const MAX_STACK_COPY_PAGES: u32 = 32;

/// Bytes of a chunk of rows or ranges: `KMALLOC_MAX_SIZE`, the largest array value before 5.11.
pub const CHUNK_BYTES: usize = 4 << 20;

/// Rows (8 bytes each) in a chunk.
pub const ROWS_PER_CHUNK: usize = CHUNK_BYTES / 8;

/// Ranges (32 bytes each) in a chunk.
pub const RANGES_PER_CHUNK: usize = CHUNK_BYTES / 32;

/// Halvings of the search over the ranges of a process, and of the search over the rows of a part.
pub const SEARCH_STEPS: usize = 12;

/// Rows in one part of an executable's unwind table, and ranges of one process, at most: what
/// [`SEARCH_STEPS`] halvings can search. A bigger executable gets more parts; ranges beyond it are
/// left out and counted.
pub const MAX_SEARCHED: usize = (1 << SEARCH_STEPS) - 1;

/// Execs whose times are remembered: those of the last moments count, until user space has read their records.
pub const MAX_EXECS: usize = 4 * 1024;

/// Processes with a range table at once. Beyond it a process is unwound from stack copies.
pub const MAX_PROCESSES: usize = 16 * 1024;

/// Words of the record that a CPU is making. It is an element of an array, one for each possible CPU: a
/// value of a per-CPU map has 32 KiB at most (`PCPU_MIN_UNIT_SIZE` in include/linux/percpu.h).
pub const SCRATCH_WORDS: usize = 8192;

const _: () = assert!(SCRATCH_WORDS.is_power_of_two());
const _: () = assert!(
    crate::record::HEADER_WORDS
        + MAX_KERNEL_FRAMES
        + MAX_USER_FRAMES
        + crate::record::OTHER_REGISTER_WORDS
        + MAX_STACK_COPY_BYTES / 8
        <= SCRATCH_WORDS
);
const _: () = assert!(MAX_USER_FRAMES >= 990);
