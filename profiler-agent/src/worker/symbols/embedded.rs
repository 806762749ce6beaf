//! The symbols that distributions leave in a stripped executable, compressed (`.gnu_debugdata`,
//! "MiniDebugInfo" in the manual of GDB), together with its own dynamic ones.
//!
//! blazesym would decompress them without a bound, and where it can't, it gives no dynamic symbols either. So
//! it gets an ELF file in memory instead, with nothing but the tables of both.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;

use object::elf::{SHT_DYNSYM, SHT_STRTAB, SHT_SYMTAB};
use rustix::fs::MemfdFlags;

use super::elf::{self, Contents, Elf};
use crate::worker::sandbox::MAX_FILE_BYTES;

/// Bytes of an ELF header and of a section header (System V ABI, chapter 4).
const HEADER_BYTES: usize = 64;

/// Bytes of the tables, at most, all together; what is left of the file has room for headers. Sections may be
/// holes in the executable and may overlap, so they cost who made it nothing. libLLVM's dynamic ones take 4 MiB.
const MOST_TABLES_BYTES: usize = MAX_FILE_BYTES - 4096;

/// A section of the file that is made.
type Section<'a> = (&'static str, u32, &'a [u8]);

/// The file in memory; none when the executable has its names where they usually are.
pub(super) fn symbol_tables(executable: &Elf<'_>) -> Option<OwnedFd> {
    if !executable.elf_symbol_table().is_empty() || !elf::has_section(executable, ".gnu_debugdata") {
        return None;
    }
    // Damaged, it costs its own names only.
    let inner = elf::embedded(executable).unwrap_or_default();
    let inner = elf::parse(&inner).ok();
    let mut room = MOST_TABLES_BYTES;
    let [symbols, strings] =
        inner.map_or_else(Default::default, |inner| within([".symtab", ".strtab"], &inner, &mut room));
    let [dynamic_symbols, dynamic_strings] = within([".dynsym", ".dynstr"], executable, &mut room);
    write(&[
        (".symtab", SHT_SYMTAB, symbols),
        (".strtab", SHT_STRTAB, strings),
        (".dynsym", SHT_DYNSYM, dynamic_symbols),
        (".dynstr", SHT_STRTAB, dynamic_strings),
    ])
    .ok()
}

/// A table and its strings, which take their bytes from `room`; empty where that is not enough.
fn within<'a>(names: [&str; 2], elf: &Elf<'a>, room: &mut usize) -> [&'a [u8]; 2] {
    let sections = names.map(|name| in_file(elf, name));
    let bytes: usize = sections.iter().map(|section| section.len()).sum();
    room.checked_sub(bytes).map_or_else(Default::default, |left| {
        *room = left;
        sections
    })
}

/// What is in a section, if it is not compressed, as symbol tables never are.
fn in_file<'a>(elf: &Elf<'a>, name: &str) -> &'a [u8] {
    match elf::contents(elf, name, &Cell::new(0)) {
        Ok(Contents::InFile(bytes)) => bytes,
        Ok(Contents::Decompressed(_)) | Err(_) => &[],
    }
}

/// Writes an ELF file of these sections: the file's header, those of the sections, their names, and what is
/// in them, each at a multiple of 8.
fn write(sections: &[Section<'_>]) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("symbols", MemfdFlags::CLOEXEC)?);
    // The first section is none, the last one has the names.
    let count = sections.len() + 2;
    let mut names = vec![0];
    let mut headers = vec![0; HEADER_BYTES];
    let names_at = HEADER_BYTES * (count + 1);
    let names_bytes: usize = sections.iter().map(|(name, ..)| name.len() + 1).sum::<usize>() + 1;
    let mut at = names_at + names_bytes.next_multiple_of(8);
    for (name, kind, bytes) in sections {
        headers.extend(section_header(names.len(), *kind, at, bytes.len()));
        names.extend(name.bytes().chain([0]));
        at += bytes.len().next_multiple_of(8);
    }
    headers.extend(section_header(0, SHT_STRTAB, names_at, names_bytes));
    file.write_all(&file_header(count))?;
    for bytes in [headers.as_slice(), &names].into_iter().chain(sections.iter().map(|(.., bytes)| *bytes)) {
        file.write_all(bytes)?;
        file.write_all(&[0; 8][..bytes.len().next_multiple_of(8) - bytes.len()])?;
    }
    Ok(file.into())
}

/// Of an ELF file for 64 bits, little-endian, whose section headers follow, the one of names last.
fn file_header(sections: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    header[0x28..0x30].copy_from_slice(&(HEADER_BYTES as u64).to_le_bytes());
    header[0x3c..0x3e].copy_from_slice(&(sections as u16).to_le_bytes());
    header[0x3e..].copy_from_slice(&(sections as u16 - 1).to_le_bytes());
    header
}

fn section_header(name: usize, kind: u32, offset: usize, length_bytes: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&(name as u32).to_le_bytes());
    header[4..8].copy_from_slice(&kind.to_le_bytes());
    header[0x18..0x20].copy_from_slice(&(offset as u64).to_le_bytes());
    header[0x20..0x28].copy_from_slice(&(length_bytes as u64).to_le_bytes());
    header
}
