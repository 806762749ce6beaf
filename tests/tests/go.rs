//! Go programs: whole chains and right names without symbols, DWARF or call frame information.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::process::Command;

use spanflame_tests::{ANY, Lab, Stack, lab};

/// The share of samples that must be right: the program's start and Go's own signals are in the rest.
const LEAST: f64 = 0.995;
const OPTIONS: [&str; 2] = ["-F", "499"];
const MS: &str = "4000";

/// Where calls change stacks: the first samples of a process are walked in a copy of one stack.
const LEAST_ACROSS: f64 = 0.99;
const MS_ACROSS: &str = "8000";

/// `None` after saying why the test is skipped.
fn go_lab() -> Option<Lab> {
    if Command::new("go").arg("version").output().is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped under CI=true: go is not installed");
        println!("skipped: go is not installed");
        return None;
    }
    lab()
}

const CALLS: [&str; 6] =
    ["main.rounds", "main.wide", "main.bound.func1", "main.(*mill).grind", "main.half_[i]", "main.leaf"];

fn goroutines(workload: &str) {
    let Some(lab) = go_lab() else { return };
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
fn cgo_both_ways(workload: &str) {
    let Some(lab) = go_lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload(workload), &[MS_ACROSS]).profile();
    let main = ["runtime.goexit", "runtime.main", "main.main"].as_slice();
    let into = ["main.intoC", "main._Cfunc_c_outer", "runtime.cgocall", "runtime.asmcgocall", ANY, "c_outer", "c_leaf"];
    let back = ["main.andBack", "main._Cfunc_c_back", "runtime.cgocall", "runtime.asmcgocall", ANY, "c_back", "goBack"];
    let in_go = ["crosscall2", "runtime.cgocallback", ANY, "main.goBack_[i]", "main.middle", "main.leaf"];
    let (into, back) = ([main, &into].concat(), [main, &back, &in_go].concat());
    profile.check_chains(workload, &[&into, &back, &["runtime.mstart", ANY]], LEAST_ACROSS);
}

#[test]
fn cgo_with_dwarf() {
    cgo_both_ways("cgo");
}

#[test]
fn cgo_position_independent() {
    cgo_both_ways("cgo-pie");
}

/// Samples of a workload whose stacks hold `function`: those with the chain, those that are cut, and all.
fn held(workload: &str, function: &str, chain: &[&str]) -> Option<[u64; 3]> {
    let lab = go_lab()?;
    let profile = lab.record(&OPTIONS).of(&lab.workload(workload), &[MS]).profile();
    let stacks = profile.of(workload);
    let count = |wanted: &dyn Fn(&Stack) -> bool| -> u64 {
        let stacks = stacks.iter().filter(|stack| stack.holds(function) && wanted(stack));
        stacks.map(|stack| stack.samples).sum()
    };
    let right = count(&|stack| stack.is(chain));
    let found = [right, count(&|stack| stack.incomplete.is_some()), count(&|_| true)];
    println!("{workload}: {found:?} right, cut and all of {function}");
    assert!(found[2] > 100, "the workload is none for this: {:?}", profile.quality);
    Some(found)
}

/// The collector's work runs on the thread's stack and belongs to the goroutine that asked for it.
fn runtime_on_its_own_stack(workload: &str) {
    let marking = ["runtime.goexit", ANY, "runtime.gcBgMarkWorker", "runtime.systemstack", ANY];
    let Some([marked, cut, all]) = held(workload, "runtime.systemstack", &marking) else { return };
    assert!(marked * 10 > all && cut * 100 < all, "{marked} and {cut} of {all}");
}

#[test]
fn runtime_on_its_own_stack_stripped() {
    runtime_on_its_own_stack("go-garbage");
}

#[test]
fn runtime_on_its_own_stack_position_independent() {
    runtime_on_its_own_stack("go-garbage-pie");
}

/// What moves a goroutine to a larger stack, too, also when it stands there already.
fn growing_stacks(workload: &str) {
    let growing =
        ["runtime.goexit", ANY, "main.rise", "main.deeper", ANY, "runtime.morestack", "runtime.newstack", ANY];
    let Some([grown, cut, all]) = held(workload, "runtime.newstack", &growing) else { return };
    assert!(grown * 100 > all * 98 && cut * 100 < all, "{grown} and {cut} of {all}");
}

#[test]
fn growing_stacks_stripped() {
    growing_stacks("go-grows");
}

#[test]
fn growing_stacks_position_independent() {
    growing_stacks("go-grows-pie");
}
