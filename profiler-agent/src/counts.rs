//! What user space counts, under the names that the kernel programs use too.

use profiler_common::counter::{COUNT, Counter};

/// A count for every counter.
#[derive(Clone, Debug)]
pub(crate) struct Counts([u64; COUNT]);

impl Default for Counts {
    fn default() -> Self {
        Self([0; COUNT])
    }
}

impl Counts {
    pub(crate) fn add(&mut self, counter: Counter, count: u64) {
        if let Some(total) = self.0.get_mut(counter as usize) {
            *total = total.saturating_add(count);
        }
    }

    pub(crate) fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).copied().unwrap_or(0)
    }
}
