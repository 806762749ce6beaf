//! Running `spanflame record`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use crate::Profile;
use crate::system::{catches, runs, wait_for};

/// The longest that a run of the profiler may take, beside whatever else runs here.
const LIMIT: Duration = Duration::from_secs(180);

/// A recording to be set up. It writes all its outputs to a folder of its own.
#[derive(Debug)]
pub struct Record {
    command: Command,
    folder: TempDir,
}

impl Record {
    pub(crate) fn new(program: &Path, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new(program);
        command.args(["record", "--json"]).args(arguments);
        if !arguments.contains(&"--table-cache") {
            // What one test builds is not to be there for another.
            command.args(["--table-cache", "none"]);
        }
        for output in [folded(&folder), pprof(&folder)] {
            command.arg("-o").arg(output);
        }
        Self { command, folder }
    }

    /// Adds one argument or two.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Attaches to a process.
    #[must_use]
    pub fn pid(self, pid: u32) -> Self {
        self.args(["-p", &pid.to_string()])
    }

    /// Makes it the leader of a process group, as a shell does for what it runs on a terminal.
    #[must_use]
    pub fn in_own_group(mut self) -> Self {
        self.command.process_group(0);
        self
    }

    /// Starts it.
    #[must_use]
    pub fn start(self) -> Running {
        Running { child: Process::start(self.command), folder: self.folder }
    }

    /// Runs a command under it.
    #[must_use]
    pub fn of<S: AsRef<OsStr>>(self, program: &Path, arguments: &[S]) -> Running {
        self.args(["--"]).args([program]).args(arguments).start()
    }
}

/// A recording that goes on.
#[derive(Debug)]
pub struct Running {
    child: Process,
    folder: TempDir,
}

impl Running {
    /// The profiler's pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Waits until it samples: only then does it wait for the end of children.
    ///
    /// # Panics
    /// When it ends before.
    pub fn wait_until_sampling(&self) {
        wait_for("the recording to begin", || {
            assert!(runs(self.pid()), "the recording ended before it began");
            catches(self.pid(), Signal::CHILD)
        });
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child.0);
        kill_process(pid, signal).expect("sending a signal to the profiler");
    }

    /// Sends a signal to it and its command, as a terminal does. It must be in its own group.
    ///
    /// # Panics
    /// When it is not.
    pub fn signal_group(&self, signal: Signal) {
        kill_process_group(Pid::from_child(&self.child.0), signal).expect("sending a signal to the profiler's group");
    }

    /// Waits for its end, whatever that is.
    #[must_use]
    pub fn end(self) -> Ended {
        let Self { child, folder } = self;
        let Output { status, stdout, stderr } = child.end();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ended { status, stdout: text(stdout), stderr: text(stderr), folder }
    }

    /// Waits for its end and reads the profile.
    ///
    /// # Panics
    /// When it ends with another code than 0, or the profile breaks a rule that holds for all.
    #[must_use]
    pub fn profile(self) -> Profile {
        let ended = self.end();
        assert!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
        ended.profile()
    }
}

/// A recording that is over.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// What it and its command printed.
    pub stdout: String,
    /// What it and its command complained about.
    pub stderr: String,
    folder: TempDir,
}

impl Ended {
    /// The profile that it wrote.
    ///
    /// # Panics
    /// When it wrote none, or one that breaks a rule that holds for all.
    #[must_use]
    pub fn profile(&self) -> Profile {
        let start = self.stdout.find("{\"samples\":").unwrap_or_else(|| panic!("no JSON: {self:?}"));
        let mut values = serde_json::Deserializer::from_str(&self.stdout[start..]).into_iter();
        let json = values.next().expect("a value").expect("JSON on stdout");
        let folded = fs::read_to_string(folded(&self.folder)).expect("reading the folded stacks");
        let pprof = fs::read(pprof(&self.folder)).expect("reading the pprof");
        println!("{}", self.stderr.trim_end());
        Profile::new(&folded, &pprof, json)
    }

    /// The files that it left.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.folder).expect("listing the outputs");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }
}

fn folded(folder: &TempDir) -> PathBuf {
    folder.path().join("profile.folded")
}

fn pprof(folder: &TempDir) -> PathBuf {
    folder.path().join("profile.pb.gz")
}

/// A process whose output is read; killed when the test gives up on it.
#[derive(Debug)]
pub(crate) struct Process(Child, Vec<JoinHandle<Vec<u8>>>);

impl Process {
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = read_all(child.stdout.take().expect("piped"));
        let stderr = read_all(child.stderr.take().expect("piped"));
        Self(child, vec![stdout, stderr])
    }

    /// Waits for its end, within the time that it may take.
    pub(crate) fn end(mut self) -> Output {
        let mut status = None;
        crate::system::wait_at_most(LIMIT, "the profiler to end", || {
            status = self.0.try_wait().expect("waiting for the profiler");
            status.is_some()
        });
        let mut printed = self.1.drain(..).map(|bytes| bytes.join().expect("reading what the profiler prints"));
        let (stdout, stderr) = (printed.next().unwrap_or_default(), printed.next().unwrap_or_default());
        drop(printed);
        Output { status: status.expect("it has ended"), stdout, stderr }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _gone = self.0.kill();
            let _reaped = self.0.wait();
        }
    }
}

fn read_all(mut pipe: impl std::io::Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _closed = pipe.read_to_end(&mut bytes);
        bytes
    })
}
