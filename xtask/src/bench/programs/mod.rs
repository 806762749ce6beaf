//! Real programs at work, recorded by spanflame and, in another run of the same length, by `perf record
//! --call-graph dwarf`: how many stacks of each are complete. A stack of spanflame's is complete when it says so;
//! one of perf's by its ends (`perf.rs`). What starts again and again was recorded once before, so that the unwind
//! tables of large files are on disk.

mod load;
mod measure;
mod perf;
mod table;

use anyhow::Result;
use serde_json::json;

use super::inputs::Inputs;
use load::{LOADS, Load};
use measure::Bench;
use table::{Outcome, Row};

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
    super::demand_root()?;
    let loads = super::chosen(LOADS, &arguments.only, |load| load.name)?;
    let inputs = Inputs::new()?;
    inputs.demand(&ALWAYS)?;
    let bench = Bench { inputs, spanflame: super::profiler()?, seconds: arguments.seconds };
    println!("\n{}", table::HEAD);
    let mut rows = Vec::new();
    for load in loads {
        let row = Row { name: load.name, outcome: outcome(&bench, load) };
        println!("{}", row.markdown());
        rows.push(row);
    }
    let found = json!({ "seconds": bench.seconds, "programs": rows.iter().map(Row::json).collect::<Vec<_>>() });
    super::keep("bench-programs.jsonl", &bench.inputs, &bench.spanflame, found)?;
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
