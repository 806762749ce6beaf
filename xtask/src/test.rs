//! `cargo xtask test`: set-up, then every kind of test, with a line for each step and totals.

use anyhow::Result;
use clap::ValueEnum;

use crate::report::{Outcome, Report, in_ci};
use crate::setup::{self, Purpose};
use crate::shell::{self, Elevation};
use crate::{ebpf, tidy, vm};

/// The package whose tests run the profiler for real.
const LOCAL_PACKAGE: &str = "spanflame-tests";

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// One kind of tests; all of them without it.
    #[arg(value_enum)]
    kind: Option<Kind>,
    /// All but the VMs.
    #[arg(long, conflicts_with = "kind")]
    no_vm: bool,
}

/// Kinds of tests, by cost.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Checks and tests without root.
    Unit,
    /// The profiler on this host; needs root.
    Local,
    /// The profiler on other kernels.
    Vm,
}

/// `cargo xtask test`.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let wanted = |kind| arguments.kind.is_none_or(|only| only == kind);
    let mut report = Report::default();
    report.step("set-up", || setup::install(Purpose::Test).into());
    if wanted(Kind::Unit) {
        unit(&mut report);
    }
    if wanted(Kind::Local) {
        report.step("local tests with the kernel programs", local);
    }
    if wanted(Kind::Vm) && !arguments.no_vm {
        vm::run_quick(&mut report);
    }
    report.finish(in_ci())
}

fn unit(report: &mut Report) {
    report.step("tidy", || tidy::run().into());
    let cargo = |arguments: &[&str]| -> Outcome { shell::run(&mut shell::cargo(arguments)).into() };
    report.step("format", || cargo(&["fmt", "--all", "--check"]));
    report.step("clippy", || cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-Dwarnings"]));
    report.step("unit tests", || {
        cargo(&["test", "--quiet", "--no-fail-fast", "--workspace", "--exclude", LOCAL_PACKAGE])
    });
    for (name, outcome) in ebpf::check() {
        report.step(name, || outcome);
    }
}

/// Built as the user, run as root: cargo itself never runs under sudo, which would leave files of
/// root in target/.
fn local() -> Outcome {
    let mut cargo = shell::cargo(&["test", "--quiet", "--no-fail-fast", "-p", LOCAL_PACKAGE]);
    match shell::elevation() {
        Elevation::None => {}
        Elevation::Sudo => {
            println!("root is needed to load programs into the kernel: asking sudo");
            let architecture = std::env::consts::ARCH.to_uppercase();
            cargo.env(format!("CARGO_TARGET_{architecture}_UNKNOWN_LINUX_GNU_RUNNER"), "sudo -E");
        }
        Elevation::Impossible => {
            return Outcome::SkippedUnexpectedly("needs root, and there is no sudo here: run it as root".to_owned());
        }
    }
    shell::run(&mut cargo).into()
}
