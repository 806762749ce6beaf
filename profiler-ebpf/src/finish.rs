//! The end of a sample: the stack copy where unwinding could not go on, and the record's way out.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use profiler_common::counter::Counter;
use profiler_common::limits::{MAX_STACK_COPY_BYTES, MAX_STACK_COPY_PAGES, SCRATCH_WORDS, STACK_COPY_PAGE_BYTES};
use profiler_common::record::{
    FLAG_KERNEL_MODE, FLAG_WHOLE_STACK, HEADER_WORDS, OTHER_REGISTER_WORDS, StopReason, shape_word, stack_copy_start, word,
};

use crate::barrier::opaque;
use crate::maps::{RECORDS, Walk, count};
use crate::settings;

const PAGE_BYTES: u64 = STACK_COPY_PAGE_BYTES as u64;
const RECORD_BYTES: u64 = SCRATCH_WORDS as u64 * 8;

/// Completes the header, copies the stack if user space can make use of it, and writes the record.
#[inline(always)]
pub(crate) fn finish(record: &mut [u64; SCRATCH_WORDS], walk: &Walk, stop: StopReason) {
    let kernel_frames = walk.kernel_frames;
    let user_frames = walk.user_frames;
    let waiting = RECORDS.query(u64::from(BPF_RB_AVAIL_DATA));
    // Better a stack that is cut than no room for samples.
    let has_room = waiting < settings::wake_up_bytes();
    let whole_stack = settings::whole_stack() != 0 || walk.process.whole_stack != 0 && has_room;
    let flags = walk.kernel_mode * u64::from(FLAG_KERNEL_MODE) | u64::from(whole_stack) * u64::from(FLAG_WHOLE_STACK);
    let registers = if whole_stack { &walk.first } else { &walk.registers };
    record[word::SHAPE] = shape_word(flags, stop as u64, kernel_frames, user_frames);
    record[word::CPU_GENERATION] |= u64::from(walk.process.generation) << 32;
    record[word::REGISTERS] = registers.pc;
    record[word::REGISTERS + 1] = registers.sp;
    record[word::REGISTERS + 2] = registers.fp;
    record[word::REGISTERS + 3] = registers.lr;
    let frames_end = HEADER_WORDS as u64 + kernel_frames + user_frames;
    let mut used = frames_end * 8;
    let mut copied = 0;
    let mut pages = 0;
    if whole_stack || stop.can_go_on() {
        let stack_at = frames_end + OTHER_REGISTER_WORDS as u64;
        (copied, pages) = copy_stack(record, stack_at * 8, stack_copy_start(registers.sp));
        if copied != 0 {
            let mut index = 0;
            while index < OTHER_REGISTER_WORDS {
                let slot = opaque(frames_end + index as u64) & (SCRATCH_WORDS as u64 - 1);
                record[slot as usize] = walk.other[index];
                index += 1;
            }
            used = stack_at * 8;
        }
    }
    record[word::STACK_BYTES] = copied | pages << 32;
    let wake_up = if has_room { BPF_RB_NO_WAKEUP } else { BPF_RB_FORCE_WAKEUP };
    write(record, used + copied, wake_up);
}

/// Copies the stack from `start` upwards behind the `used` bytes of the record, page by page. What can't be read is
/// left out: a large buffer of which little was used lies between a frame and its callers, or the stack has ended.
/// Returns the bytes copied, and a bit for each page that is among them, the lowest for that of `start`.
#[inline(always)]
fn copy_stack(record: &mut [u64; SCRATCH_WORDS], used: u64, start: u64) -> (u64, u64) {
    let mut copied = 0;
    let mut pages = 0;
    let mut from = start;
    let mut page = 0;
    while page < opaque(MAX_STACK_COPY_PAGES as u64) {
        let rest = MAX_STACK_COPY_BYTES as u64 - copied;
        let in_page = PAGE_BYTES - (from & (PAGE_BYTES - 1));
        let bytes = opaque(if in_page < rest { in_page } else { rest }) & !7;
        let to = opaque(used + copied);
        if bytes == 0 || bytes > PAGE_BYTES || to > RECORD_BYTES - PAGE_BYTES {
            break;
        }
        // SAFETY: `to + bytes` is at most `RECORD_BYTES`, by the two tests above.
        let target = unsafe { record.as_mut_ptr().cast::<u8>().add(to as usize) };
        // SAFETY: `target` has room for `bytes` bytes; the helper checks the address, and clears the buffer
        // when it can't be read.
        let result = unsafe { bpf_probe_read_user(target.cast(), bytes as u32, from as *const _) };
        let readable = 1 ^ opaque(opaque(result as u64) >> 63);
        copied += opaque(bytes) * readable;
        pages |= readable << page;
        from = from.wrapping_add(in_page);
        page += 1;
    }
    (opaque(copied), opaque(pages))
}

/// Hands the first `bytes` bytes of the record to user space, which is woken only when much waits.
#[inline(always)]
fn write(record: &[u64; SCRATCH_WORDS], bytes: u64, wake_up: u32) {
    let bytes = opaque(bytes) & (RECORD_BYTES - 1);
    // SAFETY: `bytes` is below the size of the record.
    let record = unsafe { core::slice::from_raw_parts(record.as_ptr().cast::<u8>(), bytes as usize) };
    match RECORDS.output::<[u8]>(record, u64::from(wake_up)) {
        Ok(()) => count(Counter::SamplesDelivered),
        Err(_full) => count(Counter::LostRingFull),
    }
}
