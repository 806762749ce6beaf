//! The samples' ring buffer.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use aya::maps::{MapData, RingBuf};

/// The reading end of the samples' ring buffer.
pub struct Records {
    ring: RingBuf<MapData>,
    words: Vec<u64>,
}

impl Records {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring, words: Vec::new() }
    }

    /// The descriptor to wait on: readable when the kernel program found much waiting.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and lives as long as the borrow of `self`.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// The next record's words; `None` when nothing waits.
    pub fn take(&mut self) -> Option<&[u64]> {
        let record = self.ring.next()?;
        let (words, _incomplete) = record.as_chunks::<8>();
        self.words.clear();
        self.words.extend(words.iter().map(|word| u64::from_ne_bytes(*word)));
        Some(&self.words)
    }
}
