//! The toolchain of the kernel objects: a nightly of Rust with its sources, and bpf-linker, both
//! on the same LLVM.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::manifest::Manifest;
use crate::shell;

/// Where Debian's `llvm-22-dev` puts its programs. The nightly is on LLVM 22.
const LLVM: &str = "/usr/lib/llvm-22/bin";
/// The feature of bpf-linker that links to it.
const LINKER_FEATURE: &str = "llvm-22";
/// What is installed when no manifest names a version.
const LINKER_VERSION: &str = "0.13.0";

/// What has to be equal for the bytes to be equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Versions {
    /// As `rustc --version` prints it.
    pub(super) rustc: String,
    /// As `bpf-linker --version` prints it.
    pub(super) bpf_linker: String,
    /// As `llvm-config --version` prints it: of the LLVM that bpf-linker links to.
    pub(super) llvm: String,
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} on LLVM {}", self.rustc, self.bpf_linker, self.llvm)
    }
}

/// A toolchain that is installed here.
pub(super) struct Toolchain {
    /// As rustup calls it: `nightly`, `nightly-2026-05-20-x86_64-unknown-linux-gnu`.
    name: String,
    pub(super) versions: Versions,
}

impl Toolchain {
    /// `cargo` of this toolchain.
    pub(super) fn cargo(&self) -> Command {
        let mut command = Command::new("rustup");
        command.args(["run", &self.name, "cargo"]);
        command
    }

    /// The toolchain's folder, in which the standard library's sources are.
    pub(super) fn sysroot(&self) -> Result<PathBuf> {
        let path = shell::output(Command::new("rustup").args(["run", &self.name, "rustc", "--print", "sysroot"]))?;
        Ok(PathBuf::from(path.trim()))
    }
}

/// The toolchain of exactly these versions, or why there is none here.
pub(super) fn find(versions: &Versions) -> Result<Toolchain> {
    for name in nightlies()? {
        if rustc_version(&name)? == versions.rustc {
            let found =
                with_linker(name).context("no complete toolchain (`cargo xtask setup --for ebpf` installs it)")?;
            if found.versions != *versions {
                bail!("the manifest names {versions}; here is {}", found.versions);
            }
            return Ok(found);
        }
    }
    bail!("{} is not installed here (`cargo xtask setup --for ebpf`)", versions.rustc)
}

/// The newest nightly and the bpf-linker that are here, whatever their versions.
pub(super) fn installed() -> Result<Toolchain> {
    let name = nightlies()?.into_iter().next();
    with_linker(name.context("no nightly is installed: `rustup toolchain install nightly -c rust-src`")?)
}

/// The toolchain of these versions, installed first where it is missing.
pub(super) fn find_or_install(versions: &Versions) -> Result<Toolchain> {
    if let Ok(toolchain) = find(versions) {
        return Ok(toolchain);
    }
    crate::setup::install(crate::setup::Purpose::Ebpf)?;
    find(versions).context("what the manifest names can't be had (`--adopt-toolchain` takes what is here)")
}

/// Installs the nightly (with the standard library's sources) and the bpf-linker that the manifest
/// names; without a manifest, the newest nightly. LLVM comes from apt, before this.
pub(crate) fn install() -> Result<()> {
    let manifest = Manifest::read()?;
    let wanted = manifest.as_ref().map(|manifest| &manifest.toolchain);
    install_nightly(wanted)?;
    install_linker(wanted)
}

fn install_nightly(wanted: Option<&Versions>) -> Result<()> {
    let there = nightlies()?.into_iter().find(|name| match wanted {
        Some(versions) => rustc_version(name).is_ok_and(|version| version == versions.rustc),
        None => true,
    });
    let name = match (there, wanted) {
        (Some(name), _) => name,
        (None, None) => "nightly".to_owned(),
        (None, Some(versions)) => {
            let date = nightly_date(&versions.rustc);
            format!("nightly-{}", date.with_context(|| format!("no date in `{}`", versions.rustc))?)
        }
    };
    // Both do nothing, quickly, when it is there.
    if !nightlies()?.contains(&name) {
        shell::run(Command::new("rustup").args(["toolchain", "install", &name, "--profile", "minimal"]))?;
    }
    shell::run(Command::new("rustup").args(["component", "add", "rust-src", "--toolchain", &name]))
}

fn install_linker(wanted: Option<&Versions>) -> Result<()> {
    let version = wanted.and_then(|versions| versions.bpf_linker.split(' ').nth(1)).unwrap_or(LINKER_VERSION);
    if linker_version().is_ok_and(|there| there == format!("bpf-linker {version}")) {
        return Ok(());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(PathBuf::from(LLVM)).chain(env::split_paths(&path));
    let mut command = Command::new("cargo");
    command.args(["install", "bpf-linker", "--version", version, "--no-default-features", "--features"]);
    command.arg(LINKER_FEATURE).env("PATH", env::join_paths(folders)?);
    shell::run(&mut command)
}

fn with_linker(name: String) -> Result<Toolchain> {
    let rustc = rustc_version(&name)?;
    let llvm_config = Path::new(LLVM).join("llvm-config");
    let llvm = shell::output(Command::new(llvm_config).arg("--version"))?.trim().to_owned();
    let toolchain = Toolchain { name, versions: Versions { rustc, bpf_linker: linker_version()?, llvm } };
    let sources = toolchain.sysroot()?.join("lib/rustlib/src/rust/library/core");
    if !sources.exists() {
        bail!("no rust-src in it: `rustup component add rust-src --toolchain {}`", toolchain.name);
    }
    Ok(toolchain)
}

fn linker_version() -> Result<String> {
    Ok(shell::output(Command::new("bpf-linker").arg("--version"))?.trim().to_owned())
}

fn rustc_version(toolchain: &str) -> Result<String> {
    Ok(shell::output(Command::new("rustup").args(["run", toolchain, "rustc", "--version"]))?.trim().to_owned())
}

/// The nightlies that rustup has, the undated one first.
fn nightlies() -> Result<Vec<String>> {
    if shell::find("rustup").is_none() {
        bail!("there is no rustup here");
    }
    let list = shell::output(Command::new("rustup").args(["toolchain", "list"]))?;
    let mut names: Vec<String> = list
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| name.starts_with("nightly"))
        .map(str::to_owned)
        .collect();
    names.sort_by_key(|name| (is_dated(name), std::cmp::Reverse(name.clone())));
    Ok(names)
}

fn is_dated(name: &str) -> bool {
    name.strip_prefix("nightly-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The date in the name of the nightly whose `rustc --version` this is: nightlies are named after
/// the day that follows their last commit.
fn nightly_date(version: &str) -> Option<String> {
    let date = version.strip_suffix(')')?.rsplit(' ').next()?;
    let numbers: Vec<u32> = date.split('-').map(str::parse).collect::<Result<_, _>>().ok()?;
    let &[year, month, day] = numbers.as_slice() else { return None };
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let (year, month, day) = match (month, day) {
        (12, 31) => (year + 1, 1, 1),
        (_, day) if day >= days => (year, month + 1, 1),
        _ => (year, month, day + 1),
    };
    Some(format!("{year}-{month:02}-{day:02}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nightlies_are_named_after_the_next_day() {
        let date = |date: &str| nightly_date(&format!("rustc 1.97.0-nightly (e50aa6fba {date})"));
        assert_eq!(date("2026-05-19").as_deref(), Some("2026-05-20"));
        assert_eq!(date("2026-12-31").as_deref(), Some("2027-01-01"));
        assert_eq!(date("2028-02-28").as_deref(), Some("2028-02-29"));
        assert_eq!(date("2027-02-28").as_deref(), Some("2027-03-01"));
        assert_eq!(nightly_date("rustc 1.95.0"), None);
    }

    #[test]
    fn dated_nightlies_are_told_apart() {
        assert!(is_dated("nightly-2026-05-20-x86_64-unknown-linux-gnu"));
        assert!(!is_dated("nightly-x86_64-unknown-linux-gnu"));
    }
}
