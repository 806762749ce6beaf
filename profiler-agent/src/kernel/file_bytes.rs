//! Files of other programs as bytes, without reading them whole.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd as _};

use memmap2::{Mmap, MmapOptions};

/// The bytes of a file, mapped and read-only. A file that shrinks takes the process that reads on with
/// it (SIGBUS): for workers only.
pub(crate) struct FileBytes(Mmap);

impl FileBytes {
    /// Maps all of a regular file.
    ///
    /// # Errors
    /// When it is empty, larger than the address space that this process may use, or can't be mapped.
    pub(crate) fn map(file: &impl AsFd) -> io::Result<Self> {
        let size_bytes = usize::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(usize::MAX);
        let descriptor = file.as_fd().as_raw_fd();
        // SAFETY: what is unsafe is that others may write to the file while we read it. Its readers
        // hold no reference to anything but bytes, take each for any value at any time, and check
        // what they read against the length of the mapping, which does not change.
        Ok(Self(unsafe { MmapOptions::new().len(size_bytes).map(descriptor) }?))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
