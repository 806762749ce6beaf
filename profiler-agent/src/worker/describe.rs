//! What a file offers for unwinding and naming its code: the sections that it has, how much of its code
//! its unwind table covers, and where its debug information is.

use std::os::fd::OwnedFd;

use profiler_unwind::Coverage;

use super::child::examine;
use super::message::truncate;
use super::symbols::{Ask, debug_file, missing_parts};
use super::tables::{Pread, file_error};
use super::{Description, FileError, frames};

/// Looks at a file.
pub(super) fn describe(file: OwnedFd, ask: Ask<'_>) -> Result<Description, FileError> {
    let size_bytes = examine(&file)?.size_bytes;
    let debug_file = debug_file(&file, ask).unwrap_or_default();
    let (missing_part, missing_parts) = missing_parts(&file, ask).unwrap_or_default();
    let pread = Pread { file, size_bytes };
    let sections = profiler_unwind::sections(&pread).map_err(file_error)?;
    let mut frames_file = String::new();
    let mut elsewhere = |build_id: Option<&[u8]>| {
        let found = frames::find(&pread.file, build_id, ask)?;
        found.path.clone_into(&mut frames_file);
        Some(found.bytes)
    };
    let table = profiler_unwind::build_with(&pread, &mut elsewhere).map_err(file_error)?;
    Ok(Description {
        rows: table.row_count() as u64,
        refused: table.problems.unsupported_rows(),
        unreadable: table.problems.unreadable(),
        coverage: Coverage::of(&table),
        sections,
        debug_file: truncate(&debug_file).to_owned(),
        frames_file: truncate(&frames_file).to_owned(),
        missing_parts,
        missing_part: truncate(&missing_part).to_owned(),
    })
}
