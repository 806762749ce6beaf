//! One build of the kernel programs, such that the bytes depend on the sources and the toolchain
//! only: not on the folder, the user, or the environment.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::toolchain::Toolchain;
use crate::shell;

/// Flags beside the architecture and the remapped paths; part of the sources' hash.
pub(super) const FLAGS: [&str; 2] = [
    // Line information next to an empty `asm!` barrier is refused by Linux 6.1 ("Invalid line_info").
    "-Cdebuginfo=0",
    // bpf-linker's default turns neighbouring zero stores into calls of `memset`.
    "-Clink-arg=--disable-expand-memcpy-in-order",
];

/// The BPF target: little-endian on both architectures.
const TARGET: &str = "bpfel-unknown-none";

/// Between flags in `CARGO_ENCODED_RUSTFLAGS` (Cargo book, "Environment variables").
const FLAG_SEPARATOR: &str = "\x1f";

/// Variables that would change what rustc does, or that `cargo run` set for xtask itself.
const FOREIGN: [&str; 7] = [
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
];

/// Builds the object for one architecture from the sources under `root` and returns its bytes.
pub(super) fn object(toolchain: &Toolchain, architecture: &str, root: &Path) -> Result<Vec<u8>> {
    let target_folder = root.join("target/ebpf").join(architecture);
    let mut command = toolchain.cargo();
    command.args(["build", "--release", "--locked", "-Zbuild-std=core", "--target", TARGET, "--target-dir"]);
    command.arg(&target_folder).current_dir(root.join("profiler-ebpf"));
    for name in FOREIGN {
        command.env_remove(name);
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", flags(toolchain, architecture, root)?.join(FLAG_SEPARATOR));
    shell::run(&mut command)?;
    let built = target_folder.join(TARGET).join("release/spanflame-ebpf");
    fs::read(&built).with_context(|| format!("reading {}", built.display()))
}

fn flags(toolchain: &Toolchain, architecture: &str, root: &Path) -> Result<Vec<String>> {
    let mut flags: Vec<String> = FLAGS.iter().map(|flag| (*flag).to_owned()).collect();
    flags.push(format!("--cfg=bpf_target_arch=\"{architecture}\""));
    for (folder, name) in [(root.to_owned(), "/spanflame"), (cargo_home()?, "/cargo"), (toolchain.sysroot()?, "/rust")]
    {
        flags.push(format!("--remap-path-prefix={}={name}", folder.display()));
    }
    Ok(flags)
}

/// A copy of what the kernel programs are built from, in another folder.
pub(super) fn copy_of_sources() -> Result<PathBuf> {
    let (root, copy) = (shell::root(), shell::root().join("target/ebpf/another-folder"));
    let listed = shell::output(Command::new("git").args(["ls-files", "*.rs", "*.toml", "*.lock"]).current_dir(&root))?;
    for file in listed.lines() {
        let target = copy.join(file);
        let Some(folder) = target.parent() else { continue };
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        // A file that is removed but not committed yet is no reason to stop.
        if root.join(file).is_file() {
            fs::copy(root.join(file), &target).with_context(|| format!("copying {file}"))?;
        }
    }
    Ok(copy)
}

fn cargo_home() -> Result<PathBuf> {
    let named = env::var_os("CARGO_HOME").map(PathBuf::from);
    named
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
        .context("no home folder, and CARGO_HOME is not set")
}
