//! `cargo xtask setup`: installs what is missing for a purpose, and says what it does. What a
//! purpose needs is the table below; what is there already is left alone.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::shell::{self, Elevation};

/// What the machine is to be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Purpose {
    /// Build `spanflame` and run `cargo xtask demo`.
    Demo,
    /// Everything that `cargo xtask test` runs.
    Test,
    /// Rebuild the kernel objects (`cargo xtask ebpf`).
    Ebpf,
    /// Run kernels under QEMU (`cargo xtask vm`).
    Vm,
    /// All of the above.
    All,
    /// The programs that `cargo xtask bench programs` records. Some start servers, so they are no part of `all`.
    Bench,
}

/// Options of `cargo xtask setup`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What the machine is to be used for.
    #[arg(long = "for", value_enum, default_value = "test")]
    purpose: Purpose,
}

/// How one sees that a package is there.
enum Probe {
    /// A program on PATH, or among root's.
    Program(&'static str),
    /// A file.
    File(&'static str),
}

/// A Debian package, how to see that it (or its equal) is there, and who needs it.
struct Package {
    name: &'static str,
    probe: Probe,
    purposes: &'static [Purpose],
}

/// Not in every release of Debian and Ubuntu.
const LLVM: &str = "llvm-22-dev";

/// Completes "root is needed".
const WHY_ROOT: &str = "to install packages";

use Probe::{File, Program};
use Purpose::{All, Bench, Demo, Ebpf, Test, Vm};

const PACKAGES: &[Package] = &[
    // Rust links with `cc`.
    Package { name: "gcc", probe: Program("cc"), purposes: &[Demo, Test, Ebpf, Vm, Bench] },
    Package { name: "libc6-dev", probe: File("/usr/include/stdlib.h"), purposes: &[Demo, Test, Ebpf, Vm, Bench] },
    // The workloads with known stacks are C and C++.
    Package { name: "g++", probe: Program("c++"), purposes: &[Test, Bench] },
    // Some of them with another C library.
    Package { name: "musl-tools", probe: Program("musl-gcc"), purposes: &[Test] },
    // rustup fetches over HTTPS.
    Package { name: "ca-certificates", probe: File("/etc/ssl/certs/ca-certificates.crt"), purposes: &[Test, Ebpf, Vm] },
    Package { name: "git", probe: Program("git"), purposes: &[Test, Bench] },
    // The kernel's own count of the sampling program's runs.
    Package { name: "bpftool", probe: Program("bpftool"), purposes: &[Test] },
    // `go tool pprof` judges our pprof.
    Package { name: "golang-go", probe: Program("go"), purposes: &[Test, Vm, Bench] },
    // Makes code at run time and tells of it.
    Package { name: "nodejs", probe: Program("node"), purposes: &[Test, Bench] },
    Package { name: "qemu-system-x86", probe: Program("qemu-system-x86_64"), purposes: &[Test, Vm] },
    Package { name: "qemu-system-arm", probe: Program("qemu-system-aarch64"), purposes: &[Vm] },
    Package { name: "gcc-aarch64-linux-gnu", probe: Program("aarch64-linux-gnu-gcc"), purposes: &[Vm] },
    Package { name: "libc6-dev-arm64-cross", probe: File("/usr/aarch64-linux-gnu/include/stdlib.h"), purposes: &[Vm] },
    // Signs the archive that the kernels come from; Debian has it, Ubuntu has not.
    Package {
        name: "debian-archive-keyring",
        probe: File("/usr/share/keyrings/debian-archive-keyring.gpg"),
        purposes: &[Test, Vm],
    },
    // Debug information in all the ways in which distributions pack it.
    Package { name: "binutils", probe: Program("objcopy"), purposes: &[Test] },
    // Makes the certificates of a server of that.
    Package { name: "openssl", probe: Program("openssl"), purposes: &[Test] },
    Package { name: "dwz", probe: Program("dwz"), purposes: &[Test] },
    // Newer kernels' modules are compressed.
    Package { name: "xz-utils", probe: Program("xz"), purposes: &[Test, Vm, Bench] },
    // bpf-linker links to LLVM, which must be the one that the nightly was built with.
    Package { name: LLVM, probe: File("/usr/include/llvm-c-22/llvm-c/Core.h"), purposes: &[Ebpf] },
    Package { name: "libzstd-dev", probe: File("/usr/include/zstd.h"), purposes: &[Ebpf] },
    // Programs at work, what gives them work, and the profiler to compare with.
    Package { name: "linux-perf", probe: Program("perf"), purposes: &[Bench] },
    Package { name: "nginx", probe: Program("nginx"), purposes: &[Bench] },
    Package { name: "wrk", probe: Program("wrk"), purposes: &[Bench] },
    Package { name: "redis-server", probe: Program("redis-server"), purposes: &[Bench] },
    Package { name: "redis-tools", probe: Program("redis-benchmark"), purposes: &[Bench] },
    Package { name: "postgresql", probe: File("/usr/lib/postgresql"), purposes: &[Bench] },
    Package { name: "default-jdk-headless", probe: Program("javac"), purposes: &[Bench] },
    Package { name: "python3", probe: Program("python3"), purposes: &[Bench] },
    Package { name: "openssl", probe: Program("openssl"), purposes: &[Bench] },
    Package { name: "clang", probe: Program("clang"), purposes: &[Bench] },
    Package { name: "sqlite3", probe: Program("sqlite3"), purposes: &[Bench] },
    Package { name: "perl", probe: Program("perl"), purposes: &[Bench] },
    Package { name: "make", probe: Program("make"), purposes: &[Bench] },
];

/// A part of the stable toolchain that rustup installs.
struct RustPart {
    /// What rustup calls it.
    kind: &'static str,
    name: &'static str,
    /// A file that shows that it is there, below the toolchain's folder.
    file: &'static str,
    purposes: &'static [Purpose],
}

const RUST_PARTS: &[RustPart] = &[
    RustPart { kind: "component", name: "rustfmt", file: "bin/cargo-fmt", purposes: &[Test] },
    RustPart { kind: "component", name: "clippy", file: "bin/cargo-clippy", purposes: &[Test] },
    RustPart {
        kind: "target",
        name: "x86_64-unknown-linux-musl",
        file: "lib/rustlib/x86_64-unknown-linux-musl/lib",
        purposes: &[Test, Vm],
    },
    RustPart {
        kind: "target",
        name: "aarch64-unknown-linux-musl",
        file: "lib/rustlib/aarch64-unknown-linux-musl/lib",
        purposes: &[Vm],
    },
];

/// `cargo xtask setup`.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    install(arguments.purpose)
}

/// Installs what is missing for a purpose. Does nothing, and says so, when nothing is.
pub(crate) fn install(purpose: Purpose) -> Result<()> {
    let packages = missing_packages(purpose, is_there);
    let parts = missing_parts(purpose)?;
    if packages.is_empty() && parts.is_empty() {
        println!("no package is missing here");
    }
    install_packages(&packages)?;
    for part in parts {
        let mut command = Command::new("rustup");
        let added = shell::run(command.args([part.kind, "add", part.name]).current_dir(shell::root()));
        added.with_context(|| format!("the Rust {} {} is missing here", part.kind, part.name))?;
    }
    if matches!(purpose, Ebpf | All) {
        crate::ebpf::toolchain::install()?;
    }
    Ok(())
}

fn wanted(purpose: Purpose, by: &[Purpose]) -> bool {
    by.contains(&purpose) || purpose == All && by.iter().any(|purpose| *purpose != Bench)
}

fn missing_packages(purpose: Purpose, is_there: impl Fn(&Probe) -> bool) -> Vec<&'static str> {
    let needed = PACKAGES.iter().filter(|package| wanted(purpose, package.purposes));
    needed.filter(|package| !is_there(&package.probe)).map(|package| package.name).collect()
}

fn is_there(probe: &Probe) -> bool {
    match probe {
        Program(name) => shell::find(name).is_some(),
        File(path) => Path::new(path).exists(),
    }
}

fn missing_parts(purpose: Purpose) -> Result<Vec<&'static RustPart>> {
    let mut needed: Vec<_> = RUST_PARTS.iter().filter(|part| wanted(purpose, part.purposes)).collect();
    if !needed.is_empty() {
        let mut rustc = Command::new("rustc");
        let sysroot = shell::output(rustc.args(["--print", "sysroot"]).current_dir(shell::root()))?;
        needed.retain(|part| !Path::new(sysroot.trim()).join(part.file).exists());
    }
    Ok(needed)
}

fn install_packages(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    println!("missing here: {}", packages.join(" "));
    let by_hand = by_hand(packages);
    if shell::find("apt-get").is_none() {
        bail!("this is no Debian or Ubuntu: install the equals of these Debian packages: {}", packages.join(" "));
    }
    let how = shell::elevation(WHY_ROOT);
    if let Elevation::Impossible(reason) = how {
        bail!("root is needed {WHY_ROOT}, and {reason}. Run this as root, then repeat:\n    {by_hand}");
    }
    let mut install = vec!["install", "--no-install-recommends", "-y"];
    install.extend(packages);
    for arguments in [vec!["update"], install] {
        if let Err(error) =
            shell::run(how.command("env").arg("DEBIAN_FRONTEND=noninteractive").arg("apt-get").args(&arguments))
        {
            bail!("{error:#}. By hand, as root:\n    {by_hand}");
        }
    }
    Ok(())
}

/// What root is to run.
fn by_hand(packages: &[&str]) -> String {
    let command = format!("apt-get update && apt-get install --no-install-recommends -y {}", packages.join(" "));
    if packages.contains(&LLVM) {
        format!("{command}\n(a release without {LLVM} needs that of https://apt.llvm.org among its sources first)")
    } else {
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_installed() {
        assert_eq!(missing_packages(Demo, |_| true), Vec::<&str>::new());
        assert_eq!(missing_packages(Demo, |_| false), ["gcc", "libc6-dev"]);
        let no_qemu = |probe: &Probe| !matches!(probe, Program(name) if name.starts_with("qemu"));
        assert_eq!(missing_packages(Test, no_qemu), ["qemu-system-x86"]);
        assert_eq!(missing_packages(All, no_qemu), ["qemu-system-x86", "qemu-system-arm"]);
        let no_server = |probe: &Probe| !matches!(probe, Program("nginx" | "node"));
        assert_eq!(missing_packages(Bench, no_server), ["nodejs", "nginx"]);
        assert_eq!(missing_packages(All, no_server), ["nodejs"]);
    }
}
