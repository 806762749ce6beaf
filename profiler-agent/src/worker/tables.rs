//! Executables to unwind tables. Files are read with `pread`, never mapped: a file that shrinks
//! meanwhile is an error, not a SIGBUS.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use profiler_common::address::FileOffset;
use profiler_unwind::{BuildError, Part, ReadAt, ReadError};

use sha2::{Digest as _, Sha256};

use super::child::examine;
use super::symbols::Ask;
use super::{ContentsDigest, FileError, Piece, TableSource, frames, table_message};

/// Parts that go out together have this many bytes of rows or a little more.
const PIECE_BYTES: usize = 256 << 10;

/// Files up to this size are compared with others: those that are copied again and again are small, and to read 4 MiB
/// takes some ms.
const MOST_COMPARED_BYTES: usize = 4 << 20;

/// The table of `file` as the payload of an answer, without the parts that `send` got before, as payloads
/// of their own: the worker never has a long table in memory.
pub(super) fn build(file: OwnedFd, ask: Ask<'_>, mut send: impl FnMut(&[u8])) -> Result<Vec<u8>, FileError> {
    let size_bytes = examine(&file)?.size_bytes;
    let (mut parts, mut row_bytes): (Vec<Part>, usize) = (Vec::new(), 0);
    let mut sink = |part: Part| {
        row_bytes += size_of_val(part.rows.as_slice());
        parts.push(part);
        if row_bytes >= PIECE_BYTES {
            send(&table_message::encode_parts(&parts));
            parts.clear();
            row_bytes = 0;
        }
    };
    let file = Pread { file, size_bytes };
    let mut answer = table_message::encode_contents(contents(&file));
    let file = Noted { file, seen: RefCell::default() };
    let mut elsewhere = |build_id: Option<&[u8]>| {
        // What is found there, or is not yet, makes another table.
        file.seen.borrow_mut().untold = true;
        frames::find(&file.file.file, build_id, ask).map(|found| found.bytes)
    };
    let mut table = profiler_unwind::build_into(&file, &mut elsewhere, &mut sink).map_err(file_error)?;
    table.parts = parts;
    answer.extend(table_message::encode_answer(&table, file.source().as_ref()));
    Ok(answer)
}

/// The digest of a small file.
fn contents(file: &Pread<OwnedFd>) -> Option<ContentsDigest> {
    let length = usize::try_from(file.size_bytes).ok().filter(|length| *length <= MOST_COMPARED_BYTES)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; length.min(PIECE_BYTES)];
    for offset in (0..length).step_by(PIECE_BYTES) {
        let part = buffer.get_mut(..PIECE_BYTES.min(length - offset))?;
        file.read_at(FileOffset(offset as u64), part).ok()?;
        hash.update(part);
    }
    Some(hash.finalize().into())
}

/// A file of which is noted what is read of it.
struct Noted {
    file: Pread<OwnedFd>,
    seen: RefCell<Seen>,
}

#[derive(Default)]
struct Seen {
    pieces: Vec<Piece>,
    hash: Sha256,
    /// Pieces were too many, one could not be read, or other files were looked for: the same bytes need not give
    /// the same rows.
    untold: bool,
}

impl Noted {
    /// What was read; `None` when the same bytes need not give the same rows.
    fn source(self) -> Option<TableSource> {
        let Seen { pieces, hash, untold } = self.seen.into_inner();
        let digest = hash.finalize().into();
        (!untold).then_some(TableSource { size_bytes: self.file.size_bytes, pieces, digest })
    }
}

impl ReadAt for Noted {
    fn size_bytes(&self) -> u64 {
        self.file.size_bytes
    }

    fn read_at(&self, offset: FileOffset, buffer: &mut [u8]) -> Result<(), ReadError> {
        let seen = &mut *self.seen.borrow_mut();
        self.file.read_at(offset, buffer).inspect_err(|_error| seen.untold = true)?;
        let (length, count) = (buffer.len() as u64, seen.pieces.len());
        match seen.pieces.last_mut() {
            Some(last) if last.offset.saturating_add(last.length) == offset.0 => last.length += length,
            _ if count < TableSource::MAX_PIECES => seen.pieces.push(Piece { offset: offset.0, length }),
            _ => seen.untold = true,
        }
        seen.hash.update(buffer);
        Ok(())
    }
}

pub(super) fn file_error(error: BuildError) -> FileError {
    let text = match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    match error {
        BuildError::Read { source: ReadError::Io(_), .. } => FileError::Unreadable(text),
        BuildError::NotElf { .. } | BuildError::Machine { .. } => FileError::Unsupported(text),
        _ => FileError::Corrupt(text),
    }
}

/// A file that is read piece by piece.
pub(super) struct Pread<F> {
    pub(super) file: F,
    pub(super) size_bytes: u64,
}

impl<F: AsFd> ReadAt for Pread<F> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: FileOffset, buffer: &mut [u8]) -> Result<(), ReadError> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset.0.saturating_add(done as u64);
            let read = rustix::io::retry_on_intr(|| rustix::io::pread(&self.file, &mut buffer[done..], at));
            match read.map_err(io::Error::from)? {
                0 => {
                    let length_bytes = buffer.len() as u64;
                    return Err(ReadError::OutsideFile { offset, length_bytes, size_bytes: self.size_bytes });
                }
                read_bytes => done += read_bytes,
            }
        }
        Ok(())
    }
}
