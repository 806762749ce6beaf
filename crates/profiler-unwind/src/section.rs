//! Reads the sections of call frame information, also where there are no section headers.

use crate::cfi::terminated_eh_frame;
use crate::elf::{Elf, Section};
use crate::error::BuildError;
use crate::read::{ReadAt, read_bytes};
use gimli::{BaseAddresses, EhFrameHdr, LittleEndian, Pointer};
use profiler_common::address::{FileOffset, Svma};
use std::ops::ControlFlow;

/// One section of call frame information. The largest known ones have 30 MiB.
pub(crate) const MAX_SECTION_BYTES: u64 = 256 << 20;

/// What is read at once of an `.eh_frame` whose end is not known.
const BLOCK_BYTES: u64 = 1 << 20;

/// Bytes of `.eh_frame_hdr` before its table: 4, and a pointer and a count of at most 8 each.
const HDR_BYTES: u64 = 20;

/// A section in memory.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) svma: Svma,
    pub(crate) bytes: Vec<u8>,
}

/// `.eh_frame`, found by its name or through `PT_GNU_EH_FRAME`; empty when there is none.
pub(crate) fn read_eh_frame(file: &impl ReadAt, elf: &Elf) -> Result<Loaded, BuildError> {
    match elf.eh_frame {
        Some(section) => read_section(file, "the section .eh_frame", section),
        None => match elf.eh_frame_hdr {
            Some(hdr) => read_through_hdr(file, elf, hdr),
            None => Ok(Loaded::default()),
        },
    }
}

/// `.debug_frame`; empty when there is none, or a compressed one.
pub(crate) fn read_debug_frame(file: &impl ReadAt, elf: &Elf) -> Result<Loaded, BuildError> {
    match elf.debug_frame {
        Some(section) => read_section(file, "the section .debug_frame", section),
        None => Ok(Loaded::default()),
    }
}

fn read_section(file: &impl ReadAt, what: &'static str, section: Section) -> Result<Loaded, BuildError> {
    if section.compressed {
        return Ok(Loaded::default());
    }
    let bytes = read_bytes(file, what, section.file_offset, section.size_bytes, MAX_SECTION_BYTES)?;
    Ok(Loaded { svma: section.svma, bytes })
}

/// `.eh_frame` without section headers: `.eh_frame_hdr` at `hdr` says where it starts, and an entry
/// of length 0 where it ends. Empty when either can't be made out.
fn read_through_hdr(file: &impl ReadAt, elf: &Elf, hdr: Svma) -> Result<Loaded, BuildError> {
    let what = "the section .eh_frame_hdr";
    let Some((offset, left)) = elf.in_file(hdr) else { return Ok(Loaded::default()) };
    let bytes = read_bytes(file, what, offset, left.min(HDR_BYTES), HDR_BYTES)?;
    let bases = BaseAddresses::default().set_eh_frame_hdr(hdr.0);
    let svma = match EhFrameHdr::new(&bytes, LittleEndian).parse(&bases, 8).map(|header| header.eh_frame_ptr()) {
        Ok(Pointer::Direct(svma)) => Svma(svma),
        Ok(Pointer::Indirect(_)) | Err(_) => return Ok(Loaded::default()),
    };
    let Some((offset, left)) = elf.in_file(svma) else { return Ok(Loaded::default()) };
    let bytes = read_until_terminator(file, offset, left.min(MAX_SECTION_BYTES))?;
    Ok(Loaded { svma, bytes })
}

/// Reads on, block by block, until the entry of length 0 is there or `limit_bytes` are read.
fn read_until_terminator(file: &impl ReadAt, offset: FileOffset, limit_bytes: u64) -> Result<Vec<u8>, BuildError> {
    let mut bytes = Vec::new();
    let mut walked = 0;
    while (bytes.len() as u64) < limit_bytes {
        let have = bytes.len() as u64;
        let block = BLOCK_BYTES.min(limit_bytes - have);
        let from = FileOffset(offset.0.saturating_add(have));
        bytes.extend(read_bytes(file, "the section .eh_frame", from, block, BLOCK_BYTES)?);
        match terminated_eh_frame(&bytes, walked) {
            ControlFlow::Break(end) => {
                bytes.truncate(end);
                return Ok(bytes);
            }
            ControlFlow::Continue(at) => walked = at,
        }
    }
    bytes.truncate(walked);
    Ok(bytes)
}
