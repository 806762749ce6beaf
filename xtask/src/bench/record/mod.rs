//! What recording the whole node costs, beside perf in the same run: CPU time of the profiler once it is warm, start,
//! time to the graph, memory. The profilers take turns, so that what else the machine does hits all.

mod load;
mod memory;
mod run;
mod table;
mod tool;

use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::inputs::Inputs;
use super::service::Service;
use super::usage::Statistics;
use crate::shell;
use load::{LOADS, Load};
use table::Row;
use tool::TOOLS;

/// Programs without which nothing is measured.
const ALWAYS: [&str; 3] = ["perf", "setpriv", "timeout"];
/// A load is at work after that time.
const WARM_UP: Duration = Duration::from_secs(3);
/// Makes graphs of what perf records.
const INFERNO: &str = "inferno-flamegraph";

/// Options of `cargo xtask bench record`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Only loads whose name in the table holds this; repeatable.
    #[arg(long)]
    only: Vec<String>,
    /// Seconds of each recording; CPU time is measured in the second half.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(4..))]
    seconds: u64,
    /// How often each profiler records each load.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// How to measure.
struct Bench {
    inputs: Inputs,
    spanflame: PathBuf,
    seconds: u64,
}

/// `cargo xtask bench record`. `SPANFLAME_BIN` names a profiler that is built already.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    super::demand_root()?;
    let loads = super::chosen(LOADS, &arguments.only, |load| load.name)?;
    let inputs = Inputs::new()?;
    inputs.demand(ALWAYS.iter().chain(loads.iter().flat_map(|load| load.needs)))?;
    let bench = Bench { inputs, spanflame: super::profiler()?, seconds: arguments.seconds };
    install_inferno()?;
    let _counted = Statistics::enable()?;
    println!("\n{}", table::HEAD);
    let mut rows = Vec::new();
    for load in loads {
        let found = measure(&bench, load, arguments.rounds).with_context(|| format!("beside {}", load.name))?;
        found.iter().for_each(|row| println!("{}", row.markdown()));
        rows.extend(found);
    }
    let found = json!({ "seconds": bench.seconds, "loads": rows.iter().map(Row::json).collect::<Vec<_>>() });
    super::keep("bench-record.jsonl", &bench.inputs, &bench.spanflame, found)?;
    table::conclude(&rows)
}

/// The profilers take turns beside one load.
fn measure(bench: &Bench, load: &'static Load, rounds: u32) -> Result<Vec<Row>> {
    shell::run_silently(&mut bench.inputs.script(load.prepare))?;
    let _work = Service::start(&bench.inputs, load.work)?;
    sleep(WARM_UP);
    let mut rows: Vec<_> = TOOLS.iter().map(|&tool| Row { load: load.name, tool, runs: Vec::new() }).collect();
    for _ in 0..rounds {
        for row in &mut rows {
            row.runs.push(run::run(bench, row.tool).context(row.tool.name())?);
        }
    }
    Ok(rows)
}

/// perf's samples become a graph by the tools that people use for it; built once, into `target/tools`.
fn install_inferno() -> Result<()> {
    if !tools().join(INFERNO).exists() {
        let root = shell::root().join("target/tools");
        let mut install = shell::cargo(&["install", "--locked", "inferno", "--root"]);
        shell::run(install.arg(root))?;
    }
    Ok(())
}

/// The folder of these tools.
fn tools() -> PathBuf {
    shell::root().join("target/tools/bin")
}

/// A script that has them in `$TOOLS`.
fn script(bench: &Bench, text: &str) -> Command {
    let mut script = bench.inputs.script(text);
    script.env("TOOLS", tools());
    script
}
