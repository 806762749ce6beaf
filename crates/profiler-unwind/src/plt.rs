//! Rows of procedure linkage tables: x86_64 ones with one CFI expression for all entries, and those
//! without CFI, whose code says how they use the stack.

use crate::elf::{Elf, Section};
use crate::error::BuildError;
use crate::read::{ReadAt, read_bytes};
use crate::segment::Arch;
use crate::tiles::Tiles;
use profiler_common::row::{RA_IN_LR, Rule};

/// Bytes of an entry on x86_64, and the alignment of the entries.
const ENTRY_BYTES: u64 = 16;

/// Bytes read to see how a table is made: its header and the first entry.
const PROBE_BYTES: u64 = 32;

/// `bti c` of aarch64, with which each entry begins when branch target identification is on.
const BTI_C: &[u8] = &[0x5f, 0x24, 0x03, 0xd5];
/// `stp x16, x30, [sp, #-16]!`: how the header of an aarch64 table begins.
const PUSH_X16_X30: &[u8] = &[0xf0, 0x7b, 0xbf, 0xa9];
/// `endbr64`.
const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];

/// Covers up to `until` with entries of 16 bytes: `before` holds up to the byte `pushed_from` of
/// each, `after` from there on.
pub(crate) fn cover_entries(
    tiles: &mut Tiles<'_>,
    until: u64,
    pushed_from: u8,
    [before, after]: [Rule; 2],
) -> Result<(), BuildError> {
    while tiles.covered_to() < until {
        let entry = tiles.covered_to() & !(ENTRY_BYTES - 1);
        tiles.cover((entry + u64::from(pushed_from)).min(until), before)?;
        tiles.cover(entry.saturating_add(ENTRY_BYTES).min(until), after)?;
    }
    Ok(())
}

/// A table, with as much of its code as says how it is made.
pub(crate) struct Plt {
    pub(crate) start: u64,
    pub(crate) end: u64,
    code: Vec<u8>,
}

impl Plt {
    /// The tables of a file, in the order of addresses. What of them can't be read counts as empty.
    pub(crate) fn read_all(file: &impl ReadAt, elf: &Elf) -> Vec<Self> {
        let read = |plt: &Section| {
            let (offset, left) = elf.in_file(plt.svma)?;
            let length = plt.size_bytes.min(PROBE_BYTES).min(left);
            read_bytes(file, "the start of a .plt section", offset, length, PROBE_BYTES).ok()
        };
        let table = |plt: &Section| Self {
            start: plt.svma.0,
            end: plt.svma.0.saturating_add(plt.size_bytes),
            code: read(plt).unwrap_or_default(),
        };
        elf.plts.iter().map(table).collect()
    }

    /// Covers this table up to `until`, from where `tiles` end, where no CFI does.
    pub(crate) fn cover(&self, tiles: &mut Tiles<'_>, until: u64, arch: Arch) -> Result<(), BuildError> {
        let until = until.min(self.end);
        let until_byte = |byte: u64| self.start.saturating_add(byte).min(until);
        match arch {
            Arch::Aarch64 => {
                let in_lr = |offset_by_8| Rule::aarch64(RA_IN_LR, 0, offset_by_8);
                if let Some(push_at) = aarch64_push(&self.code) {
                    tiles.cover(until_byte(push_at + 4), in_lr(0))?;
                    tiles.cover(until_byte(PROBE_BYTES), in_lr(2))?;
                }
                tiles.cover(until, in_lr(0))
            }
            Arch::X86_64 => {
                let words_pushed = |words| Rule::x86_64(0, 0, words);
                // The header: `push GOT+8(%rip)`, 6 bytes. Who jumps to it has pushed an index.
                if self.code.starts_with(&[0xff, 0x35]) {
                    tiles.cover(until_byte(6), words_pushed(2))?;
                    tiles.cover(until_byte(ENTRY_BYTES), words_pushed(3))?;
                }
                match self.code.get(16..).and_then(x86_64_pushed_from) {
                    Some(pushed_from) => cover_entries(tiles, until, pushed_from, [words_pushed(1), words_pushed(2)]),
                    None => tiles.cover(until, words_pushed(1)),
                }
            }
        }
    }
}

/// Where the header of an aarch64 table has its push, in bytes.
fn aarch64_push(code: &[u8]) -> Option<u64> {
    if code.starts_with(PUSH_X16_X30) {
        return Some(0);
    }
    code.strip_prefix(BTI_C)?.starts_with(PUSH_X16_X30).then_some(4)
}

/// The first byte of an x86_64 entry after its `push imm32` (0x68), if it has one.
fn x86_64_pushed_from(entry: &[u8]) -> Option<u8> {
    if entry.starts_with(&[0xff, 0x25]) && entry.get(6) == Some(&0x68) {
        return Some(11);
    }
    (entry.starts_with(ENDBR64) && entry.get(4) == Some(&0x68)).then_some(9)
}
