//! The uniform search: a binary search of a fixed number of steps without a branch or bounds test,
//! so that the kernel's verifier sees one path, however long the table is.
//!
//! For `n >= 1` sorted values let `first` be the largest power of two that is at most `n`. The
//! answer lies in the first `first` values or in the last `first` ones; the first comparison picks
//! the half, then `first / 2`, `first / 4`, ... are tried. Steps that have become 0 do nothing.

use crate::limits::{MAX_SEARCHED, SEARCH_STEPS};
use crate::step::Barrier;

/// `n` and `floor(log2 n)`, packed as the kernel program reads them: `log2 << 24 | n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Extent(pub u32);

impl Extent {
    /// The extent of `count` values.
    ///
    /// Returns `None` when `count` is 0 or more than [`MAX_SEARCHED`].
    #[must_use]
    pub const fn new(count: usize) -> Option<Self> {
        if count == 0 || count > MAX_SEARCHED {
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

/// The index of the last of the values that is at most `wanted` (both below 2^63), or 0 when there
/// is none. Kernel and user space search with this one function.
///
/// An extent that is not the table's gives an index of no use, not a loop without end: there are
/// always [`SEARCH_STEPS`] comparisons.
#[inline(always)]
#[must_use]
pub fn last_at_most<B: Barrier>(extent: Extent, wanted: u64, value: impl Fn(u64) -> u64) -> u64 {
    let first = u64::from(extent.first_step());
    let last_half = u64::from(extent.count()).wrapping_sub(first);
    let mut low = last_half & at_most::<B>(value(last_half), wanted);
    let mut step = first >> 1;
    let mut left = B::opaque(SEARCH_STEPS as u64 - 1);
    while left != 0 {
        low += step & at_most::<B>(value(low + step), wanted);
        step >>= 1;
        left -= 1;
    }
    low
}

/// All ones when `value <= wanted`, else 0; both below 2^63.
#[inline(always)]
#[must_use]
pub fn at_most<B: Barrier>(value: u64, wanted: u64) -> u64 {
    let sign = B::opaque(wanted.wrapping_sub(value)).cast_signed() >> 63;
    !B::opaque(sign.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::NoBarrier;

    #[test]
    fn finds_what_a_linear_search_finds() {
        for count in 1..70u32 {
            let extent = Extent::new(count as usize).unwrap();
            for wanted in 0..(3 * u64::from(count) + 4) {
                let expected = (0..count).rev().find(|i| u64::from(*i) * 3 < wanted);
                let found = last_at_most::<NoBarrier>(extent, wanted, |i| {
                    assert!(i < u64::from(count), "index {i} of {count}");
                    i * 3 + 1
                });
                assert_eq!(found, u64::from(expected.unwrap_or(0)), "{count} values, {wanted}");
            }
        }
    }

    #[test]
    fn refuses_what_the_steps_cannot_reach() {
        assert_eq!(Extent::new(0), None);
        assert_eq!(Extent::new(MAX_SEARCHED + 1), None);
        let most = Extent::new(MAX_SEARCHED).unwrap();
        assert_eq!(most.count() as usize, MAX_SEARCHED);
        // One comparison picks the half, the others halve `first_step` down to 1.
        assert_eq!(1 + most.first_step().ilog2() as usize, SEARCH_STEPS);
    }
}
