//! What can be recorded: running processes, the whole node, families, many short processes.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use spanflame_tests::system::{Program, children, cpu_ticks, descendant, maps, name, output, wait_for};
use spanflame_tests::{ANY, LIBC, Lab, Profile, from_main, lab};

const LEAST: f64 = 0.995;
const CHAIN: [&str; 13] = ["f01", "f02", "f03", "f04", "f05", "f06", "f07", "f08", "f09", "f10", "f11", "f12", "leaf"];

/// Longer than a recording takes to begin.
const LONG: &str = "120";

fn check_chain12(profile: &Profile, process: &str) {
    profile.check_chain(process, &from_main(&CHAIN), LEAST);
}

#[test]
fn running_process() {
    let Some(lab) = lab() else { return };
    let program = Program::start(&lab.workload("chain12"), &[LONG]);
    let other = Program::start(&lab.workload("brief"), &["100000"]);
    let profile = lab.record(&["-F", "499", "-d", "5s"]).pid(program.pid()).start().profile();
    check_chain12(&profile, "chain12");
    assert!(profile.of("brief").is_empty(), "a process that nobody asked for");
    assert!(profile.figure("filtered_process") > 0, "the samples of {} are filtered", other.pid());
}

#[test]
fn two_running_processes() {
    let Some(lab) = lab() else { return };
    let programs =
        [Program::start(&lab.workload("chain12"), &[LONG]), Program::start(&lab.workload("brief"), &["100000"])];
    let [first, second] = programs.each_ref().map(Program::pid);
    let profile = lab.record(&["-F", "499", "-d", "5s"]).pid(first).pid(second).start().profile();
    check_chain12(&profile, "chain12");
    profile.check_chain("brief", &from_main(&["outer", "inner", "leaf"]), LEAST);
}

/// The recording ends by itself when the process has.
#[test]
fn process_that_ends() {
    let Some(lab) = lab() else { return };
    let program = Program::start(&lab.workload("chain12"), &["4"]);
    let profile = lab.record(&["-F", "499"]).pid(program.pid()).start().profile();
    check_chain12(&profile, "chain12");
}

/// The target goes on as if nothing had been there: its answer and its exit code are its own.
#[test]
fn target_is_undisturbed() {
    let Some(lab) = lab() else { return };
    let answer = lab.workload("answer");
    let alone = output(Command::new(&answer).args(["100", "0"]));
    let mut command = Command::new(&answer);
    let program = Program::spawn(command.args(["100", "7"]).stdout(std::process::Stdio::piped()));
    let profile = lab.record(&["-F", "999", "-d", "500ms"]).pid(program.pid()).start().profile();
    assert!(profile.figure("samples_written") > 0);
    let (status, text) = program.end();
    assert_eq!((status.code(), text), (Some(7), alone));
}

#[test]
fn whole_node() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let alpha = Program::start(&lab.copy("chain12", folder.path(), "alpha"), &[LONG]);
    let beta = Program::start(&lab.copy("chain12", folder.path(), "beta"), &[LONG]);
    let profile = lab.record(&["-a", "-F", "499", "-d", "6s"]).start().profile();
    check_chain12(&profile, "alpha");
    check_chain12(&profile, "beta");
    assert_eq!(profile.figure("filtered_process"), 0);
    let pids = pids(&profile);
    for pid in [alpha.pid(), beta.pid()] {
        assert!(pids.contains(&pid.to_string()), "{pid} in {pids:?}");
    }
    assert!(!pids.contains("0"), "the idle task is left out");
}

#[test]
fn children_are_followed() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&["-F", "499"]).of(&lab.workload("family"), &["1500"]).profile();
    let (parent, child) = (from_main(&["parent_outer", "parent_leaf"]), from_main(&["child_outer", "child_leaf"]));
    profile.check_chains("family", &[&parent, &child], LEAST);
    let share = profile.share("family", &[&child]);
    assert!((0.6..0.72).contains(&share.part()), "two thirds are the children's: {share:?}");
    assert_eq!(pids(&profile).len(), 3);
}

#[test]
fn children_are_left_out() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&["-F", "499", "--no-children"]).of(&lab.workload("family"), &["3000"]).profile();
    profile.check_chain("family", &from_main(&["parent_outer", "parent_leaf"]), LEAST);
    assert_eq!(pids(&profile).len(), 1);
    assert!(profile.figure("filtered_process") > 500, "{:?}", profile.quality);
}

/// Children that are there already when the recording begins.
#[test]
fn children_of_a_running_process() {
    let Some(lab) = lab() else { return };
    let chain12 = lab.workload("chain12");
    let script = format!("{0} {LONG} & {0} {LONG} & wait", chain12.display());
    let shell = Program::start(Path::new("/bin/sh"), &["-c", &script]);
    wait_for("the children", || children(shell.pid()).len() == 2);
    let profile = lab.record(&["-F", "499", "-d", "4s"]).pid(shell.pid()).start().profile();
    check_chain12(&profile, "chain12");
    assert_eq!(pids(&profile).len(), 2);
    for child in children(shell.pid()) {
        kill_process(Pid::from_raw(child.cast_signed()).unwrap(), Signal::KILL).unwrap();
    }
}

fn pids(profile: &Profile) -> BTreeSet<String> {
    profile.pprof.0.sample.iter().map(|sample| profile.pprof.labels(sample)["pid"].clone()).collect()
}

/// Sixty processes of 150 ms each, one after the other.
#[test]
fn short_processes() {
    let Some(lab) = lab() else { return };
    let script = format!("for i in $(seq 60); do {} 150; done", lab.workload("brief").display());
    let profile = lab.record(&["-F", "499"]).of(Path::new("/bin/sh"), &["-c", &script]).profile();
    profile.check_chain("brief", &from_main(&["outer", "inner", "leaf"]), 0.95);
    assert!(profile.share("brief", &[]).all > 2000, "60 x 150 ms x 499 Hz: {:?}", profile.share("brief", &[]));
}

/// A process whose first thread has ended: its own entry in /proc shows no mappings any more.
#[test]
fn process_without_its_first_thread() {
    let Some(lab) = lab() else { return };
    let program = Program::start(&lab.workload("leaderless"), &["100000"]);
    let zombie = || fs::read_to_string(format!("/proc/{}/stat", program.pid())).is_ok_and(|stat| stat.contains(") Z "));
    wait_for("the first thread to end", zombie);
    let profile = lab.record(&["-F", "499", "-d", "4s"]).pid(program.pid()).start().profile();
    profile.check_chain("leaderless", &[LIBC, LIBC, "heir", "outer", "leaf"], LEAST);
}

/// More changes of mappings than can be told: what can't be known is cut, the rest is right.
#[test]
fn storm_of_mappings() {
    let Some(lab) = lab() else { return };
    let plugin = lab.workload("libplugin.so");
    let profile = lab.record(&["-F", "499"]).of(&lab.workload("storm"), &["5000", plugin.to_str().unwrap()]).profile();
    println!("{:?}", profile.quality);
    let chain = from_main(&["outer", "leaf"]);
    let working: u64 = profile.of("storm").iter().filter(|stack| stack.holds("leaf")).map(|stack| stack.samples).sum();
    let right = profile.share("storm", &[&chain]).right;
    println!("{right} of {working} samples at work have the chain");
    assert!(working >= 200 && right * 1000 >= working * 995, "{right} of {working}");
    let share = profile.share("storm", &[&chain, &from_main(&["storm", ANY])]);
    assert!(share.part() >= LEAST, "{share:?} {:?}", profile.quality);
}

/// The profiler is stopped until records of mappings are lost, among them that of a library: it reads
/// /proc again and goes on.
#[test]
fn lost_records_of_mappings() {
    let Some(lab) = lab() else { return };
    let plugin = lab.workload("libplugin.so");
    let (host, storm) = (lab.workload("host"), lab.workload("storm"));
    let [host, storm, plugin] = [&host, &storm, &plugin].map(|path| path.display());
    let script = format!("{storm} 8000 {plugin} & {host} 8000 {plugin} & wait");
    let running = lab.record(&["-F", "199"]).of(Path::new("/bin/sh"), &["-c", &script]);
    running.wait_until_sampling();
    let pid_of = |program: &str| {
        wait_for(program, || descendant(running.pid(), program).is_some());
        descendant(running.pid(), program).unwrap()
    };
    let (host, storm) = (pid_of("host"), pid_of("storm"));
    running.signal(Signal::STOP);
    let before = cpu_ticks(storm);
    // Hundreds of thousands of mappings: more records than the rings hold.
    wait_for("the storm", || cpu_ticks(storm) > before + 100);
    wait_for("the library to be loaded", || maps(host, "libplugin.so"));
    running.signal(Signal::CONT);
    let profile = running.profile();
    println!("{:?}", profile.quality);
    assert!(profile.figure("sideband_full") > 0, "{:?}", profile.quality);
    let before = from_main(&["host_leaf"]);
    let after = from_main(&["call", "plugin_entry", "plugin_middle", "plugin_leaf"]);
    profile.check_chains("host", &[&before, &after], LEAST);
    assert!(profile.share("host", &[&after]).part() > 0.6, "{:?}", profile.share("host", &[&after]));
}

/// Fifty programs, each a file of its own: nothing fills up.
#[test]
fn many_executables() {
    const PROGRAMS: usize = 50;
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    for number in 0..PROGRAMS {
        let _copy = lab.copy("brief", folder.path(), &format!("copy{number}"));
    }
    let script = format!("for i in $(seq 0 {}); do {}/copy$i 100; done", PROGRAMS - 1, folder.path().display());
    let profile = lab.record(&["-F", "499"]).of(Path::new("/bin/sh"), &["-c", &script]).profile();
    let chain = from_main(&["outer", "inner", "leaf"]);
    let shares: Vec<_> = (0..PROGRAMS).map(|number| profile.share(&format!("copy{number}"), &[&chain])).collect();
    for share in &shares {
        assert!(share.all >= 20 && share.part() >= 0.8, "{share:?} of {shares:?}");
    }
    let (right, all) = shares.iter().fold((0, 0), |(right, all), share| (right + share.right, all + share.all));
    println!("{right} of {all} samples have the chain");
    assert!(right * 100 >= all * 95, "{right} of {all} samples have the chain");
}

/// A program that was written a moment ago, and whose first segment is code: the kernel's record of its
/// mapping has the range of the whole image.
#[test]
fn executable_that_was_just_built() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = lab.copy("chain12-code", folder.path(), "fresh");
    let profile = lab.record(&["-F", "499"]).of(&file, &["3"]).profile();
    check_chain12(&profile, "fresh");
}

/// A program whose file was removed while it runs.
#[test]
fn deleted_executable() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = lab.copy("chain12", folder.path(), "deleted");
    let program = Program::start(&file, &[LONG]);
    wait_for("the program to start", || name(program.pid()).as_deref() == Some("deleted"));
    fs::remove_file(file).unwrap();
    let profile = lab.record(&["-F", "499", "-d", "4s"]).pid(program.pid()).start().profile();
    check_chain12(&profile, "deleted");
}

/// A file that is written over with another program when the one before has run: none has the other's names.
/// What can't be told any more has none.
#[test]
fn executable_that_is_written_over() {
    const RUNS: u64 = 8;
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = lab.copy("brief", folder.path(), "written");
    let script = format!(
        "for i in $(seq {RUNS}); do cat {one} > {file}; {file} 100; cat {other} > {file}; {file} 100; done",
        one = lab.workload("brief").display(),
        other = lab.workload("brief-twin").display(),
        file = file.display(),
    );
    let profile = lab.record(&["-F", "499"]).of(Path::new("/bin/sh"), &["-c", &script]).profile();
    let sum = |leaf: &str| -> u64 {
        profile.of("written").iter().filter(|stack| stack.holds(leaf)).map(|stack| stack.samples).sum()
    };
    let (one, other, all) = (sum("leaf"), sum("twin_leaf"), profile.share("written", &[]).all);
    println!("{one} in leaf, {other} in twin_leaf, {all} in all");
    let due = RUNS * 499 / 10;
    assert!(all >= 2 * due * 9 / 10, "{all} of {}", 2 * due);
    assert!(one <= due * 11 / 10 && other <= due * 11 / 10, "{one} and {other} samples, {due} are due for each");
}

/// Another program takes the place of the file while the one before runs; then it runs, too.
#[test]
fn executable_that_is_renamed_over() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = lab.copy("chain12", folder.path(), "replaced");
    let next = lab.copy("brief", folder.path(), "next");
    let older = Program::start(&file, &[LONG]);
    wait_for("the program to start", || name(older.pid()).as_deref() == Some("replaced"));
    let running = lab.record(&["-a", "-F", "499", "-d", "6s"]).start();
    running.wait_until_sampling();
    let before = cpu_ticks(older.pid());
    wait_for("samples of the program", || cpu_ticks(older.pid()) > before + 50);
    fs::rename(next, &file).unwrap();
    let _younger = Program::start(&file, &["100000"]);
    let profile = running.profile();
    let (older, younger) = (from_main(&CHAIN), from_main(&["outer", "inner", "leaf"]));
    profile.check_chains("replaced", &[&older, &younger], LEAST);
    for chain in [&older, &younger] {
        assert!(profile.share("replaced", &[chain]).part() > 0.2, "{chain:?}: {:?}", profile.of("replaced"));
    }
}

/// A volume that is detached from a program's mount namespace before it is recorded, and meanwhile: no path
/// leads to its file any more, in no namespace.
#[test]
fn executable_of_a_detached_volume() {
    let Some(lab) = lab() else { return };
    for is_recorded in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let [volume, go, done] = ["volume", "go", "done"].map(|name| folder.path().join(name));
        fs::create_dir(&volume).unwrap();
        let script = format!(
            "mount -t tmpfs none {volume} && cp {program} {volume}/detached || exit 1
             (until [ -e {go} ] && [ \"$(cat /proc/$$/comm)\" = detached ]; do [ -e {folder} ] || exit; sleep 0.05; done
             umount -l {volume} && : > {done}) & exec {volume}/detached {LONG}",
            folder = folder.path().display(),
            volume = volume.display(),
            program = lab.workload("chain12").display(),
            go = go.display(),
            done = done.display(),
        );
        let program = Program::start(Path::new("unshare"), &["-m", "sh", "-c", &script]);
        wait_for("the program to start", || name(program.pid()).as_deref() == Some("detached"));
        let detach = || {
            fs::write(&go, "").unwrap();
            wait_for("the volume to be detached", || done.exists());
        };
        if !is_recorded {
            detach();
        }
        let running = lab.record(&["-F", "499", "-d", "4s"]).pid(program.pid()).start();
        if is_recorded {
            running.wait_until_sampling();
            detach();
        }
        check_chain12(&running.profile(), "detached");
    }
}

/// A program in a mount namespace of its own; here its path leads to another program.
#[test]
fn other_mount_namespace() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let decoy = lab.copy("brief", folder.path(), "hidden");
    let program = in_mount_namespace(&lab, &decoy);
    let profile = lab.record(&["-F", "499", "-d", "4s"]).pid(program.pid()).start().profile();
    check_chain12(&profile, "hidden");
}

/// Such programs that end before the recording does, started while it goes on.
#[test]
fn short_processes_in_other_mount_namespaces() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let decoy = lab.copy("chain12", folder.path(), "hidden");
    let script = format!(
        "for i in $(seq 10); do unshare -m sh -c 'mount -t tmpfs none {folder} && cp {program} {decoy} && exec {decoy} 300'; done",
        folder = folder.path().display(),
        program = lab.workload("brief").display(),
        decoy = decoy.display(),
    );
    let profile = lab.record(&["-F", "499"]).of(Path::new("/bin/sh"), &["-c", &script]).profile();
    profile.check_chain("hidden", &from_main(&["outer", "inner", "leaf"]), 0.95);
}

/// Starts `chain12` at a path that leads elsewhere for everyone else.
fn in_mount_namespace(lab: &Lab, path: &Path) -> Program {
    let script = format!(
        "mount -t tmpfs none {folder} && cp {program} {path} && exec {path} {LONG}",
        folder = path.parent().unwrap().display(),
        program = lab.workload("chain12").display(),
        path = path.display(),
    );
    let program = Program::start(Path::new("unshare"), &["-m", "sh", "-c", &script]);
    wait_for("the program to start", || name(program.pid()).as_deref() == Some("hidden"));
    program
}
