//! How a recording comes to its end, and how that of its command follows.

use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::launch::{Launched, is_in_our_group, kill};
use crate::{cli, proc_fs};

/// How long a command may take to end after it was told to.
const TIME_TO_END: Duration = Duration::from_secs(5);

/// How long the kernel may take to end what was killed; what waits for a disk takes longer.
const TIME_TO_DIE: Duration = Duration::from_secs(5);

/// How often it is looked whether something still runs.
const PAUSE: Duration = Duration::from_millis(20);

/// Processes that are named when they had to be killed.
const MOST_NAMED: usize = 5;

/// What ended the recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// Its time was over.
    ByTime,
    /// A signal; by a terminal's keys it went to all of the group in the foreground.
    BySignal { signal: Signal, by_keys: bool },
    /// The command ended.
    ByCommand,
    /// The processes ended.
    ProcessesEnded,
}

/// Ends a command that outlived the recording, and all that it started, and returns how it ended:
/// `None` when not even SIGKILL could end it. To be awaited once and to its end: it sends each
/// process one signal, and after 5 s another, SIGKILL.
///
/// What a command leaves running that ended by itself is left alone. The signal is the one that
/// ended us, or SIGTERM:
///
/// | came from | the command has it | so it goes to |
/// |---|---|---|
/// | Ctrl-C, Ctrl-\ | if it is in our process group, which was in the foreground | the other groups |
/// | `kill`, `timeout`, a service manager | not for sure | all |
/// | `-d` | no | all |
///
/// Who sends to a whole group with `kill` (as `timeout` does) reaches the command beside us: it then
/// has the signal twice, since we can't know.
pub(crate) async fn end_command(launched: &mut Launched, stopped: Stopped) -> Option<ExitStatus> {
    let (signal, by_keys) = match stopped {
        Stopped::ByCommand => return launched.ended(),
        Stopped::BySignal { signal, by_keys } => (signal, by_keys),
        Stopped::ByTime | Stopped::ProcessesEnded => (Signal::TERM, false),
    };
    for pid in launched.family().into_iter().filter(|pid| !(by_keys && is_in_our_group(*pid))) {
        kill(pid, signal);
    }
    let end = Instant::now() + TIME_TO_END;
    while launched.is_left() && Instant::now() < end {
        sleep(PAUSE).await;
    }
    if launched.is_left() {
        cli::complain(&killed(launched, signal));
        let end = Instant::now() + TIME_TO_DIE;
        // Again and again: it may start more while it is being killed.
        while launched.is_left() && Instant::now() < end {
            launched.kill();
            sleep(PAUSE).await;
        }
    }
    launched.ended()
}

fn killed(launched: &Launched, signal: Signal) -> String {
    let left: Vec<_> = launched.family().into_iter().filter(|pid| proc_fs::living_thread(*pid).is_some()).collect();
    let name = |pid: &_| format!("{} (pid {pid})", proc_fs::name(*pid).unwrap_or_default());
    let mut names: Vec<String> = left.iter().take(MOST_NAMED).map(name).collect();
    if left.len() > MOST_NAMED {
        names.push(format!("{} more", left.len() - MOST_NAMED));
    }
    let signal = match signal {
        Signal::INT => "SIGINT",
        Signal::QUIT => "SIGQUIT",
        Signal::HUP => "SIGHUP",
        _ => "SIGTERM",
    };
    format!("killed {}: not ended {} s after {signal}", names.join(", "), TIME_TO_END.as_secs())
}
