//! Counts that are not the profiler's own: the kernel's count of the program's runs, the share of
//! time that is known, and a CPU whose event is taken away.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use rustix::process::Signal;
use spanflame_tests::system::{Program, output, wait_for};
use spanflame_tests::{Running, from_main, lab};

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

/// How often the kernel has run the program that is called `sample`.
fn runs(programs: &BTreeSet<u32>) -> Option<u64> {
    let mut runs = None;
    for id in programs {
        let shown = Command::new("bpftool").args(["prog", "show", "id", &id.to_string(), "-j"]).output().unwrap();
        let program: serde_json::Value = serde_json::from_slice(&shown.stdout).ok()?;
        if program["name"] == "sample" {
            runs = Some(program["run_cnt"].as_u64().unwrap_or(0));
        }
    }
    runs
}

/// Every run of the program is a sample taken. The events are stopped at the end before the counters
/// are read, so the last look at the kernel's count, while the profiler is stopped, is its last one.
#[test]
fn every_run_is_a_sample_taken() {
    let Some(lab) = lab() else { return };
    let _statistics = Statistics::on();
    let _load =
        [Program::start(&lab.workload("chain12"), &["120"]), Program::start(&lab.workload("brief"), &["100000"])];
    let running = lab.record(&["-a", "-F", "499"]).start();
    running.wait_until_sampling();
    let programs = sampling_programs(running.pid());
    wait_for("a thousand runs", || runs(&programs).unwrap() > 1000);
    let (first, last) = stop_and_count(&running, &programs);
    let profile = running.profile();
    let taken = profile.figure("samples_taken");
    println!("samples taken {taken}; runs before the end {first}, at the end {last:?}");
    assert!(taken >= first, "{taken} samples taken, {first} runs before");
    // Without a later look, the kernel's count can't have grown by more than the time allows.
    let at_most = last.unwrap_or(first + 2 * 499);
    assert!(taken <= at_most, "{taken} samples taken, {at_most} runs");
}

/// Interrupts the recording; the count of runs just before, and the last one that could be had.
fn stop_and_count(running: &Running, programs: &BTreeSet<u32>) -> (u64, Option<u64>) {
    let before = runs(programs).unwrap();
    running.signal(Signal::INT);
    let mut last = None;
    while let Some(now) = runs(programs) {
        last = Some(now);
    }
    (before, last)
}

/// On a CPU that is kept busy, the samples are those that the rate and the time ask for; the kernel
/// skips a few while map updates run on that CPU, and a hypervisor may take the CPU away.
#[test]
fn rate_on_a_busy_cpu() {
    let Some(lab) = lab() else { return };
    let cpu = first_cpu();
    let _load = Program::start("taskset".as_ref(), &["-c", &cpu, lab.workload("chain12").to_str().unwrap(), "120"]);
    let profile = lab.record(&["-a", "-F", "499", "-d", "5s"]).start().profile();
    let on_it = profile.pprof.0.sample.iter().filter(|sample| profile.pprof.labels(sample)["cpu"] == cpu);
    let samples: i64 = on_it.map(|sample| sample.value[0]).sum();
    let due = profile.json["duration_ns"].as_u64().unwrap() as f64 * 499.0 / 1e9;
    println!("{samples} samples on CPU {cpu}, {due:.0} due; {:?}", profile.quality);
    assert!(samples as f64 >= 0.99 * due && samples as f64 <= 1.005 * due, "{samples} samples, {due:.0} due");
    let allowed = profile.figure("missed_by_kernel_uncertainty") + due as u64 / 100;
    assert!(profile.figure("missed_by_kernel") <= allowed, "{:?}", profile.quality);
}

/// The first CPU that this process may use.
fn first_cpu() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    list.split([',', '-']).next().unwrap().to_owned()
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
