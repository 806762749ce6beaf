//! Samples that the kernel should have taken and did not.
//!
//! A CPU's clock event fires `rate x busy time` times; what `samples_taken` lacks was skipped, for
//! instance because another BPF program was running on that CPU. The kernel counts busy time in
//! ticks of 10 ms, so the figure has an uncertainty.

use profiler_model::Missed;

use crate::proc_fs::{TICKS_PER_SECOND, busy_ticks};

/// Busy time of all CPUs when sampling began.
pub(crate) struct BusyTime {
    at_start: Vec<(u32, u64)>,
}

impl BusyTime {
    pub(crate) fn start() -> Self {
        Self { at_start: busy_ticks() }
    }

    /// How many samples `taken` (by CPU number) lacks, of those that were due since the start.
    pub(crate) fn missed(&self, rate_hz: u32, taken: &[u64]) -> Missed {
        missed(&self.at_start, &busy_ticks(), rate_hz, taken)
    }
}

fn missed(at_start: &[(u32, u64)], at_end: &[(u32, u64)], rate_hz: u32, taken: &[u64]) -> Missed {
    let mut count = 0;
    let mut uncertainty = 0;
    for (cpu, end) in at_end {
        let Some((_cpu, start)) = at_start.iter().find(|(number, _ticks)| number == cpu) else { continue };
        let ticks = end.saturating_sub(*start);
        let due = ticks * u64::from(rate_hz) / TICKS_PER_SECOND;
        let seen = taken.get(*cpu as usize).copied().unwrap_or(0);
        count += due.saturating_sub(seen);
        // Tick accounting is itself a sampling: a tick is charged whole to what it interrupts.
        uncertainty += (2 + ticks.isqrt()) * u64::from(rate_hz) / TICKS_PER_SECOND + 1;
    }
    Missed { count, uncertainty }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_counted_for_each_cpu() {
        let (start, end) = ([(0, 100), (1, 100)], [(0, 1100), (1, 600)]);
        assert_eq!(missed(&start, &end, 99, &[990, 495]).count, 0);
        assert_eq!(missed(&start, &end, 99, &[990, 0]).count, 495, "a CPU without its event");
        assert_eq!(missed(&start, &end, 99, &[5000, 495]).count, 0, "more on one CPU does not make up for another");
    }
}
