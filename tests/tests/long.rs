//! A long recording beside processes, executables and mappings that come and go: it is as complete in its last
//! part as in its first, and the memory of none of its processes grows. A thousand dumps of a server. Run by hand
//! (CONTRIBUTING.md).

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use spanflame_tests::memory::{Reading, Slope, Watch};
use spanflame_tests::system::{Program, cpu_time, runs, state_of_threads, wait_at_most, wait_for};
use spanflame_tests::{Lab, Profile, from_main, lab};

const CHAIN: [&str; 13] = ["f01", "f02", "f03", "f04", "f05", "f06", "f07", "f08", "f09", "f10", "f11", "f12", "leaf"];
const RATE_HZ: f64 = 99.0;
/// The name of the process that records; its workers have others.
const RECORDER: &str = "spanflame";
const MIB: f64 = 1048576.0;
const PARTS: u64 = 5;

/// How much the memory of one process may grow in the second half, by what it keeps of what it sees for the first
/// time: for each of a hundred processes a second some 130 bytes in 150 s, and 6 in an hour. A process that
/// records also keeps the profile: so much for each sample, since each short process has stacks of its own.
const MOST_BYTES: f64 = 1.0 * MIB;
const PROFILE_BYTES: f64 = 128.0;

/// The length of the recording in seconds: 150, or what `SPANFLAME_LONG_S` says.
fn length_s() -> u64 {
    std::env::var("SPANFLAME_LONG_S").map_or(150, |seconds| seconds.parse().unwrap())
}

#[test]
#[ignore = "takes minutes"]
fn last_part_is_as_complete_as_the_first() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    // This process and all that it starts: what else runs here may bring ever new code.
    let running = lab.record(&["-F", "99"]).pid(std::process::id()).start();
    running.wait_until_sampling();
    let beside = churn(&lab, folder.path());
    let memory = Watch::start(running.pid());
    let parts: Vec<_> = (1..=PARTS).map(|number| part(&lab, folder.path(), number)).collect();
    let memory = memory.end();
    running.signal(Signal::INT);
    let profile = running.profile();
    drop(beside);

    println!("{:?}", profile.quality);
    check_memory(&profile, &memory);
    for (number, cpu) in (1..).zip(parts) {
        check_part(&profile, number, cpu);
    }
    assert!(profile.figure("samples_lost") * 1000 <= profile.figure("samples_taken"), "{:?}", profile.quality);
}

/// No process grows; but the recorder by its profile.
fn check_memory(profile: &Profile, memory: &BTreeMap<String, Vec<Reading>>) {
    let hours = profile.json["duration_ns"].as_u64().unwrap() as f64 / 3600e9;
    let most = MOST_BYTES / MIB / (hours / 2.0);
    let of_profile = profile.figure("samples_written") as f64 / hours * PROFILE_BYTES / MIB;
    let mut grown = Vec::new();
    for (name, readings) in memory {
        let Some(slope) = Slope::of_second_half(readings) else { continue };
        let bound = if name == RECORDER { most + of_profile } else { most };
        let last = readings.last().map_or(0.0, |reading| reading.1) / MIB;
        println!("{name}: {last:.1} MiB at the end, {slope} in the second half; at most {bound:.1}");
        if slope.is_above(bound) {
            grown.push(format!("{name}: {slope}, more than {bound:.1}"));
        }
    }
    assert!(grown.is_empty(), "{grown:?}");
    assert!(memory.get(RECORDER).and_then(|readings| Slope::of_second_half(readings)).is_some(), "{memory:?}");
}

/// Mappings that come and go; short processes, each of a new executable; processes that do nothing.
fn churn(lab: &Lab, folder: &Path) -> [Program; 3] {
    let plugin = lab.workload("libplugin.so");
    let mappings = Program::start(&lab.workload("churn"), &["100000", plugin.to_str().unwrap()]);
    let new = folder.join("new");
    let executables = format!(
        "while :; do cp {brief} {new}; {new} 20; rm {new}; done",
        brief = lab.workload("brief").display(),
        new = new.display()
    );
    let shell = |script: &str| Program::start(Path::new("/bin/sh"), &["-c", script]);
    [mappings, shell(&executables), shell("while :; do /bin/true; sleep 0.005; done")]
}

/// Runs a new copy of the program for a part of the time. Returns its CPU time.
fn part(lab: &Lab, folder: &Path, number: u64) -> Duration {
    let seconds = length_s() / PARTS;
    let program = Program::start(&lab.copy("chain12", folder, &process(number)), &[seconds.to_string()]);
    let mut cpu = Duration::ZERO;
    wait_at_most(Duration::from_secs(seconds + 60), "a part of the time to pass", || {
        cpu = cpu_time(program.pid()).unwrap_or_default().max(cpu);
        !runs(program.pid())
    });
    cpu
}

fn process(part: u64) -> String {
    format!("part{part}")
}

/// The chain of a part's program is exact, and its samples are as many as its CPU time asks for.
fn check_part(profile: &Profile, number: u64, cpu: Duration) {
    profile.check_chain(&process(number), &from_main(&CHAIN), 0.995);
    let due = cpu.as_secs_f64() * RATE_HZ;
    let samples = profile.share(&process(number), &[]).all as f64;
    println!("part {number}: {samples} samples, {due:.0} due");
    // Beside other processes that CPU time is in pieces that are shorter than the time between samples:
    // four times the deviation that independent pieces would give.
    let doubt = 4.0 * due.sqrt() / due;
    assert!(samples >= (1.0 - doubt) * due, "part {number}: {samples} samples, {due:.0} due");
}

/// A thousand dumps, each a process of its own, of a server that waits in `epoll_wait`.
#[test]
#[ignore = "takes minutes"]
fn thousand_dumps_interrupt_nothing() {
    let Some(lab) = lab() else { return };
    let mut server = Command::new(lab.workload("epoll"));
    let mut server = server.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    wait_for("the server to wait", || state_of_threads(server.id(), 'S') == 1);
    let started = Instant::now();
    for _ in 0..1000 {
        let thread = lab.dump(&[server.id()], &["--json"]).thread("epoll");
        assert!(thread.lacks().is_none() && thread.user().contains(&"wait_for_event"), "{thread:?}");
    }
    println!("1000 dumps in {:?}", started.elapsed());
    drop(server.stdin.take());
    let mut text = String::new();
    server.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(server.wait().unwrap().success());
    assert_eq!(text, "interrupted 0\n");
}
