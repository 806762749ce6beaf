//! Range tables: which rows unwind which addresses of a process.

use crate::search::Extent;

/// Addresses `[start, end)` of a process and the rows that unwind them.
///
/// In a chunk it is four words: start, end, bias, `extent << 32 | first_row`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first address.
    pub start: u64,
    /// The address after the last one.
    pub end: u64,
    /// What is subtracted from an address to get the offset that rows count in.
    pub bias: u64,
    /// The index of the first row: `chunk << 19 | index in the chunk`.
    pub first_row: u32,
    /// How many rows.
    pub extent: Extent,
}

impl Range {
    /// The range as it stands in a chunk.
    #[must_use]
    pub const fn to_words(self) -> [u64; 4] {
        [self.start, self.end, self.bias, (self.extent.0 as u64) << 32 | self.first_row as u64]
    }

    /// The range that stands in a chunk as `words`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "two halves of a word")]
    pub const fn from_words(words: [u64; 4]) -> Self {
        Self {
            start: words[0],
            end: words[1],
            bias: words[2],
            first_row: words[3] as u32,
            extent: Extent((words[3] >> 32) as u32),
        }
    }
}

/// The first two of the four words before a process's ranges: whose table this is, which state of it,
/// and how long it is. The kernel program compares them with the [`ProcessEntry`] that led it here,
/// so a slot that was given to another process is never used, nor an entry that was read while user
/// space replaced it.
#[must_use]
pub const fn table_header(pid: u32, entry: &ProcessEntry) -> [u64; 2] {
    [(entry.generation as u64) << 32 | pid as u64, entry.extent.0 as u64]
}

/// The hash entry of a process: where its range table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessEntry {
    /// The index of the first range in the chunk of ranges; the header is the slot before it.
    pub first_range: u32,
    /// How many ranges.
    pub extent: Extent,
    /// The state of the process's mappings that these ranges stand for.
    pub generation: u32,
    /// 1: the ranges may be wrong soon, so each record has the registers and the stack that the sample began with.
    pub whole_stack: u32,
}

const _: () = assert!(size_of::<ProcessEntry>() == 16);
