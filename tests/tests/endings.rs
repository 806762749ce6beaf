//! How a recording ends: by a signal, its time or its command, and what then becomes of the command.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::fs;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use spanflame_tests::system::{Program, catches, children, descendant, name, runs, wait_for};
use spanflame_tests::{Ended, Lab, Running, lab};
use tempfile::TempDir;

/// A recording that gets these signals in turn until it has ended, and the time that they took.
fn stopped_by(lab: &Lab, signals: &[Signal]) -> (Ended, Duration) {
    let _program = Program::start(&lab.workload("chain12"), &["120"]);
    let running = lab.record(&["-a", "-F", "199"]).start();
    running.wait_until_sampling();
    let start = Instant::now();
    let mut signals = signals.iter();
    wait_for("the recording to end", || {
        if let Some(signal) = signals.next() {
            running.signal(*signal);
        }
        !runs(running.pid())
    });
    (running.end(), start.elapsed())
}

/// Checks that nothing is lost when these signals come in turn until it has ended.
fn check_stopped_by(signals: &[Signal]) {
    let Some(lab) = lab() else { return };
    check_complete(&stopped_by(&lab, signals).0);
}

fn check_complete(ended: &Ended) {
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert_eq!(ended.files().len(), 2);
    let _checked = ended.profile();
}

#[test]
fn interrupt_writes_everything() {
    check_stopped_by(&[Signal::INT]);
}

#[test]
fn termination_writes_everything() {
    check_stopped_by(&[Signal::TERM]);
}

/// `timeout` sends its signal twice, and so may a terminal that is closed.
#[test]
fn repeated_signals_write_everything() {
    check_stopped_by(&[Signal::TERM; 100]);
    check_stopped_by(&[Signal::TERM, Signal::HUP, Signal::HUP, Signal::TERM].repeat(25));
}

/// Within a second an interrupt is not taken for another one.
#[test]
fn quickly_repeated_interrupts_write_everything() {
    let Some(lab) = lab() else { return };
    for _attempt in 0..10 {
        let (ended, elapsed) = stopped_by(&lab, &[Signal::INT; 3]);
        // On a machine that stalls they may come a second apart.
        if ended.status.success() || elapsed < Duration::from_secs(1) {
            return check_complete(&ended);
        }
    }
    panic!("too slow a machine to get three signals within a second");
}

/// The command of a recording, when it has become that.
fn command_of(running: &Running, program: &str) -> u32 {
    let find = || children(running.pid()).into_iter().find(|pid| name(*pid).as_deref() == Some(program));
    wait_for("the command to start", || find().is_some());
    find().unwrap()
}

/// Ctrl-C at a terminal goes to the command too.
/// A terminal and `timeout` signal the whole process group: the workers, too.
#[test]
fn workers_outlive_a_signal_to_the_group() {
    let Some(lab) = lab() else { return };
    for signal in [Signal::INT, Signal::TERM] {
        let running = lab.record(&["-F", "499", "-a"]).in_own_group().start();
        running.wait_until_sampling();
        let program = Program::start(&lab.workload("cart"), &["500"]);
        let (status, _nothing) = program.end();
        assert!(status.success());
        running.signal_group(signal);
        let profile = running.profile();
        assert_eq!(profile.figure("worker_restarts"), 0, "{:?}", profile.quality);
        assert!(profile.of("cart").iter().any(|stack| stack.holds("cart::shop::checkout")), "no names");
    }
}

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

/// A program that notes the signals that it gets, and goes on. It and what it starts are killed in
/// the end.
struct Stubborn {
    name: &'static str,
    folder: TempDir,
}

impl Stubborn {
    fn new() -> Self {
        Self::named("stubborn")
    }

    fn named(name: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = "#!/bin/sh
            for name in INT TERM HUP; do trap \"echo $name >> '$0.signals'\" $name; done
            sleep 1000 & sleeping=$!
            echo $$ > \"$0.new\"; mv \"$0.new\" \"$0.pid\"
            while :; do wait $sleeping; sleep 0.1; done\n";
        let this = Self { name, folder };
        fs::write(this.path(), script).unwrap();
        fs::set_permissions(this.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        this
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(self.name)
    }

    fn wait_for_start(&self) {
        wait_for("the command to start", || self.path().with_extension("pid").exists());
    }

    /// Checks that it is gone, and that it got one signal before.
    fn check(&self, signal: &str) {
        let pid: u32 = fs::read_to_string(self.path().with_extension("pid")).unwrap().trim().parse().unwrap();
        assert!(!runs(pid), "left running");
        assert_eq!(fs::read_to_string(self.path().with_extension("signals")).unwrap(), format!("{signal}\n"));
    }
}

/// The command gets the signal once, is killed 5 s later, and the exit code says so. Its name does
/// nothing to a terminal.
#[test]
fn stubborn_command() {
    let Some(lab) = lab() else { return };
    for (signal, name) in [(Signal::TERM, "TERM"), (Signal::INT, "INT")] {
        let stubborn = Stubborn::named("stub\x1b[1mborn");
        let running = lab.record(&["-F", "199"]).of::<&str>(&stubborn.path(), &[]);
        stubborn.wait_for_start();
        running.wait_until_sampling();
        running.signal(signal);
        let ended = running.end();
        stubborn.check(name);
        assert_eq!(ended.status.code(), Some(128 + 9), "{ended:?}");
        let killed: Vec<_> = ended.stderr.lines().filter(|line| line.contains("killed")).collect();
        assert!(
            matches!(killed.as_slice(), [line] if line.contains("stub\u{fffd}[1mborn (pid") && line.contains(&format!("5 s after SIG{name}"))),
            "{}",
            ended.stderr
        );
        assert!(!ended.stderr.contains('\x1b'), "{ended:?}");
        assert_eq!(ended.files().len(), 2, "{ended:?}");
        let _checked = ended.profile();
    }
}

/// A profiler with a terminal of its own; it ends when the terminal is closed.
struct Terminal {
    script: Child,
    profiler: u32,
}

impl Terminal {
    /// Starts it with `redirected` behind its command line, and waits until it samples.
    fn start(lab: &Lab, stubborn: &Stubborn, redirected: &str) -> Self {
        let output = stubborn.folder.path().join("profile.folded");
        let [program, output, command] =
            [lab.program(), &output, &stubborn.path()].map(|path| path.display().to_string());
        let line = format!("exec {program} record -o {output} -- {command} {redirected}");
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).env("SHELL", "/bin/sh");
        let script = script.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut this = Self { script, profiler: 0 };
        stubborn.wait_for_start();
        this.profiler = descendant(this.script.id(), lab.program().file_name().unwrap().to_str().unwrap()).unwrap();
        wait_for("the recording to begin", || catches(this.profiler, Signal::CHILD));
        this
    }

    fn type_in(&mut self, keys: &[u8]) {
        self.script.stdin.as_mut().unwrap().write_all(keys).unwrap();
    }

    /// The exit code of the profiler.
    fn end(mut self) -> Option<i32> {
        wait_for("the recording to end", || !runs(self.profiler));
        self.script.wait().unwrap().code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _gone = self.script.kill();
        let _reaped = self.script.wait();
    }
}

/// Ctrl-C goes to the command as well, wherever its stdin comes from.
#[test]
fn interrupt_by_keys() {
    let Some(lab) = lab() else { return };
    for redirected in ["", "< /dev/null"] {
        let stubborn = Stubborn::new();
        let mut terminal = Terminal::start(&lab, &stubborn, redirected);
        terminal.type_in(b"\x03");
        let code = terminal.end();
        stubborn.check("INT");
        assert_eq!(code, Some(128 + 9), "{redirected:?}");
        assert!(stubborn.folder.path().join("profile.folded").exists());
    }
}

/// `kill -INT` reaches nobody but the profiler, at a terminal too.
#[test]
fn interrupt_from_elsewhere_at_a_terminal() {
    let Some(lab) = lab() else { return };
    let stubborn = Stubborn::new();
    let terminal = Terminal::start(&lab, &stubborn, "");
    kill_process(pid(terminal.profiler), Signal::INT).unwrap();
    let code = terminal.end();
    stubborn.check("INT");
    assert_eq!(code, Some(128 + 9));
}

fn pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

/// `nohup` has hang-ups ignored, and they stay so.
#[test]
fn hang_ups_that_are_ignored() {
    let Some(lab) = lab() else { return };
    let script = "trap '' HUP; exec \"$0\" record -a -o \"$1\"";
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(lab.program()).arg(folder.path().join("x.folded"));
    command.stderr(Stdio::null());
    let profiler = Program::spawn(&mut command);
    wait_for("the recording to begin", || catches(profiler.pid(), Signal::CHILD));
    assert!(catches(profiler.pid(), Signal::TERM) && !catches(profiler.pid(), Signal::HUP));
    kill_process(pid(profiler.pid()), Signal::TERM).unwrap();
    assert!(profiler.end().0.success());
}

/// The pids in a file, one a line; the last line may be half written.
fn pids(file: &Path) -> Vec<u32> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(|line| line.parse().unwrap()).collect()
}

/// A recording that is over before its command leaves nothing of it, daemons included.
#[test]
fn nothing_is_left_of_a_command() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pids");
    let script = "(sleep 1000 & echo $! >> $0); (setsid sleep 1000 & echo $! >> $0)
        sleep 1000 & echo $! >> $0; echo $$ >> $0; exec sleep 1000";
    let running = lab.record(&[]).of(Path::new("/bin/sh"), &["-c", script, file.to_str().unwrap()]);
    wait_for("the command to start all", || pids(&file).len() == 4);
    running.signal(Signal::TERM);
    let ended = running.end();
    assert_eq!(ended.status.code(), Some(128 + 15), "{ended:?}");
    assert!(pids(&file).iter().all(|pid| !runs(*pid)), "left running: {ended:?}");
}

/// What was there before the profiler is left alone, with what comes from it: as in an entry point of a
/// container, and in `2> >(...)` of a shell.
#[test]
fn children_that_were_there_before() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [helpers, command, output] = ["helpers", "command", "x.folded"].map(|name| folder.path().join(name));
    let script = r#"
        sh -c 'echo $$ >> "$0"; until [ -e "$0.go" ]; do sleep 0.02; done
            (sleep 1000 & echo $! >> "$0"); exec sleep 1000' "$1" < /dev/null > /dev/null 2>&1 &
        exec "$0" record -o "$3" -- sh -c 'sleep 1000 & echo $! >> "$0"; echo $$ >> "$0"; wait' "$2""#;
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).arg(lab.program()).args([&helpers, &command, &output]);
    let profiler = Program::spawn(shell.stderr(Stdio::null()));
    wait_for("the recording to begin", || catches(profiler.pid(), Signal::CHILD));
    fs::write(helpers.with_extension("go"), "").unwrap();
    wait_for("all to start", || pids(&helpers).len() == 2 && pids(&command).len() == 2);
    kill_process(pid(profiler.pid()), Signal::TERM).unwrap();
    let status = profiler.end().0;
    let run = pids(&helpers).into_iter().map(runs).collect::<Vec<_>>();
    for helper in pids(&helpers) {
        let _gone = kill_process(pid(helper), Signal::KILL);
    }
    assert_eq!(run, [true; 2], "killed what is not the command's");
    assert_eq!(status.code(), Some(128 + 15));
    assert!(pids(&command).iter().all(|pid| !runs(*pid)), "left running");
}

/// Orphans that end by the hundred cost ten looks a second, each of which shows on a terminal.
#[test]
fn many_orphans() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [program, output] = [lab.program(), &folder.path().join("x.folded")].map(|path| path.display().to_string());
    let orphans = "i=0; while [ $i -lt 1000 ]; do (true &); i=$((i+1)); done";
    let line = format!("exec {program} record -o {output} -- sh -c '{orphans}'");
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env("SHELL", "/bin/sh").stdin(Stdio::null());
    let start = Instant::now();
    let shown = script.output().unwrap();
    let most = start.elapsed().as_millis() / 100 + 1;
    assert!(shown.status.success(), "{shown:?}");
    let looks = String::from_utf8_lossy(&shown.stdout).matches("recording: ").count();
    assert!((1..=most).contains(&(looks as u128)), "{looks} looks; {most} at most");
}

/// What a command leaves running that has ended by itself goes on, unless the recording fails.
#[test]
fn what_a_command_leaves_running() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let full = folder.path().join("full.svg");
    std::os::unix::fs::symlink("/dev/full", &full).unwrap();
    let good = folder.path().join("good.svg");
    for (output, code) in [(good, 0), (full, 1)] {
        let file = output.with_extension("pids");
        let script = "sleep 1000 < /dev/null > /dev/null 2>&1 & echo $! > $0";
        let mut command = Command::new(lab.program());
        command.args(["record", "-o"]).arg(&output).args(["--", "sh", "-c", script]).arg(&file);
        let ended = command.output().unwrap();
        let left = pids(&file)[0];
        let runs_on = runs(left);
        let _gone = kill_process(pid(left), Signal::KILL);
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
        assert_eq!(runs_on, code == 0, "{ended:?}");
    }
}
