//! What the tests ask the system: processes, their states, and waiting for a condition.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Waits until something holds; a minute at most.
///
/// # Panics
/// When it does not come to hold.
pub fn wait_for(what: &str, holds: impl FnMut() -> bool) {
    wait_at_most(Duration::from_secs(60), what, holds);
}

/// Waits until something holds.
///
/// # Panics
/// When it does not within this time.
pub fn wait_at_most(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "waited {limit:?} in vain for {what}");
        std::thread::sleep(INTERVAL);
    }
}

/// Whether a process has a handler for a signal.
#[must_use]
pub fn catches(pid: u32, signal: Signal) -> bool {
    let caught = status(pid, "SigCgt").and_then(|mask| u64::from_str_radix(&mask, 16).ok()).unwrap_or(0);
    caught >> (signal.as_raw() - 1) & 1 == 1
}

/// Whether a process runs: it is there and no zombie.
#[must_use]
pub fn runs(pid: u32) -> bool {
    status(pid, "State").is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// How many threads of a process have this state.
#[must_use]
pub fn state_of_threads(pid: u32, state: char) -> usize {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let tids = threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    tids.filter(|tid| status(*tid, "State").is_some_and(|found| found.starts_with(state))).count()
}

/// The name of a process.
#[must_use]
pub fn name(pid: u32) -> Option<String> {
    status(pid, "Name")
}

fn status(pid: u32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

/// The memory of a process in bytes that no file holds: what it can leak. What it shares with others counts in
/// parts, so that a sum over processes is true.
#[must_use]
pub fn own_bytes(pid: u32) -> Option<u64> {
    // Linux, Documentation/ABI/testing/procfs-smaps_rollup.
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kib = |line: &str| {
        let value = line.strip_prefix("Pss_Anon:").or_else(|| line.strip_prefix("Pss_Shmem:"))?;
        value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    // A process that has no memory any more has no such line.
    text.contains("Pss_Anon:").then(|| text.lines().filter_map(kib).sum::<u64>() * 1024)
}

/// The CPU time of a process's first thread.
#[must_use]
pub fn cpu_time(pid: u32) -> Option<Duration> {
    // Linux, Documentation/scheduler/sched-stats.rst: time on the CPU in ns, time waiting, slices.
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
}

/// The pids of all processes with this parent.
#[must_use]
pub fn children(parent: u32) -> Vec<u32> {
    let parent = parent.to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| status(*pid, "PPid").as_ref() == Some(&parent)).collect()
}

/// The process below `ancestor` that has this name, children before their children.
#[must_use]
pub fn descendant(ancestor: u32, wanted: &str) -> Option<u32> {
    let children = children(ancestor);
    let own = children.iter().copied().find(|pid| name(*pid).as_deref() == Some(wanted));
    own.or_else(|| children.into_iter().find_map(|child| descendant(child, wanted)))
}

/// Whether a process has mapped a file whose path ends in this.
#[must_use]
pub fn maps(pid: u32, file: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.lines().any(|line| line.ends_with(file)))
}

/// A program beside the recording; killed at the end of the test.
#[derive(Debug)]
pub struct Program(Child);

impl Program {
    /// Starts it, its output away.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start<S: AsRef<OsStr>>(program: &Path, arguments: &[S]) -> Self {
        Self::spawn(Command::new(program).args(arguments).stdout(Stdio::null()))
    }

    /// Starts a command.
    ///
    /// # Panics
    /// When it does not start.
    pub fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits for its end, and what it printed if that was piped.
    ///
    /// # Panics
    /// When it does not end.
    pub fn end(mut self) -> (ExitStatus, String) {
        use std::io::Read as _;
        let mut text = String::new();
        if let Some(mut stdout) = self.0.stdout.take() {
            let _closed = stdout.read_to_string(&mut text);
        }
        (self.0.wait().expect("waiting for a program"), text)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// What a command prints.
///
/// # Panics
/// When it can't be run or fails.
pub fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// CPU time in user mode and in kernel mode, in ticks of 10 ms.
#[must_use]
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // proc_pid_stat(5): the fields after the name are numbered from 3; utime is 14, stime 15.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields).split(' ');
    fields.skip(14 - 3).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}
