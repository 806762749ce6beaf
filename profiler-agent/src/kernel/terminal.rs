//! When a signal came and who sent it: the keys of a terminal or another process.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use profiler_common::address::MonotonicNs;
use rustix::process::Signal;

use crate::clock;

/// `si_code` of what the kernel sends itself, as a terminal's keys do
/// (linux/include/uapi/asm-generic/siginfo.h).
const SI_KERNEL: i32 = 0x80;

static FROM_KEYS: AtomicBool = AtomicBool::new(false);
static LATEST_NS: AtomicU64 = AtomicU64::new(0);

/// Begins to note when SIGINT and SIGQUIT come and who sends them. To be called before anything else handles them, so
/// that it is known when they are handled.
///
/// # Errors
/// When the handler is refused.
pub fn watch_keys() -> io::Result<()> {
    // The first reading of the clock looks for the vDSO; later ones only call it.
    LATEST_NS.store(clock::monotonic().0, Ordering::Relaxed);
    for signal in [Signal::INT, Signal::QUIT] {
        let note = |information: &libc::siginfo_t| {
            FROM_KEYS.store(information.si_code == SI_KERNEL, Ordering::Relaxed);
            LATEST_NS.store(clock::monotonic().0, Ordering::Relaxed);
        };
        // SAFETY: a signal handler may store to atomics and read the clock (signal-safety(7)), and this does
        // nothing else; `clock::monotonic` neither allocates nor locks.
        unsafe { signal_hook_registry::register_sigaction(signal.as_raw(), note) }?;
    }
    Ok(())
}

/// When the latest SIGINT or SIGQUIT came; before the first one, when [`watch_keys`] was called.
pub(crate) fn latest() -> MonotonicNs {
    MonotonicNs(LATEST_NS.load(Ordering::Relaxed))
}

/// Whether the latest SIGINT or SIGQUIT came from the keys of our terminal (Ctrl-C, Ctrl-\), which
/// send it to every process of the group in the foreground, and not from another process.
#[must_use]
pub fn last_from_keys() -> bool {
    FROM_KEYS.load(Ordering::Relaxed)
}
