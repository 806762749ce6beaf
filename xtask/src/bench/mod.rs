//! `cargo xtask bench`: what the profiler costs and what its stacks are worth, measured here. Figures of a shared machine vary: compare
//! ratios of one run.

mod programs;
mod short_lives;
mod tables;

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(clap::Subcommand)]
enum Bench {
    /// Unwind tables of real files: rows, bytes for each MB of code, time, memory.
    Tables {
        /// The files; without any, large ones that are installed here.
        files: Vec<PathBuf>,
    },
    /// Processes of 20 ms, many a second: what the profiler itself costs, and how whole their samples are.
    ShortLives {
        /// Processes a second.
        #[arg(long, default_value_t = 100)]
        rate: u32,
        /// Seconds that are measured, after a warm-up.
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
    /// Real programs at work: how many of their stacks are complete, with spanflame and with perf's copies of
    /// stacks. Fails where less than 99% are, or less than with perf. `cargo xtask setup --for bench` installs them.
    Programs(programs::Arguments),
}

/// `cargo xtask bench`.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.bench {
        Bench::Tables { files } => tables::run(files),
        Bench::ShortLives { rate, seconds } => short_lives::run(*rate, *seconds),
        Bench::Programs(arguments) => programs::run(arguments),
    }
}

/// The processes that a process's first thread has started.
fn children(parent: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
