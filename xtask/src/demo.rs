//! `cargo xtask demo`: from a checkout to a flame graph with one command.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::folded;
use crate::setup::{self, Purpose};
use crate::shell::{self, Elevation};

/// Functions in the table.
const SHOWN: usize = 10;

/// `cargo xtask demo`.
pub(crate) fn run() -> Result<()> {
    println!("1. What is needed here");
    setup::install(Purpose::Demo)?;
    println!("2. Building the profiler and the program to profile (release)");
    shell::run(&mut shell::cargo(&["build", "--release", "-p", "profiler-agent", "-p", "xtask", "--bins"]))?;
    println!("3. Profiling `spanflame-demo` for 5 seconds");
    let root = shell::root();
    let release = root.join("target/release");
    let folded = root.join("target/demo.folded");
    let outputs = [root.join("flame.svg"), root.join("profile.pb.gz"), folded.clone()];
    let mut record = shell::as_root(release.join("spanflame"), "to load programs into the kernel")?;
    record.args(["record", "-d", "5s"]).current_dir(&root);
    for output in &outputs {
        record.arg("-o").arg(output);
    }
    shell::run(record.arg("--").arg(release.join("spanflame-demo")).arg("5"))?;
    give_back(&outputs)?;
    let text = fs::read_to_string(&folded).with_context(|| format!("reading {}", folded.display()))?;
    print_hottest(&text)?;
    println!("\nflame graph: {}\npprof:       {}", outputs[0].display(), outputs[1].display());
    println!("look at them: open the first in a browser; `go tool pprof -top {}`", outputs[1].display());
    Ok(())
}

/// What root wrote through sudo belongs to the user who asked.
fn give_back(files: &[std::path::PathBuf]) -> Result<()> {
    if !matches!(shell::elevation(), Elevation::Sudo) {
        return Ok(());
    }
    let user = shell::output(Command::new("id").arg("-u"))?;
    shell::run(shell::as_root("chown", "to give you the files")?.arg(user.trim()).args(files))
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
