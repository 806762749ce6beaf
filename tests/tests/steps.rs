//! Unwinding at every instruction of programs of every kind: no wrong caller.
//!
//! A step takes 20 us and more, so the quick test looks at some ten thousand instructions of each
//! program; `cargo test -p spanflame-tests --test steps -- --ignored --nocapture` at millions.

#![forbid(unsafe_code)]
#![cfg(target_arch = "x86_64")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use From::{After, Entry, Loader};
use spanflame_tests::steps::{Files, From, Tally, walk};
use spanflame_tests::{Lab, lab};

/// At its end `setcontext` is on the stack to which it goes, with the return address pushed there by
/// itself: rows say where it returns to, the shadow stack (no call led there) says what is behind that.
///
/// musl's `sigsetjmp` takes its return address off the stack and puts it there again before it goes on in
/// `__sigsetjmp_tail`, to which no call led.
const RETURN_ELSEWHERE: [&str; 2] = ["setcontext", "sigsetjmp_tail"];

/// Where a return may lead elsewhere than to the caller: another context goes on, or the function that the
/// loader has looked up is entered.
const GO_ELSEWHERE: [&str; 5] = ["longjmp", "swapcontext", "setcontext", "sigsetjmp_tail", "dl_runtime_resolve"];

/// The share of instructions of each program that must have all callers.
const LEAST: f64 = 0.99;
/// Of the workloads: they are short, and some 150 instructions of theirs change the stack or go over to
/// the frame that catches.
const LEAST_OF_WORKLOADS: f64 = 0.98;
/// Of those without unwind tables: some blocks are behind calls of which nothing says that they return.
const LEAST_WITHOUT_TABLES: f64 = 0.95;

/// Workloads of a few thousand instructions that move the stack pointer in every way.
const WORKLOADS: [&str; 14] = [
    "every",
    "every-o0",
    "every-os",
    "every-cet",
    "every-fp",
    "every-static",
    "every-st-pie",
    "every-bare",
    "every-bare-fp",
    "every-bare-al",
    "every-musl",
    "throws",
    "throws-o0",
    "throws-static",
];

/// What `cargo xtask setup` does not install.
const MAY_BE_MISSING: [&str; 2] = ["/usr/bin/python3", "/usr/bin/sqlite3"];

/// Programs at work. Those that are not installed are left out; under `CI=true` only those that may be.
const AT_WORK: &[(&str, &[&str])] = &[
    ("/usr/bin/perl", &["-e", "while (1) { my %h = map { $_ => 1 } 1..1000; join ',', sort keys %h }"]),
    ("/usr/bin/openssl", &["speed", "-seconds", "60", "sha256", "rsa2048", "ecdsap256"]),
    ("/usr/bin/xz", &["-c", "/dev/zero"]),
    ("/usr/bin/python3", &["-c", "import json\nwhile 1: json.loads(json.dumps([{'a': [1.5, 'x']}] * 100))"]),
    ("/bin/sh", &["-c", "while :; do x=$((x + 1)); done"]),
    (
        "/usr/bin/sqlite3",
        &[":memory:", "with recursive n(i) as (select 1 union all select i+1 from n) select max(i*7%13) from n"],
    ),
    ("/usr/bin/gzip", &["-c", "/dev/zero"]),
    ("/usr/bin/awk", &["BEGIN { while (1) { x[i++ % 1000] = sprintf(\"%d %g\", i, i / 7) } }"]),
    ("/usr/bin/sha256sum", &["/dev/zero"]),
    ("/usr/bin/openssl", &["speed", "-seconds", "60", "-evp", "camellia-128-cbc"]),
    ("/usr/bin/openssl", &["speed", "-seconds", "60", "ecdsap384"]),
];

/// What is looked at in all programs together.
#[derive(Default)]
struct All {
    files: Files,
    instructions: u64,
    equal: u64,
    wrong: u64,
    elsewhere: u64,
    /// What else is not as it has to be in one of them.
    odd: Vec<String>,
}

impl All {
    fn look_at(&mut self, program: &Path, arguments: &[&str], from: From, steps: u64) {
        let tally = walk(&mut self.files, program, arguments, from, steps);
        let what = format!("{} {from:?}", program.display());
        println!("{what}: {tally}");
        self.add(&tally);
        let least = match &what {
            bare if bare.contains("/workloads/every-bare") => LEAST_WITHOUT_TABLES,
            workload if workload.contains("/workloads/") => LEAST_OF_WORKLOADS,
            _ => LEAST,
        };
        let share = tally.equal as f64 / tally.instructions as f64;
        if share.is_nan() || share < least {
            self.odd.push(format!("{what}: {share} of {} instructions have all callers", tally.instructions));
        }
        let known = |function: &str| GO_ELSEWHERE.iter().any(|name| function.trim_start_matches('_').starts_with(name));
        for (function, times) in tally.strange_returns.iter().filter(|(function, _times)| !known(function)) {
            self.odd.push(format!("{what}: {times} returns of {function} did not lead to the caller"));
        }
    }

    fn add(&mut self, tally: &Tally) {
        self.instructions += tally.instructions;
        self.equal += tally.equal;
        for ((_what, function), found) in &tally.wrong {
            let name = function.split(' ').next().unwrap_or_default();
            let elsewhere = RETURN_ELSEWHERE.contains(&name.trim_start_matches("__"));
            *(if elsewhere { &mut self.elsewhere } else { &mut self.wrong }) += found.instructions;
        }
    }

    fn check(&self) {
        let Self { instructions, equal, wrong, elsewhere, odd, .. } = self;
        println!("{instructions} instructions: {equal} equal, {wrong} wrong, {elsewhere} of {RETURN_ELSEWHERE:?}");
        assert_eq!(*wrong, 0, "instructions with a wrong caller");
        assert!(*elsewhere * 2000 < *instructions, "{elsewhere} of {instructions} of {RETURN_ELSEWHERE:?}");
        assert!(odd.is_empty(), "{odd:#?}");
    }
}

fn installed(programs: &'static [(&str, &[&str])]) -> impl Iterator<Item = (&'static Path, &'static [&'static str])> {
    let all = programs.iter().map(|(program, arguments)| (Path::new(*program), *arguments));
    all.filter(|(program, _arguments)| {
        let due = std::env::var("CI").as_deref() == Ok("true")
            && !MAY_BE_MISSING.iter().any(|name| *program == Path::new(name));
        assert!(program.exists() || !due, "left out under CI=true: {} is not installed", program.display());
        program.exists()
    })
}

fn workloads(lab: &Lab) -> Vec<PathBuf> {
    WORKLOADS.iter().map(|name| lab.workload(name)).collect()
}

#[test]
fn no_caller_is_wrong_at_any_instruction() {
    let Some(lab) = lab() else { return };
    let mut all = All::default();
    all.look_at(Path::new("/bin/true"), &[], Loader, 60_000);
    for workload in workloads(&lab) {
        all.look_at(&workload, &[], Entry, 40_000);
    }
    for (program, arguments) in installed(AT_WORK).take(4) {
        all.look_at(program, arguments, After(Duration::from_millis(300)), 30_000);
    }
    all.check();
}

#[test]
#[ignore = "takes minutes"]
fn no_caller_is_wrong_at_millions_of_instructions() {
    let Some(lab) = lab() else { return };
    let mut all = All::default();
    for workload in workloads(&lab) {
        all.look_at(&workload, &[], Loader, 1_000_000);
    }
    for (program, arguments) in installed(AT_WORK) {
        all.look_at(program, arguments, Loader, 500_000);
        all.look_at(program, arguments, After(Duration::from_millis(500)), 300_000);
    }
    all.check();
}

/// The program, with arguments, that `SPANFLAME_STEPS` names, from where `SPANFLAME_STEPS_FROM` says:
/// `entry` or milliseconds of work.
#[test]
#[ignore = "for a program of your own"]
fn no_caller_is_wrong_in_the_program_that_is_named() {
    let Ok(line) = std::env::var("SPANFLAME_STEPS") else { return println!("SPANFLAME_STEPS names no program") };
    let words: Vec<&str> = line.split(' ').collect();
    let from = std::env::var("SPANFLAME_STEPS_FROM").unwrap_or_default();
    let from = match from.as_str() {
        "" => Loader,
        "entry" => Entry,
        ms => After(Duration::from_millis(ms.parse().expect("milliseconds"))),
    };
    let mut all = All::default();
    all.look_at(Path::new(words[0]), &words[1..], from, 1_000_000);
    assert_eq!(all.wrong, 0, "instructions with a wrong caller");
}
