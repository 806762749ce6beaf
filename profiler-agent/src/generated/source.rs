//! Where a process says what code it makes: its perf map, or the jitdump that it has mapped.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use profiler_common::address::{MonotonicNs, Pid};

use crate::tracker::{ALWAYS, InTmp, TrackedProcess, open_in_tmp};
use crate::worker::MapKey;
use crate::{clock, proc_fs};

/// How exact times of files and of processes are: both are told in ticks.
const TICK_NS: u64 = 20_000_000;

/// A perf map or jitdump, open.
pub(super) struct Source {
    pub(super) key: MapKey,
    pub(super) file: Arc<OwnedFd>,
    /// For people.
    pub(super) path: String,
    pub(super) is_dump: bool,
}

/// What a file was like: it says something new when this is another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    size_bytes: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl Source {
    pub(super) fn state(&self) -> Option<State> {
        let stat = rustix::fs::fstat(&self.file).ok()?;
        Some(State {
            size_bytes: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        })
    }

    /// Whether it is the same file as this one.
    pub(super) fn is(&self, other: &OwnedFd) -> bool {
        let identity = |file: &OwnedFd| rustix::fs::fstat(file).ok().map(|stat| (stat.st_dev, stat.st_ino));
        identity(&self.file).is_some() && identity(&self.file) == identity(other)
    }
}

/// A perf map, or why there is none.
pub(super) enum Found {
    Map(OwnedFd, String),
    Nothing,
    /// There is one that can't be this process's.
    Refused(String),
}

/// Looks for the perf map of what the process is now. What is older than that belongs to an earlier
/// process of this number: nothing of it holds.
pub(super) fn find_map(process: &TrackedProcess) -> Found {
    let pid = process.pid;
    let Some(own) = proc_fs::own(pid) else { return Found::Nothing };
    let name = format!("perf-{}.map", own.pid);
    let shown = format!("/proc/{pid}/root/tmp/{name}");
    let refused = |why: &str| Found::Refused(format!("{shown} is not used: {why}"));
    let owners = [own.uids.as_slice(), &[0]].concat();
    let file = match open_in_tmp(pid, &name, &owners) {
        InTmp::File(file) => file,
        InTmp::Nothing => return Found::Nothing,
        InTmp::Refused(why) => return refused(why),
    };
    // Only now: who has the number now had it all the time.
    let Some(began_unix_ns) = began(pid, process) else { return Found::Nothing };
    let Ok(stat) = rustix::fs::fstat(&file) else { return Found::Nothing };
    let written_ns =
        stat.st_mtime.max(0).unsigned_abs().saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec);
    if written_ns.saturating_add(TICK_NS) < began_unix_ns {
        return refused("it is older than the process");
    }
    Found::Map(file, shown)
}

/// When the process began to be what it is, in ns since 1970; `None` when its number is another
/// process's by now.
fn began(pid: Pid, process: &TrackedProcess) -> Option<u64> {
    let started_boot_ns = proc_fs::started_boot_ns(pid)?;
    let (unix_ns, boot_ns, monotonic) = (clock::unix_ns(), clock::boot_ns(), clock::monotonic());
    let age_ns = |since: MonotonicNs| monotonic.0.saturating_sub(since.0);
    let image = process.image();
    let seen = if image == ALWAYS { process.scanned_at } else { image };
    let process_age_ns = boot_ns.saturating_sub(started_boot_ns);
    if process_age_ns.saturating_add(TICK_NS) < age_ns(seen) {
        return None;
    }
    let image_age_ns = if image == ALWAYS { u64::MAX } else { age_ns(image) };
    Some(unix_ns.saturating_sub(process_age_ns.min(image_age_ns)))
}
