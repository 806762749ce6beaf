//! `record -- COMMAND`, how a recording ends, and what is said when there is none.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;
use spanflame_tests::system::{Program, children, name, runs, wait_for};
use spanflame_tests::{Lab, Running, lab};

/// Runs `spanflame record` with these arguments only.
fn spanflame(lab: &Lab, arguments: &[&str]) -> Output {
    Command::new(lab.program()).arg("record").args(arguments).output().unwrap()
}

/// Checks that a recording failed with this code and one sentence that holds all of `words`.
fn check_refused(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} in {stderr:?}");
    }
    if code != 2 {
        assert_eq!(stderr.trim_end().lines().count(), 1, "one line: {stderr:?}");
    }
    assert!(!stderr.contains("panicked") && output.stdout.is_empty(), "{output:?}");
}

#[test]
fn exit_code_of_the_command() {
    let Some(lab) = lab() else { return };
    let run = |script: &str| lab.record(&[]).of(Path::new("/bin/sh"), &["-c", script]).end();
    for (script, code) in
        [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -TERM $$", 128 + 15), ("kill -KILL $$", 128 + 9)]
    {
        let ended = run(script);
        assert_eq!(ended.status.code(), Some(code), "{script}: {}", ended.stderr);
        assert_eq!(ended.files().len(), 2, "{script}: {ended:?}");
        let _checked = ended.profile();
    }
}

/// The command gets the profiler's standard streams and environment.
#[test]
fn output_of_the_command() {
    let Some(lab) = lab() else { return };
    let ended = lab.record(&[]).of(Path::new("/bin/sh"), &["-c", "echo to-stdout; echo to-stderr >&2; exit 3"]).end();
    assert_eq!(ended.status.code(), Some(3));
    assert!(ended.stdout.contains("to-stdout\n") && ended.stderr.contains("to-stderr\n"), "{ended:?}");
}

#[test]
fn unknown_command() {
    let Some(lab) = lab() else { return };
    for command in ["no-such-program-here", "./no/such/program"] {
        check_refused(&spanflame(&lab, &["--", command]), 1, &[command, "no such program"]);
    }
    check_refused(&spanflame(&lab, &["--", "/etc/passwd"]), 1, &["/etc/passwd", "not an executable file"]);
}

/// A file with the right to be executed that the kernel can't execute.
#[test]
fn command_that_cannot_be_executed() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = lab.copy("brief", folder.path(), "rubbish");
    fs::write(&file, [0x7f, b'E', b'L', b'F', 9, 9, 9, 9]).unwrap();
    let output = spanflame(&lab, &["-d", "2s", "--", file.to_str().unwrap()]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("rubbish"), "{output:?}");
}

fn check_stopped_by(signal: Signal) {
    let Some(lab) = lab() else { return };
    let _program = Program::start(&lab.workload("chain12"), &["120"]);
    let running = lab.record(&["-a", "-F", "199"]).start();
    running.wait_until_sampling();
    running.signal(signal);
    let ended = running.end();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert_eq!(ended.files().len(), 2);
    let _checked = ended.profile();
}

#[test]
fn interrupt_writes_everything() {
    check_stopped_by(Signal::INT);
}

#[test]
fn termination_writes_everything() {
    check_stopped_by(Signal::TERM);
}

/// The command of a recording, when it has become that.
fn command_of(running: &Running, program: &str) -> u32 {
    let find = || children(running.pid()).into_iter().find(|pid| name(*pid).as_deref() == Some(program));
    wait_for("the command to start", || find().is_some());
    find().unwrap()
}

/// Ctrl-C at a terminal goes to the command too.
#[test]
fn interrupt_of_a_command() {
    let Some(lab) = lab() else { return };
    let running = lab.record(&["-F", "199"]).in_own_group().of(&lab.workload("chain12"), &["120"]);
    let command = command_of(&running, "chain12");
    running.wait_until_sampling();
    running.signal_group(Signal::INT);
    let ended = running.end();
    assert!(!runs(command), "left running");
    assert!([Some(0), Some(128 + 2)].contains(&ended.status.code()), "{ended:?}");
    assert_eq!(ended.files().len(), 2, "{ended:?}");
    let _checked = ended.profile();
}

#[test]
fn termination_ends_the_command() {
    let Some(lab) = lab() else { return };
    let running = lab.record(&["-F", "199"]).of(&lab.workload("chain12"), &["120"]);
    let command = command_of(&running, "chain12");
    running.wait_until_sampling();
    running.signal(Signal::TERM);
    let ended = running.end();
    assert!(!runs(command), "left running");
    assert_eq!(ended.files().len(), 2, "{ended:?}");
    let _checked = ended.profile();
}

#[test]
fn the_command_does_not_outlive_a_killed_profiler() {
    let Some(lab) = lab() else { return };
    let running = lab.record(&["-F", "199"]).of(&lab.workload("chain12"), &["120"]);
    let command = command_of(&running, "chain12");
    let workers = children(running.pid());
    running.signal(Signal::KILL);
    let ended = running.end();
    assert_eq!(ended.status.signal(), Some(9));
    wait_for("the command to die", || !runs(command));
    wait_for("the workers to die", || workers.iter().all(|pid| !runs(*pid)));
}

#[test]
fn duration_ends_the_command() {
    let Some(lab) = lab() else { return };
    let running = lab.record(&["-F", "499", "-d", "3s"]).of(&lab.workload("chain12"), &["120"]);
    let command = command_of(&running, "chain12");
    let ended = running.end();
    assert!(!runs(command), "left running: {ended:?}");
    let _checked = ended.profile();
}

/// Refused before anything is sampled, and before the command is started.
#[test]
fn unwritable_output() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let touched = folder.path().join("touched");
    let command = ["--", "/usr/bin/touch", touched.to_str().unwrap()];
    let missing = folder.path().join("no/such/folder/x.svg");
    let is_folder = folder.path().join("folder.svg");
    fs::create_dir(&is_folder).unwrap();
    for path in [missing.to_str().unwrap(), is_folder.to_str().unwrap(), "/proc/x.svg"] {
        let output = spanflame(&lab, &[&["-o", path], command.as_slice()].concat());
        check_refused(&output, 1, &[path, "-o"]);
        assert!(!touched.exists(), "{path}: the command ran");
    }
}

#[test]
fn unknown_output_format() {
    let Some(lab) = lab() else { return };
    for path in ["/tmp/profile.xyz", "/tmp/profile"] {
        let output = spanflame(&lab, &["-o", path, "-a", "-d", "1s"]);
        let code = output.status.code().unwrap();
        assert!([1, 2].contains(&code), "{code}");
        check_refused(&output, code, &[".svg", ".folded", ".pb.gz"]);
        assert!(!Path::new(path).exists());
    }
}

/// What an earlier recording left is not lost when the next one fails, and no empty file is left.
#[test]
fn failing_leaves_files_as_they_are() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (kept, new) = (folder.path().join("kept.folded"), folder.path().join("new.folded"));
    fs::write(&kept, "main;a 1\n").unwrap();
    let outputs = ["-o", kept.to_str().unwrap(), "-o", new.to_str().unwrap()];
    for failing in [["-o", "/proc/x.svg", "-a"].as_slice(), &["--", "no-such-program-here"]] {
        check_refused(&spanflame(&lab, &[outputs.as_slice(), failing].concat()), 1, &[]);
        assert_eq!(fs::read_to_string(&kept).unwrap(), "main;a 1\n");
        assert!(!new.exists());
    }
}

/// A shorter profile leaves nothing of a longer file behind.
#[test]
fn outputs_are_replaced() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.folded");
    fs::write(&file, "main;a 1\n".repeat(100_000)).unwrap();
    let output = spanflame(&lab, &["-o", file.to_str().unwrap(), "--", "true"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(!fs::read_to_string(&file).unwrap().contains("main;a 1"));
}

#[test]
fn missing_process() {
    let Some(lab) = lab() else { return };
    // Above pid_max, 4194304 at most (include/linux/threads.h, PID_MAX_LIMIT).
    for pid in ["4194305", "0"] {
        check_refused(&spanflame(&lab, &["-p", pid, "-d", "1s"]), 1, &[pid]);
    }
}

#[test]
fn bad_usage() {
    let Some(lab) = lab() else { return };
    check_refused(&spanflame(&lab, &[]), 2, &["-p PID", "-a", "COMMAND"]);
    for frequency in ["0", "10001", "x"] {
        check_refused(&spanflame(&lab, &["-a", "-F", frequency]), 2, &["1 to 10000"]);
    }
    for arguments in
        [["-a", "-p", "1"], ["-a", "--", "true"], ["-a", "-d", "0s"], ["-a", "-d", "1x"]].map(|list| list.to_vec())
    {
        assert_eq!(spanflame(&lab, &arguments).status.code(), Some(2), "{arguments:?}");
    }
}

/// What is refused when it is run like this, in words of the answer.
fn check_refused_under(lab: &Lab, wrapper: &[&str], words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    // Other users can't reach the folder of the build.
    let program = folder.path().join("spanflame");
    fs::copy(lab.program(), &program).unwrap();
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let arguments = ["record", "-d", "1s", "--", "touch", "touched"];
    let mut command = Command::new(wrapper[0]);
    let output = command.args(&wrapper[1..]).arg(program).args(arguments).current_dir(&folder).output().unwrap();
    check_refused(&output, 3, words);
    assert!(!folder.path().join("touched").exists(), "the command ran");
}

#[test]
fn without_privileges() {
    let Some(lab) = lab() else { return };
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    check_refused_under(&lab, &nobody, &["root", "CAP_BPF"]);
}

#[test]
fn in_another_pid_namespace() {
    let Some(lab) = lab() else { return };
    check_refused_under(&lab, &["unshare", "-pf", "--mount-proc"], &["pid namespace", "hostPID"]);
}

/// Two recordings at once each see what they asked for.
#[test]
fn two_recordings_at_once() {
    let Some(lab) = lab() else { return };
    let start = || lab.record(&["-F", "199"]).of(&lab.workload("chain12"), &["5"]);
    let (first, second): (Running, Running) = (start(), start());
    for ended in [first.end(), second.end()] {
        assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
        let profile = ended.profile();
        let pids: std::collections::BTreeSet<_> =
            profile.pprof.0.sample.iter().map(|sample| profile.pprof.labels(sample)["pid"].clone()).collect();
        assert_eq!(pids.len(), 1, "{pids:?}");
    }
}
