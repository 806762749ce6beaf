//! `record -- COMMAND`, the files that it writes, and what is said when there is no recording.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};

use spanflame_tests::system::wait_for;
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
    let is_one_line = stderr.trim_end().lines().count() == 1 && stderr.starts_with("spanflame: ");
    assert!(is_one_line, "one line: {stderr:?}");
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
    let sentences = [
        ("no-such-program-here", "no such program in PATH"),
        ("./no/such/program", "does not exist"),
        ("/no/such/program", "does not exist"),
        ("/etc/passwd", "not an executable file"),
        ("/tmp", "as in /tmp/PROGRAM"),
    ];
    for (command, words) in sentences {
        check_refused(&spanflame(&lab, &["--", command]), 1, &[command, words]);
    }
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

#[test]
fn command_without_its_interpreter() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let script = lab.copy("brief", folder.path(), "script");
    fs::write(&script, "#!/no/such/interpreter -e\n").unwrap();
    check_refused(&spanflame(&lab, &["--", script.to_str().unwrap()]), 1, &["script", "/no/such/interpreter"]);
}

/// A table of nothing is no answer.
#[test]
fn no_samples() {
    let Some(lab) = lab() else { return };
    let mut idle = Command::new("sleep").arg("100").spawn().unwrap();
    let output = spanflame(&lab, &["-p", &idle.id().to_string(), "-d", "200ms"]);
    idle.kill().unwrap();
    idle.wait().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stdout.starts_with("No functions to show: no CPU time was used"), "{stdout}");
    assert!(stderr.contains("0 samples in"), "{stderr}");
}

/// Of what runs in a shell all but the profiler is profiled.
#[test]
fn profiler_among_the_profiled() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let script = "\"$1\" 3 & \"$0\" record -F 499 -p $$ -d 2s -o all.folded; kill $!; cat all.folded";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(lab.program()).arg(lab.workload("chain12")).current_dir(&folder);
    let output = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("chain12"), "{stdout}{stderr}");
    assert!(!stdout.contains("spanflame"), "{stdout}");
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
    let output = spanflame(&lab, &["-a", "-o", "/no/such/folder/x.svg"]);
    check_refused(&output, 1, &["/no/such/folder/x.svg", "the folder /no/such/folder does not exist"]);
    let (file, again) = (folder.path().join("x.svg"), folder.path().join("./x.svg"));
    let output = spanflame(&lab, &["-a", "-o", file.to_str().unwrap(), "-o", again.to_str().unwrap()]);
    check_refused(&output, 2, &["same file"]);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "something new");
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
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "something new");
    }
}

/// What can't be written is neither called written nor half there, and the rest is written.
#[test]
fn full_disk() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    symlink("/dev/full", folder.path().join("device.svg")).unwrap();
    fs::create_dir(folder.path().join("disk")).unwrap();
    let script = "mount -t tmpfs -o size=64k disk disk && echo old > disk/old.svg && ! cat /dev/zero > disk/zeros
        \"$0\" record -o disk/old.svg -o disk/new.svg -o device.svg -o good.svg -- true
        code=$?; cat disk/old.svg; ls -A disk; exit $code";
    let mut command = Command::new("unshare");
    let output = command.args(["-m", "sh", "-c", script]).arg(lab.program()).current_dir(&folder).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), &*stdout), (Some(1), "old\nold.svg\nzeros\n"), "{stderr}");
    let written: Vec<_> = stderr.lines().filter(|line| line.contains("wrote")).collect();
    assert_eq!(written, ["spanflame: wrote good.svg"]);
    for path in ["disk/old.svg", "disk/new.svg", "device.svg"] {
        assert!(stderr.contains(&format!("cannot write {path}: No space left on device")), "{stderr}");
    }
    assert!(folder.path().join("good.svg").exists());
}

#[test]
fn full_stdout() {
    let Some(lab) = lab() else { return };
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(lab.program()).args(["record", "--json", "--", "true"]).stdout(full).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot print") && stderr.contains("stdout") && stderr.contains("-o"), "{stderr}");
}

/// A shorter profile leaves nothing of a longer file behind; links and rights stay as they are.
#[test]
fn outputs_are_replaced() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("x.folded"), folder.path().join("link.folded"));
    let dangling = folder.path().join("dangling.folded");
    fs::write(&file, "main;a 1\n".repeat(100_000)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o604)).unwrap();
    std::os::unix::fs::chown(&file, Some(65534), Some(65534)).unwrap();
    symlink("x.folded", &link).unwrap();
    symlink("new.folded", &dangling).unwrap();
    let outputs = ["-o", link.to_str().unwrap(), "-o", dangling.to_str().unwrap(), "--", "true"];
    assert_eq!(spanflame(&lab, &outputs).status.code(), Some(0));
    assert!(!fs::read_to_string(&file).unwrap().contains("main;a 1"));
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.mode() & 0o777, metadata.uid(), metadata.gid()), (0o604, 65534, 65534));
    assert!(link.is_symlink() && dangling.is_symlink() && folder.path().join("new.folded").is_file());
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 4, "something else is left");
}

#[test]
fn missing_process() {
    let Some(lab) = lab() else { return };
    // Above pid_max, 4194304 at most (include/linux/threads.h, PID_MAX_LIMIT).
    for pid in ["4194305", "0"] {
        check_refused(&spanflame(&lab, &["-p", pid, "-d", "1s"]), 1, &[pid]);
    }
    let mut zombie = Command::new("true").spawn().unwrap();
    let pid = zombie.id();
    let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    wait_for("the process to end", || stat().contains(") Z "));
    check_refused(&spanflame(&lab, &["-p", &pid.to_string()]), 1, &[&pid.to_string(), "ended already"]);
    zombie.wait().unwrap();
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
        check_refused(&spanflame(&lab, &arguments), 2, &["See: spanflame record --help"]);
    }
    for (arguments, words) in [
        (["-p", "abc"].as_slice(), "one process id"),
        (&["-p", "1,2"], "repeat it"),
        (&["-p", "-5"], "one process id"),
        (&["--foo"], "--foo"),
        (&["1234"], "-p PID"),
        (&["-a", "-d", "99999999999999h"], "87600h"),
    ] {
        check_refused(&spanflame(&lab, arguments), 2, &[words]);
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
    check_refused_under(&lab, &nobody, &["cannot load kernel programs: not permitted", "root", "CAP_BPF"]);
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
