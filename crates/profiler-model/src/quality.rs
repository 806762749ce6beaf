//! What the profiler says about its own work: what was lost, and what went wrong.

use std::collections::BTreeMap;

/// Counts by name, in the order of their names.
pub type Counts = BTreeMap<String, u64>;

/// Samples that should have been taken and were not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// How many: busy time x rate, less the samples taken.
    pub count: u64,
    /// By how many the count may be off, either way.
    pub uncertainty: u64,
}

/// Counts that the samples of a profile don't show. Those that they do show are in
/// [`crate::Figures`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quality {
    /// Runs of the sampling program: equals samples in the profile + filtered + lost.
    pub samples_taken: u64,
    /// Samples left out because nobody asked for them, by the counter's name.
    pub filtered: Counts,
    /// Samples lost, by the counter's name.
    pub lost: Counts,
    /// Samples that the kernel did not take; `None` when that was not measured.
    pub missed_by_kernel: Option<Missed>,
    /// Other things that went wrong, by the counter's name.
    pub errors: Counts,
}

impl Quality {
    /// All samples left out on request.
    #[must_use]
    pub fn samples_filtered(&self) -> u64 {
        total(&self.filtered)
    }

    /// All samples lost.
    #[must_use]
    pub fn samples_lost(&self) -> u64 {
        total(&self.lost)
    }

    /// Adds the counts of another measurement. Where only one of them measured what the kernel
    /// missed, the sum is that one's figure.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.samples_taken = self.samples_taken.saturating_add(other.samples_taken);
        add(&mut self.filtered, &other.filtered);
        add(&mut self.lost, &other.lost);
        add(&mut self.errors, &other.errors);
        self.missed_by_kernel = match (self.missed_by_kernel, other.missed_by_kernel) {
            (Some(a), Some(b)) => Some(Missed {
                count: a.count.saturating_add(b.count),
                uncertainty: a.uncertainty.saturating_add(b.uncertainty),
            }),
            (a, b) => a.or(b),
        };
    }
}

fn total(counts: &Counts) -> u64 {
    counts.values().fold(0, |sum, count| sum.saturating_add(*count))
}

fn add(counts: &mut Counts, other: &Counts) {
    for (name, count) in other {
        let total = counts.entry(name.clone()).or_default();
        *total = total.saturating_add(*count);
    }
}
