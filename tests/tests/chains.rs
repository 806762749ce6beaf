//! Programs with known call chains: nearly all their samples hold the exact chain to the root.

#![forbid(unsafe_code)]
#![expect(clippy::expect_used, reason = "what goes wrong fails the test")]

use std::path::Path;

use spanflame_tests::{ANY, LIBC, Lab, Profile, READ, Share, Stack, begins, from_main, lab, matches};

/// The share of samples that must be right: start and exit of a process are in the rest.
const LEAST: f64 = 0.995;

/// The options of a recording that gathers thousands of samples in seconds.
const OPTIONS: [&str; 2] = ["-F", "499"];

/// Runs a workload under the profiler and checks its chains, each from `main` on.
macro_rules! chains {
    ($($(#[doc = $doc:literal])* $case:ident: $workload:literal $arguments:tt $([$($frame:expr),+])+;)+) => {$(
        $(#[doc = $doc])*
        #[test]
        fn $case() {
            let Some(lab) = lab() else { return };
            let arguments: &[&str] = &$arguments;
            let profile = lab.record(&OPTIONS).of(&lab.workload($workload), arguments).profile();
            let chains = [$(from_main(&[$($frame),+])),+];
            let chains: Vec<_> = chains.iter().map(Vec::as_slice).collect();
            profile.check_chains($workload, &chains, LEAST);
        }
    )+};
}

chains! {
    no_frame_pointers: "chain12" ["6"]
        ["f01", "f02", "f03", "f04", "f05", "f06", "f07", "f08", "f09", "f10", "f11", "f12", "leaf"];
    no_pie: "chain12-no-pie" ["6"]
        ["f01", "f02", "f03", "f04", "f05", "f06", "f07", "f08", "f09", "f10", "f11", "f12", "leaf"];
    statically_linked: "chain12-static" ["6"]
        ["f01", "f02", "f03", "f04", "f05", "f06", "f07", "f08", "f09", "f10", "f11", "f12", "leaf"];
    statically_linked_pie: "chain12-st-pie" ["6"]
        ["f01", "f02", "f03", "f04", "f05", "f06", "f07", "f08", "f09", "f10", "f11", "f12", "leaf"];
    cpp: "shop" ["4000"]
        ["shop::checkout(shop::tax::Rule const*, unsigned long)",
         "unsigned long shop::total<unsigned long>(shop::tax::Rule const*, unsigned long)",
         "shop::tax::Flat<unsigned long, 7>::apply(unsigned long) const"];
    frames_of_every_shape: "frames" ["4000"]
        ["leaf"]
        ["with_array", "with_alloca", "aligned_and_variable", "realigned", "aligned_frame", "big_frame", "long_code", "leaf"]
        ["with_array", "with_alloca", "aligned_and_variable", "realigned", "aligned_frame", "big_frame", "long_code"];
    /// The return address of such a call is in the next function.
    call_at_the_end_of_a_function: "noreturn" ["4000"]
        ["caller", "last_call", "endless", "leaf"];
}

/// Most samples hit kernel mode; their user chain must be there too.
#[test]
fn in_kernel_mode() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload("read"), &["4000"]).profile();
    let leaf = from_main(&["f01", "f02", "f03", "f04", "f05", "f06", "f07", "f08", "f09", "f10", "f11", "f12", "leaf"]);
    let read = [leaf.as_slice(), &[READ]].concat();
    profile.check_chains("read", &[&leaf, &read], LEAST);
    let stacks = profile.of("read");
    let all: u64 = stacks.iter().map(|stack| stack.samples).sum();
    let in_kernel: u64 = stacks.iter().filter(|stack| !stack.kernel.is_empty()).map(|stack| stack.samples).sum();
    println!("{in_kernel} of {all} samples in kernel mode");
    assert!(in_kernel * 10 > all * 7, "{in_kernel} of {all} samples in kernel mode: the workload is none for this");
}

/// glibc keeps the return address of `vfork` in a register while the kernel is at work.
#[test]
fn return_address_in_a_register() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload("vforks"), &["3000"]).profile();
    profile.check_chain("vforks", &from_main(&["caller", "many_vforks", ANY]), LEAST);
    let in_vfork = |stack: &&Stack| stack.kernel.iter().any(|name| name.contains("vfork"));
    let in_vfork: u64 = profile.of("vforks").into_iter().filter(in_vfork).map(|stack| stack.samples).sum();
    assert!(in_vfork >= 200, "{in_vfork} samples in vfork: the workload is none for this");
}

const RUST: [&str; 4] = ["cart::main", "cart::serve", "cart::shop::checkout", "cart::shop::Cart<u64>::total"];

/// A release build, linked by what rustc takes (lld: file offsets and addresses differ).
#[test]
fn rust() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload("cart"), &["4000"]).profile();
    let chain = [["_start", LIBC, LIBC, "main", ANY].as_slice(), &RUST].concat();
    profile.check_chain("cart", &chain, LEAST);
}

/// With `panic=abort` rustc writes no unwind table for the `main` that the C library calls: the chain
/// is whole down from there, and what is cut says so.
#[test]
fn rust_that_aborts() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload("cart-abort"), &["4000"]).profile();
    let chain = [["main", ANY].as_slice(), &RUST].concat();
    let stacks = profile.of("cart-abort");
    let all: u64 = stacks.iter().map(|stack| stack.samples).sum();
    let whole = stacks.iter().filter(|stack| {
        let from_root = matches(&stack.user, &[["_start", LIBC, LIBC].as_slice(), &chain].concat());
        from_root || stack.incomplete.as_deref() == Some("no_frame_pointer") && matches(&stack.user, &chain)
    });
    let share = Share { right: whole.map(|stack| stack.samples).sum(), all };
    assert!(share.part() >= LEAST && all > 200, "{share:?} {:?}", profile.quality);
}

/// Chains end at the thread's start, and each sample carries its thread's name.
#[test]
fn threads() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload("threads"), &["2500"]).profile();
    let mill = [LIBC, LIBC, "mill", "crush", "grind"];
    let pot = [LIBC, LIBC, "pot", "brew", "pour"];
    profile.check_chains("threads", &[&mill, &pot], LEAST);

    for (leaf, thread) in [("grind", "mill"), ("pour", "pot")] {
        let samples = profile.pprof.0.sample.iter().filter(|sample| profile.pprof.names(sample).contains(&leaf));
        let threads: Vec<_> = samples.map(|sample| profile.pprof.labels(sample)["thread"].clone()).collect();
        assert!(!threads.is_empty() && threads.iter().all(|name| name == thread), "{leaf} in {threads:?}");
    }
}

/// A library that is loaded when recording has long begun.
#[test]
fn library_loaded_late() {
    let Some(lab) = lab() else { return };
    check_host(&lab, &[]);
}

/// The same library in memory that has no path: only the process's mappings lead to it.
#[test]
fn library_in_a_memfd() {
    let Some(lab) = lab() else { return };
    check_host(&lab, &["memfd"]);
}

fn check_host(lab: &Lab, how: &[&str]) {
    let plugin = lab.workload("libplugin.so");
    let arguments = [&["4000", plugin.to_str().expect("a path in UTF-8")], how].concat();
    let profile = lab.record(&OPTIONS).of(&lab.workload("host"), &arguments).profile();
    let before = from_main(&["host_leaf"]);
    let after = from_main(&["call", "plugin_entry", "plugin_middle", "plugin_leaf"]);
    profile.check_chains("host", &[&before, &after], LEAST);
    let share = profile.share("host", &[&after]);
    assert!(share.part() > 0.6, "three of four seconds are in the plugin: {share:?}");
}

/// Two libraries in turn at one address, for so long each, beside programs that want the CPUs: each sample has the names
/// and the callers of the one that was there. Returns the share of complete samples.
fn check_swap(lab: &Lab, cpu_ms: u32, of_turn_ms: u32, beside: usize) -> Share {
    let [swap, one, other, busy] = ["swap", "libplugin.so", "libtwin.so", "chain12"].map(|name| lab.workload(name));
    let [swap, one, other, busy] = [&swap, &one, &other, &busy].map(|path| path.display());
    let busy = format!("{busy} 60000 & busy=\"$busy $!\"; ").repeat(beside);
    let script = format!("{busy} {swap} {cpu_ms} {one} {other} {of_turn_ms}; [ -z \"$busy\" ] || kill $busy");
    let profile = lab.record(&OPTIONS).of(Path::new("/bin/sh"), &["-c", &script]).profile();
    let chains = ["plugin", "twin"].map(|name| ["entry", "middle", "leaf"].map(|part| format!("{name}_{part}")));
    let chains = chains.each_ref().map(|[entry, middle, leaf]| from_main(&["call", entry, middle, leaf]));
    let [plugin, twin] = chains.each_ref().map(Vec::as_slice);
    let mut complete = Share { right: 0, all: 0 };
    for stack in profile.of("swap") {
        let is_complete = stack.incomplete.is_none();
        complete.all += stack.samples;
        complete.right += if is_complete { stack.samples } else { 0 };
        let at_work = ["call", "plugin_leaf", "twin_leaf"].into_iter().any(|name| stack.holds(name));
        let is_right = begins(&stack.user, plugin) || begins(&stack.user, twin);
        assert!(!is_complete || !at_work || is_right, "of both libraries: {stack:?}");
    }
    println!("{of_turn_ms} ms, beside {beside}: {complete:?}, {:.2}%", 100.0 * complete.part());
    let share = |chain| profile.share("swap", &[chain]).part();
    let [plugin, twin] = [share(plugin), share(twin)];
    assert!(plugin + twin > 0.85 * complete.part(), "most of it is work: {plugin} and {twin}");
    assert!((plugin - twin).abs() < 0.25, "turns are of the same length: {plugin} and {twin}");
    complete
}

#[test]
fn library_in_the_place_of_another() {
    let Some(lab) = lab() else { return };
    let complete = check_swap(&lab, 6000, 400, 0);
    // What a library does in its first moments may be cut.
    assert!(complete.part() >= 0.97, "{complete:?}");
}

/// The kernel's tables are always those of the library before, but for the samples' own stacks.
#[test]
fn libraries_in_the_place_of_each_other_all_the_time() {
    let Some(lab) = lab() else { return };
    for (of_turn_ms, beside) in [(1, 0), (30, 0), (1, 3)] {
        let complete = check_swap(&lab, 2500, of_turn_ms, beside);
        assert!(complete.part() >= 0.95, "{of_turn_ms} ms beside {beside}: {complete:?}");
    }
}

/// Functions of another program in the same process, and none mixed with those before.
#[test]
fn exec_in_the_same_process() {
    let Some(lab) = lab() else { return };
    let next = lab.workload("brief");
    // CPU time goes on over an exec.
    let arguments = ["2000", next.to_str().expect("a path in UTF-8"), "4000"];
    let profile = lab.record(&OPTIONS).of(&lab.workload("become"), &arguments).profile();
    profile.check_chain("become", &from_main(&["first_outer", "first_middle", "first_leaf"]), LEAST);
    profile.check_chain("brief", &from_main(&["outer", "inner", "leaf"]), LEAST);
    for stack in &profile.stacks {
        let (first, second) = (stack.holds("first_leaf"), stack.holds("leaf"));
        assert!(!(first && second), "of both programs: {stack:?}");
        assert!(!(first && stack.process == "brief" || second && stack.process == "become"), "{stack:?}");
    }
}

/// Recursions of these depths, the last one near the most frames that a sample can have.
#[test]
fn deep_recursion() {
    let Some(lab) = lab() else { return };
    for depth in [60, 250, 985] {
        let profile = lab.record(&OPTIONS).of(&lab.workload("deep"), &["2500", &depth.to_string()]).profile();
        let before = from_main(&["leaf"]);
        let chain = [from_main(&["deeper"]).as_slice(), &vec!["deeper"; depth - 1], &["leaf"]].concat();
        println!("{depth} deep");
        profile.check_chains("deep", &[&before, &chain], LEAST);
    }
}

/// Deeper than that, a stack is cut at its root, and says so.
#[test]
fn recursion_that_is_too_deep() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload("deep"), &["2500", "3000"]).profile();
    let mut too_deep = 0;
    // On its way down and up the recursion is less deep for a moment.
    for stack in profile.of("deep").into_iter().filter(|stack| stack.holds("deeper") && stack.user.len() > 900) {
        assert!(stack.holds("main") != stack.incomplete.is_some(), "{:?} {:?}", stack.incomplete, stack.user.first());
        if stack.incomplete.as_deref() == Some("too_deep") {
            too_deep += stack.samples;
        }
    }
    assert!(too_deep >= 500 && profile.figure("stacks_ended_too_deep") >= too_deep, "{:?}", profile.quality);
}

/// Functions that were inlined are frames of their own, and say so.
#[test]
fn inlined_functions() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload("inlined"), &["4000"]).profile();
    profile.check_chain("inlined", &from_main(&["outer", "middle_[i]", "inner_[i]"]), LEAST);
}

/// Through the signal's frame to what was interrupted.
#[test]
fn signal_handler() {
    let Some(lab) = lab() else { return };
    for how in ["", "altstack"] {
        let profile = lab.record(&OPTIONS).of(&lab.workload("handler"), &["3000", how]).profile();
        let before = from_main(&["caller", "interrupted"]);
        let handling = [before.as_slice(), &TRAMPOLINE, &HANDLER].concat();
        profile.check_chains("handler", &[&before, &handling], LEAST);
    }
}

/// The interrupted instruction is the first one of its function: no byte before it belongs to it.
#[test]
fn signal_at_the_entry_of_a_function() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload("handler"), &["3000", "entry"]).profile();
    let chain = [from_main(&["caller", "trapped", "trap_at_entry"]).as_slice(), &TRAMPOLINE, &HANDLER].concat();
    profile.check_chain("handler", &chain, LEAST);
}

/// What a handler and the function of a context return to was called by nobody: the byte before is another
/// function's.
#[test]
fn code_that_was_never_called() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload("handler-static"), &["1500", ""]).profile();
    let before = from_main(&["caller", "interrupted"]);
    let handling = [before.as_slice(), &["__restore_rt"], &HANDLER].concat();
    profile.check_chains("handler-static", &[&before, &handling], LEAST);

    let profile = lab.record(&OPTIONS).of(&lab.workload("contexts-static"), &["1500"]).profile();
    let mut stacks = profile.of("contexts-static");
    stacks.retain(|stack| stack.incomplete.is_none() && stack.holds("leaf") && !stack.holds("in_first"));
    assert!(stacks.iter().any(|stack| stack.holds("in_ping")), "{stacks:?}");
    for stack in stacks {
        assert_eq!(stack.user.first().map(String::as_str), Some("__start_context"), "{stack:?}");
    }
}

/// The code that the kernel makes a handler return to.
const TRAMPOLINE: [&str; 1] = [LIBC];
const HANDLER: [&str; 3] = ["on_signal", "handler_outer", "handler_leaf"];

/// Where there are no unwind tables the frame pointer leads on, and the profile says how often.
#[test]
fn frame_pointers_without_tables() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload("bare-fp"), &["4000"]).profile();
    profile.check_chain(
        "bare-fp",
        &from_main(&["enter_[f]", "bare_outer_[f]", "bare_middle_[f]", "bare_leaf_[?]"]),
        LEAST,
    );
    let found = profile.figure("frames_by_frame_pointer");
    assert!(found >= 3 * profile.figure("samples_written") / 2, "{found} frames by frame pointer");
}

/// Without tables, what the code does to the stack pointer says where the callers are, also where the frame
/// pointer is that of another function.
#[test]
#[cfg(target_arch = "x86_64")]
fn neither_tables_nor_a_need_for_them() {
    let Some(lab) = lab() else { return };
    for workload in ["bare-clear", "bare-clear-live", "bare-clear-fp"] {
        let profile = lab.record(&OPTIONS).of(&lab.workload(workload), &["2000"]).profile();
        profile.check_chain(workload, &from_main(&["enter", "bare_outer", "bare_middle", "bare_leaf"]), LEAST);
    }
}

/// Code that belongs to no file, as just-in-time compilers write it.
#[test]
fn generated_code() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload("generated"), &["4000"]).profile();
    profile.check_chain("generated", &from_main(&["enter_[f]", ANY, "leaf"]), LEAST);
    let longest =
        profile.of("generated").iter().filter(|stack| stack.holds("leaf")).map(|stack| stack.user.len()).max();
    assert_eq!(longest, Some(from_main(&["enter", "generated", "leaf"]).len()), "one frame of generated code");
    assert!(profile.figure("frames_by_frame_pointer") > 0, "{:?}", profile.quality);
}

/// A leaf that has no frame of its own, in code with frame pointers: the register holds the frame of
/// its caller. To follow it leaves that caller out, so the stack has to be whole or to be cut.
#[test]
fn leaf_without_a_frame() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload("bare-leaf"), &["4000"]).profile();
    let whole = from_main(&["enter_[f]", "bare_outer_[f]", "bare_middle_[f]", "bare_leaf_[?]"]);
    let share = profile.share("bare-leaf", &[&whole]);
    let cut =
        profile.of("bare-leaf").into_iter().filter(|stack| stack.incomplete.is_some() && stack.user == ["bare_leaf"]);
    let right = share.right + cut.map(|stack| stack.samples).sum::<u64>();
    let skipped = profile
        .of("bare-leaf")
        .into_iter()
        .filter(|stack| stack.user.ends_with(&["bare_outer_[f]".into(), "bare_leaf_[?]".into()]));
    let skipped: u64 = skipped.map(|stack| stack.samples).sum();
    assert!(right >= 200 && skipped == 0, "{skipped} of {} stacks lack bare_middle and don't say so", share.all);
}

/// A return address of zero ends the stack of a coroutine, but not one where it was found by information that is wrong.
#[test]
fn zero_return_addresses() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload("zero"), &["4000"]).profile();
    let (mut whole, mut cut) = (0, 0);
    for stack in profile.of("zero") {
        if stack.holds("astray") {
            assert!(stack.user != ["astray"] || stack.incomplete.as_deref() == Some("not_code"), "{stack:?}");
            cut += if stack.incomplete.is_some() { stack.samples } else { 0 };
        } else if stack.holds("leaf") {
            assert!(stack.is(&["coroutine", "middle", "leaf"]), "{stack:?}");
            whole += stack.samples;
        }
    }
    assert!(whole >= 200 && cut >= 200, "{whole} whole, {cut} cut: {:?}", profile.quality);
}

/// Without tables and frame pointers a stack is cut, named and counted; no caller is made up.
#[test]
fn neither_tables_nor_frame_pointers() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload("bare-no-fp"), &["4000"]).profile();
    check_cut(&profile, "bare-no-fp");
}

/// The same while the register holds the frame of a caller further up: to follow it would leave out
/// the callers between.
#[test]
fn frame_pointer_of_another_function() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&OPTIONS).of(&lab.workload("bare-live-fp"), &["4000"]).profile();
    check_cut(&profile, "bare-live-fp");
}

fn check_cut(profile: &Profile, process: &str) {
    let mut cut = 0;
    for stack in profile.of(process).into_iter().filter(|stack| stack.holds("bare_leaf")) {
        assert_eq!(stack.user, ["bare_leaf"], "callers that nothing tells: {stack:?}");
        assert!(stack.incomplete.is_some(), "complete: {stack:?}");
        cut += stack.samples;
    }
    println!("{cut} stacks cut");
    assert!(cut >= 200 && profile.figure("stacks_incomplete") >= cut, "{cut} cut: {:?}", profile.quality);
}
