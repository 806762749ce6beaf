//! The kinds of stacks that are walked in every guest, and what their samples have to be.

use anyhow::{Result, bail};

use crate::folded;

/// Stacks with the whole first chain of each program, at least; at 199 Hz and 4 s there are nearly 800 in all.
/// How many are cut before the tables are there is a matter of the emulator's speed.
const FEWEST: u64 = 100;
/// Wrong stacks that are shown, and how much of each.
const SHOWN: usize = 5;
const SHOWN_CHARS: usize = 400;

/// Programs of `tests/workloads` that run side by side.
pub(super) const PROGRAMS: [&str; 4] = ["deep", "frames", "handler", "contexts"];
/// Other names for them.
pub(super) const LINK: &str = "for name in deep frames handler contexts; do ln -sf /bin/$name /bin/new-$name; done";
/// Their command line. By their other names they run first: what is sampled before there are tables has
/// 48 KiB of stack, and tables take their time under emulation. 985 calls of `deeper` are 990 frames.
pub(super) const RECORD: &str = "/bin/spanflame record -F 199 -o /out/kinds.folded -- sh -c \
    \"new-deep 400 985 & new-frames 400 & new-handler 400 altstack & new-contexts 400 & wait; \
    deep 4000 985 & frames 4000 & handler 4000 altstack & contexts 4000 & wait\"";

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

#[derive(Default)]
struct Found {
    complete: u64,
    /// Those of them that are the first chain to its end.
    whole: u64,
    cut: u64,
    wrong: u64,
}

/// Judges the samples of all programs.
pub(super) fn judge(text: &str) -> Result<String> {
    let stacks = folded::parse(text);
    let mut measured = Vec::new();
    let (mut good, mut shown) = (true, String::new());
    for program in PROGRAMS {
        let Found { complete, whole, cut, wrong } = judge_program(&stacks, program, &mut shown);
        measured.push(format!("{program}: {complete} complete, {whole} whole, {cut} cut, {wrong} wrong"));
        good &= wrong == 0 && whole >= FEWEST;
    }
    let measured = measured.join("; ");
    if !good {
        bail!("{measured}; at least {FEWEST} whole ones of each and no wrong caller were expected{shown}");
    }
    Ok(measured)
}

fn judge_program(stacks: &[folded::Stack<'_>], program: &str, shown: &mut String) -> Found {
    let chains = chains(program);
    let own = |frame: &&str| chains.iter().flatten().any(|name| name == frame && *name != "main");
    let mut found = Found::default();
    for stack in stacks.iter().filter(|stack| stack.frames.first() == Some(&program)) {
        let frames: Vec<&str> = stack.frames.iter().skip(1).copied().filter(|frame| !frame.ends_with("_[k]")).collect();
        let start = |frame: &&&str| **frame == "_start" || frame.starts_with("__libc_start");
        let from_main = &frames[frames.iter().take_while(start).count()..];
        let cut = frames.first().is_some_and(|frame| frame.starts_with("[incomplete"));
        // What is before `main`, behind it, or in a library that it calls is no part of a chain.
        let is = |frame: &&str, name: &&str| frame == name || *name == ONE && !own(frame);
        let begins = |chain: &Vec<&'static str>| {
            from_main.len() <= chain.len() && from_main.iter().zip(chain).all(|(frame, name)| is(frame, name))
        };
        let right = chains.iter().any(begins) || !frames.iter().any(own);
        if !cut && chains.first().is_some_and(|chain| chain.len() == from_main.len() && begins(chain)) {
            found.whole += stack.samples;
        }
        *match (cut, right) {
            (true, _) => &mut found.cut,
            (false, true) => &mut found.complete,
            (false, false) => &mut found.wrong,
        } += stack.samples;
        if (cut || !right) && shown.lines().count() <= SHOWN {
            let line: String = stack.frames.join(";").chars().take(SHOWN_CHARS).collect();
            shown.push_str(&format!("\n    not: {} {line}", stack.samples));
        }
    }
    found
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
        assert!(judge(&text(handled, 50)).is_err(), "too few");
        let beginning = handled.trim_end_matches(";handler_leaf");
        assert!(judge(&text(beginning, 300)).is_err(), "a beginning is not the whole");
        for deep in ["main;leaf".to_owned(), format!("main;{}leaf", "deeper;".repeat(500))] {
            assert!(judge(&text_with_deep(&deep, handled, 300)).is_err(), "frames left out");
        }
        for wrong in ["main;interrupted", "main;caller;interrupted;on_signal", "caller"] {
            assert!(judge(&(text(handled, 300) + &format!("handler;_start;{wrong} 1\n"))).is_err(), "{wrong}");
        }
        let cut = "handler;[incomplete: no_table];interrupted;on_signal 300\n";
        assert!(judge(&(text(handled, 50) + cut)).is_err(), "what is cut does not count");
        assert!(judge(&(text(handled, 300) + cut)).is_ok());
    }
}
