//! `cargo xtask vm`: boots distribution kernels under QEMU with a small initramfs, runs our
//! programs there and judges what they did.

mod archive;
mod console;
mod go;
mod guest;
mod initramfs;
mod kinds;
mod qemu;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::report::{Outcome, Report, in_ci};
use crate::shell;
use archive::{Archive, Kernel, MODULES, Unavailable};
pub(crate) use console::Transcript;
pub(crate) use guest::{Case, VERIFIER};

/// A VM that has not ended after this long hangs. Emulation is about 12 times slow.
const LIMIT: Duration = Duration::from_secs(420);

/// What the kernel says when emulation breaks its patching of its own code: a CPU runs into an
/// `int3` that another has taken back. QEMU 7.2 with a thread per CPU, one boot in about ten of
/// Linux 7.3, before any program of ours ran (November 2026).
const EMULATOR_OOPS: &str = "int3: 0000 [#";
/// Boots before that counts as a failure.
const BOOTS: usize = 3;

/// Options of `cargo xtask vm`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Kernel series (`6.1`), releases (`6.12.117+deb12`) or `newest`; without any, the usual
    /// matrix: 5.10, 6.1, 6.12 and the newest x86_64, 5.10 and the newest aarch64.
    versions: Vec<String>,
    /// The architecture of the versions; without versions, the part of the matrix to run.
    #[arg(long, value_enum)]
    arch: Option<Architecture>,
    /// Every series that the archive has.
    #[arg(long, conflicts_with = "versions")]
    all: bool,
    /// Run the cases of this name only.
    #[arg(long)]
    only: Option<String>,
}

/// A CPU architecture of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Architecture {
    /// q35, the most that TCG can.
    #[value(name = "x86_64")]
    X86,
    /// virt, cortex-a72.
    #[value(name = "aarch64")]
    Arm,
}

impl Architecture {
    fn name(self) -> &'static str {
        match self {
            Self::X86 => "x86_64",
            Self::Arm => "aarch64",
        }
    }

    fn debian(self) -> &'static str {
        match self {
            Self::X86 => "amd64",
            Self::Arm => "arm64",
        }
    }

    fn qemu(self) -> &'static str {
        match self {
            Self::X86 => "qemu-system-x86_64",
            Self::Arm => "qemu-system-aarch64",
        }
    }

    fn machine(self) -> [&'static str; 4] {
        match self {
            Self::X86 => ["-machine", "q35", "-cpu", "max"],
            Self::Arm => ["-machine", "virt", "-cpu", "cortex-a72"],
        }
    }

    fn console(self) -> &'static str {
        match self {
            Self::X86 => "ttyS0",
            Self::Arm => "ttyAMA0",
        }
    }

    fn c_compiler(self) -> String {
        if self.name() == std::env::consts::ARCH { "cc".to_owned() } else { format!("{}-linux-gnu-gcc", self.name()) }
    }
}

/// A kernel to boot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    architecture: Architecture,
    version: String,
}

impl Target {
    fn new(architecture: Architecture, version: &str) -> Self {
        Self { architecture, version: version.to_owned() }
    }

    /// As in the names of targets and objects.
    pub(crate) fn architecture(&self) -> &'static str {
        self.architecture.name()
    }

    /// As in headings: `x86_64 5.10`.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.architecture.name(), self.version)
    }
}

/// What `cargo xtask test` runs: the oldest supported kernel and the newest there is.
pub(crate) fn quick_matrix() -> Vec<Target> {
    ["5.10", "newest"].map(|version| Target::new(Architecture::X86, version)).to_vec()
}

/// The usual matrix.
pub(crate) fn matrix() -> Vec<Target> {
    let x86 = ["5.10", "6.1", "6.12", "newest"].map(|version| Target::new(Architecture::X86, version));
    let arm = ["5.10", "newest"].map(|version| Target::new(Architecture::Arm, version));
    x86.into_iter().chain(arm).collect()
}

/// `cargo xtask vm`.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    crate::setup::install(crate::setup::Purpose::Vm)?;
    let wanted = |case: &&Case| arguments.only.as_ref().is_none_or(|only| only == case.name);
    let cases: Vec<&Case> = guest::CASES.iter().filter(wanted).collect();
    if cases.is_empty() {
        let names: Vec<&str> = guest::CASES.iter().map(|case| case.name).collect();
        bail!("no case of that name; there are {}", names.join(", "));
    }
    let mut report = Report::default();
    for target in targets(arguments)? {
        run_target(&target, &cases, &mut report);
    }
    report.finish(in_ci())
}

fn targets(arguments: &Arguments) -> Result<Vec<Target>> {
    let architecture = arguments.arch.unwrap_or(Architecture::X86);
    if arguments.all {
        let series = Archive::open(architecture)?.series();
        return Ok(series.iter().map(|series| Target::new(architecture, series)).collect());
    }
    if arguments.versions.is_empty() {
        let part = |target: &Target| arguments.arch.is_none_or(|arch| arch == target.architecture);
        return Ok(matrix().into_iter().filter(part).collect());
    }
    Ok(arguments.versions.iter().map(|version| Target::new(architecture, version)).collect())
}

/// All cases of the quick matrix, for `cargo xtask test`.
pub(crate) fn run_quick(report: &mut Report) {
    let cases: Vec<&Case> = guest::CASES.iter().collect();
    for target in quick_matrix() {
        run_target(&target, &cases, report);
    }
}

/// Boots one kernel and adds the boot and each case to the report.
fn run_target(target: &Target, cases: &[&Case], report: &mut Report) {
    let name = target.name();
    println!("\n== {name}");
    let transcript = match boot(target, cases) {
        Ok(transcript) => transcript,
        Err(NotRun::Unavailable(why)) => {
            return report.add(&format!("vm {name}"), 0.0, Outcome::Skipped(format!("Debian's archive: {why}")));
        }
        Err(NotRun::Failed(error)) => {
            return report.add(&format!("vm {name}"), 0.0, Outcome::Failed(format!("{error:#}")));
        }
    };
    let booted = match &transcript.release {
        Some(release) => Outcome::Passed(release.clone()),
        None => Outcome::Failed(format!("init never ran; {}", transcript.panic.as_deref().unwrap_or("no panic"))),
    };
    report.add(&format!("vm {name}: boot"), transcript.boot_s, booted);
    for case in cases {
        let (seconds, outcome) = guest::judge(case, &transcript);
        report.add(&format!("vm {name}: {}", case.name), seconds, outcome);
    }
}

/// Why a VM gave no transcript.
pub(crate) enum NotRun {
    /// The archive cannot be reached: a skip.
    Unavailable(String),
    /// Anything else.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for NotRun {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Boots a kernel with these cases and returns what the guest said.
pub(crate) fn boot(target: &Target, cases: &[&Case]) -> Result<Transcript, NotRun> {
    let architecture = target.architecture;
    let archive = Archive::open(architecture)?;
    let kernel = archive.kernel(&target.version).map_err(|unavailable| match unavailable {
        Unavailable::Archive(why) => NotRun::Unavailable(why),
        Unavailable::Version(why) => NotRun::Failed(anyhow::anyhow!(why)),
    })?;
    let busybox = archive.busybox().map_err(|error| NotRun::Unavailable(format!("{error:#}")))?;
    let folder = guest_folder(architecture);
    fs::create_dir_all(&folder).context("making target/vm")?;
    let initrd = folder.join(format!("{}.cpio", target.version));
    fs::write(&initrd, initramfs(architecture, &kernel, &busybox, cases)?).context("writing the initramfs")?;
    let mut boot = boot_once(architecture, &kernel, &initrd)?;
    for _ in 1..BOOTS {
        if !boot.console.contains(EMULATOR_OOPS) {
            break;
        }
        println!("QEMU executed a breakpoint that the kernel had already removed: booting again");
        boot = boot_once(architecture, &kernel, &initrd)?;
    }
    let log = folder.join(format!("{}.log", target.version));
    fs::write(&log, &boot.console).context("writing the console's log")?;
    let transcript = console::parse(&boot.console);
    if boot.timed_out {
        println!("QEMU was ended after {} s; its console: {}", LIMIT.as_secs(), log.display());
    } else if !transcript.complete {
        println!("the guest did not come to its end; its console: {}", log.display());
    }
    Ok(transcript)
}

fn boot_once(architecture: Architecture, kernel: &Kernel, initrd: &Path) -> Result<qemu::Boot> {
    println!("booting Linux {} ({})", kernel.release, architecture.name());
    qemu::boot(architecture, &kernel.image, initrd, LIMIT)
}

fn initramfs(architecture: Architecture, kernel: &Kernel, busybox: &Path, cases: &[&Case]) -> Result<Vec<u8>> {
    let mut files = vec![("bin/busybox".to_owned(), busybox.to_path_buf())];
    for workload in ["chain12", "digest", "waits"].into_iter().chain(kinds::PROGRAMS) {
        files.push((format!("bin/{workload}"), build_workload(architecture, workload)?));
    }
    files.push((format!("bin/{}", go::PROGRAM), build_go(architecture)?));
    if cases.iter().any(|case| case.agent) {
        files.push(("bin/spanflame".to_owned(), build_agent(architecture)?));
    }
    for module in MODULES {
        let file = format!("{module}.ko");
        files.push((format!("modules/{file}"), kernel.modules.join(file)));
    }
    let mut archive = initramfs::Initramfs::new();
    archive.program("init", guest::init(cases).as_bytes());
    for (name, path) in files {
        archive.program(&name, &fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
    }
    Ok(archive.finish())
}

/// Where what is built for an architecture's guests is kept.
fn guest_folder(architecture: Architecture) -> PathBuf {
    shell::root().join("target/vm").join(architecture.name())
}

/// A C program of `tests/workloads`, statically linked.
fn build_workload(architecture: Architecture, name: &str) -> Result<PathBuf> {
    let built = guest_folder(architecture).join(name);
    let mut command = Command::new(architecture.c_compiler());
    command.args(["-O2", "-g", "-fomit-frame-pointer", "-static", "-pthread", "-o"]).arg(&built);
    shell::output(command.arg(shell::root().join("tests/workloads").join(format!("{name}.c"))))?;
    Ok(built)
}

/// The Go program of `tests/workloads`, without symbols and DWARF.
fn build_go(architecture: Architecture) -> Result<PathBuf> {
    let built = guest_folder(architecture).join(go::PROGRAM);
    let mut command = Command::new("go");
    command.env("GOARCH", architecture.debian()).envs([("CGO_ENABLED", "0"), ("GO111MODULE", "off")]);
    command.args(["build", "-ldflags", "-s -w", "-o"]).arg(&built);
    let source = shell::root().join("tests/workloads").join(go::PROGRAM).with_extension("go");
    shell::output(command.arg(source))?;
    Ok(built)
}

/// `spanflame`, statically linked.
fn build_agent(architecture: Architecture) -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-musl", architecture.name());
    let linker = format!("CARGO_TARGET_{}_LINKER", target.replace('-', "_").to_uppercase());
    let mut command = shell::cargo(&["build", "--release", "--quiet", "-p", "profiler-agent", "--target", &target]);
    // rustc brings its own musl and lld. What ring has of C needs no C library but its headers; glibc's must
    // not put functions of its own behind them.
    command.env(linker, "rust-lld");
    command.env(format!("CC_{}", target.replace('-', "_")), architecture.c_compiler());
    command.env(format!("CFLAGS_{}", target.replace('-', "_")), "-U_FORTIFY_SOURCE");
    shell::output(&mut command)?;
    Ok(shell::root().join("target").join(target).join("release/spanflame"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_architectures_choose_the_kernels() {
        let arguments = |versions: &[&str], arch| Arguments {
            versions: versions.iter().map(|version| (*version).to_owned()).collect(),
            arch,
            all: false,
            only: None,
        };
        let names =
            |arguments: &Arguments| -> Vec<String> { targets(arguments).unwrap().iter().map(Target::name).collect() };
        assert_eq!(names(&arguments(&["6.1"], None)), ["x86_64 6.1"]);
        assert_eq!(names(&arguments(&[], Some(Architecture::Arm))), ["aarch64 5.10", "aarch64 newest"]);
        assert_eq!(names(&arguments(&[], None)).len(), 6);
    }
}
