//! Running programs: where the repository is, what is on PATH, and commands whose failure says
//! which command it was.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};

/// Where root's programs are; the PATH of an ordinary user may lack them.
const ROOT_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Lines of a failed command's stderr that an error quotes.
const QUOTED_LINES: usize = 20;

/// The repository's root folder.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// A `cargo` command in the repository's root. The name and not `$CARGO`, so that rustup may
/// choose the toolchain.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(root());
    // What `cargo run` set for xtask itself would make other packages build again.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command
}

/// The command as a user would type it.
pub(crate) fn display(command: &Command) -> String {
    let mut words = vec![quote(command.get_program())];
    words.extend(command.get_args().map(quote));
    words.join(" ")
}

fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Says what is run, runs it with the terminal, fails when it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("$ {}", display(command));
    let status = command.status().with_context(|| format!("starting `{}`", display(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", display(command));
    }
    Ok(())
}

/// Runs silently; the error quotes what it says.
pub(crate) fn run_silently(command: &mut Command) -> Result<()> {
    output(command.stdout(Stdio::piped()).stderr(Stdio::piped())).map(|_said| ())
}

/// Runs silently and returns stdout; the error quotes the end of stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting `{}`", display(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}\n{}", display(command), output.status, last_lines(&stderr, QUOTED_LINES));
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of `{}`", display(command)))
}

/// The last `count` lines of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Where a program is: on PATH, or among root's.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// PATH and the folders of root's programs.
pub(crate) fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(ROOT_FOLDERS.map(PathBuf::from));
    // Parts of a PATH can be joined again.
    env::join_paths(folders).unwrap_or(path)
}

/// Is this process root? Read from /proc, which needs no `unsafe`.
pub(crate) fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_uid(&status) == Some(0)
}

/// The second number of the line `Uid:` of /proc/PID/status (proc_pid_status(5)).
fn effective_uid(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?.parse().ok()
}

/// How to run a command as root here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Elevation {
    /// This process is root.
    None,
    /// `sudo` allows it.
    Sudo,
    /// Neither: the user has to; why there is no other way.
    Impossible(&'static str),
}

impl Elevation {
    /// The command as root, if that is possible.
    pub(crate) fn command(self, program: impl AsRef<OsStr>) -> Command {
        if self != Self::Sudo {
            return Command::new(program);
        }
        let mut command = Command::new("sudo");
        command.arg("--").arg(program);
        command
    }
}

/// How a command becomes root here; `why` completes the sentence "root is needed …". Where there is
/// a sudo, it is tried, which may ask for a password.
pub(crate) fn elevation(why: &str) -> Elevation {
    static SUDO_ALLOWS: OnceLock<bool> = OnceLock::new();
    choose(is_root(), find("sudo").is_some(), || {
        println!("root is needed {why}: asking sudo");
        // Not `sudo --validate`: it asks for the password of users who need none for commands.
        let mut nothing = Command::new("sudo");
        nothing.args(["--", "true"]);
        *SUDO_ALLOWS.get_or_init(|| nothing.status().is_ok_and(|status| status.success()))
    })
}

fn choose(is_root: bool, has_sudo: bool, sudo_allows: impl FnOnce() -> bool) -> Elevation {
    match (is_root, has_sudo) {
        (true, _) => Elevation::None,
        (false, false) => Elevation::Impossible("there is no sudo here"),
        (false, true) if sudo_allows() => Elevation::Sudo,
        (false, true) => Elevation::Impossible("sudo refuses (see above)"),
    }
}

/// The command as root; `why` completes the sentence "root is needed …".
pub(crate) fn as_root(program: impl AsRef<OsStr>, why: &str) -> Result<Command> {
    match elevation(why) {
        Elevation::Impossible(reason) => bail!("root is needed {why}, and {reason}: run this command as root"),
        how => Ok(how.command(program)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effective_uid_is_the_second() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t5\t5\t5\t5\n"), Some(0));
        assert_eq!(effective_uid("Name:\tx\n"), None);
    }

    #[test]
    fn root_needs_no_sudo_and_sudo_is_asked_only_where_it_is() {
        let unasked = || -> bool { panic!("sudo was asked") };
        assert_eq!(choose(true, true, unasked), Elevation::None);
        assert_eq!(choose(true, false, unasked), Elevation::None);
        assert_eq!(choose(false, false, unasked), Elevation::Impossible("there is no sudo here"));
        assert_eq!(choose(false, true, || true), Elevation::Sudo);
        assert_eq!(choose(false, true, || false), Elevation::Impossible("sudo refuses (see above)"));
    }

    #[test]
    fn displayed_commands_can_be_pasted() {
        let mut command = Command::new("qemu");
        command.args(["-append", "console=ttyS0 quiet", "-m", "1024", ""]);
        assert_eq!(display(Command::new("echo").arg("it's")), r"echo 'it'\''s'");
        assert_eq!(display(&command), "qemu -append 'console=ttyS0 quiet' -m 1024 ''");
    }

    #[test]
    fn last_lines_are_the_last() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("", 2), "");
    }
}
