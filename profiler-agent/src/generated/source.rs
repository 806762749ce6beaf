//! Where a process says what code it makes: its perf map, or the jitdump that it has mapped.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use profiler_common::address::{MonotonicNs, Pid};

use crate::tracker::{ALWAYS, Opening, TrackedProcess, open_owned, root_of, tmp_in};
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

/// Where a process tells of the code that it makes.
#[derive(Debug)]
pub(crate) enum Told {
    /// In this jitdump.
    Dump(Arc<OwnedFd>, String),
    /// In this perf map.
    Map(Arc<OwnedFd>, String),
    /// There is a map that can't be this process's, or may not be read: why.
    Refused(String),
    /// Nowhere.
    Nowhere,
}

/// Where a process tells of its code now.
pub(crate) fn told(process: &TrackedProcess) -> Told {
    if let Some(dump) = process.jitdump.as_ref().filter(|dump| dump.since >= process.image()) {
        return Told::Dump(Arc::clone(&dump.file), dump.path.clone());
    }
    match Place::of(process).map_or(Found::Nothing, |mut place| place.find(false)) {
        Found::Map(file, path) => Told::Map(Arc::new(file), path),
        Found::Nothing => Told::Nowhere,
        Found::Refused(why) => Told::Refused(why),
    }
}

/// Where the perf map of a process is to be. This holds when the process has ended, too: some write
/// their map at the end.
pub(super) struct Place {
    root: OwnedFd,
    /// Its `/tmp` at the last look: with the process may go what is mounted there.
    folder: Option<OwnedFd>,
    name: String,
    /// Who may have written it.
    owners: Vec<u32>,
    /// What is older belongs to an earlier process of this number: nothing of it holds.
    began_unix_ns: u64,
    /// For people.
    shown: String,
}

impl Place {
    /// That of what the process is now.
    pub(super) fn of(process: &TrackedProcess) -> Option<Self> {
        let pid = process.pid;
        let own = proc_fs::own(pid)?;
        let root = root_of(pid)?;
        let name = format!("perf-{}.map", own.pid);
        let shown = format!("/proc/{pid}/root/tmp/{name}");
        let owners = [own.uids.as_slice(), &[0]].concat();
        // Only now: who has the number now had it all the time.
        Some(Self { root, folder: None, name, owners, began_unix_ns: began(pid, process)?, shown })
    }

    /// Looks for the map; `is_over`: the process has ended.
    pub(super) fn find(&mut self, is_over: bool) -> Found {
        if !is_over {
            self.folder = tmp_in(&self.root);
        }
        let Some(folder) = &self.folder else { return Found::Nothing };
        let refused = |why: &str| Found::Refused(format!("{} is not used: {why}", self.shown));
        let file = match open_owned(folder, &self.name, &self.owners) {
            Opening::File(file) => file,
            Opening::Nothing => return Found::Nothing,
            Opening::Refused(why) => return refused(why),
        };
        let Ok(stat) = rustix::fs::fstat(&file) else { return Found::Nothing };
        let whole_ns = stat.st_mtime.max(0).unsigned_abs().saturating_mul(1_000_000_000);
        if whole_ns.saturating_add(stat.st_mtime_nsec).saturating_add(TICK_NS) < self.began_unix_ns {
            return refused("it is older than the process");
        }
        Found::Map(file, self.shown.clone())
    }
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
