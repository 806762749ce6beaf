//! Whether memory grows: readings of processes at work, and the slope through them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::system::{children, name, own_bytes};

/// Between two readings.
const INTERVAL: Duration = Duration::from_millis(500);
const MIB: f64 = 1048576.0;
const HOUR_S: f64 = 3600.0;

/// A reading: the time since the first one in seconds, and bytes.
pub type Reading = (f64, f64);

/// Reads the memory of a process and of its children, by their names, until it is asked for them.
#[derive(Debug)]
pub struct Watch {
    thread: JoinHandle<BTreeMap<String, Vec<Reading>>>,
    stop: SyncSender<()>,
}

impl Watch {
    /// Begins.
    #[must_use]
    pub fn start(pid: u32) -> Self {
        let (stop, stopped) = sync_channel(1);
        Self { thread: std::thread::spawn(move || read(pid, &stopped)), stop }
    }

    /// Ends, and returns what was read.
    ///
    /// # Panics
    /// When reading did.
    #[must_use]
    pub fn end(self) -> BTreeMap<String, Vec<Reading>> {
        drop(self.stop);
        self.thread.join().expect("reading the memory of processes")
    }
}

fn read(pid: u32, stopped: &Receiver<()>) -> BTreeMap<String, Vec<Reading>> {
    let mut found: BTreeMap<String, Vec<Reading>> = BTreeMap::new();
    let start = Instant::now();
    while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        let time_s = start.elapsed().as_secs_f64();
        for process in [pid].into_iter().chain(children(pid)) {
            if let (Some(name), Some(bytes)) = (name(process), own_bytes(process)) {
                #[expect(clippy::cast_precision_loss, reason = "less than 2^53 bytes")]
                found.entry(name).or_default().push((time_s, bytes as f64));
            }
        }
    }
    found
}

/// How fast memory grows.
#[derive(Clone, Copy, Debug)]
pub struct Slope {
    /// By least squares.
    pub mib_per_hour: f64,
    /// The standard error of that.
    pub error: f64,
    /// How many readings it is of.
    pub readings: usize,
}

impl Slope {
    /// Of the second half of the time: in the first one all is learnt that is learnt once. `None` of less than
    /// ten readings.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "few readings")]
    pub fn of_second_half(readings: &[Reading]) -> Option<Self> {
        const FEWEST: usize = 10;
        let (&(first, _), &(last, _)) = (readings.first()?, readings.last()?);
        let half: Vec<_> = readings.iter().filter(|(time_s, _bytes)| *time_s >= f64::midpoint(first, last)).collect();
        let count = half.len() as f64;
        let time = half.iter().map(|reading| reading.0).sum::<f64>() / count;
        let bytes = half.iter().map(|reading| reading.1).sum::<f64>() / count;
        let spread: f64 = half.iter().map(|reading| (reading.0 - time).powi(2)).sum();
        if half.len() < FEWEST || spread <= 0.0 {
            return None;
        }
        let together: f64 = half.iter().map(|reading| (reading.0 - time) * (reading.1 - bytes)).sum();
        let slope = together / spread;
        let residue = |reading: &&Reading| (reading.1 - bytes - slope * (reading.0 - time)).powi(2);
        let residues: f64 = half.iter().copied().map(|reading| residue(&reading)).sum();
        let error = (residues / (count - 2.0) / spread).sqrt();
        let per_hour = HOUR_S / MIB;
        Some(Self { mib_per_hour: slope * per_hour, error: error * per_hour, readings: half.len() })
    }

    /// Whether it is more than a bound by more than chance: three standard errors.
    #[must_use]
    pub fn is_above(&self, mib_per_hour: f64) -> bool {
        self.mib_per_hour - 3.0 * self.error > mib_per_hour
    }
}

impl fmt::Display for Slope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:+.1} MiB an hour (+- {:.1}, {} readings)", self.mib_per_hour, self.error, self.readings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Twice a second for a number of seconds, with steps of 0 to 256 KiB up and down; `leak` in bytes a second
    /// from the first second on.
    fn readings(seconds: u32, leak: f64) -> Vec<Reading> {
        let noise = |index: u32| f64::from(index.wrapping_mul(2_654_435_761) >> 24) * 1024.0;
        let reading = |index: u32| (f64::from(index) / 2.0, 2e7 + f64::from(index) / 2.0 * leak + noise(index));
        (0..2 * seconds).map(reading).collect()
    }

    #[test]
    fn a_leak_of_a_hundred_bytes_a_process_shows_in_two_minutes() {
        let flat = Slope::of_second_half(&readings(120, 0.0)).unwrap();
        assert!(flat.mib_per_hour.abs() <= 3.0 * flat.error && !flat.is_above(0.0), "{flat}");
        // A hundred processes a second.
        let leak = Slope::of_second_half(&readings(120, 1e4)).unwrap();
        assert!((leak.mib_per_hour - 1e4 * 3600.0 / MIB).abs() <= 3.0 * leak.error, "{leak}");
        assert!(leak.is_above(10.0), "{leak}");
    }

    #[test]
    fn what_is_learnt_in_the_first_half_is_no_leak() {
        let mut all = readings(120, 0.0);
        all[..100].iter_mut().for_each(|reading| reading.1 -= 1.5e7);
        assert!(!Slope::of_second_half(&all).unwrap().is_above(10.0));
        assert!(Slope::of_second_half(&all[..12]).is_none(), "too few");
        assert!(Slope::of_second_half(&[(1.0, 5.0); 50]).is_none(), "all at one time");
        assert!(Slope::of_second_half(&[]).is_none());
    }
}
