//! Short lives: what the profiler costs beside them, and how whole their samples are.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::folded;
use crate::shell::{self, Elevation};

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
/// Of the kernel: the time of BPF programs is counted.
const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// `cargo xtask bench short-lives`.
pub(super) fn run(rate: u32, seconds: u64) -> Result<()> {
    if shell::elevation("to load programs into the kernel") != Elevation::None {
        bail!("run it as root");
    }
    shell::run(&mut shell::cargo(&BUILD))?;
    let before = fs::read_to_string(STATISTICS).context(STATISTICS)?;
    fs::write(STATISTICS, "1").context(STATISTICS)?;
    let result = measure(rate, Duration::from_secs(seconds));
    fs::write(STATISTICS, before).context(STATISTICS)?;
    result
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
    Ok((begun - before, Cost::between(&first, &last)))
}

/// CPU time so far, in nanoseconds.
struct Usage {
    at: Instant,
    /// By process.
    processes: BTreeMap<u32, u64>,
    /// By program of the kernel.
    programs: BTreeMap<u64, u64>,
}

impl Usage {
    fn now(profiler: u32) -> Self {
        let mut processes = BTreeMap::new();
        for pid in [profiler].into_iter().chain(super::children(profiler)) {
            processes.insert(pid, threads_ns(pid));
        }
        Self { at: Instant::now(), processes, programs: programs_ns(profiler) }
    }
}

/// Linux, Documentation/scheduler/sched-stats.rst: time on the CPU in ns comes first.
fn threads_ns(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
    texts.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum()
}

/// The run time of the BPF programs that a process holds, each once (`bpf_prog_show_fdinfo` in
/// linux/kernel/bpf/syscall.c).
fn programs_ns(pid: u32) -> BTreeMap<u64, u64> {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.trim().parse::<u64>().ok())
    };
    texts.filter_map(|text| Some((field(&text, "prog_id")?, field(&text, "run_time_ns")?))).collect()
}

/// What it cost, as parts of the machine's time.
struct Cost {
    processes: f64,
    programs: f64,
}

impl Cost {
    fn between(first: &Usage, last: &Usage) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let machine_ns = (last.at - first.at).as_nanos() as f64 * cpus as f64;
        // A process that is new did all its work in that time; what one did that has gone is not known.
        let processes = last.processes.iter().map(|(pid, ns)| ns - first.processes.get(pid).unwrap_or(&0).min(ns));
        let programs = last.programs.iter().map(|(id, ns)| ns - first.programs.get(id).unwrap_or(&0).min(ns));
        Self {
            processes: processes.sum::<u64>() as f64 / machine_ns,
            programs: programs.sum::<u64>() as f64 / machine_ns,
        }
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
