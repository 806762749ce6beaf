//! Processes that live for some milliseconds, hundreds of them a second on CPUs that are busy: their stacks
//! are whole, and none is that of the program that was there before.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rustix::process::Signal;
use spanflame_tests::system::{cpu_ticks, descendant, wait_for};
use spanflame_tests::{Lab, Profile, Running, Share, from_main, lab};

/// The process id before the one that the next process gets (Linux, Documentation/admin-guide/sysctl/kernel.rst).
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

/// Samples a second: a life of 10 ms has some.
const OPTIONS: [&str; 2] = ["-F", "999"];

/// Four loops of lives: a program, and one that becomes it in the same process, each for 10 ms of CPU time.
/// Beside them two programs that would take both CPUs for themselves.
fn lives(lab: &Lab, rounds: u32) -> String {
    let [brief, other, busy] = ["brief", "become", "chain12"].map(|name| lab.workload(name));
    let [brief, other, busy] = [&brief, &other, &busy].map(|path| path.display());
    format!(
        "for loop in 1 2 3 4; do \
         (for life in $(seq {rounds}); do {brief} 10; {other} 10 {brief} 10; done) & \
         loops=\"$loops $!\"; done; \
         {busy} 60000 & first=$!; {busy} 60000 & second=$!; \
         wait $loops; kill $first $second"
    )
}

/// What the two programs do when they are at work.
const WORK: [(&str, [&str; 3]); 2] =
    [("brief", ["outer", "inner", "leaf"]), ("become", ["first_outer", "first_middle", "first_leaf"])];

/// The samples of a process and those of them that are complete. Those in its leaf have its chain, if they
/// are complete, and none is in functions of the other program.
fn check_own_stacks(profile: &Profile, process: &str) -> Share {
    let mut share = Share { right: 0, all: 0 };
    for stack in profile.of(process) {
        for (program, functions) in WORK {
            if program == process {
                let whole = stack.incomplete.is_none() && stack.holds(functions[2]);
                assert!(!whole || stack.is(&from_main(&functions)), "{process}: {stack:?}");
            } else {
                assert!(
                    !functions.iter().any(|name| stack.holds(name)),
                    "{process} has stacks of {program}: {stack:?}"
                );
            }
        }
        share.all += stack.samples;
        share.right += if stack.incomplete.is_none() { stack.samples } else { 0 };
    }
    println!("{process}: {share:?} are complete, {:.2}%", 100.0 * share.part());
    assert!(share.all >= 200, "{process}: {share:?}");
    share
}

#[test]
fn hundreds_a_second_on_busy_cpus() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&OPTIONS).of(Path::new("/bin/sh"), &["-c", &lives(&lab, 60)]).profile();
    for (process, _functions) in WORK {
        let share = check_own_stacks(&profile, process);
        assert!(share.part() >= 0.95, "{process}: {share:?} {:?}", profile.quality);
    }
}

/// A process that is one program, then the other, then the first one again, and so on. The time of its thread
/// goes on: so each life ends some milliseconds later than the one before.
fn chain(lab: &Lab, execs: u32, life_ms: u32) -> Vec<String> {
    let programs = ["become", "brief"].map(|name| lab.workload(name).display().to_string());
    let life = |number: u32| [programs[number as usize % 2].clone(), ((number + 1) * life_ms).to_string()];
    (0..execs).flat_map(life).collect()
}

/// The share of complete samples, of each program.
fn check_chain(lab: &Lab, arguments: &[&str], life_ms: u32) {
    let mut command: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    command.extend(chain(lab, 300, life_ms));
    let profile = lab.record(&OPTIONS).of(Path::new(&command[0]), &command[1..]).profile();
    for (process, _functions) in WORK {
        let share = check_own_stacks(&profile, process);
        assert!(share.part() >= 0.97, "{process}: {share:?} {:?}", profile.quality);
    }
}

#[test]
fn hundreds_of_programs_in_one_process() {
    let Some(lab) = lab() else { return };
    check_chain(&lab, &[], 5);
}

/// Both programs, the C library and the stack are where they were in the program before.
#[test]
fn programs_at_the_same_addresses() {
    let Some(lab) = lab() else { return };
    check_chain(&lab, &["/usr/bin/setarch", "-R"], 5);
}

/// Each life has the process id of the one before, which was the other program.
#[test]
fn process_ids_that_are_used_again() {
    let Some(lab) = lab() else { return };
    let [brief, other] = ["brief", "become"].map(|name| lab.workload(name));
    let script = format!(
        "for life in $(seq 150); do for program in {} {}; do echo 20000 >{LAST_PID}; $program 10; done; done; :",
        brief.display(),
        other.display()
    );
    let profile = lab.record(&OPTIONS).of(Path::new("/bin/sh"), &["-c", &script]).profile();
    let mut pids = WORK.map(|_program| BTreeSet::new());
    for sample in &profile.pprof.0.sample {
        let labels = profile.pprof.labels(sample);
        for ((process, _functions), pids) in WORK.iter().zip(&mut pids) {
            if labels["comm"] == *process {
                pids.insert(labels["pid"].clone());
            }
        }
    }
    assert!(pids[0].intersection(&pids[1]).count() > 0, "no process id was used twice: {pids:?}");
    assert!(pids[0].len() < 100, "they were not used again: {pids:?}");
    for (process, _functions) in WORK {
        let share = check_own_stacks(&profile, process);
        assert!(share.part() >= 0.95, "{process}: {share:?} {:?}", profile.quality);
    }
}

/// Each life is that of a file that was written just before and stays, but the process is gone when its record is read.
#[test]
fn programs_that_run_once() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [brief, other] = ["brief", "become"].map(|name| lab.workload(name));
    let script = format!(
        "cd {}; for life in $(seq 100); do mkdir $life; \
         cp {} $life/brief; $life/brief 5; cp {} $life/become; $life/become 5; done; :",
        folder.path().display(),
        brief.display(),
        other.display()
    );
    let profile = lab.record(&OPTIONS).of(Path::new("/bin/sh"), &["-c", &script]).profile();
    for (process, _functions) in WORK {
        let share = check_own_stacks(&profile, process);
        assert!(share.part() >= 0.95, "{process}: {share:?} {:?}", profile.quality);
    }
}

/// Each life is that of a new copy, at another address: the profile has them all as one program.
#[test]
fn copies_of_one_program() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [brief, copy] = [lab.workload("brief"), folder.path().join("brief")].map(|path| path.display().to_string());
    let script = format!("for life in $(seq 100); do cp {brief} {copy}; {copy} 20; rm {copy}; done; :");
    let profile = lab.record(&OPTIONS).of(Path::new("/bin/sh"), &["-c", &script]).profile();
    let share = check_own_stacks(&profile, "brief");
    assert!(share.part() >= 0.95, "{share:?} {:?}", profile.quality);
    let pprof = &profile.pprof.0;
    let text = |index: i64| pprof.string_table[usize::try_from(index).unwrap()].as_str();
    // A copy that could not be read in time has no build id.
    let read =
        pprof.mapping.iter().filter(|mapping| text(mapping.filename) == copy && !text(mapping.build_id).is_empty());
    let read: Vec<_> = read.collect();
    assert!(matches!(read[..], [_one]), "{read:x?}");
}

/// Each life is that of a new file, unwound from copies of its stack; and of that pages are missing between a frame and
/// its callers, since nobody has touched them.
#[test]
fn frames_with_pages_that_are_not_there() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [roomy, copy] = [lab.workload("roomy"), folder.path().join("roomy")].map(|path| path.display().to_string());
    let script = format!("for life in $(seq 60); do cp {roomy} {copy}; {copy} 20; rm {copy}; done; :");
    let profile = lab.record(&OPTIONS).of(Path::new("/bin/sh"), &["-c", &script]).profile();
    let chain = from_main(&["larger", "middle", "large", "leaf"]);
    let mut share = Share { right: 0, all: 0 };
    for stack in profile.of("roomy") {
        let whole = stack.incomplete.is_none();
        assert!(!whole || !stack.holds("leaf") || stack.is(&chain), "{stack:?}");
        share.all += stack.samples;
        share.right += if whole { stack.samples } else { 0 };
    }
    println!("{share:?} are complete, {:.2}%", 100.0 * share.part());
    assert!(share.all >= 200 && share.part() >= 0.95, "{share:?} {:?}", profile.quality);
}

/// Each life is that of one of two programs that have the same path, build id and size, and other names.
#[test]
fn programs_that_look_alike() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let brief = lab.workload("brief");
    let mut bytes = fs::read(&brief).unwrap();
    let names: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"inner\0")).collect();
    assert!(!names.is_empty());
    names.into_iter().for_each(|at| bytes[at..][..5].copy_from_slice(b"other"));
    let [alike, copy] = ["alike", "brief"].map(|name| folder.path().join(name));
    fs::copy(&brief, &alike).unwrap();
    fs::write(&alike, bytes).unwrap();
    let (brief, alike, copy) = (brief.display(), alike.display(), copy.display());
    let script = format!(
        "cp {brief} {copy}; for life in $(seq 30); do \
         for program in {brief} {alike}; do cp $program {copy}.new; mv {copy}.new {copy}; {copy} 20; done; done; :"
    );
    let profile = lab.record(&OPTIONS).of(Path::new("/bin/sh"), &["-c", &script]).profile();
    let share =
        profile.share("brief", &[&from_main(&["outer", "inner", "leaf"]), &from_main(&["outer", "other", "leaf"])]);
    for name in ["inner", "other"] {
        let of_program = profile.share("brief", &[&from_main(&["outer", name, "leaf"])]);
        println!("{name}: {of_program:?}");
        assert!(of_program.right * 3 > share.right && share.right > 100, "{name}: {of_program:?} of {share:?}");
    }
}

/// Both programs are written into the same file in turn, each when the one before has ended. What can't be read any more
/// is cut.
#[test]
fn programs_written_over_each_other() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = lab.copy("brief", folder.path(), "brief");
    fs::hard_link(&file, folder.path().join("become")).unwrap();
    let [brief, other] = ["brief", "become"].map(|name| lab.workload(name));
    let script = format!(
        "cd {}; for life in $(seq 120); do \
         cat {} >brief; ./brief 5; cat {} >become; ./become 5; done; :",
        folder.path().display(),
        brief.display(),
        other.display()
    );
    let profile = lab.record(&OPTIONS).of(Path::new("/bin/sh"), &["-c", &script]).profile();
    for (process, _functions) in WORK {
        let share = check_own_stacks(&profile, process);
        assert!(share.part() >= 0.1, "{process}: {share:?} {:?}", profile.quality);
    }
}

/// The profiler stands still until records of such lives are lost. What lived and ended meanwhile can't be
/// known any more: its stacks are cut, but never wrong, and every sample is counted.
#[test]
fn records_of_short_lives_are_lost() {
    let Some(lab) = lab() else { return };
    let [storm, plugin] = ["storm", "libplugin.so"].map(|name| lab.workload(name));
    let script = format!("{} 6000 {} & {}", storm.display(), plugin.display(), lives(&lab, 60));
    let profile = losing_records(lab.record(&OPTIONS).of(Path::new("/bin/sh"), &["-c", &script]), &[100]);
    for (process, _functions) in WORK {
        check_own_stacks(&profile, process);
    }
}

/// What is left of a recording that runs `storm`, when the profiler stands still so long, in ticks of the storm's time,
/// that records are lost.
fn losing_records(running: Running, stands_still: &[u64]) -> Profile {
    running.wait_until_sampling();
    wait_for("the storm", || descendant(running.pid(), "storm").is_some());
    let storm = descendant(running.pid(), "storm").unwrap();
    for ticks in stands_still {
        let before = cpu_ticks(storm);
        wait_for("some records", || cpu_ticks(storm) > before + 30);
        running.signal(Signal::STOP);
        wait_for("enough records", || cpu_ticks(storm) > before + 30 + ticks);
        running.signal(Signal::CONT);
    }
    let profile = running.profile();
    println!("{:?}", profile.quality);
    assert!(profile.figure("sideband_full") > 0, "{:?}", profile.quality);
    profile
}

/// Of lives that are asked for by name nothing is left out as if it was known not to be asked for.
#[test]
fn records_of_selected_lives_are_lost() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [storm, plugin, brief] = ["storm", "libplugin.so", "brief"].map(|name| lab.workload(name));
    let [storm, plugin, brief] = [&storm, &plugin, &brief].map(|path| path.display());
    let times = folder.path().join("times");
    // When the storm is over its program can't be seen any more.
    let script =
        format!("{storm} 6000 {plugin} & (while [ -e /proc/$!/exe ]; do {brief} 20; done; times) >{}", times.display());
    let record = lab.record(&["-F", "499", "--name", "^brief$"]);
    let profile = losing_records(record.of(Path::new("/bin/sh"), &["-c", &script]), &[60; 5]);
    // POSIX, `times`: the shell's own in the first line, that of its children in the second, each as `1m2.34s`.
    let times = fs::read_to_string(times).unwrap();
    let seconds = |time: &str| {
        let (minutes, seconds) = time.trim_end_matches('s').split_once('m').unwrap();
        minutes.parse::<f64>().unwrap() * 60.0 + seconds.parse::<f64>().unwrap()
    };
    let expected = 499.0 * times.lines().nth(1).unwrap().split_whitespace().map(seconds).sum::<f64>();
    let samples: u64 = profile.of("brief").iter().map(|stack| stack.samples).sum();
    let unknown = profile.figure("filtered_unknown") + profile.figure("lost_ring_full");
    println!("{samples} samples, {expected:.0} expected, of {unknown} nothing is known");
    assert!(
        samples as f64 >= expected * 0.25 && (samples + unknown) as f64 >= expected * 0.88,
        "{:?}",
        profile.quality
    );
    assert!(profile.stacks.iter().all(|stack| stack.process == "brief"), "{:?}", profile.stacks);
}
