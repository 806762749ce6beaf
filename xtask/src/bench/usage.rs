//! CPU time of a profiler: of its processes, and of its programs in the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::family;

/// Of the kernel: the time of BPF programs is counted.
const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// The kernel counts the time of BPF programs as long as this lives.
pub(super) struct Statistics {
    before: String,
}

impl Statistics {
    pub(super) fn enable() -> Result<Self> {
        let before = fs::read_to_string(STATISTICS).context(STATISTICS)?;
        fs::write(STATISTICS, "1").context(STATISTICS)?;
        Ok(Self { before })
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        if let Err(error) = fs::write(STATISTICS, &self.before) {
            eprintln!("{STATISTICS}: {error}");
        }
    }
}

/// CPU time so far, in nanoseconds.
pub(super) struct Usage {
    at: Instant,
    /// By process.
    processes: BTreeMap<u32, u64>,
    /// By program of the kernel.
    programs: BTreeMap<u64, u64>,
}

impl Usage {
    /// Of a process and what it has started.
    pub(super) fn now(profiler: u32) -> Self {
        let processes = family(profiler).into_iter().map(|pid| (pid, threads_ns(pid))).collect();
        Self { at: Instant::now(), processes, programs: programs_ns(profiler) }
    }

    /// What was used between an earlier moment and this one.
    pub(super) fn since(&self, earlier: &Self) -> Spent {
        // A process that is new did all its work in that time; what one did that has gone is not known.
        let processes = self.processes.iter().map(|(pid, ns)| ns - earlier.processes.get(pid).unwrap_or(&0).min(ns));
        let programs = self.programs.iter().map(|(id, ns)| ns - earlier.programs.get(id).unwrap_or(&0).min(ns));
        Spent { time: self.at - earlier.at, processes_ns: processes.sum(), programs_ns: programs.sum() }
    }

    /// What was used so far.
    pub(super) fn all_ns(&self) -> u64 {
        self.processes.values().sum::<u64>() + self.programs.values().sum::<u64>()
    }
}

/// What was used in some time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spent {
    pub(super) time: Duration,
    pub(super) processes_ns: u64,
    pub(super) programs_ns: u64,
}

/// Linux, Documentation/scheduler/sched-stats.rst: time on the CPU in ns comes first.
fn threads_ns(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
    texts.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum()
}

/// Whether a process's program for perf events has run (prog_type 7, `BPF_PROG_TYPE_PERF_EVENT` in linux/bpf.h).
pub(super) fn samples(pid: u32) -> bool {
    fdinfo(pid)
        .iter()
        .any(|text| field(text, "prog_type") == Some(7) && field(text, "run_cnt").is_some_and(|runs| runs > 0))
}

/// The run time of the BPF programs that a process holds, each once.
fn programs_ns(pid: u32) -> BTreeMap<u64, u64> {
    fdinfo(pid).iter().filter_map(|text| Some((field(text, "prog_id")?, field(text, "run_time_ns")?))).collect()
}

/// What the kernel says of its descriptors (of programs: `bpf_prog_show_fdinfo` in linux/kernel/bpf/syscall.c).
fn fdinfo(pid: u32) -> Vec<String> {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_to_string(file.path()).ok()).collect()
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|value| value.trim().parse().ok())
}
