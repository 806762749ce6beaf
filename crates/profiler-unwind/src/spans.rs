//! Which FDE unwinds which addresses, when FDEs overlap.

/// Addresses that one FDE unwinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) length: u32,
    /// Where the FDE is: its offset in its section, with [`Span::DEBUG_FRAME`] for `.debug_frame`.
    pub(crate) entry: u32,
}

impl Span {
    /// In [`Span::entry`]: the FDE is in `.debug_frame`, not in `.eh_frame`.
    pub(crate) const DEBUG_FRAME: u32 = 1 << 31;
    /// In [`Span::entry`]: the rest is the number of a function in Go's table. `.eh_frame` is never so
    /// long that its offsets have this bit.
    pub(crate) const GO: u32 = 1 << 30;

    /// The address after the last one. Spans do not wrap: they lie within a segment.
    pub(crate) fn end(&self) -> u64 {
        self.start + u64::from(self.length)
    }

    /// The part of the span within `[start, end)`, if there is one.
    fn clip(&self, start: u64, end: u64) -> Option<Self> {
        let start = self.start.max(start);
        let end = self.end().min(end);
        let length = u32::try_from(end.checked_sub(start)?).ok().filter(|length| *length > 0)?;
        Some(Self { start, length, entry: self.entry })
    }
}

/// Sorts spans and cuts them so that none overlap. Where several cover an address, the one that
/// starts last has it, then the one that comes first in the file; after its end the others go on.
pub(crate) fn disjoint(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable_by_key(|span| (span.start, std::cmp::Reverse(span.entry)));
    if spans.is_sorted_by(|a, b| a.end() <= b.start) {
        return spans;
    }
    let mut pieces = Vec::with_capacity(spans.len());
    let mut open: Vec<Span> = Vec::new();
    let mut done = 0;
    for span in spans {
        close(&mut open, &mut pieces, &mut done, span.start);
        open.push(span);
    }
    close(&mut open, &mut pieces, &mut done, u64::MAX);
    pieces
}

/// Gives the addresses from `done` to `until` to the innermost of the open spans.
fn close(open: &mut Vec<Span>, pieces: &mut Vec<Span>, done: &mut u64, until: u64) {
    while let Some(&innermost) = open.last() {
        if let Some(piece) = innermost.clip(*done, until) {
            *done = piece.end();
            pieces.push(piece);
        }
        if innermost.end() > until {
            break;
        }
        open.pop();
    }
}

/// All of `upper`, and of `lower` what `upper` leaves free. Both are disjoint and sorted.
pub(crate) fn overlay(upper: Vec<Span>, lower: Vec<Span>) -> Vec<Span> {
    if lower.is_empty() {
        return upper;
    }
    let mut result = Vec::with_capacity(upper.len());
    let mut lower = lower.into_iter().peekable();
    let mut free_from = 0;
    let ends = upper.iter().map(|span| (span.start, Some(*span))).chain([(u64::MAX, None)]);
    for (free_until, above) in ends {
        while let Some(below) = lower.peek() {
            result.extend(below.clip(free_from, free_until));
            if below.end() > free_until {
                break;
            }
            lower.next();
        }
        result.extend(above);
        free_from = above.map_or(free_until, |span| span.end());
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spans(list: &[(u64, u32, u32)]) -> Vec<Span> {
        list.iter().map(|&(start, length, entry)| Span { start, length, entry }).collect()
    }

    #[test]
    fn spans_that_touch_stay_as_they_are() {
        let sorted = spans(&[(0, 10, 1), (10, 5, 0), (20, 1, 2)]);
        assert_eq!(disjoint(spans(&[(20, 1, 2), (0, 10, 1), (10, 5, 0)])), sorted);
    }

    #[test]
    fn the_later_start_wins_and_the_outer_one_goes_on() {
        let pieces = disjoint(spans(&[(0, 100, 1), (50, 10, 2), (55, 20, 3)]));
        assert_eq!(pieces, spans(&[(0, 50, 1), (50, 5, 2), (55, 20, 3), (75, 25, 1)]));
    }

    #[test]
    fn of_equal_starts_the_first_in_the_file_wins() {
        assert_eq!(disjoint(spans(&[(0, 10, 9), (0, 20, 5)])), spans(&[(0, 20, 5)]));
        assert_eq!(disjoint(spans(&[(0, 10, 5), (0, 20, 9)])), spans(&[(0, 10, 5), (10, 10, 9)]));
    }

    #[test]
    fn debug_frame_fills_what_eh_frame_leaves_free() {
        let upper = spans(&[(10, 10, 0), (30, 10, 1)]);
        let lower = spans(&[(0, 5, 7), (5, 30, 8), (36, 2, 9), (50, 5, 10)]);
        let expected = spans(&[(0, 5, 7), (5, 5, 8), (10, 10, 0), (20, 10, 8), (30, 10, 1), (50, 5, 10)]);
        assert_eq!(overlay(upper.clone(), lower.clone()), expected);
        assert_eq!(overlay(upper.clone(), Vec::new()), upper);
        assert_eq!(overlay(Vec::new(), lower.clone()), lower);
    }

    proptest! {
        #[test]
        fn every_address_belongs_to_the_span_that_should_have_it(
            list in prop::collection::vec((0u64..60, 1u32..40), 0..12)
        ) {
            let spans: Vec<Span> = (0..).zip(&list)
                .map(|(entry, &(start, length))| Span { start, length, entry })
                .collect();
            let pieces = disjoint(spans.clone());
            prop_assert!(pieces.is_sorted_by(|a, b| a.end() <= b.start));
            for address in 0..110 {
                let covers = |span: &&Span| (span.start..span.end()).contains(&address);
                let wanted = spans.iter().filter(covers).max_by_key(|s| (s.start, std::cmp::Reverse(s.entry)));
                let found = pieces.iter().find(covers);
                prop_assert_eq!(found.map(|s| s.entry), wanted.map(|s| s.entry));
            }
        }
    }
}
