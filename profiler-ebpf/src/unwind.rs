//! The walk over the user stack: `FRAMES_PER_PROGRAM` frames a run, then a tail call to itself.
//!
//! Each frame is two uniform searches (the range of the pc, the row in that range) and one
//! `step()`. There is one branch a frame, whatever is found: the verifier's work is the number of
//! paths, and a stop is told apart only after the loop.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use aya_ebpf::programs::PerfEventContext;
use profiler_common::counter::Counter;
use profiler_common::limits::{CHUNK_BYTES, FRAMES_PER_PROGRAM, ROWS_PER_CHUNK, SCRATCH_WORDS, UNWINDER_RUNS};
use profiler_common::record::{FRAME_ADDRESS, FRAME_BY_FRAME_POINTER, HEADER_WORDS, StopReason};
use profiler_common::row::{BY_FRAME_POINTER, Row, Rule, UNSUPPORTED};
use profiler_common::search::{Extent, at_most, last_at_most};
use profiler_common::step::{Machine, Registers, stop_reason};

use crate::{arch, task};
use crate::barrier::{Asm, opaque};
use crate::finish::finish;
use crate::maps::{Chunk, PROGRAMS, RANGES, ROWS, WALK, count, scratch};

/// The walked thread's memory.
struct UserMemory {
    /// `Walk::read` of this CPU.
    read: *mut u64,
    /// `Walk::other` of this CPU.
    other: *const u64,
}

impl Machine for UserMemory {
    type Barrier = Asm;

    #[inline(always)]
    fn read(&mut self, address: u64, words: u64) -> u64 {
        let bytes = opaque(words * 8) & 0x1ff;
        // SAFETY: `Walk::read` has 512 bytes and `bytes` is below that; the helper checks the
        // address and clears the buffer when it can't be read.
        let result = unsafe { bpf_probe_read_user(self.read.cast(), bytes as u32, address as *const _) };
        opaque(opaque(result as u64) >> 63)
    }

    #[inline(always)]
    fn other_register(&self, index: u64) -> u64 {
        // SAFETY: `Walk::other` has 16 words.
        unsafe { self.other.add((opaque(index) & 15) as usize).read_volatile() }
    }

    #[inline(always)]
    fn thread_pointer(&self) -> u64 {
        arch::thread_pointer(task::current())
    }

    #[inline(always)]
    fn word(&self, index: u64) -> u64 {
        // SAFETY: `Walk::read` has 64 words.
        unsafe { self.read.add((opaque(index) & 63) as usize).read_volatile() }
    }
}

/// A word of a chunk. An index beyond it wraps: nothing a table says can leave the chunk.
#[inline(always)]
pub(crate) fn chunk_word(chunk: *const Chunk, index: u64) -> u64 {
    let index = opaque(index) & (CHUNK_BYTES as u64 / 8 - 1);
    // SAFETY: `index` is below the number of words of a chunk.
    unsafe { chunk.cast::<u64>().add(index as usize).read_volatile() }
}

/// Walks on from where the CPU's walk stands, and finishes the sample or calls itself.
#[inline(always)]
pub(crate) fn run(ctx: &PerfEventContext) {
    let (Some(record), Some(walk), Some(ranges)) = (scratch(), WALK.get_ptr_mut(0), RANGES.get_ptr(0))
    else {
        return count(Counter::LostNoScratch);
    };
    // SAFETY: as in `sample::run`, which called this program for the same sample.
    let (record, walk) = unsafe { (&mut *record, &mut *walk) };
    let mut memory = UserMemory { read: (&raw mut walk.read).cast(), other: (&raw const walk.other).cast() };
    let mut registers = walk.registers;
    let mut how = walk.how;
    let first_range = u64::from(walk.process.first_range);
    let extent = walk.process.extent;
    let base = HEADER_WORDS as u64 + walk.kernel_frames;
    let mut frames = walk.user_frames;
    let mut stop = 0;
    let mut outside = 0;
    for _ in 0..FRAMES_PER_PROGRAM {
        let slot = opaque(base + frames) & (SCRATCH_WORDS as u64 - 1);
        record[slot as usize] = registers.pc & FRAME_ADDRESS | registers.exact << 63 | how;
        frames += 1;

        let pc = registers.lookup_pc() & (u64::MAX >> 1);
        let found = last_at_most::<Asm>(extent, pc, |index| chunk_word(ranges, (first_range + index) * 4));
        let range = (first_range + found) * 4;
        let start = chunk_word(ranges, range);
        let end = chunk_word(ranges, range + 1);
        let bias = chunk_word(ranges, range + 2);
        let place = chunk_word(ranges, range + 3);
        outside = 1 & !(at_most::<Asm>(start, pc) & !at_most::<Asm>(end, pc));

        let first_row = place & 0xffff_ffff;
        let Some(rows) = ROWS.get_ptr((first_row / ROWS_PER_CHUNK as u64) as u32) else {
            stop = 1;
            outside = 1;
            break;
        };
        let key = Row::search_key(pc.wrapping_sub(bias));
        let row = last_at_most::<Asm>(Extent((place >> 32) as u32), key, |index| chunk_word(rows, first_row + index));
        let rule = chunk_word(rows, first_row + row) & Rule::MASK;
        // Outside every range the row is of no use: it becomes one that stops.
        let rule = rule | opaque(outside) << (24 + UNSUPPORTED.trailing_zeros());
        stop = step(rule, &mut registers, &mut memory);
        if stop != 0 {
            break;
        }
        how = (rule >> (24 + BY_FRAME_POINTER.trailing_zeros()) & 1) << FRAME_BY_FRAME_POINTER.trailing_zeros();
    }
    walk.registers = registers;
    walk.user_frames = frames;
    if stop == 0 {
        walk.how = how;
        walk.runs += 1;
        if walk.runs < UNWINDER_RUNS as u64 {
            // SAFETY: the context is this program's own.
            unsafe { PROGRAMS.tail_call(ctx, 0) };
        }
    }
    let reason = if stop == 0 {
        StopReason::TooDeep
    } else if outside != 0 {
        StopReason::NoRange
    } else {
        stop_reason(stop)
    };
    finish(record, walk, reason);
}

#[inline(always)]
fn step(rule: u64, registers: &mut Registers, memory: &mut UserMemory) -> u64 {
    arch::step(rule, registers, memory)
}
