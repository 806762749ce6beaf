//! Counts that are not the profiler's own: the kernel's count of the program's runs, the share of
//! time that is known, and a CPU whose event is taken away.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use spanflame_tests::system::{Program, output, wait_for};
use spanflame_tests::{from_main, lab};
use tempfile::TempDir;

/// Two functions with a quarter and three quarters of the time come out within the interval that
/// holds 99.9% of all outcomes.
#[test]
fn shares_of_time() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&["-F", "999"]).of(&lab.workload("split"), &["5000"]).profile();
    let (light, heavy) = (from_main(&["light", "leaf"]), from_main(&["heavy", "leaf"]));
    profile.check_chains("split", &[&light, &heavy], 0.995);
    let light = profile.share("split", &[&light]).right;
    let heavy = profile.share("split", &[&heavy]).right;
    let all = light + heavy;
    assert!(all >= 2000, "{all} samples are too few");
    let (part, half_width) = (light as f64 / all as f64, interval(0.25, all));
    println!("{light} of {all} samples: {part:.4}, 0.25 +- {half_width:.4}");
    assert!((part - 0.25).abs() <= half_width, "{part} of {all} samples");
}

/// Half the interval around `part` that holds 99.9% of the outcomes of `all` samples (normal
/// approximation of the binomial distribution; its quantile of 99.95%).
fn interval(part: f64, all: u64) -> f64 {
    const QUANTILE: f64 = 3.2905;
    QUANTILE * (part * (1.0 - part) / all as f64).sqrt()
}

/// The kernel's statistics of BPF programs, on until this is dropped.
struct Statistics(String);

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl Statistics {
    fn on() -> Self {
        let before = fs::read_to_string(STATISTICS).unwrap();
        fs::write(STATISTICS, "1").unwrap();
        Self(before)
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        fs::write(STATISTICS, &self.0).unwrap();
    }
}

/// The ids of the perf event programs that a process holds.
fn sampling_programs(pid: u32) -> BTreeSet<u32> {
    const PERF_EVENT: &str = "7"; // BPF_PROG_TYPE_PERF_EVENT (include/uapi/linux/bpf.h)
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let id = |text: String| {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        (field("prog_type:") == Some(PERF_EVENT)).then(|| field("prog_id:")?.parse().ok())?
    };
    entries.filter_map(|entry| id(fs::read_to_string(entry.path()).ok()?)).collect()
}

/// A BPF file system of the test's own: a program that is pinned there stays when its owner ends.
struct Pins(TempDir);

impl Pins {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        output(Command::new("mount").args(["-t", "bpf", "none"]).arg(folder.path()));
        Self(folder)
    }

    /// Pins the program that is called `sample`.
    fn pin(&self, programs: &BTreeSet<u32>) {
        let sample = programs.iter().find(|id| show(&["id", &id.to_string()])["name"] == "sample").unwrap();
        output(
            Command::new("bpftool").args(["prog", "pin", "id", &sample.to_string()]).arg(self.0.path().join("sample")),
        );
    }

    /// How often the kernel has run it.
    fn runs(&self) -> u64 {
        show(&["pinned", self.0.path().join("sample").to_str().unwrap()])["run_cnt"].as_u64().unwrap_or(0)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        output(Command::new("umount").arg(self.0.path()));
    }
}

/// What the kernel says of a program.
fn show(which: &[&str]) -> serde_json::Value {
    let shown = output(Command::new("bpftool").args(["prog", "show", "-j"]).args(which));
    serde_json::from_str(&shown).unwrap()
}

/// Every run of the program is a sample taken, and nothing else is. The events are stopped before the
/// profiler reads its counters, and the kernel counts runs as long as the program is there.
#[test]
fn every_run_is_a_sample_taken() {
    let Some(lab) = lab() else { return };
    let _statistics = Statistics::on();
    let pins = Pins::new();
    let _load =
        [Program::start(&lab.workload("chain12"), &["120"]), Program::start(&lab.workload("brief"), &["100000"])];
    let running = lab.record(&["-a", "-F", "499"]).start();
    running.wait_until_sampling();
    pins.pin(&sampling_programs(running.pid()));
    wait_for("a thousand runs", || pins.runs() > 1000);
    running.signal(Signal::INT);
    let profile = running.profile();
    let (taken, runs) = (profile.figure("samples_taken"), pins.runs());
    println!("{taken} samples taken in {runs} runs");
    assert_eq!(taken, runs, "{:?}", profile.quality);
}

/// On CPUs that are kept busy, the samples taken are those that the rate and the time ask for, but for
/// those that the kernel's clock skips: a timer that fires late, because of a hypervisor or of code that
/// runs with interrupts off, does not make up for what it missed. Events beside ours, without a program,
/// tell how many those are. Samples that are lost later have been taken.
#[test]
fn rate_on_busy_cpus() {
    const RATE_HZ: f64 = 499.0;
    let Some(lab) = lab() else { return };
    let (cpus, chain12) = (online_cpus(), lab.workload("chain12"));
    let on = |cpu: &String| Program::start("taskset".as_ref(), &["-c", cpu, chain12.to_str().unwrap(), "120"]);
    let _load: Vec<_> = cpus.iter().map(on).collect();
    let bystander = lab.workload("bystander");
    let bystanders: Vec<_> = cpus.iter().map(|cpu| Bystander::start(&bystander, cpu)).collect();
    let profile = lab.record(&["-a", "-F", "499", "-d", "10s"]).start().profile();
    let skipped_beside = |bystander: Bystander| {
        let (seen, seen_ns) = bystander.end();
        (seen_ns as f64 * RATE_HZ / 1e9 - seen as f64).max(0.0)
    };
    let skipped: f64 = bystanders.into_iter().map(skipped_beside).sum();
    let taken = profile.figure("samples_taken") as f64;
    let due = profile.json["duration_ns"].as_u64().unwrap() as f64 * RATE_HZ / 1e9 * cpus.len() as f64;
    println!("{taken} samples taken, {due:.0} due, {skipped:.0} skipped by the kernel; {:?}", profile.quality);
    assert!(skipped <= 0.05 * due, "the CPUs were not busy or not ours: {skipped} of {due} skipped");
    assert!(taken >= 0.995 * due - skipped, "{taken} samples, {due:.0} due, {skipped:.0} skipped by the kernel");
    assert!(taken <= 1.005 * due, "{taken} samples, {due:.0} due");
    let allowed = profile.figure("missed_by_kernel_uncertainty") as f64 + 0.005 * due + skipped;
    assert!(profile.figure("missed_by_kernel") as f64 <= allowed, "{:?}", profile.quality);
}

/// A program that samples a CPU with an event of its own.
struct Bystander(Program);

impl Bystander {
    fn start(program: &Path, cpu: &str) -> Self {
        let mut command = Command::new(program);
        let program = Program::spawn(command.args([cpu, "499"]).stdout(Stdio::piped()));
        let sleeps =
            || fs::read_to_string(format!("/proc/{}/wchan", program.pid())).is_ok_and(|at| at.contains("sigtimedwait"));
        wait_for("the other event", sleeps);
        Self(program)
    }

    /// How many samples its event gave, in how many ns.
    fn end(self) -> (u64, u64) {
        kill_process(Pid::from_raw(self.0.pid().cast_signed()).unwrap(), Signal::TERM).unwrap();
        let (status, text) = self.0.end();
        assert!(status.success(), "{status}");
        let numbers: Vec<u64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
        (numbers[0], numbers[1])
    }
}

/// The CPUs that the profiler samples with `-a`.
fn online_cpus() -> Vec<String> {
    let list = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let number = |text: &str| -> u32 { text.parse().unwrap() };
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        number(first)..=number(last)
    };
    list.trim().split(',').flat_map(range).map(|cpu| cpu.to_string()).collect()
}

/// When a CPU's event stops counting, the profile says that samples are missing.
#[test]
fn event_of_a_cpu_taken_away() {
    let Some(lab) = lab() else { return };
    let _load = [(); 2].map(|()| Program::start(&lab.workload("chain12"), &["120"]));
    let running = lab.record(&["-a", "-F", "499", "-d", "8s"]).start();
    running.wait_until_sampling();
    let program = lab.workload("take_event");
    let counted = || Command::new(&program).arg(running.pid().to_string()).output().unwrap();
    let mut taken = String::new();
    wait_for("an event that counts", || {
        let output = counted();
        taken = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success()
    });
    let profile = running.profile();
    let (missed, doubt) = (profile.figure("missed_by_kernel"), profile.figure("missed_by_kernel_uncertainty"));
    println!("event taken after {taken} ns; {missed} missed (+- {doubt})");
    assert!(missed > 8 * 499 / 2 && missed > doubt, "{:?}", profile.quality);
}

/// Beyond what the kernel allows, a rate is refused with the fix.
#[test]
fn rate_above_the_kernels_limit() {
    const LIMIT: &str = "/proc/sys/kernel/perf_event_max_sample_rate";
    let Some(lab) = lab() else { return };
    let before = fs::read_to_string(LIMIT).unwrap();
    fs::write(LIMIT, "500").unwrap();
    let output = Command::new(lab.program()).args(["record", "-a", "-d", "1s", "-F", "501"]).output();
    fs::write(LIMIT, before).unwrap();
    let output = output.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("500") && stderr.contains("sysctl"), "{stderr}");
}

/// Neither sampling nor its end leaves anything of ours in the kernel.
#[test]
fn nothing_is_left_behind() {
    let Some(lab) = lab() else { return };
    let programs = || -> BTreeSet<u64> {
        let shown = output(Command::new("bpftool").args(["prog", "show", "-j"]));
        let list: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let ours = |program: &&serde_json::Value| program["name"] == "sample";
        list.as_array().unwrap().iter().filter(ours).map(|program| program["id"].as_u64().unwrap()).collect()
    };
    let before = programs();
    let running = lab.record(&["-a", "-F", "199"]).start();
    running.wait_until_sampling();
    let own: BTreeSet<_> = programs().difference(&before).copied().collect();
    running.signal(Signal::KILL);
    assert!(!running.end().status.success());
    assert!(!own.is_empty(), "no program called sample while sampling");
    wait_for("the kernel to drop the programs", || programs().is_disjoint(&own));
}
