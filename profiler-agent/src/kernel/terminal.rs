//! Who sent a signal: the keys of a terminal or another process.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

/// `si_code` of what the kernel sends itself, as a terminal's keys do
/// (linux/include/uapi/asm-generic/siginfo.h).
const SI_KERNEL: i32 = 0x80;

static FROM_KEYS: AtomicBool = AtomicBool::new(false);

/// Begins to note who sends SIGINT and SIGQUIT. To be called before anything else handles them, so
/// that it is known when they are handled.
///
/// # Errors
/// When the handler is refused.
pub fn watch_keys() -> io::Result<()> {
    for signal in [Signal::INT, Signal::QUIT] {
        let note = |information: &libc::siginfo_t| {
            FROM_KEYS.store(information.si_code == SI_KERNEL, Ordering::Relaxed);
        };
        // SAFETY: a load and a store to an atomic are all that a signal handler may do, and all that this does.
        unsafe { signal_hook_registry::register_sigaction(signal.as_raw(), note) }?;
    }
    Ok(())
}

/// Whether the latest SIGINT or SIGQUIT came from the keys of our terminal (Ctrl-C, Ctrl-\), which
/// send it to every process of the group in the foreground, and not from another process.
#[must_use]
pub fn last_from_keys() -> bool {
    FROM_KEYS.load(Ordering::Relaxed)
}
