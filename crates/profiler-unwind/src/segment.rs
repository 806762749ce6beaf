//! The segments of a file, and where a process has them.

use profiler_common::address::{Bias, FileOffset, Svma, VirtualAddress};

/// The architecture of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// x86_64 (AMD64).
    X86_64,
    /// aarch64 (ARM64).
    Aarch64,
}

/// A part of the file that is loaded into memory (`PT_LOAD`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts in the file (`p_offset`).
    pub file_offset: FileOffset,
    /// How many bytes of it are in the file (`p_filesz`).
    pub file_size_bytes: u64,
    /// Its address as the file states it (`p_vaddr`).
    pub svma: Svma,
    /// How many bytes it has in memory (`p_memsz`); `svma + memory_size_bytes` does not wrap.
    pub memory_size_bytes: u64,
    /// Whether it holds code (`PF_X`).
    pub executable: bool,
}

impl Segment {
    /// The address after its last byte in memory.
    #[must_use]
    pub const fn end(&self) -> Svma {
        Svma(self.svma.0 + self.memory_size_bytes)
    }

    /// Where the byte at `svma` is in the file, and how many bytes of the segment follow from there.
    pub(crate) fn in_file(&self, svma: Svma) -> Option<(FileOffset, u64)> {
        let distance = svma.0.checked_sub(self.svma.0)?;
        let left = self.file_size_bytes.checked_sub(distance).filter(|left| *left > 0)?;
        Some((FileOffset(self.file_offset.0.checked_add(distance)?), left))
    }
}

/// The bias of a file in a process, from one of its mappings: the bytes of the file from
/// `mapping_file_offset` on are seen at `mapping_start`.
///
/// Segments are told apart by their program headers, because `p_vaddr - p_offset` may differ
/// between them (lld) and one page of the file may belong to two of them. `page_size_bytes` is the
/// system's: the loader maps whole pages. A segment that a mapping begins with goes before one that
/// it begins within, and executable segments go before others, as it is their mappings that matter.
///
/// Returns `None` when no segment holds that page of the file.
#[must_use]
pub fn bias_of_mapping(
    segments: &[Segment],
    mapping_start: VirtualAddress,
    mapping_file_offset: FileOffset,
    page_size_bytes: u64,
) -> Option<Bias> {
    let page_mask = !page_size_bytes.checked_sub(1).filter(|_| page_size_bytes.is_power_of_two())?;
    let offset = mapping_file_offset.0;
    let rank = |segment: &&Segment| {
        let start = segment.file_offset.0 & page_mask;
        let end = segment.file_offset.0.saturating_add(segment.file_size_bytes);
        let inside = segment.file_size_bytes > 0 && (start..end).contains(&offset);
        inside.then_some((!segment.executable, start != offset))
    };
    let segment = segments.iter().filter(|segment| rank(segment).is_some()).min_by_key(rank)?;
    let svma = segment.svma.0.wrapping_add(offset).wrapping_sub(segment.file_offset.0);
    Some(Bias(mapping_start.0.wrapping_sub(svma)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn segment(file_offset: u64, svma: u64, size: u64, executable: bool) -> Segment {
        Segment {
            file_offset: FileOffset(file_offset),
            file_size_bytes: size,
            svma: Svma(svma),
            memory_size_bytes: size,
            executable,
        }
    }

    /// As lld lays a file out: each segment one page further in memory than the one before it.
    fn lld() -> Vec<Segment> {
        vec![
            segment(0, 0, 0x1b3c, false),
            segment(0x1b40, 0x2b40, 0x2100, true),
            segment(0x3c40, 0x5c40, 0x300, false),
            segment(0x3f40, 0x6f40, 0x2000, true),
        ]
    }

    fn bias(segments: &[Segment], start: u64, offset: u64) -> Option<u64> {
        bias_of_mapping(segments, VirtualAddress(start), FileOffset(offset), PAGE).map(|bias| bias.0)
    }

    #[test]
    fn each_segment_of_an_lld_layout_gives_the_same_bias() {
        let load = 0x5555_0000_0000;
        assert_eq!(bias(&lld(), load, 0), Some(load));
        // The page at 0x1000 belongs to the first two segments; the mapping of code is meant.
        assert_eq!(bias(&lld(), load + 0x2000, 0x1000), Some(load));
        // The page at 0x3000 belongs to three: the second executable one starts there.
        assert_eq!(bias(&lld(), load + 0x6000, 0x3000), Some(load));
    }

    #[test]
    fn a_mapping_may_begin_within_a_segment() {
        let load = 0x7f00_0000_0000;
        assert_eq!(bias(&lld(), load + 0x3000, 0x2000), Some(load));
        assert_eq!(bias(&lld(), load + 0x7000, 0x4000), Some(load));
        assert_eq!(bias(&lld(), load + 0x8000, 0x5000), Some(load));
    }

    #[test]
    fn a_file_with_a_fixed_address_has_bias_0() {
        let segments = [segment(0, 0x40_0000, 0x1000, false), segment(0x1000, 0x40_1000, 0x5000, true)];
        assert_eq!(bias(&segments, 0x40_1000, 0x1000), Some(0));
        assert_eq!(bias(&segments, 0x40_3000, 0x3000), Some(0));
        // Loaded below its stated address the bias wraps.
        assert_eq!(bias(&segments, 0x1000, 0x1000), Some(0u64.wrapping_sub(0x40_0000)));
    }

    #[test]
    fn pages_of_64_kib_reach_further_down() {
        let segments = [segment(0, 0, 0x11000, false), segment(0x1_1b40, 0x2_1b40, 0x5000, true)];
        let bias = |offset, page| bias_of_mapping(&segments, VirtualAddress(0x9_0000), FileOffset(offset), page);
        assert_eq!(bias(0x1_0000, 0x1_0000), Some(Bias(0x9_0000 - 0x2_0000)));
        assert_eq!(bias(0x1_0000, PAGE), Some(Bias(0x9_0000 - 0x1_0000)), "with small pages it is the first one");
    }

    #[test]
    fn what_no_segment_holds_has_no_bias() {
        assert_eq!(bias(&lld(), 0x1000, 0x6000), None);
        assert_eq!(bias(&[], 0x1000, 0), None);
        let only_memory = Segment { file_size_bytes: 0, ..segment(0, 0, 0x1000, true) };
        assert_eq!(bias(&[only_memory], 0x1000, 0), None);
        assert_eq!(bias_of_mapping(&lld(), VirtualAddress(0), FileOffset(0), 0), None);
        assert_eq!(bias_of_mapping(&lld(), VirtualAddress(0), FileOffset(0), 1000), None);
    }
}
