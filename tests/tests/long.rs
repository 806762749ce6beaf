//! A recording of ten minutes beside processes, executables and mappings that come and go: it is as
//! complete in its last minute as in its first. A thousand dumps of a server. Run by hand (CONTRIBUTING.md).

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use spanflame_tests::system::{
    Program, children, cpu_time, resident_bytes, runs, state_of_threads, wait_at_most, wait_for,
};
use spanflame_tests::{Lab, Profile, from_main, lab};

const CHAIN: [&str; 13] = ["f01", "f02", "f03", "f04", "f05", "f06", "f07", "f08", "f09", "f10", "f11", "f12", "leaf"];
const RATE_HZ: f64 = 99.0;
const MINUTES: usize = 10;
const MIB: f64 = 1048576.0;

/// The length of a minute in seconds: 60, or what `SPANFLAME_MINUTE_S` says.
fn minute_s() -> u64 {
    std::env::var("SPANFLAME_MINUTE_S").map_or(60, |seconds| seconds.parse().unwrap())
}

/// What is known of a minute beside the profile.
#[derive(Clone, Copy, Debug)]
struct Minute {
    /// The CPU time of its program.
    cpu: Duration,
    /// The resident memory of all processes of the profiler, at the end of the minute.
    resident_bytes: u64,
}

#[test]
#[ignore = "takes ten minutes"]
fn last_minute_is_as_complete_as_the_first() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let running = lab.record(&["-a", "-F", "99"]).start();
    running.wait_until_sampling();
    let beside = churn(&lab, folder.path());
    let minutes: Vec<_> = (1..=MINUTES).map(|number| minute(&lab, folder.path(), number, running.pid())).collect();
    running.signal(Signal::INT);
    let profile = running.profile();
    drop(beside);

    println!("{:?}", profile.quality);
    for (index, minute) in minutes.iter().enumerate() {
        check_minute(&profile, index + 1, minute);
    }
    assert_eq!(profile.figure("lost_unaccounted"), 0);
    assert!(profile.figure("samples_lost") * 1000 <= profile.figure("samples_taken"), "{:?}", profile.quality);
    check_memory(&profile, &minutes);
}

/// The memory grows with the profile only: each short process has stacks of its own. Files that are
/// being read come and go.
fn check_memory(profile: &Profile, minutes: &[Minute]) {
    const PROFILE_BYTES: f64 = 1024.0;
    const FILES_BYTES: f64 = 64.0 * MIB;
    let [_, second, .., last] = minutes else { return };
    let samples = profile.figure("samples_taken") as f64 * (MINUTES - 2) as f64 / MINUTES as f64;
    let (before, after) = (second.resident_bytes as f64, last.resident_bytes as f64);
    println!("{:.1} MiB after minute 2, {:.1} MiB at the end", before / MIB, after / MIB);
    assert!(after <= before + FILES_BYTES + PROFILE_BYTES * samples, "{samples} samples since minute 2");
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

/// Runs a new copy of the program for a minute.
fn minute(lab: &Lab, folder: &Path, number: usize, profiler: u32) -> Minute {
    let program = Program::start(&lab.copy("chain12", folder, &process(number)), &[minute_s().to_string()]);
    let mut cpu = Duration::ZERO;
    wait_at_most(Duration::from_secs(minute_s() + 60), "a minute to pass", || {
        cpu = cpu_time(program.pid()).unwrap_or_default().max(cpu);
        !runs(program.pid())
    });
    let own = [profiler].into_iter().chain(children(profiler));
    Minute { cpu, resident_bytes: own.filter_map(resident_bytes).sum() }
}

fn process(minute: usize) -> String {
    format!("minute{minute}")
}

/// The chain of a minute's program is exact, and its samples are as many as its CPU time asks for.
fn check_minute(profile: &Profile, number: usize, minute: &Minute) {
    profile.check_chain(&process(number), &from_main(&CHAIN), 0.995);
    let due = minute.cpu.as_secs_f64() * RATE_HZ;
    let samples = profile.share(&process(number), &[]).all as f64;
    println!("minute {number}: {samples} samples, {due:.0} due, {:.1} MiB", minute.resident_bytes as f64 / MIB);
    // Beside other processes that CPU time is in pieces that are shorter than the time between samples:
    // four times the deviation that independent pieces would give.
    let doubt = 4.0 * due.sqrt() / due;
    assert!(samples >= (1.0 - doubt) * due, "minute {number}: {samples} samples, {due:.0} due");
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
