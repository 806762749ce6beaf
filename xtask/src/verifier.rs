//! `cargo xtask verifier`: what the kernel's verifier says about each program, on this host and in
//! VMs, against the budget in `xtask/verifier-budget.json`.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::ebpf::{self, Manifest};
use crate::shell;
use crate::vm::{self, NotRun};

/// Options of `cargo xtask verifier`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Also in VMs: 5.10, 6.1, 6.12 and the newest x86_64, 5.10 and the newest aarch64.
    #[arg(long)]
    vm: bool,
    /// Write this host's figures into the manifest of the kernel objects.
    #[arg(long)]
    write: bool,
}

/// What a program may cost; every figure is a hard limit.
struct Budget {
    verified_instructions: u64,
    /// On this host only: a VM is emulated.
    host_load_ms: f64,
}

/// One program on one kernel, as `spanflame verifier-report` prints it.
#[derive(Debug, PartialEq)]
struct Row {
    program: String,
    /// Linux tells it since 5.16.
    verified_instructions: Option<u64>,
    load_us: u64,
    jited_bytes: u64,
}

/// A kernel, what it said, and what its object holds.
struct Kernel {
    name: String,
    rows: Vec<Row>,
    /// Bytes of stack by program.
    stacks: BTreeMap<String, u64>,
}

/// `cargo xtask verifier`.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let budget = read_budget()?;
    println!(
        "{:<34} {:<14} {:>12} {:>6} {:>9} {:>8}",
        "kernel", "program", "instructions", "stack", "load ms", "jited"
    );
    let host = on_host()?;
    let mut over = print(&host, &budget, Some(budget.host_load_ms));
    if arguments.vm {
        for target in vm::matrix() {
            match in_vm(&target) {
                Ok(kernel) => over.extend(print(&kernel, &budget, None)),
                Err(NotRun::Unavailable(why)) => println!("{}: skipped: {why}", target.name()),
                Err(NotRun::Failed(error)) => over.push(format!("{}: {error:#}", target.name())),
            }
        }
    }
    if !over.is_empty() {
        bail!("failed, or above the budget of xtask/verifier-budget.json:\n{}", over.join("\n"));
    }
    if arguments.write { write(&host) } else { Ok(()) }
}

fn read_budget() -> Result<Budget> {
    let path = shell::root().join("xtask/verifier-budget.json");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let value: Value = serde_json::from_str(&text)?;
    Ok(Budget {
        verified_instructions: value["verified_instructions"].as_u64().context("no `verified_instructions`")?,
        host_load_ms: value["host_load_ms"].as_f64().context("no `host_load_ms`")?,
    })
}

/// The report of the profiler's release build, loaded into this kernel.
fn on_host() -> Result<Kernel> {
    let spanflame = shell::root().join("target/release/spanflame");
    let mut command = shell::as_root(spanflame, "to load programs into the kernel")?;
    shell::output(&mut shell::cargo(&["build", "--release", "--quiet", "-p", "profiler-agent"]))?;
    let rows = parse(&shell::output(command.arg("verifier-report"))?)?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the kernel's release")?;
    Ok(Kernel { name: release.trim().to_owned(), rows, stacks: stacks(std::env::consts::ARCH)? })
}

fn in_vm(target: &vm::Target) -> Result<Kernel, NotRun> {
    let transcript = vm::boot(target, &[&vm::VERIFIER])?;
    let name = transcript.release.context("the VM did not boot")?;
    let case = transcript.cases.first().context("the VM ran nothing")?;
    let file = case.file.as_deref().filter(|_| case.exit == Some(0));
    let report = file.with_context(|| format!("no report; it says: {}", shell::last_lines(&case.output, 5)))?;
    Ok(Kernel { name, rows: parse(report)?, stacks: stacks(target.architecture())? })
}

fn stacks(architecture: &str) -> Result<BTreeMap<String, u64>> {
    let path = ebpf::object_path(architecture);
    let object = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    ebpf::stack::depths(&object).with_context(|| format!("in {}", path.display()))
}

fn parse(report: &str) -> Result<Vec<Row>> {
    let value: Value = serde_json::from_str(report).context("reading the verifier's report")?;
    let row = |row: &Value| {
        let number = |key: &str| row[key].as_u64().with_context(|| format!("no number `{key}` in {row}"));
        Ok(Row {
            program: row["program"].as_str().with_context(|| format!("no `program` in {row}"))?.to_owned(),
            verified_instructions: row.get("verified_instructions").context("no `verified_instructions`")?.as_u64(),
            load_us: number("load_us")?,
            jited_bytes: number("jited_bytes")?,
        })
    };
    let rows: Vec<Row> = value.as_array().context("the report is no array")?.iter().map(row).collect::<Result<_>>()?;
    if rows.is_empty() {
        bail!("the report names no program");
    }
    Ok(rows)
}

/// Prints the rows of a kernel and returns those above the budget.
fn print(kernel: &Kernel, budget: &Budget, load_limit_ms: Option<f64>) -> Vec<String> {
    let mut over = Vec::new();
    let name = &kernel.name;
    for Row { program, verified_instructions, load_us, jited_bytes } in &kernel.rows {
        let load_ms = *load_us as f64 / 1000.0;
        let figure = |figure: Option<&u64>| figure.map_or_else(|| "?".to_owned(), u64::to_string);
        let (instructions, stack) = (figure(verified_instructions.as_ref()), figure(kernel.stacks.get(program)));
        println!("{name:<34} {program:<14} {instructions:>12} {stack:>6} {load_ms:>9.1} {jited_bytes:>8}");
        if let Some(count) = verified_instructions.filter(|count| *count > budget.verified_instructions) {
            over.push(format!("{name}: {program} has {count} instructions"));
        }
        if let Some(limit) = load_limit_ms.filter(|limit| load_ms > *limit) {
            over.push(format!("{name}: {program} takes {load_ms:.1} ms to load; {limit} is the limit"));
        }
        if *jited_bytes == 0 {
            over.push(format!("{name}: {program} is not compiled by the kernel (bpf_jit_enable?)"));
        }
    }
    over
}

fn write(host: &Kernel) -> Result<()> {
    let mut manifest = Manifest::read()?.context("there is no manifest yet: run `cargo xtask ebpf`")?;
    let programs = host.rows.iter().map(|row| {
        json!({
            "program": row.program,
            "verified_instructions": row.verified_instructions,
            "stack_bytes": host.stacks.get(&row.program),
        })
    });
    manifest.verifier = Some(json!({ "kernel": host.name, "programs": programs.collect::<Vec<_>>() }));
    manifest.write()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str =
        r#"[{"program": "sample", "verified_instructions": 26201, "load_us": 12500, "jited_bytes": 9000}]"#;

    #[test]
    fn reports_are_read_and_held_to_the_budget() {
        let kernel = Kernel { name: "k".to_owned(), rows: parse(REPORT).unwrap(), stacks: BTreeMap::new() };
        let budget = |verified_instructions, host_load_ms| Budget { verified_instructions, host_load_ms };
        let over = |budget: Budget, host: bool| print(&kernel, &budget, host.then_some(budget.host_load_ms)).len();
        assert_eq!(over(budget(26_201, 12.5), true), 0);
        assert_eq!(over(budget(26_200, 12.5), true), 1);
        assert_eq!(over(budget(26_201, 12.4), true), 1);
        assert_eq!(over(budget(26_201, 12.4), false), 0);
    }

    #[test]
    fn a_program_that_is_not_compiled_fails() {
        let rows = parse(&REPORT.replace("9000", "0").replace("26201", "null")).unwrap();
        let kernel = Kernel { name: "k".to_owned(), rows, stacks: BTreeMap::new() };
        assert_eq!(print(&kernel, &Budget { verified_instructions: 100_000, host_load_ms: 100.0 }, None).len(), 1);
    }

    #[test]
    fn a_report_without_figures_is_an_error() {
        for bad in ["", "[]", "{}", r#"[{"program": "sample"}]"#] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
