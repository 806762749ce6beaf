//! The clocks: the only place that reads them.

use std::time::Duration;

use profiler_common::address::MonotonicNs;
use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};

/// Now, on the clock of samples and sideband records.
#[must_use]
pub(crate) fn monotonic() -> MonotonicNs {
    MonotonicNs(nanoseconds(clock_gettime(ClockId::Monotonic)))
}

/// Now, in ns since boot, suspended time included.
#[must_use]
pub(crate) fn boot_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Boottime))
}

/// Now, in ns since 1970-01-01 UTC.
#[must_use]
pub(crate) fn unix_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

/// When it was that time, in seconds and ns since 1970-01-01 UTC, on the clock of samples: as if that clock had never
/// been set since then.
#[must_use]
pub(crate) fn monotonic_at(seconds: i64, nanoseconds: u64) -> MonotonicNs {
    let (unix, monotonic) = (i128::from(unix_ns()), i128::from(monotonic().0));
    let age_ns = unix - (i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds));
    MonotonicNs(u64::try_from((monotonic - age_ns).max(0)).unwrap_or(u64::MAX))
}

/// From one interrupt of the kernel's timer to the next, in ns: 1 to 10 ms.
#[must_use]
pub(crate) fn tick_ns() -> u64 {
    nanoseconds(clock_getres(ClockId::RealtimeCoarse))
}

/// CPU time of this thread, which other programs of a busy machine do not make longer.
#[must_use]
pub(crate) fn thread_cpu_time() -> Duration {
    Duration::from_nanos(nanoseconds(clock_gettime(ClockId::ThreadCPUTime)))
}

fn nanoseconds(time: Timespec) -> u64 {
    let (seconds, nanoseconds) = (time.tv_sec.max(0).unsigned_abs(), time.tv_nsec.max(0).unsigned_abs());
    u64::try_from(Duration::from_secs(seconds).as_nanos()).unwrap_or(u64::MAX).saturating_add(nanoseconds)
}
