//! Short lives: what the profiler costs beside them, and how whole their samples are.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::usage::{Spent, Statistics, Usage};
use crate::folded;
use crate::shell;

const BUILD: [&str; 7] = ["build", "--release", "-p", "profiler-agent", "-p", "xtask", "--bins"];

/// The name of a short life; commands have 15 characters.
const NAME: &str = "spanflame-brief";
/// CPU time of one, in milliseconds: two CPUs have time for 100 a second.
const LIFE_MS: &str = "15";
/// The most that the profiler may cost beside [`MEANT_RATE`] of them a second, as a part of the machine.
const MOST_COST: f64 = 0.01;
const MEANT_RATE: u32 = 100;
/// Programs, symbols and tables are learnt in that time.
const WARM_UP: Duration = Duration::from_secs(8);

/// `cargo xtask bench short-lives`.
pub(super) fn run(rate: u32, seconds: u64) -> Result<()> {
    super::demand_root()?;
    shell::run(&mut shell::cargo(&BUILD))?;
    let _counted = Statistics::enable()?;
    measure(rate, Duration::from_secs(seconds))
}

fn measure(rate: u32, time: Duration) -> Result<()> {
    let folder = shell::root().join("target");
    let output = folder.join("short-lives.folded");
    let mut profiler = Command::new(folder.join("release/spanflame"));
    profiler.args(["record", "-a", "-o"]).arg(&output).stdin(Stdio::null());
    println!("$ {}", shell::display(&profiler));
    let mut profiler = profiler.spawn().context("starting the profiler")?;
    let measured = beside(&profiler, rate, time);
    let interrupted = shell::run(Command::new("kill").args(["-INT", &profiler.id().to_string()]));
    let ended = profiler.wait().context("waiting for the profiler")?;
    let (begun, cost) = measured?;
    interrupted?;
    if !ended.success() {
        bail!("the profiler failed: {ended}");
    }
    cost.print(begun, rate);
    print_wholeness(&fs::read_to_string(&output).with_context(|| format!("reading {}", output.display()))?)?;
    cost.judge(rate)
}

/// Starts processes at a steady rate, and measures from the end of the warm-up on. Returns how many.
fn beside(profiler: &Child, rate: u32, time: Duration) -> Result<(u32, Cost)> {
    sleep(Duration::from_secs(2));
    let program = shell::root().join("target/release").join(NAME);
    let (started, mut begun, mut lives) = (Instant::now(), 0, Vec::new());
    let mut first = None;
    while started.elapsed() < WARM_UP + time {
        if first.is_none() && started.elapsed() >= WARM_UP {
            first = Some((begun, Usage::now(profiler.id())));
        }
        lives.push(Command::new(&program).arg(LIFE_MS).stdin(Stdio::null()).spawn().context("starting a short life")?);
        begun += 1;
        lives.retain_mut(|life: &mut Child| !matches!(life.try_wait(), Ok(Some(_))));
        sleep((started + begun * Duration::from_secs(1) / rate).saturating_duration_since(Instant::now()));
    }
    let last = Usage::now(profiler.id());
    for mut life in lives {
        life.wait().context("waiting for a short life")?;
    }
    let (before, first) = first.context("the time was too short")?;
    Ok((begun - before, Cost::of(&last.since(&first))))
}

/// What it cost, as parts of the machine's time.
struct Cost {
    processes: f64,
    programs: f64,
}

impl Cost {
    fn of(spent: &Spent) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let machine_ns = spent.time.as_nanos() as f64 * cpus as f64;
        Self { processes: spent.processes_ns as f64 / machine_ns, programs: spent.programs_ns as f64 / machine_ns }
    }

    fn print(&self, begun: u32, rate: u32) {
        println!("\n{begun} processes of {LIFE_MS} ms of CPU time, {rate} a second asked for");
        println!(
            "the profiler's own cost: {:.2}% of the machine ({:.2}% its processes, {:.2}% its kernel programs), {:.2} of \
             the {:.0}% that it may cost at {MEANT_RATE} a second",
            100.0 * self.all(),
            100.0 * self.processes,
            100.0 * self.programs,
            self.all() / MOST_COST,
            100.0 * MOST_COST,
        );
    }

    fn all(&self) -> f64 {
        self.processes + self.programs
    }

    fn judge(&self, rate: u32) -> Result<()> {
        if rate <= MEANT_RATE && self.all() > MOST_COST {
            bail!("the profiler costs more than {:.0}% of the machine", 100.0 * MOST_COST);
        }
        Ok(())
    }
}

/// How many samples of the short lives are complete, and how many of these have names only.
fn print_wholeness(text: &str) -> Result<()> {
    let (mut all, mut complete, mut named) = (0, 0, 0);
    let mut broken: BTreeMap<String, u64> = BTreeMap::new();
    for stack in folded::parse(text).iter().filter(|stack| stack.frames.first() == Some(&NAME)) {
        all += stack.samples;
        let cut = stack.frames.iter().find(|frame| frame.starts_with("[incomplete"));
        let nameless = stack.frames.iter().find(|frame| frame.contains("+0x") || frame.starts_with("[unknown"));
        match (cut, nameless) {
            (None, None) => (complete, named) = (complete + stack.samples, named + stack.samples),
            (None, Some(frame)) => {
                complete += stack.samples;
                *broken.entry((*frame).to_owned()).or_default() += stack.samples;
            }
            (Some(reason), _) => *broken.entry((*reason).to_owned()).or_default() += stack.samples,
        }
    }
    if all == 0 {
        bail!("no sample of them");
    }
    let percent = |part: u64| 100.0 * part as f64 / all as f64;
    println!("their samples: {all}, {:.1}% complete, {:.1}% complete and named", percent(complete), percent(named));
    for (what, samples) in broken {
        println!("  {samples} {what}");
    }
    Ok(())
}
