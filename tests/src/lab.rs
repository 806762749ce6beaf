//! Whether the tests can run here, and what they all need: the profiler, the workloads, and the
//! right to record.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::record::{Process, Record};
use crate::workload;

/// The right to record, held until it is dropped.
pub struct Lab {
    /// Another thread or another test program waits until it is closed.
    _lock: File,
    program: &'static Path,
    folder: PathBuf,
}

/// The lab, or `None` after saying why the test is skipped.
///
/// # Panics
/// When there is a reason to skip and the environment says `CI=true`; when the profiler can't be
/// built.
#[must_use]
pub fn lab() -> Option<Lab> {
    if let Some(reason) = reason_to_skip() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped under CI=true: {reason}");
        // Past the capture of what tests print: a skip is to be seen.
        let _closed = writeln!(std::io::stderr(), "skipped: {reason}");
        return None;
    }
    let folder = target_folder().join("workloads");
    make_folder(&folder);
    let lock = File::create(folder.join(".lock")).expect("creating the lock file");
    lock.lock().expect("waiting for other recordings");
    Some(Lab { _lock: lock, program: program(), folder })
}

fn reason_to_skip() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("loading programs into the kernel needs root");
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("this kernel has no BTF (/sys/kernel/btf/vmlinux)");
    }
    None
}

impl Lab {
    /// The profiler.
    #[must_use]
    pub fn program(&self) -> &Path {
        self.program
    }

    /// The executable (or library) of a workload, built when it is not up to date.
    #[must_use]
    pub fn workload(&self, name: &str) -> PathBuf {
        workload::built(name, &self.folder)
    }

    /// A recording to be set up.
    #[must_use]
    pub fn record(&self, arguments: &[&str]) -> Record {
        Record::new(self.program, arguments)
    }

    /// What `spanflame dump` of these processes says.
    #[must_use]
    pub fn dump(&self, pids: &[u32], arguments: &[&str]) -> crate::Dump {
        crate::Dump::take(self.program, pids, arguments)
    }

    /// What another command of the profiler says, in the time that a test has.
    #[must_use]
    pub fn output(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(self.program);
        command.args(arguments);
        Process::start(command).end()
    }

    /// A workload under another name, in a folder of the test's own.
    #[must_use]
    pub fn copy(&self, workload: &str, folder: &Path, name: &str) -> PathBuf {
        let copy = folder.join(name);
        fs::copy(self.workload(workload), &copy).expect("copying a workload");
        copy
    }
}

/// The profiler: that of `SPANFLAME_BIN`, or the one of this build.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match PROGRAM.get_or_init(|| std::env::var_os("SPANFLAME_BIN").map_or_else(build, |path| Ok(path.into()))) {
        Ok(program) => program,
        Err(message) => panic!("{message}"),
    }
}

fn build() -> Result<PathBuf, String> {
    let profile = target_folder();
    let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    cargo.current_dir(root()).args(["build", "--quiet", "-p", "profiler-agent", "--bin", "spanflame"]);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let built = as_user(&mut cargo).status().is_ok_and(|status| status.success());
    if built { Ok(profile.join("spanflame")) } else { Err(format!("{cargo:?} failed")) }
}

/// `target/debug` or `target/release`: this program is in its folder `deps`.
fn target_folder() -> PathBuf {
    let program = std::env::current_exe().expect("the path of this program");
    program.ancestors().nth(2).expect("a program in target/PROFILE/deps").to_owned()
}

/// The folder of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository")
}

/// A user who builds and runs this with sudo keeps the right to remove what was built.
pub(crate) fn as_user(command: &mut Command) -> &mut Command {
    if let Some((uid, gid)) = sudo_user() {
        command.uid(uid).gid(gid);
    }
    command
}

fn make_folder(folder: &Path) {
    if !folder.exists() {
        fs::create_dir_all(folder).expect("creating the folder of the workloads");
        if let Some((uid, gid)) = sudo_user() {
            chown(folder, Some(uid), Some(gid)).expect("giving the folder of the workloads to its user");
        }
    }
}

fn sudo_user() -> Option<(u32, u32)> {
    let number = |name| std::env::var(name).ok()?.parse().ok();
    Some((number("SUDO_UID")?, number("SUDO_GID")?))
}
