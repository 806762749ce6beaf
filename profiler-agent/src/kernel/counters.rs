//! The kernel programs' counters.

use aya::maps::{MapData, PerCpuArray};
use profiler_common::counter::Counter;

use super::KernelError;

/// The kernel programs' counters, summed over CPUs or of each.
pub struct Counters {
    map: PerCpuArray<MapData, u64>,
}

impl Counters {
    pub(super) fn new(map: PerCpuArray<MapData, u64>) -> Self {
        Self { map }
    }

    /// The count of each possible CPU, by its number.
    ///
    /// # Errors
    /// When the kernel refuses the look-up.
    pub fn per_cpu(&self, counter: Counter) -> Result<Vec<u64>, KernelError> {
        let values = self
            .map
            .get(&(counter as u32), 0)
            .map_err(|error| KernelError::Map { map: "COUNTERS", message: super::error::chain(&error) })?;
        Ok(values.to_vec())
    }

    /// The count over all CPUs.
    ///
    /// # Errors
    /// When the kernel refuses the look-up.
    pub fn total(&self, counter: Counter) -> Result<u64, KernelError> {
        Ok(self.per_cpu(counter)?.iter().sum())
    }
}
