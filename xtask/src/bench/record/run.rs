//! One recording of the node by one profiler.

use std::fs::File;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::Bench;
use super::memory::Group;
use super::tool::{Tool, in_group};
use crate::bench::usage::{self, Usage};
use crate::shell;

/// Between two looks at whether sampling has begun.
const LOOK: Duration = Duration::from_millis(2);
/// Between two looks at its memory.
const INTERVAL: Duration = Duration::from_secs(1);
/// A profiler that has not begun by then will not.
const LIMIT: Duration = Duration::from_secs(30);

/// perf starts addr2line for each file, which takes minutes for the largest ones.
const GRAPH_LIMIT: Duration = Duration::from_secs(120);
/// The exit code of timeout(1).
const TIMED_OUT: i32 = 124;

/// What a recording cost.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    pub(super) samples: u64,
    /// CPU time of processes and kernel programs for 1000 samples, in its second half.
    pub(super) cpu_ms: f64,
    /// The kernel programs' part of it.
    pub(super) programs_ms: f64,
    /// From the start of the program to the first run of the sampling program; known of ours.
    pub(super) first_sample_s: Option<f64>,
    /// CPU time up to that.
    pub(super) start_cpu_s: Option<f64>,
    /// From the end of sampling to the graph, [`GRAPH_LIMIT`] at most.
    pub(super) graph_s: f64,
    /// The most of all looks.
    pub(super) memory_bytes: u64,
}

/// Records what runs.
pub(super) fn run(bench: &Bench, tool: Tool) -> Result<Run> {
    let group = Group::new()?;
    let path = Tool::said(&bench.inputs);
    let said = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    let mut command = in_group(&bench.inputs, &group.path, &tool.record(&bench.spanflame));
    let start = Instant::now();
    let mut child = command.stderr(said).spawn().with_context(|| format!("starting {}", tool.name()))?;
    let watched = watch(bench, tool, &group, &child, start);
    let ended = Instant::now();
    let interrupted = shell::run_silently(Command::new("kill").args(["-INT", &child.id().to_string()]));
    let status = child.wait().context("waiting for a profiler")?;
    let mut run = watched?;
    interrupted?;
    let is_ours = tool == Tool::Spanflame;
    if is_ours && !status.success() {
        bail!("{} failed: {status}", tool.name());
    }
    if let Some(script) = tool.graph() {
        draw(bench, script)?;
    }
    run.graph_s = ended.elapsed().as_secs_f64();
    run.samples = tool.samples(&bench.inputs)?;
    ensure!(run.samples > 0, "{} took no sample", tool.name());
    // The load is even: the second half has its share of the samples.
    let samples = run.samples as f64 * 0.5;
    run.cpu_ms /= samples / 1000.0;
    run.programs_ms /= samples / 1000.0;
    Ok(run)
}

/// Draws the graph by a script; what takes longer than the limit took that long, at least.
fn draw(bench: &Bench, script: &str) -> Result<()> {
    let mut timed = super::script(bench, "exec timeout \"$LIMIT_S\" sh -c \"$SCRIPT\"");
    timed.env("LIMIT_S", GRAPH_LIMIT.as_secs().to_string()).env("SCRIPT", script);
    let status = timed.status().with_context(|| format!("starting `{script}`"))?;
    if !status.success() && status.code() != Some(TIMED_OUT) {
        bail!("`{script}` failed: {status}");
    }
    Ok(())
}

/// Looks on until the time is over. CPU times are all that was used in the second half.
fn watch(bench: &Bench, tool: Tool, group: &Group, child: &Child, start: Instant) -> Result<Run> {
    let mut run = Run::default();
    let end = start + Duration::from_secs(bench.seconds);
    if tool == Tool::Spanflame {
        while !usage::samples(child.id()) {
            if start.elapsed() > LIMIT {
                bail!("it does not sample: {}", std::fs::read_to_string(Tool::said(&bench.inputs)).unwrap_or_default());
            }
            sleep(LOOK);
        }
        run.first_sample_s = Some(start.elapsed().as_secs_f64());
        run.start_cpu_s = Some(Usage::now(child.id()).all_ns() as f64 / 1e9);
    }
    let mut half = None;
    while Instant::now() < end {
        sleep(INTERVAL.min(end.saturating_duration_since(Instant::now())));
        run.memory_bytes = run.memory_bytes.max(group.bytes(child.id())?);
        if half.is_none() && start.elapsed() * 2 >= Duration::from_secs(bench.seconds) {
            half = Some(Usage::now(child.id()));
        }
    }
    let spent = Usage::now(child.id()).since(half.as_ref().context("the time was too short")?);
    // To half of the recording, whatever the looks' times were.
    let part = bench.seconds as f64 / 2.0 / spent.time.as_secs_f64();
    run.cpu_ms = (spent.processes_ns + spent.programs_ns) as f64 / 1e6 * part;
    run.programs_ms = spent.programs_ns as f64 / 1e6 * part;
    Ok(run)
}
