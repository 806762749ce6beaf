//! What the tests of the worker share.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use profiler_agent::worker::{Role, Worker};
use profiler_common::address::Svma;

/// A directory of one test, removed at its end.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("spanflame-worker-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Compiles `source` with `arguments`; the name's end selects the language.
    pub(crate) fn compile(&self, name: &str, source: &str, arguments: &[&str]) -> PathBuf {
        let (input, output) = (self.0.join(name), self.0.join(name).with_extension("elf"));
        fs::write(&input, source).unwrap();
        let compiler = if name.ends_with(".cc") { "g++" } else { "gcc" };
        run(Command::new(compiler).args(arguments).arg("-o").args([&output, &input]));
        output
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The first symbol of `file` that `nm` lists with a name that `wanted` likes, and its address.
pub(crate) fn symbol(file: &Path, arguments: &[&str], wanted: impl Fn(&str) -> bool) -> (String, Svma) {
    let list = run(Command::new("nm").args(arguments).arg("--defined-only").arg(file));
    let found = list.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (address, name) = (fields.next()?, fields.nth(1)?);
        wanted(name).then(|| (name.to_owned(), Svma(u64::from_str_radix(address, 16).unwrap())))
    });
    found.unwrap_or_else(|| panic!("no such symbol in {}", file.display()))
}

pub(crate) fn open(path: impl AsRef<Path>) -> Arc<OwnedFd> {
    Arc::new(File::open(path).unwrap().into())
}

pub(crate) fn worker(role: Role) -> Worker {
    Worker::spawn(role, Path::new(env!("CARGO_BIN_EXE_spanflame"))).unwrap()
}
