//! `cargo xtask bench`: what the profiler costs and what its stacks are worth, measured here. Figures of a shared machine vary: compare
//! ratios of one run.

mod inputs;
mod programs;
mod record;
mod service;
mod short_lives;
mod tables;
mod usage;

use std::env;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::shell::{self, Elevation};
use inputs::Inputs;

/// Bytes.
const MIB: f64 = 1048576.0;

const BUILD: [&str; 5] = ["build", "--release", "-p", "profiler-agent", "--bins"];

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
    /// The whole node recorded by spanflame and by perf, by turns, beside programs that keep two CPUs busy: CPU time,
    /// start, time to the graph, memory. Fails where an aim is missed. `cargo xtask setup --for bench` installs them.
    Record(record::Arguments),
    /// Real programs at work: how many of their stacks are complete, with spanflame and with perf's copies of
    /// stacks. Fails where less than 99% are, or less than with perf. `cargo xtask setup --for bench` installs them.
    Programs(programs::Arguments),
}

/// `cargo xtask bench`.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.bench {
        Bench::Tables { files } => tables::run(files),
        Bench::ShortLives { rate, seconds } => short_lives::run(*rate, *seconds),
        Bench::Record(arguments) => record::run(arguments),
        Bench::Programs(arguments) => programs::run(arguments),
    }
}

fn demand_root() -> Result<()> {
    ensure!(shell::elevation("to load programs into the kernel") == Elevation::None, "run it as root");
    Ok(())
}

/// Those of `all` whose name holds a part that is asked for; all of them when nothing is.
fn chosen<'a, T>(all: &'a [T], only: &[String], name: fn(&T) -> &str) -> Result<Vec<&'a T>> {
    let is_wanted = |item: &&T| only.is_empty() || only.iter().any(|part| name(item).contains(part.as_str()));
    let chosen: Vec<_> = all.iter().filter(is_wanted).collect();
    let names = || all.iter().map(name).collect::<Vec<_>>().join(", ");
    ensure!(!chosen.is_empty(), "nothing has such a name; there are: {}", names());
    Ok(chosen)
}

/// The profiler to measure: `SPANFLAME_BIN`, or built now.
fn profiler() -> Result<PathBuf> {
    match env::var_os("SPANFLAME_BIN") {
        Some(path) => Ok(path.into()),
        None => {
            shell::run(&mut shell::cargo(&BUILD))?;
            Ok(shell::root().join("target/release/spanflame"))
        }
    }
}

/// Adds a line to a file in `target`: what was found when, where and with what.
fn keep(name: &str, inputs: &Inputs, spanflame: &Path, found: Value) -> Result<()> {
    let said = |command: &mut Command| shell::output(command).map(|text| text.trim().to_owned()).unwrap_or_default();
    let time_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let run = json!({
        "time_s": time_s,
        "commit": said(Command::new("git").arg("-C").arg(shell::root()).args(["rev-parse", "HEAD"])),
        "spanflame": said(Command::new(spanflame).arg("--version")),
        "perf": said(inputs.command("perf").arg("--version").stdout(std::process::Stdio::piped())),
        "kernel": said(Command::new("uname").args(["-r", "-m"])),
        "cpus": std::thread::available_parallelism().map_or(1, usize::from),
        "found": found,
    });
    let path = shell::root().join("target").join(name);
    let opened = fs::OpenOptions::new().create(true).append(true).open(&path);
    let written = opened.and_then(|mut file| writeln!(file, "{run}"));
    written.with_context(|| format!("writing {}", path.display()))?;
    println!("\nkept in {}", path.display());
    Ok(())
}

/// A process, its children, and theirs.
fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut looked_at = 0;
    while let Some(&pid) = family.get(looked_at) {
        family.extend(children(pid));
        looked_at += 1;
    }
    family
}

/// The processes that a process's first thread has started.
fn children(parent: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
