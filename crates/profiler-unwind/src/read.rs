//! Where the bytes of a file come from.

use crate::error::{BuildError, ReadError};
use profiler_common::address::FileOffset;

/// A file that can be read at any offset: a descriptor (`pread`), or bytes in memory.
pub trait ReadAt {
    /// The size of the file.
    fn size_bytes(&self) -> u64;

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// When not all of them can be read; the contents of the buffer are then of no use.
    fn read_at(&self, offset: FileOffset, buffer: &mut [u8]) -> Result<(), ReadError>;
}

impl ReadAt for &[u8] {
    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: FileOffset, buffer: &mut [u8]) -> Result<(), ReadError> {
        let bytes = usize::try_from(offset.0)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buffer.len())?))
            .ok_or(outside(offset, buffer.len() as u64, self.size_bytes()))?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: FileOffset, buffer: &mut [u8]) -> Result<(), ReadError> {
        self.as_slice().read_at(offset, buffer)
    }
}

fn outside(offset: FileOffset, length_bytes: u64, size_bytes: u64) -> ReadError {
    ReadError::OutsideFile { offset, length_bytes, size_bytes }
}

/// Reads `length_bytes` bytes at `offset`, a piece called `what`. Memory is taken only when the
/// length is at most `limit_bytes` and the file is that long.
pub(crate) fn read_bytes(
    file: &impl ReadAt,
    what: &'static str,
    offset: FileOffset,
    length_bytes: u64,
    limit_bytes: u64,
) -> Result<Vec<u8>, BuildError> {
    let too_many = BuildError::TooMany { what, value: length_bytes, limit: limit_bytes };
    if length_bytes > limit_bytes {
        return Err(too_many);
    }
    let size_bytes = file.size_bytes();
    if offset.0.checked_add(length_bytes).is_none_or(|end| end > size_bytes) {
        return Err(BuildError::Read { what, source: outside(offset, length_bytes, size_bytes) });
    }
    let Ok(length) = usize::try_from(length_bytes) else { return Err(too_many) };
    let mut bytes = vec![0; length];
    file.read_at(offset, &mut bytes).map_err(|source| BuildError::Read { what, source })?;
    Ok(bytes)
}
