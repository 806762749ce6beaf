//! Code that is made at run time: its names come from what its maker writes, at the time of the sample,
//! and wrong ones never.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use spanflame_tests::{LIBC, Lab, Profile, Running, Stack, from_main, lab};

const LEAST: f64 = 0.99;
const OPTIONS: [&str; 2] = ["-F", "499"];
const MS: &str = "4000";

/// Runs a program as the first process of a pid namespace, with a `/tmp` of its own. Of the other one it
/// sees the folder that it lies in, if it is from there.
fn apart(lab: &Lab, program: &Path, arguments: &[&str]) -> Running {
    const SCRIPT: &str = r#"kept=$1 && shift && mount --bind /tmp /mnt && mount -t tmpfs none /tmp &&
        if [ "$kept" ]; then mkdir "/tmp/$kept" && mount --bind "/mnt/$kept" "/tmp/$kept"; fi &&
        cd /tmp && exec "$@""#;
    let program = program.to_str().unwrap();
    let in_tmp = |path: &&str| path.strip_prefix("/tmp/")?.split('/').next().map(str::to_owned);
    let kept = [&[program], arguments].concat().iter().find_map(in_tmp).unwrap_or_default();
    let wrapper = ["--mount", "--pid", "--fork", "sh", "-c", SCRIPT, "sh", &kept, program];
    lab.record(&OPTIONS).of(Path::new("unshare"), &[&wrapper, arguments].concat())
}

fn jit(lab: &Lab, arguments: &[&str]) -> Running {
    apart(lab, &lab.workload("jit"), &[&[MS], arguments].concat())
}

fn check_made_one(profile: &Profile, name: &str) {
    profile.check_chain("jit", &from_main(&["enter_[f]", name, "leaf_one"]), LEAST);
}

/// Without any word of its maker it is `[jit]`, and the stack is whole.
#[test]
fn code_that_nobody_tells_of() {
    let Some(lab) = lab() else { return };
    let profile = jit(&lab, &["silent"]).profile();
    check_made_one(&profile, "[jit]");
    assert_eq!(profile.figure("symbolize_failed"), 0, "there was nothing to read: {:?}", profile.quality);
}

#[test]
fn map_of_the_process_s_own_namespaces() {
    let Some(lab) = lab() else { return };
    check_made_one(&jit(&lab, &["map", "/dev/null"]).profile(), "made one");
}

/// Writable at one address, executable at another one, as .NET has it.
#[test]
fn memory_that_is_mapped_twice() {
    let Some(lab) = lab() else { return };
    check_made_one(&jit(&lab, &["memfd"]).profile(), "made one");
}

/// CPython's code keeps no frame pointer on x86_64: it is known by its bytes.
#[test]
#[cfg(target_arch = "x86_64")]
fn code_of_cpython() {
    let Some(lab) = lab() else { return };
    let profile = jit(&lab, &["python"]).profile();
    profile.check_chain("jit", &from_main(&["enter_python", "made one", "leaf_one"]), LEAST);
}

/// Through a signal's frame to code that was made at run time, and through that to its callers. Whether the
/// interrupted code keeps a frame there nothing says.
#[test]
fn signal_that_interrupts_generated_code() {
    let Some(lab) = lab() else { return };
    let profile = apart(&lab, &lab.workload("jit-signal"), &[MS]).profile();
    let working = from_main(&["enter_[f]", "made outer_[f]", "made inner_[?]"]);
    let handling = [working.as_slice(), &[LIBC, "on_signal", "handler_outer", "handler_leaf"]].concat();
    profile.check_chains("jit-signal", &[&working, &handling], LEAST);
    for chain in [&working, &handling] {
        assert!(profile.share("jit-signal", &[chain]).part() > 0.1, "{chain:?}: {:?}", profile.of("jit-signal"));
    }
}

/// The map comes when half of the samples are taken: they have their names, too.
#[test]
fn map_that_comes_late() {
    let Some(lab) = lab() else { return };
    check_made_one(&jit(&lab, &["late"]).profile(), "made one");
}

/// At one address was now one function and now the other. Between two readings of the map nobody can
/// know which, so there may be no name; but never the other's.
#[test]
fn replaced_code() {
    let Some(lab) = lab() else { return };
    let profile = jit(&lab, &["replaced"]).profile();
    check_no_other(&profile);
    let named = [from_main(&["enter_[f]", "made one", "leaf_one"]), from_main(&["enter_[f]", "made two", "leaf_two"])];
    for chain in &named {
        assert!(profile.share("jit", &[chain]).right > 200, "{chain:?}: {:?}", profile.of("jit"));
    }
    profile.check_chains("jit", &named.each_ref().map(Vec::as_slice), 0.6);
}

/// A jitdump has time stamps, so replaced code is no doubt; and source lines.
#[test]
fn jitdump() {
    let Some(lab) = lab() else { return };
    let profile = jit(&lab, &["dump", "."]).profile();
    check_no_other(&profile);
    let chains = [from_main(&["enter_[f]", "made one", "leaf_one"]), from_main(&["enter_[f]", "made two", "leaf_two"])];
    profile.check_chains("jit", &chains.each_ref().map(Vec::as_slice), LEAST);
    // The line of the call.
    assert_eq!(lines(&profile, "made one"), [("made.js".to_owned(), 11)]);
    assert_eq!(lines(&profile, "made two"), [("made.js".to_owned(), 21)]);
}

fn check_no_other(profile: &Profile) {
    for stack in profile.of("jit") {
        let mixed =
            stack.holds("made one") && stack.holds("leaf_two") || stack.holds("made two") && stack.holds("leaf_one");
        assert!(!mixed, "a name of another time: {stack:?}");
    }
}

/// File and line of each location in a function.
fn lines(profile: &Profile, function: &str) -> Vec<(String, i64)> {
    let pprof = &profile.pprof;
    let function = pprof.function(function).unwrap();
    let lines = pprof.0.location.iter().flat_map(|location| &location.line);
    let of_function = lines.filter(|line| line.function_id == function.id);
    let mut found: Vec<_> = of_function.map(|line| (pprof.text(function.filename).to_owned(), line.line)).collect();
    found.dedup();
    found
}

/// A map with everything that a map should not have, and one line that holds.
#[test]
fn hostile_map() {
    let Some(lab) = lab() else { return };
    let file = lab.workload("jit").with_file_name("hostile.map");
    let mut text = b"\xff\xfe\0\x01\x7fELF JiTD\n0 ffffffffffffffff everything\nffffffffffffff00 fff beyond\n".to_vec();
    text.extend(b"1000 1000 a long one ");
    text.extend(vec![b'x'; 4 << 20]);
    text.extend(b"\n-1000 20 sign\n\n \n1000\n");
    for number in 0..200_000u64 {
        text.extend(format!("{:x} {:x} overlapping {number}\n", number * 7, 1u64 << (number % 40)).bytes());
    }
    text.extend(b"1000 20 \x1b[2Jterminal;frame 7\n");
    fs::write(&file, text).unwrap();
    let profile = jit(&lab, &["map", file.to_str().unwrap()]).profile();
    fs::remove_file(file).unwrap();
    check_made_one(&profile, "made one");
    assert_eq!(profile.figure("worker_restarts"), 0, "{:?}", profile.quality);
}

/// What is in the place of a map and is none is neither opened nor believed, and that is said.
#[test]
fn what_is_no_map_of_this_process() {
    let Some(lab) = lab() else { return };
    for (arguments, why) in [
        (&["pipe"][..], "it is no regular file"),
        (&["link", "/etc/shadow"], "it is no regular file"),
        (&["old"], "it is older than the process"),
    ] {
        let ended = jit(&lab, arguments).end();
        assert!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
        assert!(ended.stderr.contains(&format!("/tmp/perf-1.map is not used: {why}")), "{}", ended.stderr);
        let profile = ended.profile();
        check_made_one(&profile, "[jit]");
        // A sample in the middle of an exec may be in no code.
        assert!((1..=3).contains(&profile.figure("symbolize_failed")), "{:?}", profile.quality);
    }
}

/// A program of the system, if it is there.
fn found(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|folder| folder.join(name)).find(|program| program.exists());
    if found.is_none() {
        let installed = name == "node" && std::env::var("CI").as_deref() == Ok("true");
        assert!(!installed, "skipped under CI=true: node is not installed");
        eprintln!("skipped: there is no {name} here");
    }
    found
}

fn source(name: &str) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads").join(name);
    source.to_str().unwrap().to_owned()
}

/// Of the samples in `fib` nearly all have whole stacks and names for all their frames.
fn check_fib(profile: &Profile, is_fib: impl Fn(&str) -> bool) {
    let in_fib =
        |stack: &&Stack| stack.user.iter().any(|frame| is_fib(frame.trim_end_matches("_[?]").trim_end_matches("_[f]")));
    let of_fib: Vec<&Stack> = profile.stacks.iter().filter(in_fib).collect();
    let sum = |stacks: &[&Stack]| stacks.iter().map(|stack| stack.samples).sum::<u64>();
    let nameless = |stack: &&Stack| stack.user.iter().any(|frame| frame.starts_with("[jit]"));
    let right: Vec<&Stack> =
        of_fib.iter().copied().filter(|stack| stack.incomplete.is_none() && !nameless(stack)).collect();
    let (right, all) = (sum(&right), sum(&of_fib));
    println!("{right} of {all} samples in fib are whole and named, {} in all", profile.figure("samples_written"));
    assert!(all >= 200 && right * 100 >= all * 95, "{right} of {all}");
    let others: u64 = profile.stacks.iter().filter(nameless).map(|stack| stack.samples).sum();
    assert!(others * 20 <= all, "{others} stacks hold code without a name");
}

#[test]
fn node() {
    let Some(lab) = lab() else { return };
    let Some(node) = found("node") else { return };
    let profile = apart(&lab, &node, &["--perf-basic-prof", &source("fib.js"), MS]).profile();
    // `LazyCompile:` up to Node 18, `JS:` since.
    check_fib(&profile, |frame| frame.contains(":*fib ") && frame.contains("fib.js"));
}

/// V8's baseline compiler makes code that calls a builtin to set up a frame and jumps to one to leave it.
#[test]
fn node_baseline() {
    let Some(lab) = lab() else { return };
    let Some(node) = found("node") else { return };
    let options = ["--always-sparkplug", "--no-opt", "--perf-basic-prof", &source("fib.js"), MS];
    let profile = apart(&lab, &node, &options).profile();
    check_fib(&profile, |frame| frame.contains(":^fib ") && frame.contains("fib.js"));
    // fib(27) calls fib(26), and so on to fib(1).
    let depth = |stack: &Stack| stack.user.iter().filter(|frame| frame.contains(":^fib ")).count();
    assert!(profile.stacks.iter().all(|stack| depth(stack) <= 27));
}

/// The JVM writes its map when it ends.
#[test]
fn java() {
    let Some(lab) = lab() else { return };
    let Some(java) = found("java") else { return };
    let options = ["-XX:+PreserveFramePointer", "-XX:+UnlockDiagnosticVMOptions", "-XX:+DumpPerfMapAtExit"];
    // Since JDK 17, and `java FILE.java` only where the compiler is.
    if !Command::new(&java).args(options).args([&source("Fib.java"), "1"]).output().unwrap().status.success() {
        eprintln!("skipped: this Java is not a JDK from 17 on");
        return;
    }
    let profile = apart(&lab, &java, &[&options[..], &[&source("Fib.java"), MS]].concat()).profile();
    check_fib(&profile, |frame| frame.contains("Fib.fib(int)"));
}
