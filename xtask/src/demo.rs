//! `cargo xtask demo`: from a checkout to a flame graph with one command.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::folded;
use crate::setup::{self, Purpose};
use crate::shell::{self, Elevation};

/// Functions in the table.
const SHOWN: usize = 10;

/// Completes "root is needed".
const WHY_ROOT: &str = "to load programs into the kernel";

/// Builds the profiler and the program to profile.
const BUILD: [&str; 7] = ["build", "--release", "-p", "profiler-agent", "-p", "xtask", "--bins"];

/// `cargo xtask demo`.
pub(crate) fn run() -> Result<()> {
    let root = shell::root();
    let folded = root.join("target/demo.folded");
    let outputs = [root.join("flame.svg"), root.join("profile.pb.gz"), folded.clone()];
    println!("1. What is needed here");
    let how = shell::elevation(WHY_ROOT);
    if let Elevation::Impossible(reason) = how {
        let build = shell::display(&shell::cargo(&BUILD));
        let record = shell::display(profile(&mut Command::new(profiler()), &outputs));
        bail!(
            "root is needed {WHY_ROOT}, and {reason}: nothing was done. Run\n    {build}\nand, as root,\n    {record}"
        );
    }
    setup::install(Purpose::Demo)?;
    println!("2. Building the profiler and the program to profile (release)");
    shell::run(&mut shell::cargo(&BUILD))?;
    println!("3. Profiling `spanflame-demo` for 5 seconds");
    shell::run(profile(&mut how.command(profiler()), &outputs))?;
    if how == Elevation::Sudo {
        give_back(&outputs)?;
    }
    let text = fs::read_to_string(&folded).with_context(|| format!("reading {}", folded.display()))?;
    print_hottest(&text)?;
    println!("\nflame graph: {}\npprof:       {}", outputs[0].display(), outputs[1].display());
    println!("look at them: open the first in a browser; `go tool pprof -top {}`", outputs[1].display());
    Ok(())
}

fn profiler() -> PathBuf {
    shell::root().join("target/release/spanflame")
}

/// Adds what the profiler is to do.
fn profile<'c>(profiler: &'c mut Command, outputs: &[PathBuf]) -> &'c mut Command {
    profiler.args(["record", "-d", "5s"]);
    for output in outputs {
        profiler.arg("-o").arg(output);
    }
    profiler.arg("--").arg(shell::root().join("target/release/spanflame-demo")).arg("5")
}

/// What root wrote through sudo belongs to the user who asked.
fn give_back(files: &[PathBuf]) -> Result<()> {
    let id = |which| shell::output(Command::new("id").arg(which));
    let owner = format!("{}:{}", id("-u")?.trim(), id("-g")?.trim());
    shell::run(Elevation::Sudo.command("chown").arg(owner).args(files))
}

fn print_hottest(text: &str) -> Result<()> {
    let stacks = folded::parse(text);
    let samples: u64 = stacks.iter().map(|stack| stack.samples).sum();
    if samples == 0 {
        bail!("the profile is empty");
    }
    let percent = |part: u64| 100.0 * part as f64 / samples as f64;
    println!("\nThe hottest functions, of {samples} samples:\n   self   total  function");
    for hot in folded::hottest(&stacks).iter().take(SHOWN) {
        println!("{:6.1}% {:6.1}%  {:.80}", percent(hot.own), percent(hot.total), hot.function);
    }
    Ok(())
}
