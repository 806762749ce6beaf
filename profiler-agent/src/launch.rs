//! Starting the command that is to be profiled, so that it is sampled from its first instruction.
//!
//! `spanflame launch` runs in between: it stops itself, waits to be continued, and becomes the
//! command. While it is stopped the kernel is told to follow its pid from the next exec on.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use profiler_common::address::Pid;
use rustix::process::{Signal, WaitOptions};

use crate::interpreter::{self, MissingInterpreter};
use crate::{proc_fs, worker};

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "launch";

/// Exit codes of a shell that can't run a command.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// The exit code of what SIGKILL ended.
pub(crate) const KILLED: u8 = 128 + 9;

/// How long what was killed may take to be gone when we failed.
const TIME_TO_DIE: Duration = Duration::from_secs(1);

/// Why a command could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No such program.
    #[error("cannot run {name}: no such program in PATH. Give its path, as in ./{name}", name = .0.to_string_lossy())]
    NotFound(OsString),
    /// No such file.
    #[error("cannot run {name}: the file does not exist. Check the path behind --", name = .0.to_string_lossy())]
    NoFile(OsString),
    /// The program that is to run it is not there.
    #[error("cannot run {name}: {1}", name = .0.to_string_lossy())]
    Interpreter(OsString, MissingInterpreter),
    /// No name at all.
    #[error("cannot run a command without a name: write it behind --")]
    Nameless,
    /// A folder.
    #[error("cannot run {name}: it is a directory. Name a program in it, as in {name}/PROGRAM", name = .0.to_string_lossy())]
    Directory(OsString),
    /// It is there, but not to be executed.
    #[error("cannot run {name}: not an executable file. Try: chmod +x {name}", name = .0.to_string_lossy())]
    NotExecutable(OsString),
    /// The system refused.
    #[error("cannot start {name}: {1}", name = .0.to_string_lossy())]
    Failed(OsString, std::io::Error),
}

/// A command that was started. All that comes from it is killed when this is dropped, unless it is
/// left alone with [`Launched::leave`].
///
/// We are the reaper of what it leaves without a parent, so all that comes from it can be found: what
/// descends from us comes from it. That is not so if we had children before, as after `helper & exec
/// spanflame`: they and their orphans are none of our business. Then orphans go to init as ever, and
/// what still descends from the command comes from it.
pub(crate) struct Launched {
    child: Child,
    is_reaper: bool,
    ended: Option<ExitStatus>,
    left_alone: bool,
}

impl Launched {
    /// Starts `command`, stopped before its first instruction.
    pub(crate) fn start(command: &[OsString]) -> Result<Self, LaunchError> {
        let name = command.first().cloned().unwrap_or_default();
        check(&name)?;
        let failed = |source| LaunchError::Failed(name.clone(), source);
        let is_childless = proc_fs::with_descendants(&[us()]).is_ok_and(|family| family == [us()]);
        // Refused by no kernel that we run on.
        let is_reaper = is_childless && rustix::process::set_child_subreaper(Some(rustix::process::getpid())).is_ok();
        let child = Command::new("/proc/self/exe")
            .arg0("spanflame")
            .arg(SUBCOMMAND)
            .arg("--")
            .args(command)
            .spawn()
            .map_err(failed)?;
        let launched = Self { child, is_reaper, ended: None, left_alone: false };
        let pid = rustix::process::Pid::from_child(&launched.child);
        let waited = rustix::process::waitpid(Some(pid), WaitOptions::UNTRACED);
        match waited.map_err(|error| failed(error.into()))? {
            Some((_pid, status)) if status.stopped() => Ok(launched),
            _ => Err(failed(std::io::Error::other("it ended before it began"))),
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    /// Lets it run.
    pub(crate) fn go(&self) {
        kill(self.pid(), Signal::CONT);
    }

    /// Whether the command or something that comes from it still runs, or was not waited for.
    pub(crate) fn is_left(&mut self) -> bool {
        self.ended().is_none() || self.family().into_iter().any(|pid| proc_fs::living_thread(pid).is_some())
    }

    /// Kills what is there of it now.
    pub(crate) fn kill(&mut self) {
        for pid in self.family() {
            kill(pid, Signal::KILL);
        }
        let _gone = self.child.kill();
    }

    /// The recording is a success: what the command left running goes on.
    pub(crate) fn leave(mut self) {
        self.left_alone = true;
    }

    /// Waits for what lost its parent to us and has ended: all our children but the command and the
    /// workers that run. A worker that was given up may be waited for here, too.
    pub(crate) fn reap_orphans(&self, workers: &[Option<Pid>]) {
        if !self.is_reaper {
            return;
        }
        for orphan in proc_fs::children().into_iter().filter(|pid| *pid != self.pid() && !workers.contains(&Some(*pid)))
        {
            if let Some(orphan) = process_id(orphan) {
                let _lives = rustix::process::waitpid(Some(orphan), WaitOptions::NOHANG);
            }
        }
    }

    /// All that comes from the command; its daemons too, if we are their reaper: our descendants that
    /// are no workers.
    pub(crate) fn family(&self) -> Vec<Pid> {
        if !self.is_reaper {
            let root = [self.pid()];
            // Who has been waited for has no descendants, and another process may have its number.
            let roots = if self.ended.is_none() { root.as_slice() } else { &[] };
            return proc_fs::with_descendants(roots).unwrap_or_else(|_unlisted| roots.to_vec());
        }
        let us = us();
        let ours = proc_fs::program_of(us);
        // The command may be, or start, a profiler as well.
        let is_worker = |pid| {
            proc_fs::program_of(pid) == ours
                && proc_fs::name(pid).is_some_and(|name| name == "exe" || name.starts_with(worker::NAME_START))
        };
        let mut family = proc_fs::with_descendants(&[us]).unwrap_or_default();
        family.retain(|pid| *pid != us && (*pid == self.pid() || !is_worker(*pid)));
        family
    }

    /// Whether it has ended, and how.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if self.left_alone {
            return;
        }
        // Stopped or not, it must not outlive us, nor may what it started.
        let end = Instant::now() + TIME_TO_DIE;
        while self.is_left() && Instant::now() < end {
            self.kill();
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn us() -> Pid {
    Pid(std::process::id())
}

/// Whether a process has what a terminal's keys send to us.
pub(crate) fn is_in_our_group(pid: Pid) -> bool {
    let group = process_id(pid).and_then(|pid| rustix::process::getpgid(Some(pid)).ok());
    group == Some(rustix::process::getpgrp())
}

/// Sends a signal to a process, which may have ended a moment ago.
pub(crate) fn kill(pid: Pid, signal: Signal) {
    let _gone = process_id(pid).map(|pid| rustix::process::kill_process(pid, signal));
}

fn process_id(pid: Pid) -> Option<rustix::process::Pid> {
    i32::try_from(pid.0).ok().and_then(rustix::process::Pid::from_raw)
}

/// The exit code that stands for a status, as shells have it.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

fn check(name: &OsStr) -> Result<(), LaunchError> {
    use std::os::unix::fs::PermissionsExt as _;
    let executable = |path: &Path| {
        path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    let path = Path::new(name);
    if name.is_empty() {
        return Err(LaunchError::Nameless);
    }
    if path.is_dir() && (path.is_absolute() || path.components().count() > 1) {
        return Err(LaunchError::Directory(name.to_owned()));
    }
    if path.components().count() > 1 || path.is_absolute() {
        return match (path.exists(), executable(path)) {
            (false, _) => Err(LaunchError::NoFile(name.to_owned())),
            (true, false) => Err(LaunchError::NotExecutable(name.to_owned())),
            (true, true) => check_interpreter(path, name),
        };
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let file = std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|file| executable(file));
    check_interpreter(&file.ok_or_else(|| LaunchError::NotFound(name.to_owned()))?, name)
}

fn check_interpreter(file: &Path, name: &OsStr) -> Result<(), LaunchError> {
    interpreter::missing(file).map_or(Ok(()), |missing| Err(LaunchError::Interpreter(name.to_owned(), missing)))
}

/// The hidden subcommand: waits to be continued, then becomes the command.
pub fn run(command: &[OsString]) -> ExitCode {
    let Some((program, arguments)) = command.split_first() else { return ExitCode::from(NOT_FOUND) };
    // Whatever happens to the profiler, the command does not stay behind.
    let _unsupported = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if rustix::process::getppid().is_none_or(rustix::process::Pid::is_init) {
        // It is gone already, and nobody would continue us.
        return ExitCode::FAILURE;
    }
    let _never = rustix::process::kill_process(rustix::process::getpid(), Signal::STOP);
    let error = Command::new(program).args(arguments).exec();
    crate::cli::complain(&format!("cannot run {}: {error}", program.to_string_lossy()));
    ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE })
}
