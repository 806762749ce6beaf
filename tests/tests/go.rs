//! Go programs: whole chains and right names without symbols, DWARF or call frame information.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::process::Command;

use spanflame_tests::{ANY, Lab, Share, Stack, lab, matches};

/// The share of samples that must be right: the program's start and Go's own signals are in the rest.
const LEAST: f64 = 0.995;
const OPTIONS: [&str; 2] = ["-F", "499"];
const MS: &str = "4000";

/// Where calls change stacks: the first samples of a process are walked in a copy of one stack.
const LEAST_ACROSS: f64 = 0.99;
const MS_ACROSS: &str = "8000";

/// From here on the runtime keeps a frame pointer where it changes stacks (1.21).
const CROSSED_SINCE: u32 = 21;

/// The lab and the minor version of Go; `None` after saying why the test is skipped.
fn go_lab() -> Option<(Lab, u32)> {
    let lab = lab()?;
    let Ok(said) = Command::new("go").args(["version"]).output() else {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped under CI=true: go is not installed");
        println!("skipped: go is not installed");
        return None;
    };
    let said = String::from_utf8(said.stdout).unwrap();
    let minor = said.split("go1.").nth(1).and_then(|rest| rest.split(['.', ' ']).next()).unwrap().parse().unwrap();
    Some((lab, minor))
}

const CALLS: [&str; 6] =
    ["main.rounds", "main.wide", "main.bound.func1", "main.(*mill).grind", "main.half_[i]", "main.leaf"];

fn goroutines(workload: &str) {
    let Some((lab, _minor)) = go_lab() else { return };
    let program = lab.workload(workload);
    let profile = lab.record(&OPTIONS).of(&program, &[MS]).profile();
    // Go interrupts what runs for long, by a signal.
    let main = [["runtime.goexit", "runtime.main", "main.main"].as_slice(), &CALLS, &[ANY]].concat();
    let worker = [["runtime.goexit", "main.worker"].as_slice(), &CALLS, &[ANY]].concat();
    let monitor = ["runtime.mstart", "runtime.mstart0", "runtime.mstart1", "runtime.sysmon", ANY];
    profile.check_chains(workload, &[&main, &worker, &monitor], LEAST);
    for chain in [&main, &worker] {
        let share = profile.share(workload, &[chain]);
        assert!(share.part() > 0.1, "{chain:?}: {share:?}");
    }
    let function = profile.pprof.function("main.leaf").unwrap();
    assert!(profile.pprof.text(function.filename).ends_with("workloads/goroutines.go"), "{function:?}");
}

#[test]
fn goroutines_with_dwarf() {
    goroutines("go");
}

#[test]
fn goroutines_stripped() {
    goroutines("go-stripped");
}

#[test]
fn goroutines_stripped_position_independent() {
    goroutines("go-pie");
}

/// Calls from Go to C, and from there back to Go, each on a stack of its own.
#[test]
fn cgo_both_ways() {
    let Some((lab, minor)) = go_lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload("cgo"), &[MS_ACROSS]).profile();
    let into = ["runtime.asmcgocall", ANY, "c_outer", "c_leaf"];
    let back = ["runtime.asmcgocall", ANY, "c_back", "goBack", "crosscall2", "runtime.cgocallback", ANY];
    let back = [back.as_slice(), &["main.goBack_[i]", "main.middle", "main.leaf"]].concat();
    let monitor = ["runtime.mstart", ANY];
    if minor >= CROSSED_SINCE {
        let from_main = ["runtime.goexit", "runtime.main", "main.main"];
        let into = [from_main.as_slice(), &["main.intoC", "main._Cfunc_c_outer", "runtime.cgocall"], &into].concat();
        let back = [from_main.as_slice(), &["main.andBack", "main._Cfunc_c_back", "runtime.cgocall"], &back].concat();
        profile.check_chains("cgo", &[&into, &back, &monitor], LEAST_ACROSS);
        return;
    }
    // The call from Go to C can't be crossed: cut there, and said.
    let stacks = profile.of("cgo");
    let is_cut = |stack: &&&Stack| {
        let cut = stack.incomplete.as_deref() == Some("unsupported_cfi");
        cut && (matches(&stack.user, &into) || matches(&stack.user, &back)) || stack.is(&monitor)
    };
    let right = stacks.iter().filter(is_cut).map(|stack| stack.samples).sum();
    let share = Share { right, all: stacks.iter().map(|stack| stack.samples).sum() };
    assert!(share.part() >= LEAST_ACROSS && share.all > 200, "{share:?} {:?}", profile.quality);
}

/// The collector's work runs on the thread's stack and belongs to the goroutine that asked for it.
#[test]
fn runtime_on_its_own_stack() {
    let Some((lab, minor)) = go_lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload("go-garbage"), &[MS]).profile();
    let stacks = profile.of("go-garbage");
    let count = |wanted: &dyn Fn(&Stack) -> bool| -> u64 {
        stacks.iter().filter(|stack| wanted(stack)).map(|stack| stack.samples).sum()
    };
    let on_own = count(&|stack| stack.holds("runtime.systemstack"));
    let marking = ["runtime.goexit", ANY, "runtime.gcBgMarkWorker", "runtime.systemstack", ANY];
    let marked = count(&|stack| stack.is(&marking));
    let cut =
        count(&|stack| stack.incomplete.is_some() && stack.user.first().is_some_and(|at| at == "runtime.systemstack"));
    println!("{on_own} samples on the thread's stack, {marked} of them marking, {cut} of all cut there");
    assert!(on_own > 100, "the workload is none for this: {:?}", profile.quality);
    if minor >= CROSSED_SINCE {
        assert!(marked * 10 > on_own && cut * 100 < on_own, "{marked} and {cut} of {on_own}");
        // What grows a goroutine's stack is cut.
        let whole = count(&|stack| stack.incomplete.is_none());
        assert!(Share { right: whole, all: count(&|_| true) }.part() > 0.98, "{:?}", profile.quality);
    } else {
        assert!(cut * 100 > on_own * 99, "{cut} of {on_own}: nothing is made up");
    }
}
