//! The uniform search: a binary search of a fixed number of steps without a branch or bounds test,
//! so that the kernel's verifier sees one path, however long the table is.
//!
//! For `n >= 1` sorted values let `first` be the largest power of two that is at most `n`. The
//! answer lies in the first `first` values or in the last `first` ones; the first comparison picks
//! the half, then `first / 2`, `first / 4`, ... are tried. Steps that have become 0 do nothing.

/// `n` and `floor(log2 n)`, packed as the kernel program reads them: `log2 << 24 | n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Extent(pub u32);

impl Extent {
    /// The extent of `count` values.
    ///
    /// Returns `None` when `count` is 0 or more than [`crate::limits::MAX_SEARCHED`].
    #[must_use]
    pub const fn new(count: usize) -> Option<Self> {
        if count == 0 || count > crate::limits::MAX_SEARCHED {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "count is at most MAX_SEARCHED")]
        let n = count as u32;
        Some(Self((n.ilog2() << 24) | n))
    }

    /// The number of values.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0 & 0x00ff_ffff
    }

    /// The largest power of two that is at most the number of values.
    #[must_use]
    pub const fn first_step(self) -> u32 {
        1 << (self.0 >> 24 & 31)
    }
}

/// The index of the last of `values` that is at most `wanted`, or 0 when there is none: the same
/// steps that the kernel program takes, for user space and for tests.
#[must_use]
pub fn last_at_most(extent: Extent, wanted: u64, value: impl Fn(u32) -> u64) -> u32 {
    let first = extent.first_step();
    let last_half = extent.count() - first;
    let mut low = if value(last_half) <= wanted { last_half } else { 0 };
    let mut step = first / 2;
    while step > 0 {
        if value(low + step) <= wanted {
            low += step;
        }
        step /= 2;
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_a_linear_search_finds() {
        for count in 1..70u32 {
            let extent = Extent::new(count as usize).unwrap();
            for wanted in 0..(3 * u64::from(count) + 4) {
                let expected = (0..count).rev().find(|i| u64::from(*i) * 3 + 1 <= wanted);
                let found = last_at_most(extent, wanted, |i| {
                    assert!(i < count, "index {i} of {count}");
                    u64::from(i) * 3 + 1
                });
                assert_eq!(found, expected.unwrap_or(0), "{count} values, {wanted}");
            }
        }
    }

    #[test]
    fn refuses_what_the_steps_cannot_reach() {
        assert_eq!(Extent::new(0), None);
        assert_eq!(Extent::new(crate::limits::MAX_SEARCHED + 1), None);
        let most = Extent::new(crate::limits::MAX_SEARCHED).unwrap();
        assert_eq!(most.count() as usize, crate::limits::MAX_SEARCHED);
        // One comparison picks the half, the others halve `first_step` down to 1.
        assert_eq!(1 + most.first_step().ilog2() as usize, crate::limits::SEARCH_STEPS);
    }
}
