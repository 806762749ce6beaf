//! Who has which piece of a table that the kernel reads.

use std::collections::{BTreeMap, VecDeque};

use profiler_common::address::MonotonicNs;

/// How long a released piece is left alone: a kernel program that found it before may still read
/// it. A walk takes microseconds; a virtual CPU may be stopped in the middle of one for longer.
pub(crate) const QUARANTINE: MonotonicNs = MonotonicNs(1_000_000_000);

/// Free pieces of a number of equal chunks; no piece crosses a chunk.
#[derive(Debug)]
pub(crate) struct Space {
    chunk_length: u32,
    /// Start and length; never two neighbours of one chunk.
    free: BTreeMap<u32, u32>,
    quarantine: VecDeque<(MonotonicNs, u32, u32)>,
}

impl Space {
    /// `chunks` chunks of `chunk_length` entries, all free.
    pub(crate) fn new(chunks: u32, chunk_length: u32) -> Self {
        let free = (0..chunks).map(|chunk| (chunk * chunk_length, chunk_length)).collect();
        Self { chunk_length, free, quarantine: VecDeque::new() }
    }

    /// The start of `length` entries in a row; `None` when no piece is so long.
    pub(crate) fn take(&mut self, length: u32) -> Option<u32> {
        let (&start, &free) = self.free.iter().find(|(_start, free)| **free >= length)?;
        self.free.remove(&start);
        if free > length {
            self.free.insert(start + length, free - length);
        }
        Some(start)
    }

    /// Gives `length` entries from `start` back, for use after the quarantine.
    pub(crate) fn release(&mut self, now: MonotonicNs, start: u32, length: u32) {
        self.quarantine.push_back((now, start, length));
    }

    /// Frees what has been in quarantine for long enough.
    pub(crate) fn expire(&mut self, now: MonotonicNs) {
        while let Some(&(since, start, length)) = self.quarantine.front() {
            if now.0.saturating_sub(since.0) < QUARANTINE.0 {
                return;
            }
            self.quarantine.pop_front();
            self.give_back(start, length);
        }
    }

    /// Frees `length` entries from `start`, which nothing reads.
    pub(crate) fn give_back(&mut self, mut start: u32, mut length: u32) {
        let same_chunk = |a: u32, b: u32| a / self.chunk_length == b / self.chunk_length;
        if let Some((&before, &free)) = self.free.range(..start).next_back()
            && before + free == start
            && same_chunk(before, start)
        {
            self.free.remove(&before);
            start = before;
            length += free;
        }
        if let Some(&free) = self.free.get(&(start + length))
            && same_chunk(start, start + length)
        {
            self.free.remove(&(start + length));
            length += free;
        }
        self.free.insert(start, length);
    }

    /// Free entries in all pieces together.
    pub(crate) fn free(&self) -> u64 {
        self.free.values().map(|length| u64::from(*length)).sum()
    }

    /// Entries that were released and are not free yet.
    pub(crate) fn in_quarantine(&self) -> u64 {
        self.quarantine.iter().map(|(_since, _start, length)| u64::from(*length)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: MonotonicNs = MonotonicNs(5);
    const LATER: MonotonicNs = MonotonicNs(5 + QUARANTINE.0);

    #[test]
    fn pieces_come_back_after_quarantine_and_join() {
        let mut space = Space::new(1, 10);
        let (a, b) = (space.take(4).unwrap(), space.take(6).unwrap());
        assert_eq!((a, b), (0, 4));
        assert_eq!(space.take(1), None);
        space.release(START, b, 6);
        space.release(START, a, 4);
        space.expire(MonotonicNs(LATER.0 - 1));
        assert_eq!((space.take(1), space.free(), space.in_quarantine()), (None, 0, 10));
        space.expire(LATER);
        assert_eq!(space.take(10), Some(0));
    }

    #[test]
    fn no_piece_crosses_a_chunk() {
        let mut space = Space::new(3, 10);
        for _ in 0..3 {
            assert_eq!(space.take(7).unwrap() % 10, 0);
        }
        assert_eq!(space.take(4), None);
        for chunk in 0..3 {
            space.release(START, chunk * 10, 7);
        }
        space.expire(LATER);
        assert_eq!(space.take(11), None, "neighbours of two chunks do not join");
        assert_eq!(space.free.len(), 3);
    }
}
