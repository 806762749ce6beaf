//! The signals that end a recording.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::kernel::terminal;

/// An interrupt this long after the first one is meant: `timeout` sends its signal twice, so may a
/// closing terminal, and keys bounce.
const MEANT_AFTER: Duration = Duration::from_secs(1);

/// The signals that end a recording, from its first step on.
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// Not under `nohup`.
    hang_up: Option<tokio::signal::unix::Signal>,
    first_interrupt: Option<Instant>,
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
            first_interrupt: None,
        })
    }

    /// The next one. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Signal {
        let Self { interrupt, quit, terminate, hang_up, first_interrupt } = self;
        let hung_up = async {
            match hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {
                first_interrupt.get_or_insert_with(Instant::now);
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
        loop {
            let first = self.first_interrupt;
            if self.next().await == Signal::INT && first.is_some_and(|first| first.elapsed() >= MEANT_AFTER) {
                return;
            }
        }
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
    use tokio::time::timeout;

    use super::*;

    fn raise(signal: Signal) {
        rustix::process::kill_process(rustix::process::getpid(), signal).unwrap();
    }

    #[tokio::test]
    async fn only_an_interrupt_after_a_while_is_another() {
        let mut signals = Signals::new().unwrap();
        raise(Signal::INT);
        while signals.first_interrupt.is_none() {
            assert!(timeout(Duration::from_millis(10), signals.interrupted_again()).await.is_err());
        }
        raise(Signal::INT);
        raise(Signal::TERM);
        assert!(timeout(Duration::from_millis(100), signals.interrupted_again()).await.is_err());
        signals.first_interrupt = Instant::now().checked_sub(MEANT_AFTER);
        raise(Signal::TERM);
        assert!(timeout(Duration::from_millis(100), signals.interrupted_again()).await.is_err());
        raise(Signal::INT);
        timeout(Duration::from_secs(60), signals.interrupted_again()).await.unwrap();
        assert!(!terminal::last_from_keys());
    }
}
