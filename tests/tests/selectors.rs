//! Processes that are named by what they are: by name, unit, container and control group; present ones and those to
//! come, and none beside them.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use spanflame_tests::cgroup::{Cgroup, enter, shell_in};
use spanflame_tests::system::{Program, children, name, state_of_threads, wait_for};
use spanflame_tests::{Lab, Profile, Running, lab};

/// Longer than a test takes.
const FOR_LONG_MS: &str = "600000";

/// The name of a program file, of which a process's name has the first 15 bytes.
const LONG_NAME: &str = "selected-by-a-long-name";
const LONG_COMM: &str = "selected-by-a-l";

const CONTAINER: &str = "5a1ec7ed0123456789abcdef0123456789abcdef0123456789abcdef01234567";

fn processes(profile: &Profile) -> BTreeSet<&str> {
    profile.stacks.iter().map(|stack| stack.process.as_str()).collect()
}

fn samples(profile: &Profile, process: &str) -> u64 {
    profile.of(process).iter().map(|stack| stack.samples).sum()
}

/// A recording with these arguments that has begun.
fn begun(lab: &Lab, arguments: &[&str]) -> Running {
    let running = lab.record(&["-F", "999"]).args(arguments).start();
    running.wait_until_sampling();
    running
}

fn ended(running: Running) -> Profile {
    running.signal(Signal::INT);
    running.profile()
}

fn refused(lab: &Lab, arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = lab.output(&[&["record", "-d", "1s"], arguments].concat());
    (status.code(), String::from_utf8(stderr).unwrap())
}

/// By the process's name, by the program's, and without those that are excluded.
#[test]
fn by_name() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let start = |name: &str| Program::start(&lab.copy("brief", folder.path(), name), &[FOR_LONG_MS]);
    let running = [start(LONG_NAME), start("other-one"), start("other-two")];
    for (arguments, expected) in [
        (&["--name", "by-a-long-name$"][..], &[LONG_COMM][..]),
        (&["--name", "^other-"], &["other-one", "other-two"]),
        (&["--name", "^other-", "--exclude", "name=two"], &["other-one"]),
        (&["--name", "two$", "--name", LONG_COMM], &["other-two", LONG_COMM]),
    ] {
        let profile = lab.record(&["-d", "1s", "-F", "499"]).args(arguments).start().profile();
        assert_eq!(processes(&profile), expected.iter().copied().collect(), "{arguments:?}");
        assert!(profile.figure("filtered_process") > 0, "{:?}", profile.quality);
    }
    let doctor = |name: &str| lab.output(&["doctor", "--json", "-d", "500ms", "--name", name]);
    let answer: serde_json::Value = serde_json::from_slice(&doctor("^other-one$").stdout).unwrap();
    assert_eq!(answer["pid"].as_u64(), Some(running[1].pid().into()), "{answer}");
    let both = doctor("^other-");
    let said = String::from_utf8_lossy(&both.stderr);
    assert!(both.status.code() == Some(1) && said.contains("Choose one with -p"), "{said}");
}

/// What an excluded process has started, and what it starts later.
#[test]
fn without_a_process_and_its_children() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [before, later, other] =
        ["family-before", "family-later", "other"].map(|name| lab.copy("brief", folder.path(), name));
    let lives = folder.path().join("lives");
    let script =
        format!("{} 6000 & while :; do {} 20; echo >>{}; done", before.display(), later.display(), lives.display());
    let shell = Program::spawn(Command::new("/bin/sh").args(["-c", &script]));
    let _other = Program::start(&other, &[FOR_LONG_MS]);
    wait_for("the program to run", || {
        children(shell.pid()).into_iter().any(|pid| name(pid).as_deref() == Some("family-before"))
    });
    let recorded = |arguments: &[&str]| {
        let running = begun(&lab, arguments);
        let count = || fs::metadata(&lives).map_or(0, |file| file.len());
        let before = count();
        wait_for("some lives", || count() > before + 4);
        ended(running)
    };
    let pid = shell.pid().to_string();
    let profile = recorded(&["-a", "--exclude", &format!("pid={pid}")]);
    let found = processes(&profile);
    assert!(found.contains("other") && found.iter().all(|name| !name.starts_with("family")), "{found:?}");
    let profile = recorded(&["-p", &pid, "--exclude", "name=^family-before$"]);
    let found = processes(&profile);
    assert!(found.contains("family-later") && !found.contains("family-before"), "{found:?}");
    // What it has between its fork and its exec is the shell's.
    let runs_other_programs = |excluded: &str| {
        let answer = lab.output(&["doctor", "--json", "-d", "3s", "-p", &pid, "--exclude", excluded]);
        let report: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
        report["code"].to_string().contains("/family-")
    };
    assert!(!runs_other_programs("name=^family-") && runs_other_programs("name=^other$"));
}

/// A process whose first thread has ended is known by its program's name, too.
#[test]
fn without_a_first_thread() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let program = lab.copy("leaderless", folder.path(), "leaderless-by-a-long-name");
    let program = Program::start(&program, &[FOR_LONG_MS]);
    wait_for("the first thread to end", || state_of_threads(program.pid(), 'Z') == 1);
    let profile = lab.record(&["-d", "1s", "-F", "499", "--name", "^leaderless-by-a-long-name$"]).start().profile();
    assert_eq!(processes(&profile), BTreeSet::from(["leaderless-by-a"]));
}

/// Processes that live for 5 ms, made by a shell that is not wanted, beside a program that wants all CPUs.
#[test]
fn short_lives_by_name() {
    const LIVES: u64 = 100;
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let short = lab.copy("brief", folder.path(), "short-life");
    let _busy = Program::start(&lab.workload("brief"), &[FOR_LONG_MS]);
    let running = begun(&lab, &["--name", "^short-life$", "--wait"]);
    let lives = format!("for life in $(seq {LIVES}); do {} 5; done", short.display());
    let (status, _nothing) = Program::spawn(Command::new("/bin/sh").args(["-c", &lives])).end();
    let profile = ended(running);
    assert!(status.success());
    assert_eq!(processes(&profile), BTreeSet::from(["short-life"]));
    let samples = samples(&profile, "short-life");
    println!("{samples} samples of {LIVES} lives: {:?}", profile.quality);
    // 5 ms of CPU time are 5 samples, and the clock of a CPU goes on meanwhile.
    assert!(samples >= LIVES * 4, "{samples} samples: {:?}", profile.quality);
    assert!(profile.figure("filtered_process") > 0 && profile.figure("filtered_unknown") == 0, "{:?}", profile.quality);
}

/// Of a command only what has this name, from its first instruction on.
#[test]
fn of_a_command_by_name() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = ["part-one", "part-two"].map(|name| lab.copy("brief", folder.path(), name));
    let script = format!("for life in $(seq 20); do {} 20; {} 20; done", one.display(), two.display());
    let record = lab.record(&["-F", "999", "--name", "^part-two"]);
    let profile = record.of(Path::new("/bin/sh"), &["-c", &script]).profile();
    assert_eq!(processes(&profile), BTreeSet::from(["part-two"]));
    assert!(samples(&profile, "part-two") >= 20 * 18, "{:?}", profile.quality);
    let record = lab.record(&["-F", "999", "--exclude", "name=^part-two"]);
    let profile = record.of(Path::new("/bin/sh"), &["-c", &script]).profile();
    assert!(samples(&profile, "part-one") >= 20 * 18 && samples(&profile, "part-two") == 0, "{:?}", profile.quality);
}

/// What processes call themselves counts from then on, and up to then.
#[test]
fn names_change() {
    let Some(lab) = lab() else { return };
    let spin = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
    let script = format!("{spin}; printf renamed > /proc/$$/comm; {spin}; echo again > /proc/$$/comm; {spin}");
    let running = begun(&lab, &["--name", "^renamed$", "--wait"]);
    let (status, _nothing) = Program::spawn(Command::new("/bin/sh").args(["-c", &script])).end();
    let profile = ended(running);
    assert!(status.success());
    assert_eq!(processes(&profile), BTreeSet::from(["renamed"]));
    let share = samples(&profile, "renamed");
    assert!(share >= 20 && profile.figure("filtered_process") > 0, "{share}: {:?}", profile.quality);
    assert!(profile.figure("stacks_incomplete") * 10 <= share, "{:?}", profile.quality);
}

/// A service, a container, and a group that is neither; what is in groups below them belongs to them.
#[test]
fn by_control_group() {
    let Some(lab) = lab() else { return };
    let Some(group) = Cgroup::new("spanflame-test") else { return };
    let folder = tempfile::tempdir().unwrap();
    let start = |name: &str, below: &str| {
        let program = lab.copy("brief", folder.path(), name);
        Program::spawn(&mut shell_in(&group.below(below), &format!("exec {} {FOR_LONG_MS}", program.display())))
    };
    let running = [
        start("of-web", "test.slice/spanflame-web@1.service/sub"),
        start("of-job", "test.slice/spanflame-job.service"),
        start("of-box", &format!("box.slice/libpod-{CONTAINER}.scope/container")),
        start("of-top", "plain"),
    ];
    for (program, expected) in running.iter().zip(["of-web", "of-job", "of-box", "of-top"]) {
        wait_for("the programs to run", || name(program.pid()).as_deref() == Some(expected));
    }
    let all = ["of-web", "of-job", "of-box", "of-top"];
    let (path, plain) = (group.path(), group.folder().join("plain"));
    let (box_slice, plain) = (format!("cgroup={path}/box.slice"), plain.to_str().unwrap());
    for (arguments, expected) in [
        (&["--unit", "spanflame-web@1.service"][..], &["of-web"][..]),
        (&["--unit", "spanflame-web@*", "--unit", "spanflame-job"], &["of-web", "of-job"]),
        (&["--unit", "test.slice", "--cgroup", path, "--name", "job"], &["of-job"]),
        (&["--container", &CONTAINER[..12]], &["of-box"]),
        (&["--cgroup", path], &all),
        (&["--cgroup", plain], &["of-top"]),
        (&["--cgroup", path, "--exclude", &box_slice, "--exclude", "unit=test.slice"], &["of-top"]),
    ] {
        let profile = lab.record(&["-d", "1s", "-F", "499"]).args(arguments).start().profile();
        assert_eq!(processes(&profile), expected.iter().copied().collect(), "{arguments:?}");
    }
    let excluded = format!("pid={}", running[3].pid());
    let dumped = lab.dump(&[], &["--json", "--cgroup", path, "--exclude", &excluded, "--exclude", "name=web"]);
    let names: BTreeSet<String> = dumped.threads().iter().map(|thread| thread.name().to_owned()).collect();
    assert_eq!(names, BTreeSet::from(["of-box".to_owned(), "of-job".to_owned()]));
}

/// A service that is restarted while it is recorded, whose processes live for 5 ms each.
#[test]
fn a_service_is_restarted() {
    const LIVES: u64 = 50;
    let Some(lab) = lab() else { return };
    let Some(group) = Cgroup::new("spanflame-test") else { return };
    let unit = group.below("spanflame-restarted.service");
    let folder = tempfile::tempdir().unwrap();
    let [first, second, beside] = ["first", "second", "beside"].map(|name| lab.copy("brief", folder.path(), name));
    let stop = folder.path().join("stop");
    let begin = |script: &str| Program::spawn(shell_in(&unit, script).stdout(Stdio::null()));
    let _beside = Program::start(&beside, &[FOR_LONG_MS]);
    let before = begin(&format!("until [ -e {} ]; do {} 5; done", stop.display(), first.display()));
    let is_over = || fs::read_to_string(unit.join("cgroup.procs")).unwrap().is_empty();
    wait_for("the service to begin", || !is_over());
    let running = begun(&lab, &["--unit", "spanflame-restarted"]);
    fs::write(&stop, "").unwrap();
    assert!(before.end().0.success());
    wait_for("the service to be over", is_over);
    assert!(begin(&format!("for life in $(seq {LIVES}); do {} 5; done", second.display())).end().0.success());
    let profile = ended(running);
    assert!(processes(&profile).is_subset(&BTreeSet::from(["first", "second", "sh", "seq"])), "{:?}", profile.stacks);
    let of_second = samples(&profile, "second");
    assert!(of_second >= LIVES * 4, "{of_second}: {:?}", profile.quality);
    assert!(samples(&profile, "first") > 0, "{:?}", profile.quality);
}

/// A process that is moved to the group is noticed, and one that is moved away as well.
#[test]
fn processes_are_moved() {
    let Some(lab) = lab() else { return };
    let Some(group) = Cgroup::new("spanflame-test") else { return };
    let folder = tempfile::tempdir().unwrap();
    let [comes, goes] = ["comes", "goes"].map(|name| lab.copy("brief", folder.path(), name));
    let spin = |program: &Path| format!("{} 3000 &", program.display());
    let script = format!("{} {} wait", spin(&comes), spin(&goes));
    let parent = Program::spawn(Command::new("/bin/sh").args(["-c", &script]));
    let pid_of = |wanted: &str| children(parent.pid()).into_iter().find(|pid| name(*pid).as_deref() == Some(wanted));
    wait_for("the programs to run", || pid_of("comes").is_some() && pid_of("goes").is_some());
    let (comes, goes) = (pid_of("comes").unwrap(), pid_of("goes").unwrap());
    let [inside, outside] = ["in", "out"].map(|name| group.below(name));
    enter(&inside, goes);
    let path = format!("{}/in", group.path());
    let running = lab.record(&["-F", "499", "--cgroup", &path]).pid(parent.pid()).start();
    running.wait_until_sampling();
    enter(&inside, comes);
    enter(&outside, goes);
    // It ends with them.
    let profile = running.profile();
    let (came, went) = (samples(&profile, "comes"), samples(&profile, "goes"));
    println!("{came} samples of what came, {went} of what went: {:?}", profile.quality);
    assert!(came > went && profile.figure("filtered_process") > went, "{came} {went}: {:?}", profile.quality);
}

#[test]
fn nothing_matches() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let near = Program::start(&lab.copy("brief", folder.path(), "spanflame-near"), &[FOR_LONG_MS]);
    for (arguments, code, words) in [
        (&["--name", "^spanflame-naer$"][..], 1, "there are: spanflame-near"),
        (&["--unit", "no-such-unit"], 1, "no process matches unit no-such-unit.service"),
        (&["--container", "no-such-container"], 1, "the id, not the name"),
        (&["--cgroup", "/no/such/group"], 1, "no process matches cgroup /no/such/group"),
        (&["--name", "^spanflame-near$", "--unit", "no-such-unit"], 1, "no process matches unit"),
        (&["--name", "^spanflame-near$", "--exclude", "name=near"], 1, "excluded"),
        (&["--name", "("], 2, "no regular expression"),
        (&["--exclude", "near"], 2, "name=REGEX"),
        (&["--exclude", "name=near"], 2, "say what to profile"),
    ] {
        let (status, said) = refused(&lab, arguments);
        assert!(status == Some(code) && said.contains(words) && said.trim_end().lines().count() == 1, "{said}");
    }
    let pid = near.pid().to_string();
    for (arguments, words) in [
        (&["record", "-a", "--exclude", "name=."][..], "all of them are excluded. Leave"),
        (&["record", "-p", &pid, "--exclude", "name=near"], "all of them are excluded. Leave"),
        (&["record", "-a", "--exclude", "pid=0"], "no process 0."),
        (&["record", "-p", &pid, "--exclude", "pid=1073741824"], "no process 1073741824."),
        (&["dump", "-p", &pid, "--exclude", "pid=1073741824"], "no process 1073741824."),
        (&["doctor", "-p", &pid, "--exclude", "pid=0"], "no process 0."),
        (&["dump", "-p", "1073741824", "--exclude", "name=x"], "no process 1073741824."),
        (&["dump", "-p", "1073741824", "--name", "x"], "no process 1073741824."),
        (&["doctor", "-p", "1073741824", "--name", "."], "no process 1073741824."),
    ] {
        let output = lab.output(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(1) && said.contains(words) && !said.contains("--wait"),
            "{arguments:?}: {said}"
        );
    }
    let profile = lab.record(&["-d", "300ms", "--name", "^spanflame-naer$", "--wait"]).start().profile();
    assert!(profile.stacks.is_empty(), "{:?}", profile.stacks);
    let waited = lab.output(&["record", "-d", "300ms", "--name", "^spanflame-naer$", "--wait"]);
    for said in [&waited.stdout, &waited.stderr].map(|text| String::from_utf8_lossy(text)) {
        assert!(said.contains("no process matched") && !said.contains("no CPU time"), "{said}");
    }
}
