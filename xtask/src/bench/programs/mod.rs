//! Real programs at work, recorded by spanflame and, in another run of the same length, by `perf record
//! --call-graph dwarf`: how many stacks of each are complete. A stack of spanflame's is complete when it says so;
//! one of perf's by its ends (`perf.rs`). What starts again and again was recorded once before, so that the unwind
//! tables of large files are on disk.

mod inputs;
mod load;
mod measure;
mod perf;
mod service;
mod table;

use std::env;
use std::io::Write as _;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::shell::{self, Elevation};
use inputs::Inputs;
use load::{LOADS, Load};
use measure::Bench;
use table::{Outcome, Row};

const BUILD: [&str; 5] = ["build", "--release", "-p", "profiler-agent", "--bins"];

/// Programs without which nothing is measured.
const ALWAYS: [&str; 3] = ["perf", "setpriv", "timeout"];

/// Options of `cargo xtask bench programs`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Only programs whose name in the table holds this; repeatable.
    #[arg(long)]
    only: Vec<String>,
    /// Seconds of each recording. In the first moments of a large program its table is not there yet.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// `cargo xtask bench programs`. `SPANFLAME_BIN` names a profiler that is built already.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    if shell::elevation("to load programs into the kernel") != Elevation::None {
        bail!("run it as root");
    }
    let wanted =
        |load: &&Load| arguments.only.is_empty() || arguments.only.iter().any(|part| load.name.contains(part.as_str()));
    let loads: Vec<&Load> = LOADS.iter().filter(wanted).collect();
    if loads.is_empty() {
        let names: Vec<_> = LOADS.iter().map(|load| load.name).collect();
        bail!("no program has such a name; there are: {}", names.join(", "));
    }
    let inputs = Inputs::new()?;
    if let Some(missing) = ALWAYS.iter().find(|program| !inputs.has(program)) {
        bail!("there is no {missing} here: `cargo xtask setup --for bench` installs it");
    }
    let spanflame = match env::var_os("SPANFLAME_BIN") {
        Some(path) => path.into(),
        None => {
            shell::run(&mut shell::cargo(&BUILD))?;
            shell::root().join("target/release/spanflame")
        }
    };
    let bench = Bench { inputs, spanflame, seconds: arguments.seconds };
    println!("\n{}", table::HEAD);
    let mut rows = Vec::new();
    for load in loads {
        let row = Row { name: load.name, outcome: outcome(&bench, load) };
        println!("{}", row.markdown());
        rows.push(row);
    }
    keep(&bench, &rows)?;
    table::conclude(&rows)
}

fn outcome(bench: &Bench, load: &Load) -> Outcome {
    let missing: Vec<_> = load.needs.iter().copied().filter(|program| !bench.inputs.has(program)).collect();
    if !missing.is_empty() {
        return Outcome::Skipped(format!("not installed: {}", missing.join(", ")));
    }
    let applies = |when| bench.inputs.script(when).status().is_ok_and(|status| status.success());
    let exception = load.exception.filter(|exception| applies(exception.when)).map(|exception| exception.why);
    match bench.measure(load) {
        Ok(measured) => Outcome::Measured { measured, exception },
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

/// Adds a line to `target/bench-programs.jsonl`: what was measured when, where and with what.
fn keep(bench: &Bench, rows: &[Row]) -> Result<()> {
    let said = |command: &mut Command| shell::output(command).map(|text| text.trim().to_owned()).unwrap_or_default();
    let time_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let run = json!({
        "time_s": time_s,
        "commit": said(Command::new("git").arg("-C").arg(shell::root()).args(["rev-parse", "HEAD"])),
        "spanflame": said(Command::new(&bench.spanflame).arg("--version")),
        "perf": said(bench.inputs.command("perf").arg("--version").stdout(std::process::Stdio::piped())),
        "kernel": said(Command::new("uname").args(["-r", "-m"])),
        "cpus": std::thread::available_parallelism().map_or(1, usize::from),
        "seconds": bench.seconds,
        "programs": rows.iter().map(Row::json).collect::<Vec<_>>(),
    });
    let path = shell::root().join("target/bench-programs.jsonl");
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    let written = opened.and_then(|mut file| writeln!(file, "{run}"));
    written.with_context(|| format!("writing {}", path.display()))?;
    println!("\nkept in {}", path.display());
    Ok(())
}
