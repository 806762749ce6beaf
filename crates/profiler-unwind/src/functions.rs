//! Where functions start, for code without symbols: every function with call frame information is in
//! the search table of `.eh_frame_hdr`.
//!
//! Layout: Linux Standard Base, core 5.0, section 10.6.2; FDEs: section 10.6.1.1.2.

use profiler_common::address::Svma;

use crate::bytes::u32_at;
use crate::elf::Elf;
use crate::error::BuildError;
use crate::read::{ReadAt, read_bytes};

/// Bytes before the table where its encodings are the usual ones.
const HEADER_BYTES: u64 = 12;
/// `DW_EH_PE_udata4`, and `DW_EH_PE_datarel | DW_EH_PE_sdata4`: what all linkers write.
const USUAL_ENCODINGS: [u8; 2] = [0x03, 0x3b];
const ENTRY_BYTES: usize = 8;
/// The largest table that is read: four million functions.
const MAX_TABLE_BYTES: u64 = 32 << 20;
/// Length, CIE pointer, and start and size of the function in 4 bytes each (`DW_EH_PE_sdata4`).
const FDE_BYTES: u64 = 16;

/// The start of the function that holds each address; `None` where no call frame information says
/// so, and for all when the file has no such table.
///
/// # Errors
/// When a header can't be read.
pub fn function_starts(file: &impl ReadAt, addresses: &[Svma]) -> Result<Vec<Option<Svma>>, BuildError> {
    let elf = Elf::read(file)?;
    let Some((header, table)) = search_table(file, &elf)? else { return Ok(vec![None; addresses.len()]) };
    let start = |address: &Svma| function_start(file, &elf, (header, &table), *address);
    Ok(addresses.iter().map(start).collect())
}

/// The address of `.eh_frame_hdr` and its table.
fn search_table(file: &impl ReadAt, elf: &Elf) -> Result<Option<(Svma, Vec<u8>)>, BuildError> {
    let what = "the section .eh_frame_hdr";
    let Some(header) = elf.eh_frame_hdr else { return Ok(None) };
    let Some((offset, left)) = elf.in_file(header).filter(|(_offset, left)| *left >= HEADER_BYTES) else {
        return Ok(None);
    };
    let bytes = read_bytes(file, what, offset, HEADER_BYTES, HEADER_BYTES)?;
    if bytes.first() != Some(&1) || bytes.get(2..4) != Some(&USUAL_ENCODINGS) {
        return Ok(None);
    }
    let count = u64::from(u32_at(&bytes, 8).unwrap_or(0));
    let length = (count * ENTRY_BYTES as u64).min(left - HEADER_BYTES);
    let table = profiler_common::address::FileOffset(offset.0.saturating_add(HEADER_BYTES));
    Ok(Some((header, read_bytes(file, what, table, length, MAX_TABLE_BYTES)?)))
}

fn function_start(file: &impl ReadAt, elf: &Elf, (header, table): (Svma, &[u8]), address: Svma) -> Option<Svma> {
    let (entries, _rest) = table.as_chunks::<ENTRY_BYTES>();
    let at = |entry: &[u8; ENTRY_BYTES], field| relative(header, u32_at(entry, field)?);
    let after = entries.partition_point(|entry| at(entry, 0).is_some_and(|start| start <= address));
    let entry = entries.get(after.checked_sub(1)?)?;
    let (start, fde) = (at(entry, 0)?, at(entry, 4)?);
    let (offset, _left) = elf.in_file(fde).filter(|(_offset, left)| *left >= FDE_BYTES)?;
    let bytes = read_bytes(file, "an FDE", offset, FDE_BYTES, FDE_BYTES).ok()?;
    // The function's start is relative to where it stands; another encoding gives another address.
    let stated = relative(Svma(fde.0.checked_add(8)?), u32_at(&bytes, 8)?)?;
    let size = u64::from(u32_at(&bytes, 12)?);
    (stated == start && address.0 - start.0 < size).then_some(start)
}

fn relative(base: Svma, distance: u32) -> Option<Svma> {
    base.0.checked_add_signed(i64::from(distance.cast_signed())).map(Svma)
}
