//! `cargo xtask bench`: what the profiler costs, measured here. Figures of a shared machine vary: compare
//! ratios of one run.

mod short_lives;
mod tables;

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
}

/// `cargo xtask bench`.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.bench {
        Bench::Tables { files } => tables::run(files),
        Bench::ShortLives { rate, seconds } => short_lives::run(*rate, *seconds),
    }
}
