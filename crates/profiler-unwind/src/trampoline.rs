//! Code without CFI that is the same everywhere and is known by its bytes: signal return trampolines
//! (musl's, and those of the aarch64 vDSO since Linux 5.8) and where threads of musl begin.
//!
//! By the frame pointer, a trampoline would skip the interrupted function, and the beginning of a
//! thread would look like a stack that is cut.

use crate::error::BuildError;
use crate::read::{ReadAt, read_bytes};
use crate::segment::Arch;
use profiler_common::address::FileOffset;
use profiler_common::row::Rule;

/// Bytes of code without CFI that are searched in one file. All of musl has 0.6 MiB; what is larger
/// is made by a compiler with other runtime tables (Go).
pub(crate) const SEARCH_BUDGET_BYTES: u64 = 4 << 20;

/// What a search costs at least, so that the number of holes searched has a bound, too.
pub(crate) const SEARCH_MIN_BYTES: u64 = 512;

/// Bytes read at once.
const BLOCK_BYTES: u64 = 64 * 1024;

/// The code of what is searched for, and its rule.
const fn patterns(arch: Arch) -> [(&'static [u8], Rule); 2] {
    match arch {
        Arch::X86_64 => [
            // mov $15, %rax; syscall
            (&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05], Rule::X86_64_SIGNAL),
            // After the call of a thread's function in musl's `__clone`:
            // mov %eax, %edi; xor %eax, %eax; mov $60, %al; syscall
            (&[0x89, 0xc7, 0x31, 0xc0, 0xb0, 0x3c, 0x0f, 0x05], Rule::END),
        ],
        Arch::Aarch64 => [
            // mov x8, #139; svc #0
            (&[0x68, 0x11, 0x80, 0xd2, 0x01, 0, 0, 0xd4], Rule::AARCH64_SIGNAL),
            // The same place in musl's `__clone`: mov x8, #93; svc #0
            (&[0xa8, 0x0b, 0x80, 0xd2, 0x01, 0, 0, 0xd4], Rule::END),
        ],
    }
}

/// Bytes of a pattern, at most.
const LONGEST_BYTES: u64 = 9;

/// The first known code in the `length_bytes` bytes at `offset`: where it starts and ends, in bytes
/// from `offset`, and its rule.
pub(crate) fn find(
    file: &impl ReadAt,
    arch: Arch,
    offset: FileOffset,
    length_bytes: u64,
) -> Result<Option<(u64, u64, Rule)>, BuildError> {
    let mut at = 0;
    while at < length_bytes {
        let block = BLOCK_BYTES.min(length_bytes - at);
        let from = FileOffset(offset.0.saturating_add(at));
        let bytes = read_bytes(file, "code without call frame information", from, block, BLOCK_BYTES)?;
        let first = patterns(arch).into_iter().filter_map(|(code, rule)| {
            let start = at + bytes.windows(code.len()).position(|window| window == code)? as u64;
            Some((start, start + code.len() as u64, rule))
        });
        if let Some(found) = first.min_by_key(|(start, _end, _rule)| *start) {
            return Ok(Some(found));
        }
        if block == length_bytes - at {
            break;
        }
        // Blocks overlap by what a pattern that is cut in two needs.
        at += block - (LONGEST_BYTES - 1);
    }
    Ok(None)
}
