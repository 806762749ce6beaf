//! What the programs work on: a folder with sources, data and configuration, gone when it is dropped.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

const FILES: &[(&str, &str)] = &[
    ("busy.c", include_str!("files/busy.c")),
    ("Load.java", include_str!("files/Load.java")),
    ("load.cpp", include_str!("files/load.cpp")),
    ("load.go", include_str!("files/load.go")),
    ("load.js", include_str!("files/load.js")),
    ("load.pl", include_str!("files/load.pl")),
    ("load.py", include_str!("files/load.py")),
    ("load.sql", include_str!("files/load.sql")),
    ("nginx.conf", include_str!("files/nginx.conf")),
    ("server.cpp", include_str!("files/server.cpp")),
    ("server.rs", include_str!("files/server.rs")),
    ("objects/Makefile", include_str!("files/Makefile")),
];

/// Functions of the large C file.
const FUNCTIONS: usize = 3000;
/// Files that `make` compiles.
const OBJECTS: usize = 40;
const COMMITS: usize = 400;

/// The folder in which everything runs.
pub(super) struct Inputs {
    pub(super) folder: PathBuf,
    path: String,
    port: u16,
}

impl Inputs {
    /// Makes the folder and its files. Servers that are not root's look into it, so it is where these may.
    pub(super) fn new() -> Result<Self> {
        let folder = env::temp_dir().join(format!("spanflame-bench-{}", std::process::id()));
        // It is ours: an error where it is there already.
        fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let inputs = Self { folder, path: search_path(), port: free_port()? };
        fs::set_permissions(&inputs.folder, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("opening {} to servers", inputs.folder.display()))?;
        inputs.write("objects", None)?;
        for (name, text) in FILES {
            inputs.write(name, Some(text))?;
        }
        inputs.write("load.c", Some(&large_c()))?;
        inputs.write("load.import", Some(&commits()))?;
        for number in 0..OBJECTS {
            inputs.write(&format!("objects/f{number}.c"), Some(&format!("int f{number}(int x) {{ return x; }}\n")))?;
        }
        Ok(inputs)
    }

    /// Writes a file, or makes a folder.
    fn write(&self, name: &str, text: Option<&str>) -> Result<()> {
        let path = self.folder.join(name);
        match text {
            Some(text) => fs::write(&path, text),
            None => fs::create_dir(&path),
        }
        .with_context(|| format!("writing {}", path.display()))
    }

    /// A command in the folder, silent, with the system's own programs first on its PATH.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder).env("PATH", &self.path).env("PORT", self.port.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// A script.
    pub(super) fn script(&self, text: &str) -> Command {
        let mut command = self.command("sh");
        command.args(["-c", text]);
        command
    }

    /// An error that names the first of the programs that is not there.
    pub(super) fn demand<'a>(&self, programs: impl IntoIterator<Item = &'a &'static str>) -> Result<()> {
        match programs.into_iter().find(|program| !self.has(program)) {
            Some(missing) => bail!("there is no {missing} here: `cargo xtask setup --for bench` installs it"),
            None => Ok(()),
        }
    }

    /// Whether a program is there.
    pub(super) fn has(&self, program: &str) -> bool {
        env::split_paths(&self.path).any(|folder| folder.join(program).is_file())
    }
}

impl Drop for Inputs {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("removing {}: {error}", self.folder.display());
        }
    }
}

/// The newest PostgreSQL's folder, those of the system, and what the user has beside them.
fn search_path() -> String {
    let version = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let postgres = versions.filter(|path| version(path).is_some()).max_by_key(version).map(|path| path.join("bin"));
    let mut path = postgres.map_or_else(String::new, |folder| format!("{}:", folder.display()));
    path += "/usr/sbin:/usr/bin:/sbin:/bin";
    if let Ok(own) = env::var("PATH") {
        path = path + ":" + &own;
    }
    path
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    Ok(listener.local_addr().context("looking for a free port")?.port())
}

/// Functions with a loop and branches each: seconds of work for an optimizing compiler.
fn large_c() -> String {
    let mut text = String::new();
    for number in 0..FUNCTIONS {
        let _infallible = writeln!(
            text,
            "int f{number}(int a, int b) {{ int s = 0; for (int i = 0; i < a; i++) {{ s += i * b ^ {number}; \
             if (s % 7 == 3) s -= b; switch (s & 7) {{ case 0: s++; break; case 1: s *= 3; break; case 5: s ^= b; }} \
             }} return s; }}"
        );
    }
    text
}

/// A history for `git fast-import`: each commit changes one of twenty files.
fn commits() -> String {
    let mut text = String::new();
    for number in 0..COMMITS {
        let mut file = String::new();
        for line in 0..500 {
            let changes = if line % 7 == number / 20 % 7 { number } else { 0 };
            let _infallible = writeln!(file, "line {line} of file {}, changed in {changes}", number % 20);
        }
        let _infallible = write!(
            text,
            "commit refs/heads/main\ncommitter A <a@example.org> {number} +0000\ndata 1\nx\n\
             M 644 inline f{}\ndata {}\n{file}\n",
            number % 20,
            file.len()
        );
    }
    text
}
