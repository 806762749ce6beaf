//! The stack of a thread that stands, read where it is and as far as it is needed.

use profiler_common::address::{Tid, VirtualAddress};
use profiler_common::record::OTHER_REGISTER_WORDS;
use profiler_common::step::{Machine, NoBarrier};

use crate::kernel::read_memory;

/// Bytes that are read at once, from the start of a page on: most stacks are not deeper.
const WINDOW_BYTES: usize = 16 << 10;

/// The smallest page.
const PAGE_BYTES: u64 = 4096;

/// Windows that are read of one stack, at most. 992 frames of 64 KiB each need as many.
const MOST_WINDOWS: u32 = 2000;

/// The memory of a thread, as [`Machine`] wants it.
pub(super) struct ThreadMemory {
    tid: Tid,
    other: [u64; OTHER_REGISTER_WORDS],
    thread_pointer: u64,
    window: Vec<u8>,
    window_start: u64,
    windows: u32,
    read: [u64; 64],
}

impl ThreadMemory {
    pub(super) fn new(tid: Tid, other: [u64; OTHER_REGISTER_WORDS], thread_pointer: u64) -> Self {
        Self { tid, other, thread_pointer, window: Vec::new(), window_start: 0, windows: 0, read: [0; 64] }
    }

    /// The bytes at `address`, if they can be read.
    fn bytes(&mut self, address: u64, length: usize) -> Option<&[u8]> {
        let within = |window: &Self| {
            let from = usize::try_from(address.checked_sub(window.window_start)?).ok()?;
            let to = from.checked_add(length)?;
            (to <= window.window.len()).then_some(from..to)
        };
        if within(self).is_none() {
            if self.windows == MOST_WINDOWS {
                return None;
            }
            self.windows += 1;
            self.window_start = address & !(PAGE_BYTES - 1);
            self.window.resize(WINDOW_BYTES, 0);
            let read = read_memory(self.tid, VirtualAddress(self.window_start), &mut self.window);
            self.window.truncate(read.unwrap_or(0));
        }
        self.window.get(within(self)?)
    }
}

impl Machine for ThreadMemory {
    type Barrier = NoBarrier;

    fn read(&mut self, address: u64, words: u64) -> u64 {
        let mut read = self.read;
        let length = usize::try_from(words).map_or(usize::MAX, |words| words.saturating_mul(8));
        let Some(bytes) = self.bytes(address, length) else { return 1 };
        for (to, from) in read.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *to = u64::from_ne_bytes(*from);
        }
        self.read = read;
        0
    }

    fn other_register(&self, index: u64) -> u64 {
        usize::try_from(index).ok().and_then(|index| self.other.get(index)).copied().unwrap_or(0)
    }

    fn thread_pointer(&self) -> u64 {
        self.thread_pointer
    }

    fn word(&self, index: u64) -> u64 {
        self.read.get((index & 63) as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_where_they_are() {
        let known: Vec<u64> = (0..10_000).collect();
        let mut memory = ThreadMemory::new(Tid(std::process::id()), [7; OTHER_REGISTER_WORDS], 5);
        for first in [0, 9_990, 2_040, 511, 5_000] {
            assert_eq!(memory.read(known[first..].as_ptr() as u64, 10), 0);
            let read: Vec<u64> = (0..10).map(|index| memory.word(index)).collect();
            assert_eq!(read, known[first..first + 10]);
        }
        for (address, words) in [(8, 1), (u64::MAX - 8, 2), (known.as_ptr() as u64, u64::MAX)] {
            assert_eq!(memory.read(address, words), 1);
        }
        assert_eq!((memory.other_register(8), memory.other_register(9), memory.thread_pointer()), (7, 0, 5));
    }
}
