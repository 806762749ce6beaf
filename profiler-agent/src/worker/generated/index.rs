//! Which code is where, and was: pieces of address space, each with the place in the file where it is
//! described.

use std::collections::{BTreeMap, VecDeque};

use profiler_common::address::MonotonicNs;

/// Pieces of one file, at most: what does not replace others is left out then. A large JVM has 30,000.
pub(super) const MOST_LIVE: usize = 400_000;

/// Pieces of the past that are remembered. Samples are asked about a moment after they were taken.
const MOST_PAST: usize = 4096;

/// A moment that is known to lie between two times; both are the same where it is known exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) earliest: MonotonicNs,
    pub(super) latest: MonotonicNs,
}

impl Span {
    pub(super) const fn exactly(time: MonotonicNs) -> Self {
        Self { earliest: time, latest: time }
    }
}

/// A function as the file describes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Function {
    /// Where the file says it is: where it was, after a move.
    pub(super) start: u64,
    pub(super) size_bytes: u64,
    /// Where in the file that is written.
    pub(super) record: u64,
    /// Where in the file its lines are; 0 for nowhere.
    pub(super) lines: u64,
    /// Of its name.
    pub(super) name_hash: u64,
}

impl Function {
    /// Whether both are the same function, wherever in the file that is written.
    pub(super) fn is(&self, other: &Self) -> bool {
        (self.start, self.size_bytes, self.name_hash) == (other.start, other.size_bytes, other.name_hash)
    }
}

/// A function, or what is left of it, at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) start: u64,
    /// The address after the last one.
    pub(super) end: u64,
    /// What is added to the function's addresses to get those of now.
    pub(super) moved_by: u64,
    pub(super) function: Function,
    pub(super) came: Span,
}

/// What is at an address at a time.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum At<'a> {
    Nothing,
    /// Other code came at about that time: it may have been either.
    Replaced,
    Piece(&'a Piece),
}

/// All pieces.
#[derive(Default)]
pub(super) struct Index {
    /// By first address, none overlapping.
    live: BTreeMap<u64, Piece>,
    /// What was there, until when.
    past: VecDeque<(Piece, Span)>,
    /// Up to this time pieces of the past may be forgotten.
    forgotten: MonotonicNs,
    /// There were too many.
    pub(super) left_out: bool,
}

impl Index {
    /// Pieces in memory.
    pub(super) fn len(&self) -> usize {
        self.live.len() + self.past.len()
    }

    /// Forgets everything, because something was not read.
    pub(super) fn clear(&mut self) {
        self.live.clear();
        self.past.clear();
    }

    /// Code comes, in place of what was there. `remember`: what was there is asked about, perhaps.
    pub(super) fn insert(&mut self, piece: Piece, remember: bool) {
        if piece.start >= piece.end {
            return;
        }
        if let Some(known) = self.live.get_mut(&piece.start)
            && known.end == piece.end
            && known.moved_by == piece.moved_by
            && known.function.is(&piece.function)
        {
            // The same again: a map that is written anew.
            known.function = piece.function;
            return;
        }
        self.remove(piece.start, piece.end, piece.came, remember);
        self.put(piece);
    }

    /// Notes a piece where nothing is, if there is room.
    fn put(&mut self, piece: Piece) {
        if self.live.len() < MOST_LIVE {
            self.live.insert(piece.start, piece);
        } else {
            self.left_out = true;
        }
    }

    /// The code in `[start, end)` goes.
    pub(super) fn remove(&mut self, start: u64, end: u64, goes: Span, remember: bool) {
        if let Some((_, before)) = self.live.range(..start).next_back()
            && before.end > start
        {
            let before = *before;
            self.live.insert(before.start, Piece { end: start, ..before });
            if before.end > end {
                self.put(Piece { start: end, ..before });
            }
            self.gone(Piece { start, end: before.end.min(end), ..before }, goes, remember);
        }
        while let Some((&at, &piece)) = self.live.range(start..end.max(start)).next() {
            self.live.remove(&at);
            if piece.end > end {
                self.live.insert(end, Piece { start: end, ..piece });
            }
            self.gone(Piece { end: piece.end.min(end), ..piece }, goes, remember);
        }
    }

    /// The code in `[from, from + size_bytes)` is at `to` now. It may overlap with where it was.
    pub(super) fn relocate(&mut self, from: u64, to: u64, size_bytes: u64, goes: Span, remember: bool) {
        let (Some(end), Some(_)) = (from.checked_add(size_bytes), to.checked_add(size_bytes)) else { return };
        // One function, as a rule.
        let moved: Vec<Piece> = self.live.range(from..end).map(|(_start, piece)| *piece).take(MOST_PAST).collect();
        self.remove(from, end, goes, remember);
        let by = to.wrapping_sub(from);
        for piece in moved.into_iter().filter(|piece| piece.end <= end) {
            let (start, end) = (piece.start.wrapping_add(by), piece.end.wrapping_add(by));
            let moved_by = piece.moved_by.wrapping_add(by);
            self.insert(Piece { start, end, moved_by, came: goes, ..piece }, remember);
        }
    }

    fn gone(&mut self, piece: Piece, goes: Span, remember: bool) {
        if !remember {
            return;
        }
        if self.past.len() >= MOST_PAST
            && let Some((_piece, until)) = self.past.pop_front()
        {
            self.forgotten = self.forgotten.max(until.latest);
        }
        self.past.push_back((piece, goes));
    }

    /// What is at `address` at `time`.
    ///
    /// Code that is described after `time` for the first time was there before, as a rule: writers take
    /// their time. But not if there was something else.
    pub(super) fn at(&self, address: u64, time: MonotonicNs) -> At<'_> {
        let live = self.live.range(..=address).next_back().map(|(_start, piece)| piece);
        let live = live.filter(|piece| address < piece.end);
        if let Some(piece) = live.filter(|piece| piece.came.latest <= time) {
            return At::Piece(piece);
        }
        let was =
            |(piece, until): &&(Piece, Span)| piece.start <= address && address < piece.end && time < until.latest;
        match (self.past.iter().find(was), live) {
            (Some((piece, until)), _) if piece.came.earliest <= time && time < until.earliest => At::Piece(piece),
            (Some(_), _) => At::Replaced,
            (None, Some(_)) if time < self.forgotten => At::Replaced,
            (None, Some(piece)) => At::Piece(piece),
            (None, None) => At::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ns(time: u64) -> MonotonicNs {
        MonotonicNs(time)
    }

    const fn between(earliest: u64, latest: u64) -> Span {
        Span { earliest: ns(earliest), latest: ns(latest) }
    }

    fn piece(start: u64, end: u64, name: u64, came: Span) -> Piece {
        let function = Function { start, size_bytes: end - start, name_hash: name, ..Function::default() };
        Piece { start, end, moved_by: 0, function, came }
    }

    fn name_at(index: &Index, address: u64, time: u64) -> Result<u64, bool> {
        match index.at(address, ns(time)) {
            At::Piece(piece) => Ok(piece.function.name_hash),
            At::Replaced => Err(true),
            At::Nothing => Err(false),
        }
    }

    #[test]
    fn what_was_replaced_between_two_readings_is_told_before_and_after() {
        let mut index = Index::default();
        index.insert(piece(10, 20, 1, between(0, 100)), false);
        index.insert(piece(15, 30, 2, between(200, 300)), true);
        assert_eq!(name_at(&index, 14, 400), Ok(1), "what was not replaced stays");
        for (time, expected) in [(50, Ok(1)), (199, Ok(1)), (200, Err(true)), (299, Err(true)), (300, Ok(2))] {
            assert_eq!(name_at(&index, 15, time), expected, "at {time}");
        }
        assert_eq!(name_at(&index, 25, 50), Ok(2), "nothing else was ever there");
        assert_eq!(name_at(&index, 30, 400), Err(false));
    }

    #[test]
    fn exact_times_leave_no_doubt() {
        let mut index = Index::default();
        for time in 1..=5 {
            index.insert(piece(10, 20, time, Span::exactly(ns(time * 10))), true);
        }
        for (time, expected) in [(10, 1), (19, 1), (20, 2), (49, 4), (50, 5), (1000, 5)] {
            assert_eq!(name_at(&index, 12, time), Ok(expected), "at {time}");
        }
        assert_eq!(name_at(&index, 12, 9), Err(true), "one came later, and another one in its place");
    }

    #[test]
    fn a_map_that_is_written_again_replaces_nothing() {
        let mut index = Index::default();
        index.insert(piece(10, 20, 1, between(0, 1)), false);
        let again = piece(10, 20, 1, between(500, 600));
        index.insert(Piece { function: Function { record: 77, ..again.function }, ..again }, true);
        let At::Piece(piece) = index.at(10, ns(510)) else { panic!("gone") };
        assert_eq!((piece.function.record, piece.came.latest), (77, ns(1)));
    }

    #[test]
    fn memory_has_a_bound_and_what_is_forgotten_is_not_made_up() {
        let mut index = Index::default();
        let many = 10 * MOST_PAST as u64;
        for time in 1..=many {
            index.insert(piece(10, 20, time, Span::exactly(ns(time))), true);
        }
        assert_eq!(index.len(), MOST_PAST + 1);
        assert_eq!(name_at(&index, 10, 5), Err(true));
        assert_eq!(name_at(&index, 10, many - 7), Ok(many - 7));
        index.clear();
        assert_eq!(name_at(&index, 10, many), Err(false));
        for number in 0..=MOST_LIVE as u64 {
            assert!(!index.left_out);
            index.insert(piece(number * 8, number * 8 + 8, number, Span::exactly(ns(1))), true);
        }
        for number in 0..1000 {
            index.insert(piece(number * 8 + 3, number * 8 + 4, number, Span::exactly(ns(2))), false);
        }
        assert!(index.left_out && index.len() == MOST_LIVE);
    }

    proptest! {
        /// As if every address were noted by itself.
        #[test]
        fn later_ones_win(
            inserted in proptest::collection::vec((0u64..60, 1u64..40), 0..40),
            removed in proptest::collection::vec((0usize..40, 0u64..60, 1u64..40), 0..5),
        ) {
            let mut index = Index::default();
            let mut expected = [None; 128];
            for (number, (start, length)) in inserted.iter().enumerate() {
                let time = number as u64;
                index.insert(piece(*start, start + length, time, Span::exactly(ns(time))), true);
                expected[*start as usize..(start + length) as usize].fill(Some(time));
                for (_, start, length) in removed.iter().filter(|(at, _, _)| *at == number) {
                    index.remove(*start, start + length, Span::exactly(ns(time)), true);
                    expected[*start as usize..(start + length) as usize].fill(None);
                }
            }
            for (address, name) in expected.iter().enumerate() {
                let found = name_at(&index, address as u64, 1000);
                prop_assert_eq!(found.ok(), *name, "at {}", address);
            }
        }
    }
}
