//! `spanflame dump`: threads that wait, run, are stopped or have ended, each with its stack; and nobody is
//! disturbed.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use spanflame_tests::system::{Program, descendant, name, output, state_of_threads, wait_for};
use spanflame_tests::{Dump, Lab, Thread, lab};

/// Deeper than one run of the unwinder.
const DEPTH: &str = "400";

/// What waits, in which system call, and the function that called it.
const WAITING: [(&str, &str, &str); 4] = [
    ("reader", "read", "reader_inner"),
    ("sleeper", "clock_nanosleep", "sleeper_inner"),
    ("locker", "futex", "locker_inner"),
    ("poller", "epoll_wait", "poller_inner"),
];

/// The other threads of the same program: those that wait in `main`, deep, under a name of its own.
const OTHERS: usize = 4;

/// The program whose threads wait, when all of them do.
fn waiting(lab: &Lab, extra: usize) -> Program {
    let program = Program::start(&lab.workload("waits"), &[DEPTH, &extra.to_string()]);
    let waits = || state_of_threads(program.pid(), 'S') == WAITING.len() + OTHERS - 1 + extra;
    wait_for("the threads to wait", waits);
    program
}

/// As their calls are named on this architecture and C library.
fn is_call(found: &str, expected: &str) -> bool {
    found == expected || (expected == "epoll_wait" && found == "epoll_pwait")
}

/// The thread stands in the system call, below the functions that lead there.
fn check_waiting(dump: &Dump, state: &str) {
    for (name, call, innermost) in WAITING {
        let thread = dump.thread(name);
        assert_eq!((thread.state(), thread.lacks()), (state, None), "{thread:?}");
        assert!(is_call(thread.system_call(), call), "{thread:?}");
        let chain = [&format!("{name}_thread"), &format!("{name}_outer"), innermost];
        let user = thread.user();
        assert!(user.windows(3).any(|frames| frames == chain), "{name}: {user:?}");
        let below = user.iter().rev().position(|frame| *frame == innermost);
        assert!(below.is_some_and(|below| below < 6), "{name}: {user:?}");
    }
}

#[test]
fn threads_are_whole_whether_they_run_or_wait() {
    let Some(lab) = lab() else { return };
    let program = waiting(&lab, 0);
    let dump = lab.dump(&[program.pid()], &["--json"]);
    check_waiting(&dump, "S");
    let kernel = |name| dump.thread(name).kernel().join(";");
    assert!(kernel("poller").contains("ep_poll") || kernel("poller").contains("epoll"), "{}", kernel("poller"));
    assert!(kernel("reader").contains("read"), "{}", kernel("reader"));

    let runner = dump.thread("runner");
    assert_eq!((runner.state(), runner.system_call(), runner.lacks()), ("R", "", None));
    assert!(runner.user().ends_with(&["runner_thread", "runner_outer", "runner_inner"]), "{runner:?}");

    let deep = dump.thread("deep");
    let depth = deep.user().iter().filter(|frame| **frame == "deeper").count();
    assert_eq!((deep.lacks(), depth.to_string().as_str()), (None, DEPTH), "{deep:?}");

    let main = dump.thread("waits");
    assert_eq!((main.tid(), main.user()[0], main.lacks()), (u64::from(program.pid()), "_start", None));
    assert_eq!(dump.threads().len(), WAITING.len() + OTHERS);
}

#[test]
fn tables_are_kept_for_the_next_time() {
    let Some(lab) = lab() else { return };
    let program = Program::start(&lab.workload("bulky"), &["100000"]);
    // Not in the usual place for such: others may write there.
    let folder = tempfile::tempdir_in("/var/cache").unwrap();
    let cache = folder.path().join("tables");
    let dump = lab.dump(&[program.pid()], &["--json", "--memory", "64M", "--table-cache", cache.to_str().unwrap()]);
    let thread = dump.thread("bulky");
    assert!(thread.lacks().is_none() && thread.user().contains(&"outer"), "{thread:?}");
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 1);
}

#[test]
fn text_is_for_terminals() {
    let Some(lab) = lab() else { return };
    let program = waiting(&lab, 3);
    let dump = lab.dump(&[program.pid()], &[]);
    assert!(dump.status.success(), "{}", dump.stderr);
    let text = dump.stdout;
    assert!(text.starts_with(&format!("process {} waits: 11 threads\n", program.pid())), "{text}");
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    assert!(text.contains(" a\u{fffd}[2Jb\u{fffd}c S [read]\n"), "{text}");
    let at = |words: &str| text.find(words).unwrap_or_else(|| panic!("{words} is not in {text}"));
    assert!(at(" runner R\n") < at(" sleeper S ["), "what runs goes first");
    // The four readers wait in the same place: one stack for all.
    assert_eq!(text.matches(" reader S [read]\n").count(), 4);
    assert_eq!(text.matches("    reader_thread  [waits]\n").count(), 1, "{text}");
    assert_eq!(dump.stderr, "");
}

#[test]
fn two_processes() {
    let Some(lab) = lab() else { return };
    let programs = [waiting(&lab, 0), waiting(&lab, 0)];
    let dump = lab.dump(&programs.each_ref().map(Program::pid), &["--json"]);
    assert_eq!(dump.threads().len(), 2 * (WAITING.len() + OTHERS));
    assert!(dump.threads().iter().all(|thread| thread.lacks().is_none()), "{}", dump.stdout);
}

/// Who is there is shown, who is not is named.
#[test]
fn some_of_the_processes_are_gone() {
    let Some(lab) = lab() else { return };
    let program = waiting(&lab, 0);
    // Above any pid_max (`PID_MAX_LIMIT` in linux/threads.h is 4 million).
    let dump = lab.dump(&[1 << 30, program.pid(), program.pid()], &["--json"]);
    assert_eq!((dump.status.code(), dump.printed().len()), (Some(1), WAITING.len() + OTHERS));
    assert_eq!(dump.stderr, "spanflame: no process 1073741824. Find it with: pgrep -a NAME\n");
    let dump = lab.dump(&[1 << 30, 1 << 29], &[]);
    assert_eq!((dump.status.code(), dump.stdout.as_str(), dump.stderr.lines().count()), (Some(1), "", 2));
}

#[test]
fn stopping_shows_what_is_read_in_place() {
    let Some(lab) = lab() else { return };
    let program = waiting(&lab, 0);
    let dumps = [&["--json"][..], &["--json", "--ptrace"]].map(|options| lab.dump(&[program.pid()], options));
    check_waiting(&dumps[1], "S");
    let stacks = |dump: &Dump| -> Vec<(u64, Vec<String>)> {
        let waits = |thread: &Thread| thread.name() != "runner";
        let user = |thread: Thread| (thread.tid(), thread.user().into_iter().map(str::to_owned).collect());
        dump.threads().into_iter().filter(waits).map(user).collect()
    };
    assert_eq!(stacks(&dumps[0]), stacks(&dumps[1]));
    let runner = dumps[1].thread("runner");
    assert!(runner.user().ends_with(&["runner_thread", "runner_outer", "runner_inner"]), "{runner:?}");
    assert!(!dumps[0].stderr.contains("EINTR"), "{}", dumps[0].stderr);
    assert!(dumps[1].stderr.contains("may have returned EINTR"), "{}", dumps[1].stderr);
}

#[test]
fn stopped_processes_stay_stopped() {
    let Some(lab) = lab() else { return };
    let program = waiting(&lab, 0);
    kill_process(Pid::from_raw(program.pid() as i32).unwrap(), Signal::STOP).unwrap();
    let all = WAITING.len() + OTHERS;
    wait_for("the process to stop", || state_of_threads(program.pid(), 'T') == all);
    for options in [&["--json"][..], &["--json", "--ptrace"]] {
        let dump = lab.dump(&[program.pid()], options);
        check_waiting(&dump, "T");
        assert_eq!(dump.thread("runner").state(), "T");
        wait_for("the process to be stopped still", || state_of_threads(program.pid(), 'T') == all);
    }
}

/// A server beside its client, which asks all the time.
struct Server(Child);

impl Server {
    fn start(lab: &Lab) -> Self {
        let mut command = Command::new(lab.workload("epoll"));
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Sends it bytes and waits for each to come back, until `over`; returns how many it were.
    fn ask(&mut self, over: &AtomicBool) -> u64 {
        let mut count = 0;
        let mut byte = [7];
        while !over.load(Ordering::Relaxed) {
            self.0.stdin.as_mut().unwrap().write_all(&byte).unwrap();
            self.0.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
            count += 1;
            // Sometimes it waits for the next byte for a while.
            if count % 8 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        count
    }

    /// Ends it; returns how often `epoll_wait` was interrupted.
    fn interrupted(mut self) -> u64 {
        drop(self.0.stdin.take());
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(self.0.wait().unwrap().success());
        text.trim().strip_prefix("interrupted ").unwrap().parse().unwrap()
    }
}

#[test]
fn thousand_looks_interrupt_nothing() {
    let Some(lab) = lab() else { return };
    let server = Server::start(&lab);
    wait_for("the server to wait", || state_of_threads(server.0.id(), 'S') == 1);
    let dump = lab.dump(&[server.0.id()], &["--json", "--times", "1000"]);
    let thread = dump.thread("epoll");
    assert_eq!(thread.lacks(), None);
    assert!(!dump.stderr.contains(" looks "), "{}", dump.stderr);
    assert!(thread.user().windows(3).any(|frames| frames == ["main", "serve", "wait_for_event"]), "{thread:?}");
    assert_eq!(server.interrupted(), 0);

    let mut busy = Server::start(&lab);
    let (pid, over) = (busy.0.id(), AtomicBool::new(false));
    let answers = std::thread::scope(|scope| {
        let client = scope.spawn(|| busy.ask(&over));
        let dump = lab.dump(&[pid], &["--json", "--times", "300"]);
        over.store(true, Ordering::Relaxed);
        let thread = dump.thread("epoll");
        assert!(!dump.stderr.contains(" looks "), "{}", dump.stderr);
        assert!(thread.lacks().is_none() && thread.user().contains(&"main"), "{thread:?}");
        client.join().unwrap()
    });
    println!("{answers} answers meanwhile");
    assert_eq!(busy.interrupted(), 0);
}

/// That the test above can fail.
#[test]
fn stopping_interrupts() {
    let Some(lab) = lab() else { return };
    let server = Server::start(&lab);
    wait_for("the server to wait", || state_of_threads(server.0.id(), 'S') == 1);
    let dump = lab.dump(&[server.0.id()], &["--json", "--ptrace"]);
    assert_eq!(dump.thread("epoll").lacks(), None);
    assert!(server.interrupted() > 0);
}

#[test]
fn threads_that_end_meanwhile_are_left_out() {
    let Some(lab) = lab() else { return };
    let program = Program::start::<&str>(&lab.workload("short-threads"), &[]);
    for options in [["--json", "--times", "100"].as_slice(), &["--json", "--ptrace"]] {
        let dump = lab.dump(&[program.pid()], options);
        let first = dump.threads().into_iter().find(|thread| thread.tid() == u64::from(program.pid())).unwrap();
        assert!(first.user().contains(&"main"), "{first:?}");
    }
}

#[test]
fn four_thousand_threads() {
    let Some(lab) = lab() else { return };
    let program = waiting(&lab, 4000);
    let started = std::time::Instant::now();
    let dump = lab.dump(&[program.pid()], &["--json"]);
    println!("{:?}", started.elapsed());
    assert_eq!(dump.threads().len(), 4000 + WAITING.len() + OTHERS);
    let broken = dump.threads().into_iter().filter(|thread| thread.lacks().is_some()).count();
    assert_eq!(broken, 0);
}

#[test]
fn processes_of_all_kinds() {
    let Some(lab) = lab() else { return };
    let dump = |pid: u32| lab.dump(&[pid], &["--json"]);

    // A thread of the kernel; none is to be seen from a pid namespace.
    match (1..100).find(|pid| name(*pid).as_deref() == Some("kthreadd")) {
        Some(pid) => {
            let thread = dump(pid).thread("kthreadd");
            assert_eq!((thread.state(), thread.user().len(), thread.lacks()), ("S", 0, None));
            assert!(thread.kernel().iter().any(|frame| frame.contains("kthreadd")), "{thread:?}");
        }
        None => println!("no thread of the kernel is to be seen here"),
    }

    // Ourselves.
    let command = format!("exec {} dump --json -p $$", lab.program().display());
    let text = output(Command::new("/bin/sh").args(["-c", &command]));
    assert!(text.contains("\"state\":\"R\"") && text.contains("\"function\":\"main\""), "{text}");

    // A process of another mount and pid namespace.
    let mut apart = Command::new("unshare");
    let apart = Program::spawn(apart.args(["-mpf", "--kill-child"]).arg(lab.workload("waits")).arg(DEPTH));
    let inner = || descendant(apart.pid(), "waits");
    wait_for("the program to start", || inner().is_some_and(|pid| state_of_threads(pid, 'S') == 7));
    check_waiting(&dump(inner().unwrap()), "S");

    // One whose first thread has ended, and the other stands.
    let program = Program::start(&lab.workload("leaderless"), &["100000"]);
    wait_for("the first thread to end", || state_of_threads(program.pid(), 'Z') == 1);
    kill_process(Pid::from_raw(program.pid() as i32).unwrap(), Signal::STOP).unwrap();
    wait_for("the other to stop", || state_of_threads(program.pid(), 'T') == 1);
    for options in [["--json"].as_slice(), &["--json", "--ptrace"]] {
        let threads = lab.dump(&[program.pid()], options).threads();
        let [first, heir] = &threads[..] else { panic!("{threads:?}") };
        assert_eq!((heir.state(), heir.lacks()), ("T", None), "{heir:?}");
        assert!(heir.user().windows(2).any(|frames| frames == ["heir", "outer"]), "{heir:?}");
        let over = first.lacks().is_some_and(|why| why.starts_with("it has ended"));
        assert!(first.state() == "Z" && over && first.kernel().is_empty(), "{first:?}");
    }

    // One that has ended.
    let program = Program::start(Path::new("/bin/true"), &[] as &[&str]);
    let pid = program.pid();
    wait_for("the program to end", || state_of_threads(pid, 'Z') == 1);
    let zombie = dump(pid);
    assert_eq!(zombie.status.code(), Some(1));
    assert!(zombie.stderr.contains("has ended already"), "{}", zombie.stderr);
    drop(program);
    let gone = dump(pid);
    assert_eq!((gone.status.code(), gone.stdout.as_str()), (Some(1), ""));
    assert!(gone.stderr.contains("no process"), "{}", gone.stderr);
    assert_eq!(lab.dump(&[], &[]).status.code(), Some(2), "nothing was named");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_32_bit_process_is_refused_by_name() {
    let Some(lab) = lab() else { return };
    let program = Program::start::<&str>(&lab.workload("pause32"), &[]);
    wait_for("the program to wait", || state_of_threads(program.pid(), 'S') == 1);
    for options in [["--json"].as_slice(), &["--json", "--ptrace"]] {
        let dump = lab.dump(&[program.pid()], options);
        let thread = dump.thread("pause32");
        assert_eq!((thread.state(), thread.system_call(), thread.lacks()), ("S", "", Some("32_bit_process")));
    }
}
