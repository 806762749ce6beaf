//! What the profiler learns late: samples wait until it is known what they were taken of.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use spanflame_tests::system::{children, cpu_ticks, descendant, name, runs, wait_for};
use spanflame_tests::{LIBC, from_main, lab};

/// The worker that builds unwind tables stands still until the programs are long gone.
#[test]
fn tables_that_come_when_the_process_is_gone() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [go, done] = ["go", "done"].map(|name| folder.path().join(name));
    let script = format!(
        "until [ -e {go} ]; do sleep 0.1; done; {brief} 300; {brief} 300; sleep 8; : > {done}; sleep 1",
        go = go.display(),
        done = done.display(),
        brief = lab.workload("brief").display(),
    );
    let running = lab.record(&["-F", "499"]).of(Path::new("/bin/sh"), &["-c", &script]);
    running.wait_until_sampling();
    let find = || children(running.pid()).into_iter().find(|pid| name(*pid).as_deref() == Some("spanflame:table"));
    wait_for("the worker", || find().is_some());
    let worker = Pid::from_raw(i32::try_from(find().unwrap()).unwrap()).unwrap();
    kill_process(worker, Signal::STOP).unwrap();
    fs::write(&go, "").unwrap();
    wait_for("the programs to be gone for a while", || done.exists());
    kill_process(worker, Signal::CONT).unwrap();
    let profile = running.profile();
    profile.check_chain("brief", &from_main(&["outer", "inner", "leaf"]), 0.97);
}

/// The first thread has ended; what another one loads is unwound in the kernel all the same.
#[test]
fn library_loaded_after_the_first_thread_ended() {
    let Some(lab) = lab() else { return };
    let plugin = lab.workload("libplugin.so");
    let profile = lab.record(&["-F", "499"]).of(&lab.workload("leaderless"), &["8000", plugin.to_str().unwrap()]);
    let profile = profile.profile();
    let start = [LIBC, LIBC, "heir"];
    let before = [start.as_slice(), &["outer", "leaf"]].concat();
    let after = [start.as_slice(), &["roomy", "plugin_entry", "plugin_middle", "plugin_leaf"]].concat();
    // Up to a tick passes until the kernel knows the library, and the copy of such a stack is too short: 52
    // samples of 4000.
    profile.check_chains("leaderless", &[&before, &after], 0.98);
    assert!(profile.share("leaderless", &[&after]).part() > 0.3, "{:?}", profile.share("leaderless", &[&after]));
}

/// The record of an exec is lost: name and code are the new program's as soon as /proc was read again.
#[test]
fn lost_record_of_an_exec() {
    let Some(lab) = lab() else { return };
    let [storm, plugin, next] = ["storm", "libplugin.so", "brief"].map(|name| lab.workload(name));
    let [storm, plugin, next] = [&storm, &plugin, &next].map(|path| path.display());
    let script = format!("{storm} 2000 {plugin}; {storm} 4000 {plugin} & exec {next} 5000");
    let running = lab.record(&["-F", "99"]).of(Path::new("/bin/sh"), &["-c", &script]);
    running.wait_until_sampling();
    let find = |program| descendant(running.pid(), program);
    wait_for("the storm", || find("storm").is_some());
    running.signal(Signal::STOP);
    wait_for("the exec", || find("brief").is_some());
    running.signal(Signal::CONT);
    let profile = running.profile();
    assert!(profile.figure("sideband_full") > 0, "{:?}", profile.quality);
    profile.check_chain("brief", &from_main(&["outer", "inner", "leaf"]), 0.97);
    let old_name = profile.of("sh").into_iter().filter(|stack| stack.holds("leaf")).count();
    assert_eq!(old_name, 0, "samples of the new program under the old one's name");
}

/// A process that has ended and was not waited for shows no mappings: it had them to its end all the same.
#[test]
fn lost_records_while_a_process_becomes_a_zombie() {
    let Some(lab) = lab() else { return };
    let [storm, plugin, program] = ["storm", "libplugin.so", "brief"].map(|name| lab.workload(name));
    let [storm, plugin, program] = [&storm, &plugin, &program].map(|path| path.display());
    // A storm does not wait for the child that it did not start.
    let script = format!("{program} 3000 & exec {storm} 6000 {plugin}");
    let running = lab.record(&["-F", "99"]).of(Path::new("/bin/sh"), &["-c", &script]);
    running.wait_until_sampling();
    let find = |program| descendant(running.pid(), program);
    wait_for("the program", || find("brief").is_some() && find("storm").is_some());
    let brief = find("brief").unwrap();
    let storm = find("storm").unwrap();
    running.signal(Signal::STOP);
    let before = cpu_ticks(storm);
    wait_for("more records than the rings hold", || cpu_ticks(storm) > before + 100);
    wait_for("the program to end", || !runs(brief));
    running.signal(Signal::CONT);
    let profile = running.profile();
    assert!(profile.figure("sideband_full") > 0, "{:?}", profile.quality);
    profile.check_chain("brief", &from_main(&["outer", "inner", "leaf"]), 0.97);
}
