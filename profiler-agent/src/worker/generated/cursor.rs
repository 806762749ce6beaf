//! Reading a file that others write to, here and there and never much of it at a time.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use profiler_common::address::MonotonicNs;

use super::monotonic;

/// The longest piece that can be looked at, and what is read at once from beginning to end.
pub(super) const WINDOW_BYTES: usize = 128 << 10;

/// What is read at once where one thing is looked up here and one there.
const GLANCE_BYTES: usize = 1 << 10;

/// A window into a file.
pub(super) struct Cursor<'a> {
    file: BorrowedFd<'a>,
    /// The size that the file had when this was made: what comes later is for the next reading.
    pub(super) size_bytes: u64,
    window: Vec<u8>,
    start: u64,
    fill_bytes: usize,
    /// What is in the window was written before.
    pub(super) filled_at: MonotonicNs,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a OwnedFd, size_bytes: u64) -> Self {
        Self {
            file: file.as_fd(),
            size_bytes,
            window: Vec::new(),
            start: 0,
            fill_bytes: WINDOW_BYTES,
            filled_at: MonotonicNs(0),
        }
    }

    /// From now on one thing is looked up here and one there.
    pub(super) fn glance(&mut self) {
        self.fill_bytes = GLANCE_BYTES;
    }

    /// The `length` bytes at `at`; none when the file has fewer, or can't be read there.
    pub(super) fn bytes(&mut self, at: u64, length: usize) -> Option<&[u8]> {
        if at.checked_add(length as u64)? > self.size_bytes {
            return None;
        }
        self.at_most(at, length).filter(|bytes| bytes.len() == length)
    }

    /// The bytes at `at`: `length` of them, fewer at the end of the file, none behind it. At most
    /// [`WINDOW_BYTES`].
    pub(super) fn at_most(&mut self, at: u64, length: usize) -> Option<&[u8]> {
        let length = length.min(WINDOW_BYTES).min(usize::try_from(self.size_bytes.checked_sub(at)?).ok()?);
        let held = at.checked_sub(self.start).and_then(|skipped| usize::try_from(skipped).ok());
        let held = held.filter(|skipped| skipped.saturating_add(length) <= self.window.len());
        let from = match held {
            Some(skipped) => skipped,
            None => {
                self.fill(at, length.max(self.fill_bytes));
                0
            }
        };
        self.window.get(from..self.window.len().min(from + length)).filter(|bytes| !bytes.is_empty())
    }

    fn fill(&mut self, at: u64, length: usize) {
        let wanted = usize::try_from(self.size_bytes.saturating_sub(at)).unwrap_or(usize::MAX).min(length);
        self.window.resize(wanted, 0);
        self.start = at;
        let mut filled = 0;
        while filled < wanted {
            let read = rustix::io::pread(self.file, &mut self.window[filled..], at.saturating_add(filled as u64));
            match read {
                Err(rustix::io::Errno::INTR) => {}
                Ok(0) | Err(_) => break,
                Ok(bytes) => filled += bytes,
            }
        }
        self.window.truncate(filled);
        self.filled_at = monotonic();
    }
}
