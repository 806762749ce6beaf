//! Where a program's Go module is: its table of functions, its code, its data about inlining.

use super::pclntab::{HEADER_BYTES, Pclntab};
use crate::bytes::{u32_at, u64_at};
use crate::elf::Elf;
use crate::error::BuildError;
use crate::read::{ReadAt, read_bytes};
use crate::segment::{Arch, Segment};
use profiler_common::address::{FileOffset, Svma};

/// The largest table that is read. kubectl's has 20 MiB.
const MAX_TABLE_BYTES: u64 = 256 << 20;
/// Bytes of data in which pointers to the table, or the table itself, are looked for.
const MAX_SEARCHED_BYTES: u64 = 256 << 20;
/// What is read at once while searching.
const BLOCK_BYTES: u64 = 1 << 20;
/// Relocations of a position-independent program: 24 bytes each.
const MAX_RELOCATION_BYTES: u64 = 128 << 20;
const RELOCATION_BYTES: usize = 24;
/// `R_X86_64_RELATIVE`, `R_AARCH64_RELATIVE`.
const RELATIVE: [u64; 2] = [8, 1027];
/// Tags of the relocations' address and size in `.dynamic`.
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
/// Places that hold a pointer to the table and are looked at.
const MAX_CANDIDATES: usize = 16;
/// The table begins at such an address where there are no section headers to tell it.
const TABLE_ALIGNMENT: usize = 8;

/// Words of `moduledata` that are read: up to `gofunc` in the newest known layout.
const MODULE_WORDS: usize = 44;
/// In `moduledata`: the pointers that follow the one to the table, each the first word of a slice.
const MODULE_SLICES: [usize; 6] = [1, 4, 7, 10, 13, 16];
/// In `moduledata`: `maxpc`, the end of the last function, and `text`.
const MODULE_CODE_END: usize = 21;
const MODULE_CODE: usize = 22;
/// In `moduledata`: `gofunc` in Go 1.18 and 1.19; 1.20 to 1.26; 1.27.
const MODULE_FUNCTION_DATA: [usize; 3] = [38, 40, 43];

/// A Go module of a file: one, unless the file was made with `-buildmode=plugin` and friends.
#[derive(Debug)]
pub(crate) struct Module {
    table: Vec<u8>,
    arch: Arch,
    /// The start of Go's code.
    pub(super) code: Svma,
    /// What `FUNCDATA` offsets count from, as far as it can be known: the first that fits.
    pub(super) function_data: Vec<Svma>,
}

impl Module {
    /// The bytes of its table.
    pub(super) fn size_bytes(&self) -> u64 {
        self.table.len() as u64
    }

    pub(super) fn table(&self) -> Option<Pclntab<'_>> {
        Pclntab::parse(&self.table, self.arch)
    }
}

/// The Go module of `file`; `None` when there is none, or none that can be used.
///
/// # Errors
/// When its table can't be read.
pub(crate) fn find(file: &impl ReadAt, elf: &Elf) -> Result<Option<Module>, BuildError> {
    let Some((svma, offset, length)) = table_place(file, elf)? else { return Ok(None) };
    let table = read_bytes(file, "the section .gopclntab", offset, length, MAX_TABLE_BYTES)?;
    let Some(parsed) = Pclntab::parse(&table, elf.arch) else { return Ok(None) };
    let is_code = |start: u64| {
        let end = parsed.code_end().and_then(|length| start.checked_add(length.into()));
        let holds = |segment: &Segment| segment.svma.0 <= start && end.is_some_and(|end| end <= segment.end().0);
        elf.executable().any(holds)
    };
    let module_data = Search { file, elf, table: svma, parsed: &parsed, is_code: &is_code }.module_data();
    // Up to 1.25 the header has the start of the code; 1.26 left that word 0.
    let in_header = u64_at(&table, 24).filter(|start| *start != 0 && is_code(*start));
    let Some(code) = module_data.as_ref().map(|words| words[MODULE_CODE]).or(in_header) else { return Ok(None) };
    let words = module_data.unwrap_or_default();
    let places = if parsed.since_1_20 { &MODULE_FUNCTION_DATA[1..] } else { &MODULE_FUNCTION_DATA[..1] };
    let function_data = places.iter().filter_map(|place| words.get(*place).copied().map(Svma)).collect();
    Ok(Some(Module { table, arch: elf.arch, code: Svma(code), function_data }))
}

/// Address, place in the file and length of the table.
fn table_place(file: &impl ReadAt, elf: &Elf) -> Result<Option<(Svma, FileOffset, u64)>, BuildError> {
    if let Some(section) = elf.go_table {
        return Ok(Some((section.svma, section.file_offset, section.size_bytes)));
    }
    // In libraries that another linker makes, the table is a part of `.data.rel.ro`.
    if elf.is_not_go {
        return Ok(None);
    }
    let mut scan = Scan { file, left_bytes: MAX_SEARCHED_BYTES };
    for segment in elf.segments.iter().filter(|segment| !segment.executable) {
        let begins = |bytes: &[u8]| looks_like_table(bytes, elf.arch);
        if let Some(distance) = scan.places(segment, (TABLE_ALIGNMENT, HEADER_BYTES), begins)?.first() {
            let (offset, left) = (segment.file_offset.0 + distance, segment.file_size_bytes - distance);
            return Ok(Some((Svma(segment.svma.0 + distance), FileOffset(offset), left.min(MAX_TABLE_BYTES))));
        }
    }
    Ok(None)
}

/// Whether a header begins here whose parts are in their usual order.
fn looks_like_table(bytes: &[u8], arch: Arch) -> bool {
    let quantum = if arch == Arch::X86_64 { 1 } else { 4 };
    let parts = (4..=8).map(|index| u64_at(bytes, index * 8).unwrap_or_default());
    u32_at(bytes, 0).is_some_and(|magic| magic | 1 == 0xffff_fff1)
        && bytes.get(4..8) == Some(&[0, 0, quantum, 8])
        && parts.is_sorted_by(|a, b| a < b)
}

/// Looks through a program's data.
struct Scan<'a, F> {
    file: &'a F,
    /// Bytes that may still be read.
    left_bytes: u64,
}

impl<F: ReadAt> Scan<'_, F> {
    /// Where in the segment, at multiples of `step` bytes, `matches` holds of the next `width` bytes.
    fn places(
        &mut self,
        segment: &Segment,
        (step, width): (usize, usize),
        matches: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<u64>, BuildError> {
        let length = segment.file_size_bytes.min(self.left_bytes);
        self.left_bytes -= length;
        let mut found = Vec::new();
        for start in (0..length).step_by(BLOCK_BYTES as usize) {
            let most = BLOCK_BYTES + width as u64;
            let offset = FileOffset(segment.file_offset.0.saturating_add(start));
            let bytes = read_bytes(self.file, "the program's data", offset, (length - start).min(most), most)?;
            let places = (0..bytes.len().min(BLOCK_BYTES as usize)).step_by(step);
            let places = places.filter(|at| bytes.get(*at..at + width).is_some_and(&matches));
            found.extend(places.map(|at| start + at as u64).take(MAX_CANDIDATES - found.len()));
        }
        Ok(found)
    }
}

/// The search for `moduledata`, which begins with a pointer to the table.
struct Search<'a, F> {
    file: &'a F,
    elf: &'a Elf,
    table: Svma,
    parsed: &'a Pclntab<'a>,
    is_code: &'a dyn Fn(u64) -> bool,
}

impl<F: ReadAt> Search<'_, F> {
    /// Its first words, as they are in a program that is loaded where the file says. Not found where
    /// something can't be read: names and lines are there without.
    fn module_data(&self) -> Option<Vec<u64>> {
        self.in_place().or_else(|| self.relocated())
    }

    /// Where the file has the pointers themselves. Data that is written to comes last.
    fn in_place(&self) -> Option<Vec<u64>> {
        let pointer = self.table.0.to_le_bytes();
        let mut scan = Scan { file: self.file, left_bytes: MAX_SEARCHED_BYTES };
        self.elf.segments.iter().rev().filter(|segment| !segment.executable).find_map(|segment| {
            let places = scan.places(segment, (8, 8), |bytes| bytes == pointer).ok()?;
            places.into_iter().find_map(|distance| {
                let offset = FileOffset(segment.file_offset.0.checked_add(distance)?);
                let length = (MODULE_WORDS * 8) as u64;
                let bytes = read_bytes(self.file, "the module data", offset, length, length).ok()?;
                let words = (0..MODULE_WORDS).map_while(|index| u64_at(&bytes, index * 8)).collect();
                self.checked(words)
            })
        })
    }

    /// Where the loader puts the pointers, and the file says so in its relocations.
    fn relocated(&self) -> Option<Vec<u64>> {
        let relocations = self.relocations()?;
        let (entries, _rest) = relocations.as_chunks::<RELOCATION_BYTES>();
        let relative = entries.iter().filter_map(|entry| {
            let kind = RELATIVE[usize::from(self.elf.arch == Arch::Aarch64)];
            (u64_at(entry, 8)? == kind).then_some((u64_at(entry, 0)?, u64_at(entry, 16)?))
        });
        let candidates = relative.clone().filter(|(_place, value)| *value == self.table.0).take(MAX_CANDIDATES);
        candidates.into_iter().find_map(|(start, _value)| {
            let mut words = vec![0; MODULE_WORDS];
            for (place, value) in relative.clone() {
                let distance = place.checked_sub(start).filter(|distance| distance.is_multiple_of(8));
                let index = distance.and_then(|distance| usize::try_from(distance / 8).ok());
                if let Some(word) = index.and_then(|index| words.get_mut(index)) {
                    *word = value;
                }
            }
            self.checked(words)
        })
    }

    fn relocations(&self) -> Option<Vec<u8>> {
        let [start, size_bytes] = self.elf.dynamic_values(self.file, [DT_RELA, DT_RELASZ]);
        let (offset, left) = self.elf.in_file(Svma(start?))?;
        read_bytes(self.file, "the relocations", offset, size_bytes?.min(left), MAX_RELOCATION_BYTES).ok()
    }

    /// The words, when all that they say of the table is true.
    fn checked(&self, words: Vec<u64>) -> Option<Vec<u64>> {
        let pointer = |offset: usize| self.table.0.checked_add(offset as u64);
        let mut parts = MODULE_SLICES.into_iter().zip(self.parsed.part_offsets());
        let same = |(place, offset): (usize, usize)| words.get(place).copied() == pointer(offset);
        let [start, end] = [MODULE_CODE, MODULE_CODE_END].map(|place| words.get(place).copied().unwrap_or_default());
        // A module of several sections of code, which large aarch64 programs have, has gaps.
        let whole = start.checked_add(self.parsed.code_end()?.into()) == Some(end);
        (words.first() == Some(&self.table.0) && parts.all(same) && whole && (self.is_code)(start)).then_some(words)
    }
}
