//! Memory that we share with the kernel.

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// A shared mapping of a descriptor, in words of 8 bytes. The kernel reads or writes it at the same
/// time, so every access is atomic.
pub(super) struct Mapped {
    words: NonNull<AtomicU64>,
    length_words: usize,
}

// SAFETY: the mapping belongs to this value alone and is accessed through atomics only.
unsafe impl Send for Mapped {}

impl Mapped {
    /// Maps the first `length_bytes` (a multiple of the page size) of `fd`, readable and writable.
    pub(super) fn new(fd: impl AsFd, length_bytes: usize) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses replaces none of ours. The
        // kernel never truncates a perf ring or a BPF array while it is mapped.
        let address = unsafe { mmap(std::ptr::null_mut(), length_bytes, flags, MapFlags::SHARED, fd, 0) }?;
        let words = NonNull::new(address.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { words, length_words: length_bytes / 8 })
    }

    pub(super) fn length_words(&self) -> usize {
        self.length_words
    }

    /// The word at `index`; `None` beyond the mapping.
    pub(super) fn word(&self, index: usize) -> Option<&AtomicU64> {
        if index >= self.length_words {
            return None;
        }
        // SAFETY: `index` is inside the mapping.
        let word = unsafe { self.words.add(index) };
        // SAFETY: the mapping is page-aligned, holds plain words and lives as long as `self`.
        Some(unsafe { word.as_ref() })
    }

    /// Reads the word at `index`; 0 beyond the mapping.
    pub(super) fn load(&self, index: usize) -> u64 {
        self.word(index).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Writes `values` from `index` on; what lies beyond the mapping is not written.
    pub(super) fn store(&self, index: usize, values: impl IntoIterator<Item = u64>) {
        for (at, value) in (index..).zip(values) {
            let Some(word) = self.word(at) else { return };
            word.store(value, Ordering::Relaxed);
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let address = self.words.as_ptr().cast();
        // SAFETY: the mapping that `new` made, of this length; no reference outlives `self`.
        // It can fail only for arguments that are not a mapping's.
        let _ = unsafe { rustix::mm::munmap(address, self.length_words * 8) };
    }
}
