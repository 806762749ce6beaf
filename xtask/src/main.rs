//! `cargo xtask`: everything that is automated in this repository. Each command has its own file;
//! `cargo xtask help` lists them.
#![forbid(unsafe_code)]

mod bench;
mod demo;
mod ebpf;
mod folded;
mod report;
mod setup;
mod shell;
mod test;
mod tidy;
mod verifier;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, long_about = None, version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// The table of contents.
#[derive(Subcommand)]
enum Command {
    /// Install what is missing on this machine for a purpose.
    Setup(setup::Arguments),
    /// Profile a bundled multi-threaded program for five seconds and show where its time goes.
    Demo,
    /// Set up, then run all tests, or one kind of them.
    Test(test::Arguments),
    /// Check the rules of the code base that the compiler does not know.
    Tidy,
    /// Build the kernel objects, or check that the committed ones are up to date.
    Ebpf(ebpf::Arguments),
    /// Boot distribution kernels under QEMU and run the kernel programs there.
    Vm(vm::Arguments),
    /// Measure what the profiler costs.
    Bench(bench::Arguments),
    /// Print what the kernel's verifier says about each program; fail above the budget.
    Verifier(verifier::Arguments),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Setup(arguments) => setup::run(&arguments),
        Command::Demo => demo::run(),
        Command::Test(arguments) => test::run(&arguments),
        Command::Tidy => tidy::run(),
        Command::Ebpf(arguments) => ebpf::run(&arguments),
        Command::Vm(arguments) => vm::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Verifier(arguments) => verifier::run(&arguments),
    }
}
