//! `cargo xtask test`: set-up, then every kind of test, with a line for each step and totals.

use std::process::Command;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::report::{Outcome, Report, in_ci};
use crate::setup::{self, Purpose};
use crate::shell::{self, Elevation};
use crate::{ebpf, tidy, vm};

/// The package whose tests run the profiler for real.
const LOCAL_PACKAGE: &str = "spanflame-tests";

/// Completes "root is needed".
const WHY_ROOT: &str = "for the tests with the kernel programs";

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
    if wanted(Kind::Local) {
        require_root()?;
    }
    let mut report = Report::default();
    let mut ready = false;
    report.step("set-up", || {
        let installed = setup::install(Purpose::Test);
        ready = installed.is_ok();
        installed.into()
    });
    if !ready {
        return report.finish(in_ci());
    }
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
    ebpf::check(report);
}

/// Built as the user, run as root: cargo itself never runs under sudo, which would leave files of
/// root in target/.
fn local() -> Outcome {
    let mut cargo = shell::cargo(&["test", "--quiet", "--no-fail-fast", "-p", LOCAL_PACKAGE]);
    match shell::elevation(WHY_ROOT) {
        Elevation::None => {}
        Elevation::Sudo => {
            let path = shell::search_path();
            cargo.arg("--config").arg(format!(r#"target."cfg(all())".runner={}"#, sudo(&path.to_string_lossy())));
        }
        Elevation::Impossible(reason) => return Outcome::SkippedUnexpectedly(reason.to_owned()),
    }
    shell::run(&mut cargo).into()
}

/// A command as a TOML array (JSON's are): sudo sets a PATH of its own, on which there is no Rust.
fn sudo(path: &str) -> serde_json::Value {
    serde_json::json!(["sudo", "--preserve-env", "--", "env", format!("PATH={path}")])
}

/// Fails, saying what to do, before anything is done.
fn require_root() -> Result<()> {
    let Elevation::Impossible(reason) = shell::elevation(WHY_ROOT) else { return Ok(()) };
    let user = shell::output(Command::new("id").arg("-un"))?;
    let install = if shell::find("sudo").is_none() { "apt-get update && apt-get install -y sudo && " } else { "" };
    bail!(
        "root is needed {WHY_ROOT}, and {reason}: nothing was done. Have root run this, log in again and repeat:\n    \
         {install}/usr/sbin/usermod -aG sudo {}\n\
         `cargo xtask test unit` and `cargo xtask test vm` need root only to install packages.",
        user.trim()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runner_keeps_the_path_of_the_user() {
        let array = r#"["sudo","--preserve-env","--","env","PATH=/home/a b/.cargo/bin:/usr/sbin"]"#;
        assert_eq!(sudo("/home/a b/.cargo/bin:/usr/sbin").to_string(), array);
    }
}
