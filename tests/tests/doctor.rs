//! What `spanflame doctor` says of programs with known defects, and what it says to do.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use spanflame_tests::system::{Program, cpu_time, descendant, output, runs, wait_for};
use spanflame_tests::{Lab, lab};

/// Longer than a test takes.
const MS: &str = "120000";

fn doctor(lab: &Lab, pid: u32, arguments: &[&str]) -> Output {
    lab.output(&[&["doctor", "-p", &pid.to_string(), "-d", "500ms", "-F", "999"], arguments].concat())
}

/// What it says, for people and for programs.
fn answers(lab: &Lab, pid: u32) -> (String, Value) {
    let text = said(lab, pid, &[]);
    println!("{text}");
    (text, report_of(lab, pid))
}

/// What it says for programs.
fn report_of(lab: &Lab, pid: u32) -> Value {
    serde_json::from_str(&said(lab, pid, &["--json"])).unwrap()
}

fn said(lab: &Lab, pid: u32, arguments: &[&str]) -> String {
    let ended = doctor(lab, pid, arguments);
    assert!(ended.status.success(), "{ended:?}");
    String::from_utf8(ended.stdout).unwrap()
}

/// Starts a program, and waits until it works.
fn working(program: &Path, arguments: &[&str]) -> Program {
    at_work(Program::start(program, arguments))
}

fn at_work(program: Program) -> Program {
    wait_for("the program to work", || cpu_time(program.pid()).is_some_and(|time| time.as_millis() > 100));
    program
}

/// The file whose path ends in this.
fn code<'a>(report: &'a Value, path: &str) -> &'a Value {
    let all = report["code"].as_array().unwrap();
    let is_it = |code: &&Value| code["path"].as_str().unwrap().ends_with(path);
    all.iter().find(is_it).unwrap_or_else(|| panic!("no {path} in {report:#}"))
}

/// The kinds of all that is to be done, what helps most first.
fn fixes(report: &Value) -> Vec<&str> {
    report["fixes"].as_array().unwrap().iter().map(|advice| advice["kind"].as_str().unwrap()).collect()
}

fn is_whole(report: &Value) -> bool {
    let (samples, incomplete) = (report["samples"].as_u64().unwrap(), report["incomplete"].as_u64().unwrap());
    assert!(samples > 50, "{samples} samples");
    incomplete * 100 <= samples
}

/// Neither tables nor frame pointers: the reason, the place and the fix of every stack.
#[test]
fn library_that_cannot_be_unwound() {
    let Some(lab) = lab() else { return };
    let program = working(&lab.workload("bare-no-fp"), &[MS]);
    let (text, report) = answers(&lab, program.pid());
    let library = lab.workload("libwithoutfp.so");
    let broken = &report["broken"][0];
    assert_eq!(
        (broken["reason"].as_str(), broken["function"].as_str(), broken["file"].as_str()),
        (Some("no_frame_pointer"), Some("bare_leaf"), library.to_str())
    );
    assert!(broken["samples"].as_u64() > Some(50), "{broken}");
    assert_eq!(fixes(&report)[0], "build_unwindable");
    assert_eq!(report["fixes"][0]["path"].as_str(), library.to_str());
    // The place is in the function.
    let symbols = output(Command::new("nm").arg("-S").arg(&library));
    let symbol = symbols.lines().find(|line| line.ends_with(" bare_leaf")).unwrap();
    let numbers: Vec<u64> = symbol.split(' ').take(2).map(|text| u64::from_str_radix(text, 16).unwrap()).collect();
    let address = broken["address"].as_str().unwrap().strip_prefix("0x").unwrap();
    let address = u64::from_str_radix(address, 16).unwrap();
    assert!((numbers[0]..numbers[0] + numbers[1]).contains(&address), "{address:#x} in {symbol}");
    assert!(text.contains(&format!("no_frame_pointer in bare_leaf, libwithoutfp.so+{address:#x}")), "{text}");
    assert!(text.contains("1. build ") && text.contains("-fasynchronous-unwind-tables"), "{text}");
}

/// The same with frame pointers: whole, and nothing to do for the library.
#[test]
fn library_with_frame_pointers_only() {
    let Some(lab) = lab() else { return };
    let program = working(&lab.workload("bare-fp"), &[MS]);
    let report = report_of(&lab, program.pid());
    assert!(is_whole(&report), "{report:#}");
    assert!(!fixes(&report).contains(&"build_unwindable"), "{report:#}");
}

/// A server that leaves the work to its children: they are looked at, unless told not to.
#[test]
fn process_whose_child_works() {
    let Some(lab) = lab() else { return };
    let mut parent = Command::new("unshare");
    let parent = Program::spawn(parent.args(["-pf", "--kill-child"]).arg(lab.workload("chain12")).arg("120"));
    let child = || descendant(parent.pid(), "chain12").filter(|pid| cpu_time(*pid).is_some_and(|time| !time.is_zero()));
    wait_for("the child to work", || child().is_some());
    let (text, report) = answers(&lab, parent.pid());
    assert!(is_whole(&report), "{report:#}");
    let processes = report["processes"].as_array().unwrap();
    assert_eq!((&report["pid"], &report["advice_is_for"]), (&parent.pid().into(), &child().unwrap().into()));
    assert_eq!((&processes[0]["name"], &processes[1]["name"]), (&"unshare".into(), &"chain12".into()));
    assert!(code(&report, "/chain12")["samples"].as_u64() > Some(50), "{report:#}");
    let line = format!("With its child (--no-children leaves it out): {} chain12 (", child().unwrap());
    assert!(text.contains(&line), "{text}");
    let alone = said(&lab, parent.pid(), &["--no-children", "--memory", "64m", "--table-cache", "none"]);
    assert!(alone.starts_with(&format!("unshare (pid {}) was idle", parent.pid())), "{alone}");
}

/// A program of one's own without symbols; its tables are there.
#[test]
fn stripped_program() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = lab.copy("chain12", folder.path(), "stripped");
    output(Command::new("strip").arg(&file));
    let program = working(&file, &["120"]);
    let (text, report) = answers(&lab, program.pid());
    assert!(is_whole(&report), "{report:#}");
    let code = code(&report, "/stripped");
    assert_eq!((code["symbols"].as_str(), code["debug_info"]["kind"].as_str()), (Some("dynsym"), Some("none")));
    assert_eq!(code["unwinding"]["section"].as_str(), Some(".eh_frame"));
    assert!(code["unwinding"]["rows"].as_u64() > Some(10), "{code}");
    assert_eq!((code["fix"]["kind"].as_str(), code["fix"]["path"].as_str()), (Some("keep_symbols"), file.to_str()));
    assert!(text.contains(&format!("build {} without -s, and do not strip it", file.display())), "{text}");
}

/// What it runs is no longer what is installed.
#[test]
fn deleted_program() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = lab.copy("chain12", folder.path(), "deleted");
    let program = working(&file, &["120"]);
    fs::remove_file(&file).unwrap();
    let (text, report) = answers(&lab, program.pid());
    assert_eq!(code(&report, "/deleted")["deleted"], true);
    assert_eq!(code(&report, "/libc.so.6")["deleted"], false);
    assert!(is_whole(&report), "{report:#}");
    assert!(text.contains(&format!("{} (deleted)\n", file.display())), "{text}");
}

#[test]
fn stripped_go_program() {
    let Some(lab) = lab() else { return };
    if Command::new("go").arg("version").output().is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped under CI=true: go is not installed");
        eprintln!("skipped: go is not installed");
        return;
    }
    let program = working(&lab.workload("go-stripped"), &[MS]);
    let (text, report) = answers(&lab, program.pid());
    let code = code(&report, "/go-stripped");
    assert_eq!(code["unwinding"]["section"].as_str(), Some(".gopclntab"));
    assert_eq!((code["symbols"].as_str(), code["debug_info"]["kind"].as_str()), (Some("go"), Some("go")));
    assert_eq!(fixes(&report), [""; 0], "{report:#}");
    assert!(text.ends_with("\nNothing to do.\n"), "{text}");
}

/// Code that nobody tells of, and code that a map tells of.
#[test]
fn generated_code() {
    let Some(lab) = lab() else { return };
    let silent = working(&lab.workload("jit"), &[MS, "silent"]);
    let (text, report) = answers(&lab, silent.pid());
    assert!(is_whole(&report), "{report:#}");
    let generated = code(&report, "[jit]");
    assert_eq!((generated["symbols"].as_str(), &report["generated"]["kind"]), (Some("none"), &"none".into()));
    assert_eq!(fixes(&report)[0], "write_perf_map");
    let map = PathBuf::from(format!("/tmp/perf-{}.map", silent.pid()));
    assert!(text.contains(&format!("1. have what makes the code write {}", map.display())), "{text}");
    drop(silent);

    let liar = working(&lab.workload("jit"), &[MS, "old"]);
    let (text, report) = answers(&lab, liar.pid());
    fs::remove_file(format!("/tmp/perf-{}.map", liar.pid())).unwrap();
    assert_eq!((&report["generated"]["kind"], fixes(&report)[0]), (&"refused".into(), "repair_map"));
    assert!(text.contains("is not used: it is older than the process"), "{text}");
    drop(liar);

    let telling = working(&lab.workload("jit"), &[MS, "map", "/dev/null"]);
    let report = report_of(&lab, telling.pid());
    let path = PathBuf::from(report["generated"]["path"].as_str().unwrap_or_else(|| panic!("{report:#}")));
    let map = format!("/tmp/perf-{}.map", telling.pid());
    fs::remove_file(&map).unwrap();
    assert!(path.ends_with(map.trim_start_matches('/')), "{path:?}");
    assert_eq!(code(&report, "[jit]")["symbols"].as_str(), Some("perf_map"));
    assert!(!fixes(&report).contains(&"write_perf_map"), "{report:#}");
}

#[test]
fn node_with_and_without_a_map() {
    let Some(lab) = lab() else { return };
    if Command::new("node").arg("--version").output().is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped under CI=true: node is not installed");
        eprintln!("skipped: there is no node here");
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/fib.js");
    let script = script.to_str().unwrap();
    let plain = working(Path::new("node"), &[script, MS]);
    let (text, report) = answers(&lab, plain.pid());
    assert!(fixes(&report).contains(&"node_perf_map"), "{report:#}");
    assert!(text.contains("start it with: node --perf-basic-prof"), "{text}");
    drop(plain);

    // It leaves another file where it is started.
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("node");
    command.args(["--perf-basic-prof", script, MS]).current_dir(folder.path()).stdout(Stdio::null());
    let telling = at_work(Program::spawn(&mut command));
    let report = report_of(&lab, telling.pid());
    let _removed = fs::remove_file(format!("/tmp/perf-{}.map", telling.pid()));
    assert_eq!(code(&report, "[jit]")["symbols"].as_str(), Some("perf_map"));
    assert!(!fixes(&report).contains(&"node_perf_map"), "{report:#}");
}

/// There is nothing to judge, and that is no failure.
#[test]
fn idle_process() {
    let Some(lab) = lab() else { return };
    let program = Program::start(Path::new("sleep"), &["120"]);
    wait_for("the program to start", || spanflame_tests::system::name(program.pid()).as_deref() == Some("sleep"));
    let (text, report) = answers(&lab, program.pid());
    assert_eq!((report["samples"].as_u64(), fixes(&report).as_slice()), (Some(0), ["put_load_on_it"].as_slice()));
    assert!(text.starts_with(&format!("sleep (pid {}) was idle", program.pid())), "{text}");
    assert!(text.contains(&format!("spanflame dump -p {}", program.pid())), "{text}");
    let libc = code(&report, "/libc.so.6");
    assert_eq!(libc["unwinding"]["kind"].as_str(), Some("table"));
    // Its debug information in a file of its own, found by the build id.
    let build_id = libc["build_id"].as_str().unwrap();
    let path = format!("/usr/lib/debug/.build-id/{}/{}.debug", &build_id[..2], &build_id[2..]);
    let expected = Path::new(&path).exists().then_some(path.as_str());
    assert_eq!(libc["debug_info"]["path"].as_str(), expected, "{libc}");
}

/// It is not unwound, and that is said.
#[test]
#[cfg(target_arch = "x86_64")]
fn process_of_32_bits() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (source, file) = (folder.path().join("old.c"), folder.path().join("old"));
    fs::write(&source, "void _start(void) { for (;;) { __asm__ volatile(\"\"); } }").unwrap();
    // Without a C library: that of 32 bits is rarely there.
    let options = ["-m32", "-nostdlib", "-static", "-fno-pie", "-no-pie", "-Wl,--build-id=none", "-o"];
    output(Command::new("gcc").args(options).arg(&file).arg(&source));
    let Ok(mut tried) = Command::new(&file).spawn() else {
        eprintln!("skipped: this kernel does not run 32-bit programs");
        return;
    };
    tried.kill().unwrap();
    tried.wait().unwrap();
    let program = working(&file, &[]);
    let (text, report) = answers(&lab, program.pid());
    assert_eq!(code(&report, "/old")["unwinding"]["kind"].as_str(), Some("unsupported"));
    assert_eq!(report["broken"][0]["reason"].as_str(), Some("32_bit_process"));
    assert_eq!(fixes(&report), ["run64_bit"]);
    assert!(text.contains("32-bit: not unwound") && text.contains("1. run a 64-bit build"), "{text}");
}

/// Nobody to look at.
#[test]
fn processes_that_are_none() {
    let Some(lab) = lab() else { return };
    let refused = |pid: u32, why: &str| {
        let ended = doctor(&lab, pid, &[]);
        let complaint = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{complaint}");
        assert!(complaint.contains(why) && complaint.lines().count() == 1, "{complaint}");
        assert!(ended.stdout.is_empty());
    };
    // Above any pid_max (`PID_MAX_LIMIT` in linux/threads.h is 4 million).
    refused(1 << 30, "no process 1073741824. Find it with: pgrep -a NAME");
    let zombie = Program::start(Path::new("true"), &[""; 0]);
    wait_for("the program to end", || !runs(zombie.pid()));
    refused(zombie.pid(), "has ended already (a zombie");
}

#[test]
fn thread_of_the_kernel() {
    let Some(lab) = lab() else { return };
    let is_one = |pid: &u32| fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with(b"kthreadd"));
    let Some(pid) = (1..100).find(is_one) else {
        eprintln!("skipped: no thread of the kernel is to be seen here");
        return;
    };
    let (text, report) = answers(&lab, pid);
    assert_eq!(report["kernel_thread"], true);
    assert!(text.starts_with("kthreadd (pid ") && text.contains("nothing to do: threads of the kernel"), "{text}");
}
