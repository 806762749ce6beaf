//! Unwind tables on disk: those that take long to build are kept for the next recording.
//!
//! A file is found by its build id and size, but a build id is what its maker says, and one file must not
//! bring wrong rows to another. So an entry also has what the worker read of the file to make the table
//! (places and SHA-256), and is used only for a file that has the same bytes there: from these the worker
//! would make the same rows. (Not so a worker that a file has taken over: it could have such rows kept for
//! another file that is the same where it says that it read.) Device, inode and times would not do: a container's file system tells what it
//! likes, and after a restart of the container they are others. The rows are checked as a worker's answer is.

mod entry;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use profiler_common::counter::Counter;
use profiler_unwind::UnwindTable;
use sha2::{Digest as _, Sha256};

use crate::cache_folder::{Folder, FolderError};
use crate::counts::Counts;
use crate::worker::{MAX_REPLY_BYTES, TableSource};

/// Rows from which on a table is kept: building them takes 10 ms or more.
const LEAST_ROWS: usize = 50_000;

/// Bytes of all entries, at most: 30 tables as large as LLVM's. The least recently used go.
const MOST_BYTES: u64 = 256 << 20;

/// Where the note with the build id is looked for: linkers put it behind the program headers.
const START_BYTES: usize = 4096;

/// Bytes of an entry, at most.
const MOST_ENTRY_BYTES: u64 = MAX_REPLY_BYTES as u64 + (1 << 20);

/// Why tables can't be kept.
#[derive(Debug, thiserror::Error)]
#[error("{0}. Name another folder for tables with --table-cache, or none")]
pub struct TableCacheError(#[from] pub FolderError);

/// A folder with tables.
pub(crate) struct TableCache {
    folder: Folder,
}

impl TableCache {
    /// Opens or makes the folder.
    ///
    /// # Errors
    /// When it can't be, or when others could change what is in it.
    pub(crate) fn open(path: &Path) -> Result<Self, TableCacheError> {
        Ok(Self { folder: Folder::open(path)? })
    }

    /// The table of a file, if it is here.
    pub(crate) fn find(&mut self, file: &OwnedFd, counts: &mut Counts) -> Option<UnwindTable> {
        let size_bytes = size_of(file)?;
        let name = name_of(file, size_bytes)?;
        let bytes = self.folder.read(&name, MOST_ENTRY_BYTES)?;
        match entry::decode(&bytes) {
            Ok(entry) => (entry.source.size_bytes == size_bytes && matches(file, &entry.source)).then_some(entry.table),
            Err(entry::Unusable::OtherBuilder) => None,
            Err(entry::Unusable::Damaged) => {
                counts.add(Counter::TableCacheDamaged, 1);
                self.folder.remove(&name);
                None
            }
        }
    }

    /// Keeps a table if it is worth it. What can't be written is built again the next time.
    pub(crate) fn keep(&mut self, file: &OwnedFd, table: &UnwindTable, source: &TableSource) {
        let worth_it = table.row_count() >= LEAST_ROWS && table.problems.sections_unusable == 0;
        if !worth_it || !explains(source, table) || !matches(file, source) {
            return;
        }
        let Some(name) = size_of(file).and_then(|size| name_of(file, size)) else { return };
        let (start, rows) = entry::encode(table, source);
        if self.folder.write(&name, &[&start, &rows]).is_ok() {
            self.folder.shrink_to(MOST_BYTES);
        }
    }
}

/// Whether a table can be made from what the worker says that it read: the ELF header is in it, and no row
/// comes from nothing.
fn explains(source: &TableSource, table: &UnwindTable) -> bool {
    const ELF_HEADER_BYTES: u64 = 64;
    let lengths = source.pieces.iter().map(|piece| piece.length);
    let header = source.pieces.iter().any(|piece| piece.offset == 0 && piece.length >= ELF_HEADER_BYTES);
    header
        && lengths.clone().all(|length| length > 0)
        && lengths.fold(0, u64::saturating_add) >= table.row_count() as u64
}

fn size_of(file: &OwnedFd) -> Option<u64> {
    Some(rustix::fs::fstat(file).ok()?.st_size.unsigned_abs())
}

/// The name of a file's entry: its build id, or a hash of its start where that has none (Go, rustc).
fn name_of(file: &OwnedFd, size_bytes: u64) -> Option<String> {
    let mut start = [0; START_BYTES];
    let length = rustix::io::pread(file, &mut start, 0).ok()?;
    let start = start.get(..length)?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let id = build_id(start).map_or_else(|| format!("start-{}", hex(&Sha256::digest(start))), hex);
    Some(format!("{id}-{size_bytes}.rows"))
}

/// The build id in a note within these bytes: the length of its name (4), its own, its type
/// (`NT_GNU_BUILD_ID`, 3), and the name `GNU` (System V ABI, "Note Section").
fn build_id(start: &[u8]) -> Option<&[u8]> {
    const BYTES: std::ops::RangeInclusive<usize> = 8..=64;
    let note = start.windows(16).position(|note| {
        note.starts_with(&[4, 0, 0, 0]) && note[5..12] == [0, 0, 0, 3, 0, 0, 0] && note.ends_with(b"GNU\0")
    })?;
    let length = usize::from(*start.get(note + 4)?);
    start.get(note + 16..note + 16 + length).filter(|id| BYTES.contains(&id.len()))
}

/// Whether a file has the bytes that a table was made from.
fn matches(file: impl AsFd, source: &TableSource) -> bool {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    for piece in &source.pieces {
        let Some(end) = piece.offset.checked_add(piece.length).filter(|end| *end <= source.size_bytes) else {
            return false;
        };
        let mut at = piece.offset;
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            match rustix::io::retry_on_intr(|| rustix::io::pread(&file, &mut buffer[..most], at)) {
                Ok(read) if read > 0 => {
                    hash.update(&buffer[..read]);
                    at += read as u64;
                }
                _ => return false,
            }
        }
    }
    <[u8; 32]>::from(hash.finalize()) == source.digest
}

#[cfg(test)]
mod tests;
