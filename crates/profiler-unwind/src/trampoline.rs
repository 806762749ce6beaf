//! Signal return trampolines without CFI: those of musl, and of the aarch64 vDSO since Linux 5.8.
//!
//! A frame-pointer step there would skip the interrupted function. The code is the same everywhere,
//! because the kernel's and gdb's unwinders know it by its bytes.

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

/// The code of the trampoline and its rule.
fn pattern(arch: Arch) -> (&'static [u8], Rule) {
    match arch {
        // mov $15, %rax; syscall
        Arch::X86_64 => (&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05], Rule::X86_64_SIGNAL),
        // mov x8, #139; svc #0
        Arch::Aarch64 => (&[0x68, 0x11, 0x80, 0xd2, 0x01, 0, 0, 0xd4], Rule::AARCH64_SIGNAL),
    }
}

/// The first trampoline in the `length_bytes` bytes at `offset`: where it starts and ends, in bytes
/// from `offset`, and its rule.
pub(crate) fn find(
    file: &impl ReadAt,
    arch: Arch,
    offset: FileOffset,
    length_bytes: u64,
) -> Result<Option<(u64, u64, Rule)>, BuildError> {
    let (code, rule) = pattern(arch);
    let code_bytes = code.len() as u64;
    let mut at = 0;
    while length_bytes - at >= code_bytes {
        let block = BLOCK_BYTES.min(length_bytes - at);
        let from = FileOffset(offset.0.saturating_add(at));
        let bytes = read_bytes(file, "code without call frame information", from, block, BLOCK_BYTES)?;
        if let Some(found) = bytes.windows(code.len()).position(|window| window == code) {
            let start = at + found as u64;
            return Ok(Some((start, start + code_bytes, rule)));
        }
        // Blocks overlap by what a trampoline that is cut in two needs.
        at += block - (code_bytes - 1);
    }
    Ok(None)
}
