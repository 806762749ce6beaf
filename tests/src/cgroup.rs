//! Control groups made for a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::system::{runs, wait_for};

/// Where a hierarchy may be mounted: version 2 alone, beside version 1, and of that one that has no limits.
const PLACES: [&str; 4] =
    ["/sys/fs/cgroup/unified", "/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/freezer"];

/// A control group, removed with all that is below it when the test ends.
#[derive(Debug)]
pub struct Cgroup {
    folder: PathBuf,
    /// From the root of its hierarchy.
    path: String,
}

impl Cgroup {
    /// One whose name begins so, at the root of a hierarchy; `None` after saying why the test is skipped.
    ///
    /// # Panics
    /// When there is a reason to skip and the environment says `CI=true`.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let path = format!("/{name}-{}", std::process::id());
        for place in PLACES.iter().filter(|place| Path::new(place).join("cgroup.procs").exists()) {
            let folder = PathBuf::from(format!("{place}{path}"));
            if fs::create_dir(&folder).is_ok() {
                return Some(Self { folder, path });
            }
        }
        assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped under CI=true: no control group can be made");
        println!("skipped: no control group can be made below /sys/fs/cgroup");
        None
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// As `/proc/PID/cgroup` names it.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A group below it, of this path.
    ///
    /// # Panics
    /// When it can't be made.
    #[must_use]
    pub fn below(&self, path: &str) -> PathBuf {
        let folder = self.folder.join(path);
        fs::create_dir_all(&folder).expect("creating a control group");
        folder
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

/// Moves a process into a group.
///
/// # Panics
/// When the kernel refuses.
pub fn enter(folder: &Path, pid: u32) {
    fs::write(folder.join("cgroup.procs"), pid.to_string()).expect("moving a process to a control group");
}

/// A command that runs a script of the shell in a group from its beginning.
#[must_use]
pub fn shell_in(folder: &Path, script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(format!("echo $$ > {}/cgroup.procs; {script}", folder.display()));
    command
}

/// Removes a group and those below it, and what runs there.
fn remove(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove(&entry.path());
        }
    }
    let left = || {
        let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
    };
    for pid in left() {
        let pid = rustix::process::Pid::from_raw(pid.cast_signed());
        let _gone = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
    }
    if !std::thread::panicking() {
        wait_for("the processes of a control group to end", || left().into_iter().all(|pid| !runs(pid)));
    }
    let _busy = fs::remove_dir(folder);
}
