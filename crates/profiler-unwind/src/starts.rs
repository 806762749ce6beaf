//! Where functions begin, by a file's symbol tables.
//!
//! Layout: System V ABI, generic, chapter 4 (`Elf64_Sym`).

use crate::bytes::u64_at;
use crate::elf::Elf;
use crate::flow::Starts;
use crate::read::{ReadAt, read_bytes};
use profiler_common::address::FileOffset;

const SYMBOL_BYTES: usize = 24;
/// Symbols that are read at once.
const BLOCK_SYMBOLS: u64 = 4096;
/// Symbols of one file that are looked at: 24 MiB of table. Larger ones are those of programs with call frame
/// information.
const MAX_SYMBOLS: u64 = 1 << 20;
/// `STT_FUNC` and `STT_GNU_IFUNC`.
const FUNCTIONS: [u8; 2] = [2, 10];
/// `STB_LOCAL`.
const LOCAL: u8 = 0;

/// The functions in `.symtab` and `.dynsym`; none where they can't be read.
///
/// gcc makes functions of those parts that it moves elsewhere, too, and jumps lead into them. All those are
/// local, so local symbols only say that something begins.
pub(crate) fn read(file: &impl ReadAt, elf: &Elf) -> Starts {
    let mut starts = Starts::default();
    let mut left = MAX_SYMBOLS;
    for table in &elf.symbol_tables {
        let count = (table.size_bytes / SYMBOL_BYTES as u64).min(left);
        left -= count;
        let mut first = 0;
        while first < count {
            let length = BLOCK_SYMBOLS.min(count - first) * SYMBOL_BYTES as u64;
            let offset = table.file_offset.0.saturating_add(first * SYMBOL_BYTES as u64);
            let Ok(block) = read_bytes(file, "symbols", FileOffset(offset), length, length) else { break };
            block.chunks_exact(SYMBOL_BYTES).for_each(|symbol| add(&mut starts, elf, symbol));
            first += BLOCK_SYMBOLS;
        }
    }
    for addresses in [&mut starts.entries, &mut starts.boundaries] {
        addresses.sort_unstable();
        addresses.dedup();
    }
    starts
}

/// `st_info`, `st_shndx` and `st_value`.
fn add(starts: &mut Starts, elf: &Elf, symbol: &[u8]) {
    let (Some(info), Some(section), Some(address)) = (symbol.get(4), symbol.get(6..8), u64_at(symbol, 8)) else {
        return;
    };
    let is_code = || elf.executable().any(|segment| (segment.svma.0..segment.end().0).contains(&address));
    if !FUNCTIONS.contains(&(info & 15)) || section == [0, 0] || !is_code() {
        return;
    }
    if info >> 4 != LOCAL {
        starts.entries.push(address);
    }
    starts.boundaries.push(address);
}
