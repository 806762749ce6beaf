//! Running `spanflame dump`, and reading what it says.

use std::path::Path;
use std::process::{Command, ExitStatus};

use serde_json::Value;

use crate::record::Process;

/// What `spanflame dump` said.
#[derive(Debug)]
pub struct Dump {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Dump {
    pub(crate) fn take(program: &Path, pids: &[u32], arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.arg("dump").args(arguments);
        for pid in pids {
            command.args(["-p", &pid.to_string()]);
        }
        let output = Process::start(command).end();
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The threads of all processes, of a dump with `--json`.
    ///
    /// # Panics
    /// When it failed, or printed something else.
    #[must_use]
    pub fn threads(&self) -> Vec<Thread> {
        assert!(self.status.success(), "{}: {}", self.status, self.stderr);
        self.printed()
    }

    /// The same, also where processes that were named are missing in it.
    ///
    /// # Panics
    /// When it printed something else.
    #[must_use]
    pub fn printed(&self) -> Vec<Thread> {
        let json: Value = serde_json::from_str(&self.stdout).expect("one JSON object");
        let list = |value: &Value| value.as_array().expect("a list").clone();
        list(&json["processes"]).iter().flat_map(|process| list(&process["threads"])).map(Thread).collect()
    }

    /// The thread of this name.
    ///
    /// # Panics
    /// When there is none, or more than one.
    #[must_use]
    pub fn thread(&self, name: &str) -> Thread {
        let mut named: Vec<Thread> = self.threads().into_iter().filter(|thread| thread.name() == name).collect();
        let thread = named.pop().filter(|_one| named.is_empty());
        thread.unwrap_or_else(|| panic!("not one thread {name}: {}", self.stdout))
    }
}

/// A thread in a dump.
#[derive(Clone, Debug)]
pub struct Thread(Value);

impl Thread {
    /// Its number.
    #[must_use]
    pub fn tid(&self) -> u64 {
        self.0["tid"].as_u64().expect("a number")
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0["name"].as_str().expect("a name")
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> &str {
        self.0["state"].as_str().expect("a state")
    }

    /// The name of the system call that it waits in; empty when there is none.
    #[must_use]
    pub fn system_call(&self) -> &str {
        self.0["system_call"]["name"].as_str().unwrap_or_default()
    }

    /// Its functions in user space, the outermost first.
    #[must_use]
    pub fn user(&self) -> Vec<&str> {
        self.functions(false)
    }

    /// Its functions in the kernel, the outermost first.
    #[must_use]
    pub fn kernel(&self) -> Vec<&str> {
        self.functions(true)
    }

    fn functions(&self, kernel: bool) -> Vec<&str> {
        let frames = self.0["frames"].as_array().expect("a list");
        let wanted = frames.iter().filter(|frame| (frame["mark"] == "kernel") == kernel);
        wanted.rev().map(|frame| frame["function"].as_str().expect("a name")).collect()
    }

    /// Why callers are missing or nothing was seen; nothing when it is whole.
    #[must_use]
    pub fn lacks(&self) -> Option<&str> {
        self.0["incomplete"].as_str().or_else(|| self.0["unseen"].as_str())
    }
}
