//! Rows laid one after the other until they cover a segment, cut into parts.

use crate::error::BuildError;
use crate::table::Part;
use profiler_common::address::Svma;
use profiler_common::limits::MAX_SEARCHED;
use profiler_common::row::{Row, Rule};

/// Rows of one file. The largest programs have 2 million; 16 million take 128 MiB.
pub(crate) const MAX_ROWS: usize = 16 << 20;

/// Covers addresses in ascending order. Each rule goes on from where the one before it ended, so
/// parts have neither holes nor overlaps, whatever the CFI says.
pub(crate) struct Tiles<'a> {
    /// Takes each part when it is complete: none is empty, and each but the last of a run is full.
    sink: &'a mut dyn FnMut(Part),
    rows: Vec<Row>,
    start: u64,
    covered_to: u64,
    row_count: usize,
}

impl<'a> Tiles<'a> {
    pub(crate) fn new(sink: &'a mut dyn FnMut(Part)) -> Self {
        Self { sink, rows: Vec::new(), start: 0, covered_to: 0, row_count: 0 }
    }

    /// Starts anew at `start`, which must not lie below what is covered.
    pub(crate) fn start_at(&mut self, start: u64) {
        self.close();
        self.start = start;
        self.covered_to = start;
    }

    /// The first address that is not covered yet.
    pub(crate) fn covered_to(&self) -> u64 {
        self.covered_to
    }

    /// The rule of the last addresses covered, if any since the start.
    pub(crate) fn last_rule(&self) -> Option<Rule> {
        self.rows.last().map(|row| row.rule())
    }

    /// Lets `rule` hold from what is covered up to `until`. Nothing happens when that is covered.
    ///
    /// # Errors
    /// When there are more than [`MAX_ROWS`] rows.
    pub(crate) fn cover(&mut self, until: u64, rule: Rule) -> Result<(), BuildError> {
        if until <= self.covered_to {
            return Ok(());
        }
        if self.last_rule() != Some(rule) {
            self.row(rule)?;
        }
        while until - self.start > u64::from(Row::MAX_PC_OFFSET) {
            self.covered_to = self.start + u64::from(Row::MAX_PC_OFFSET);
            self.close();
            self.row(rule)?;
        }
        self.covered_to = until;
        Ok(())
    }

    /// Covers nothing any more from `from` on, but for what is in complete parts.
    pub(crate) fn take_back(&mut self, from: u64) {
        self.covered_to = self.covered_to.min(from.max(self.start));
        while self.rows.last().is_some_and(|row| self.start + u64::from(row.pc_offset()) >= self.covered_to) {
            self.rows.pop();
            self.row_count -= 1;
        }
    }

    /// Completes the last part.
    pub(crate) fn finish(mut self) {
        self.close();
    }

    fn row(&mut self, rule: Rule) -> Result<(), BuildError> {
        if self.row_count == MAX_ROWS {
            let (value, limit) = (MAX_ROWS as u64 + 1, MAX_ROWS as u64);
            return Err(BuildError::TooMany { what: "the number of unwind rows", value, limit });
        }
        let distance = self.covered_to - self.start;
        let offset = match u32::try_from(distance) {
            Ok(offset) if offset < Row::MAX_PC_OFFSET && self.rows.len() < MAX_SEARCHED => offset,
            _ => {
                self.close();
                0
            }
        };
        self.rows.push(Row::new(offset, rule));
        self.row_count += 1;
        Ok(())
    }

    /// Ends the part at what is covered; the next one starts there.
    fn close(&mut self) {
        if self.covered_to > self.start && !self.rows.is_empty() {
            let (start, end) = (Svma(self.start), Svma(self.covered_to));
            (self.sink)(Part { start, end, rows: self.rows.clone() });
        }
        self.rows.clear();
        self.start = self.covered_to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(n: i32) -> Rule {
        Rule::x86_64(0, 0, n)
    }

    #[test]
    fn equal_neighbours_are_one_row_and_what_is_covered_stays() {
        let mut parts = Vec::new();
        let mut sink = |part| parts.push(part);
        let mut tiles = Tiles::new(&mut sink);
        tiles.start_at(0x1000);
        for (until, n) in [(0x1010, 1), (0x1020, 1), (0x1018, 2), (0x1030, 2)] {
            tiles.cover(until, rule(n)).unwrap();
        }
        tiles.start_at(0x5000);
        tiles.cover(0x5001, rule(2)).unwrap();
        let rows = vec![Row::new(0, rule(1)), Row::new(0x20, rule(2))];
        let first = Part { start: Svma(0x1000), end: Svma(0x1030), rows };
        let second = Part { start: Svma(0x5000), end: Svma(0x5001), rows: vec![Row::new(0, rule(2))] };
        tiles.finish();
        assert_eq!(parts, [first, second]);
    }

    #[test]
    fn rows_are_taken_back_whole_and_in_part() {
        for (from, left) in [(0x1030, 3), (0x102f, 3), (0x1020, 2), (0x1011, 2), (0x1010, 1), (0x1000, 0), (0, 0)] {
            let mut parts = Vec::new();
            let mut sink = |part| parts.push(part);
            let mut tiles = Tiles::new(&mut sink);
            tiles.start_at(0x1000);
            for n in 1..=3 {
                tiles.cover(0x1000 + 0x10 * n, rule(n as i32)).unwrap();
            }
            tiles.take_back(from);
            assert_eq!(tiles.covered_to(), from.max(0x1000), "{from:#x}");
            tiles.cover(0x1040, rule(4)).unwrap();
            tiles.finish();
            let row = |n: u32| Row::new(0x10 * (n - 1), rule(n as i32));
            let again = Row::new((from.max(0x1000) - 0x1000) as u32, rule(4));
            assert_eq!(parts.len(), 1);
            assert_eq!(parts[0].rows, (1..=left).map(row).chain([again]).collect::<Vec<_>>(), "{from:#x}");
        }
    }

    #[test]
    fn complete_parts_are_not_taken_back() {
        let mut parts = Vec::new();
        let mut sink = |part| parts.push(part);
        let mut tiles = Tiles::new(&mut sink);
        tiles.start_at(0);
        let most = u64::from(Row::MAX_PC_OFFSET);
        tiles.cover(most + 1, rule(1)).unwrap();
        tiles.take_back(5);
        tiles.cover(most + 1, rule(2)).unwrap();
        tiles.finish();
        let part = |start, end, n| Part { start: Svma(start), end: Svma(end), rows: vec![Row::new(0, rule(n))] };
        assert_eq!(parts, [part(0, most, 1), part(most, most + 1, 2)]);
    }

    #[test]
    fn a_part_has_as_many_rows_as_can_be_searched() {
        let mut parts = Vec::new();
        let mut sink = |part| parts.push(part);
        let mut tiles = Tiles::new(&mut sink);
        tiles.start_at(0);
        let count = MAX_SEARCHED as u64 * 2 + 1;
        for at in 0..count {
            tiles.cover(at + 1, rule((at % 2) as i32)).unwrap();
        }
        tiles.finish();
        assert_eq!(parts.iter().map(|part| part.rows.len()).collect::<Vec<_>>(), [MAX_SEARCHED, MAX_SEARCHED, 1]);
        assert_eq!(parts[0].end, parts[1].start);
        assert_eq!(parts[1].rows[0], Row::new(0, rule(1)));
        assert_eq!(parts[2].start, Svma(count - 1));
    }

    #[test]
    fn a_part_is_no_longer_than_its_offsets_reach() {
        let most = u64::from(Row::MAX_PC_OFFSET);
        let mut parts = Vec::new();
        let mut sink = |part| parts.push(part);
        let mut tiles = Tiles::new(&mut sink);
        tiles.start_at(0x10);
        tiles.cover(0x20, rule(1)).unwrap();
        tiles.cover(0x10 + 2 * most + 5, rule(2)).unwrap();
        tiles.finish();
        assert_eq!(parts.len(), 3);
        assert_eq!((parts[0].start, parts[0].end), (Svma(0x10), Svma(0x10 + most)));
        assert_eq!((parts[2].start, parts[2].end), (Svma(0x10 + 2 * most), Svma(0x10 + 2 * most + 5)));
        assert!(parts[1..].iter().all(|part| part.rows == [Row::new(0, rule(2))]));
    }
}
