//! Where functions begin, by a file's symbol tables and by what it tells the loader.
//!
//! Layout: System V ABI, generic, chapter 4 (`Elf64_Sym`).

use crate::bytes::{u32_at, u64_at};
use crate::elf::{Elf, Section};
use crate::flow::{Region, Starts};
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
/// Tags of addresses in `.dynamic` (System V ABI, generic, chapter 5).
const DT_INIT: u64 = 12;
const DT_FINI: u64 = 13;
/// `STB_LOCAL`.
const LOCAL: u8 = 0;

/// Names of symbols that are read: what there is in large programs with debug information.
const MAX_NAMES_BYTES: u64 = 128 << 20;
/// Bytes of names that are read at once.
const BLOCK_BYTES: u64 = 1 << 16;
/// Bytes of a name that are looked at; longer ones are taken for those of parts.
const NAME_BYTES: u64 = 512;

/// The functions in `.symtab` and `.dynsym`, and those that the loader calls; none where they can't be read.
///
/// gcc makes functions of those parts that it moves elsewhere, too, and jumps lead into them. All those are
/// local and have a dot in their names (`f.cold`), so such symbols only say that something begins.
///
/// Only those in `regions` count, which are in ascending order.
pub(crate) fn read(file: &impl ReadAt, elf: &Elf, regions: &[Region<'_>]) -> Starts {
    let mut starts = Starts::default();
    let mut left = MAX_SYMBOLS;
    for table in &elf.symbol_tables {
        let count = (table.symbols.size_bytes / SYMBOL_BYTES as u64).min(left);
        left -= count;
        let mut locals = Vec::new();
        let mut first = 0;
        while first < count {
            let length = BLOCK_SYMBOLS.min(count - first) * SYMBOL_BYTES as u64;
            let offset = table.symbols.file_offset.0.saturating_add(first * SYMBOL_BYTES as u64);
            let Ok(block) = read_bytes(file, "symbols", FileOffset(offset), length, length) else { break };
            block.chunks_exact(SYMBOL_BYTES).for_each(|symbol| add(&mut starts, &mut locals, regions, symbol));
            first += BLOCK_SYMBOLS;
        }
        add_whole(&mut starts, file, table.names, locals);
    }
    // `.init` and `.fini`, which the loader calls.
    for address in elf.dynamic_values(file, [DT_INIT, DT_FINI]).into_iter().flatten() {
        if is_inside(regions, address) {
            starts.entries.push(address);
            starts.boundaries.push(address);
        }
    }
    for addresses in [&mut starts.entries, &mut starts.boundaries] {
        addresses.sort_unstable();
        addresses.dedup();
    }
    starts
}

/// Adds a function by `st_name`, `st_info`, `st_shndx` and `st_value`; to `locals`, name and address of a local one.
fn add(starts: &mut Starts, locals: &mut Vec<(u32, u64)>, regions: &[Region<'_>], symbol: &[u8]) {
    let (Some(name), Some(info), Some(section)) = (u32_at(symbol, 0), symbol.get(4), symbol.get(6..8)) else { return };
    let Some(address) = u64_at(symbol, 8) else { return };
    if !FUNCTIONS.contains(&(info & 15)) || section == [0, 0] || !is_inside(regions, address) {
        return;
    }
    if info >> 4 == LOCAL {
        locals.push((name, address));
    } else {
        starts.entries.push(address);
    }
    starts.boundaries.push(address);
}

fn is_inside(regions: &[Region<'_>], address: u64) -> bool {
    let after = regions.partition_point(|region| region.start <= address);
    let region = after.checked_sub(1).and_then(|index| regions.get(index));
    region.is_some_and(|region| address - region.start < region.bytes.len() as u64)
}

/// Adds those local functions that are no parts of others.
fn add_whole(starts: &mut Starts, file: &impl ReadAt, names: Section, mut locals: Vec<(u32, u64)>) {
    locals.sort_unstable();
    let (mut first, mut block) = (0, Vec::new());
    for (name, address) in locals {
        let at = u64::from(name);
        if at > MAX_NAMES_BYTES {
            break;
        }
        let needed = names.size_bytes.saturating_sub(at).min(NAME_BYTES);
        if at + needed > first + block.len() as u64 {
            let length = names.size_bytes.saturating_sub(at).min(BLOCK_BYTES);
            let offset = FileOffset(names.file_offset.0.saturating_add(at));
            let Ok(bytes) = read_bytes(file, "names of symbols", offset, length, length) else { break };
            (first, block) = (at, bytes);
        }
        let rest = usize::try_from(at - first).ok().and_then(|from| block.get(from..)).unwrap_or_default();
        let end = rest.iter().take(NAME_BYTES as usize).position(|byte| matches!(byte, 0 | b'.'));
        if end.is_some_and(|end| rest.get(end) == Some(&0)) {
            starts.entries.push(address);
        }
    }
}
