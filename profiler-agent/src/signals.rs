//! The signals that end a recording.

use std::fs;
use std::io;

use profiler_common::address::MonotonicNs;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::kernel::terminal;

/// An interrupt this long after the first one is meant: `timeout` sends its signal twice, so may a
/// closing terminal, and keys bounce.
const MEANT_AFTER_NS: u64 = 1_000_000_000;

/// The signals that end a recording, from its first step on.
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// Not under `nohup`.
    hang_up: Option<tokio::signal::unix::Signal>,
    interrupts: Interrupts,
}

impl Signals {
    /// From now on none of them ends us on its own.
    pub(crate) fn new() -> io::Result<Self> {
        terminal::watch_keys()?;
        let hang_up = if is_ignored(Signal::HUP) { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up,
            interrupts: Interrupts::default(),
        })
    }

    /// The next one. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Signal {
        let Self { interrupt, quit, terminate, hang_up, interrupts } = self;
        let hung_up = async {
            match hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {
                interrupts.came(terminal::latest());
                Signal::INT
            }
            _ = quit.recv() => Signal::QUIT,
            _ = terminate.recv() => Signal::TERM,
            _ = hung_up => Signal::HUP,
        }
    }

    /// Waits for an interrupt that is clearly not the first: somebody does not want to wait any
    /// more. All other signals have asked for no more than what is being done.
    pub(crate) async fn interrupted_again(&mut self) {
        while !self.interrupts.is_another {
            self.next().await;
        }
    }

    /// Waits for an interrupt that is not the one which ended the recording: what goes on is to be given up. From
    /// then on it counts as the first one.
    pub(crate) async fn interrupted_anew(&mut self) {
        loop {
            let was_none = self.interrupts.first.is_none();
            if self.next().await == Signal::INT && (was_none || self.interrupts.is_another) {
                self.interrupts = Interrupts { first: Some(terminal::latest()), is_another: false };
                return;
            }
        }
    }
}

/// The interrupts so far.
#[derive(Default)]
struct Interrupts {
    first: Option<MonotonicNs>,
    is_another: bool,
}

impl Interrupts {
    /// One came at this time, which may be long ago: some of our work is done in one go.
    fn came(&mut self, at: MonotonicNs) {
        let first = *self.first.get_or_insert(at);
        self.is_another |= at.0.saturating_sub(first.0) >= MEANT_AFTER_NS;
    }
}

/// Whether who started us had this signal ignored.
fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal.as_raw() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_interrupt_after_a_while_is_another() {
        let mut interrupts = Interrupts::default();
        for (at_ns, is_another) in [
            (5_000_000_000, false),
            (5_000_000_001, false),
            (5_999_999_999, false),
            (6_000_000_000, true),
            (6_000_000_001, true),
        ] {
            interrupts.came(MonotonicNs(at_ns));
            assert_eq!(interrupts.is_another, is_another, "at {at_ns}");
        }
    }
}
