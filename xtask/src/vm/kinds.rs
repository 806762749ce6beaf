//! The kinds of stacks that are walked in every guest, and what their samples have to be.

use anyhow::{Result, bail};

use crate::folded;

/// Stacks with the whole first chain of each program, at least; at 199 Hz and 4 s there are nearly 800 in all,
/// fewer where the emulator is slow.
const FEWEST: u64 = 50;
/// The least share of a program's stacks that must be complete, but for those that have to be cut.
const LEAST_COMPLETE: f64 = 0.995;
/// Wrong stacks that are shown, and how much of each.
const SHOWN: usize = 5;
const SHOWN_CHARS: usize = 400;

/// Programs of `tests/workloads`.
pub(super) const PROGRAMS: [&str; 4] = ["deep", "frames", "handler", "contexts"];
/// Other names for them.
pub(super) const LINK: &str = "for name in deep frames handler contexts; do ln -sf /bin/$name /bin/new-$name; done";
/// Their command line. By their other names they run first, side by side: what is sampled before there are
/// tables has 48 KiB of stack, and tables take their time under emulation. Of these only wrong callers count.
/// Then one after the other: they would keep all CPUs from the profiler. 985 calls of `deeper` are 990 frames.
pub(super) const RECORD: &str = "/bin/spanflame record -F 199 -o /out/kinds.folded -- sh -c \
    \"new-deep 400 985 & new-frames 400 & new-handler 400 altstack & new-contexts 400 & wait; \
    sleep 1; deep 4000 985; frames 4000; handler 4000 altstack; contexts 4000\"";

/// In a chain: any one frame of a library.
const ONE: &str = "*";

/// What the stacks of a program may be, from `main` or another root on; first the chain that most of its work
/// is in. A sample may hit any function of a chain.
fn chains(program: &str) -> Vec<Vec<&'static str>> {
    match program {
        "deep" => vec![[&["main"], ["deeper"; 985].as_slice(), &["leaf"]].concat(), vec!["main", "leaf"]],
        "frames" => vec![
            vec![
                "main",
                "with_array",
                "with_alloca",
                "aligned_and_variable",
                "realigned",
                "aligned_frame",
                "big_frame",
                "long_code",
                "leaf",
            ],
            vec!["main", "leaf"],
        ],
        "handler" => vec![
            vec!["main", "caller", "interrupted", ONE, "on_signal", "handler_outer", "handler_leaf"],
            // It asks for the time.
            vec!["main", "caller", "interrupted", ONE, "on_signal", ONE, ONE, ONE],
        ],
        _ => vec![
            vec!["main", "in_first", "leaf"],
            vec!["main", ONE],
            vec![ONE, "ping_body", "in_ping", "leaf"],
            vec![ONE, "ping_body", ONE],
            vec![ONE, "pong_body", "in_pong", "leaf"],
            vec![ONE, "pong_body", ONE],
        ],
    }
}

/// Stacks that have to be cut: whose, the reason, and the function that it is in.
const CUTS: [(&str, &str, &str); 2] = [
    // Between two stacks CFI does not say where the caller is.
    ("contexts", "unsupported_cfi", "swapcontext"),
    ("contexts", "unsupported_cfi", "setcontext"),
];
/// The same for samples from before there are tables, which have 48 KiB of one stack, as far as it can be read.
const LATE: [(&str, &str, &str); 3] = [
    // Below is the frame of 200 KB; not all of its pages were used.
    ("frames", "stack_copy_ended", "aligned_frame"),
    ("frames", "unreadable_stack", "aligned_frame"),
    // The handler has a stack of its own.
    ("handler", "unreadable_stack", "caller"),
];
/// The most of these as a share of all: how long tables take is a matter of the emulator's speed.
const MOST_LATE: f64 = 0.5;
/// In the kernel's part of a stack: the program is not there yet, or not any more.
const EXEC: &str = "execve";

#[derive(Default)]
struct Found {
    complete: u64,
    /// Those of them that are the first chain to its end.
    whole: u64,
    /// Cut as [`CUTS`] says, or in an exec.
    cut_as_due: u64,
    /// Cut as [`LATE`] says.
    late: u64,
    cut: u64,
    wrong: u64,
}

impl Found {
    fn is_good(&self) -> bool {
        let share = |part: u64, rest: u64| part as f64 / (part + rest).max(1) as f64;
        let complete = share(self.complete, self.cut) >= LEAST_COMPLETE;
        self.wrong == 0 && self.whole >= FEWEST && complete && share(self.late, self.complete) <= MOST_LATE
    }
}

/// Judges the samples of all programs.
pub(super) fn judge(text: &str) -> Result<String> {
    let stacks = folded::parse(text);
    let mut measured = Vec::new();
    let (mut good, mut shown) = (true, String::new());
    for program in PROGRAMS {
        let early = judge_program(&stacks, &format!("new-{program}"), program, &mut shown);
        let found = judge_program(&stacks, program, program, &mut shown);
        good &= found.is_good() && early.wrong == 0;
        let Found { complete, whole, cut_as_due, late, cut, wrong } = found;
        let wrong = wrong + early.wrong;
        measured.push(format!(
            "{program}: {complete} complete, {whole} whole, {cut_as_due} cut as due, {late} late, {cut} cut, {wrong} wrong"
        ));
    }
    let measured = measured.join("; ");
    if !good {
        let least = LEAST_COMPLETE * 100.0;
        bail!(
            "{measured}; {FEWEST} whole and {least}% complete ones of each at least, none wrong, were expected{shown}"
        );
    }
    Ok(measured)
}

/// Judges the stacks of the process `name`, which runs `program`.
fn judge_program(stacks: &[folded::Stack<'_>], name: &str, program: &str, shown: &mut String) -> Found {
    let chains = chains(program);
    let mut found = Found::default();
    for stack in stacks.iter().filter(|stack| stack.frames.first() == Some(&name)) {
        let verdict = verdict(&stack.frames, program, &chains);
        *match verdict {
            Verdict::Whole | Verdict::Complete => &mut found.complete,
            Verdict::CutAsDue => &mut found.cut_as_due,
            Verdict::Late => &mut found.late,
            Verdict::Cut => &mut found.cut,
            Verdict::Wrong => &mut found.wrong,
        } += stack.samples;
        found.whole += if verdict == Verdict::Whole { stack.samples } else { 0 };
        let odd = verdict == Verdict::Wrong || verdict == Verdict::Cut && name == program;
        if odd && shown.lines().count() <= SHOWN {
            let line: String = stack.frames.join(";").chars().take(SHOWN_CHARS).collect();
            shown.push_str(&format!("\n    {verdict:?}: {} {line}", stack.samples));
        }
    }
    found
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Whole,
    Complete,
    CutAsDue,
    Late,
    Cut,
    Wrong,
}

fn verdict(frames: &[&str], program: &str, chains: &[Vec<&'static str>]) -> Verdict {
    let own = |frame: &&str| chains.iter().flatten().any(|name| name == frame && *name != "main");
    let (kernel, mut user): (Vec<&str>, Vec<&str>) = frames.iter().skip(1).partition(|frame| frame.ends_with("_[k]"));
    // Between a leaf that is marked so and the caller shown, which the frame pointer gave, one may be missing.
    if user.last().is_some_and(|leaf| leaf.ends_with("_[?]")) {
        user.pop();
        if let Some(caller) = user.iter_mut().rev().find(|frame| !frame.ends_with("_[i]")) {
            *caller = caller.trim_end_matches("_[f]");
        }
    }
    let reason = user.first().and_then(|frame| frame.strip_prefix("[incomplete: ")?.strip_suffix(']'));
    // What is before `main`, behind it, or in a library that it calls is no part of a chain.
    let is = |frame: &&str, name: &&str| frame == name || *name == ONE && !own(frame);
    let begins = |frames: &[&str], chain: &[&str]| {
        frames.len() <= chain.len() && frames.iter().zip(chain).all(|(frame, name)| is(frame, name))
    };
    if let Some(reason) = reason {
        let user = user.get(1..).unwrap_or_default();
        let is_due = |(whose, why, place): &(&str, &str, &str)| {
            *whose == program && *why == reason && user.first().is_some_and(|frame| frame.contains(place))
        };
        let within = |chain: &Vec<&'static str>| (0..chain.len()).any(|from| begins(user, &chain[from..]));
        let due = CUTS.iter().any(is_due) || kernel.iter().any(|frame| frame.contains(EXEC));
        return match user.iter().any(own) {
            false if due => Verdict::CutAsDue,
            false => Verdict::Cut,
            true if !chains.iter().any(within) => Verdict::Wrong,
            true if LATE.iter().any(is_due) => Verdict::Late,
            true => Verdict::Cut,
        };
    }
    let start = |frame: &&&str| **frame == "_start" || frame.starts_with("__libc_start");
    let from_main = &user[user.iter().take_while(start).count()..];
    if chains.first().is_some_and(|chain| chain.len() == from_main.len() && begins(from_main, chain)) {
        Verdict::Whole
    } else if chains.iter().any(|chain| begins(from_main, chain)) || !user.iter().any(own) {
        Verdict::Complete
    } else {
        Verdict::Wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(handler: &str, samples: u64) -> String {
        let deep = format!("main;{}leaf", "deeper;".repeat(985));
        text_with_deep(&deep, handler, samples)
    }

    fn text_with_deep(deep: &str, handler: &str, samples: u64) -> String {
        let frames = chains("frames")[0].join(";");
        format!(
            "deep;_start;__libc_start_main_impl;{deep} 300\nframes;_start;{frames};asm_exc_[k] 300\n\
             contexts;__start_context;ping_body;in_ping;leaf 300\ncontexts;_start;main;in_first;leaf 300\ncontexts;_start;main;clock_gettime;x 2\n\
             handler;_start;{handler} {samples}\n"
        )
    }

    #[test]
    fn one_wrong_caller_is_too_many() {
        let handled = "main;caller;interrupted;__restore_rt;on_signal;handler_outer;handler_leaf";
        assert!(judge(&text(handled, 300)).is_ok());
        assert!(judge(&text(handled, 49)).is_err(), "too few");
        let beginning = handled.trim_end_matches(";handler_leaf");
        assert!(judge(&text(beginning, 300)).is_err(), "a beginning is not the whole");
        for deep in ["main;leaf".to_owned(), format!("main;{}leaf", "deeper;".repeat(500))] {
            assert!(judge(&text_with_deep(&deep, handled, 300)).is_err(), "frames left out");
        }
        for wrong in ["main;interrupted", "main;caller;interrupted;on_signal", "caller"] {
            assert!(judge(&(text(handled, 300) + &format!("handler;_start;{wrong} 1\n"))).is_err(), "{wrong}");
        }
        let cut = |stack: &str| judge(&(text(handled, 300) + &format!("handler;[incomplete: x];{stack}\n")));
        assert!(cut("caller;interrupted;x;on_signal 1").is_ok(), "one in 300");
        assert!(cut("caller;interrupted;x;on_signal 2").is_err(), "two in 300");
        assert!(cut("caller;on_signal 1").is_err(), "a wrong caller below a cut");
        assert!(judge(&(text(handled, 300) + "new-handler;[incomplete: x];interrupted;x 99\n")).is_ok());
        assert!(judge(&(text(handled, 300) + "new-handler;_start;caller 1\n")).is_err());
    }

    #[test]
    fn what_has_to_be_cut_and_what_is_marked_is_let_pass() {
        let judge = |line: &str| {
            let handled = "main;caller;interrupted;__restore_rt;on_signal;handler_outer;handler_leaf";
            judge(&(text(handled, 300) + line + "\n"))
        };
        assert!(judge("contexts;[incomplete: unsupported_cfi];__swapcontext 99").is_ok());
        assert!(judge("contexts;[incomplete: unsupported_cfi];other 99").is_err());
        assert!(judge("handler;[incomplete: unsupported_cfi];__swapcontext 99").is_err());
        assert!(judge("handler;[incomplete: not_code];[unknown];bprm_execve_[k] 9").is_ok());
        let late =
            |samples: u64| judge(&format!("handler;[incomplete: unreadable_stack];caller;interrupted;x {samples}"));
        assert!(late(299).is_ok());
        assert!(late(301).is_err(), "most of them");
        let to_handler = "handler;_start;main;caller;interrupted;x";
        assert!(judge(&format!("{to_handler};on_signal_[f];cpu_ms_[i];y_[?];z_[k] 9")).is_ok());
        assert!(judge(&format!("{to_handler};on_signal_[f];cpu_ms_[i];y 9")).is_err(), "no mark");
        assert!(judge("handler;_start;main;interrupted_[f];y_[?] 1").is_err(), "only what is next to it");
    }
}
