//! Folded stacks (`root;...;leaf count` a line): whether a known chain is in them, and which
//! functions are the hottest.

use std::collections::{BTreeMap, BTreeSet};

/// One line: the frames from the root to the leaf, and their samples.
pub(crate) struct Stack<'a> {
    pub(crate) frames: Vec<&'a str>,
    pub(crate) samples: u64,
}

/// The stacks of a folded file; lines that are none are left out.
pub(crate) fn parse(text: &str) -> Vec<Stack<'_>> {
    let stack = |line| {
        let (frames, samples) = str::rsplit_once(line, ' ')?;
        Some(Stack { frames: frames.split(';').collect(), samples: samples.parse().ok()? })
    };
    text.lines().filter_map(stack).collect()
}

/// How many samples hold a known chain.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ChainShare {
    /// Samples whose stack is exactly: start-up code of the C library, the chain, kernel frames.
    pub(crate) exact: u64,
    /// Those that should: all but `start_up`.
    pub(crate) all: u64,
    /// Samples from `_start` on without a function of the chain: before `main` and after it.
    pub(crate) start_up: u64,
    /// The other stacks, each with its samples, the most frequent first.
    pub(crate) others: Vec<String>,
}

/// Looks for `chain` in the stacks of `program`.
pub(crate) fn chain_share(stacks: &[Stack<'_>], program: &str, chain: &[&str]) -> ChainShare {
    let named = |stack: &&Stack<'_>| stack.frames.first().is_some_and(|root| root.starts_with(program));
    let mut own: Vec<_> = stacks.iter().filter(named).collect();
    let samples = |stacks: &[&Stack<'_>]| -> u64 { stacks.iter().map(|stack| stack.samples).sum() };
    let recorded = samples(&own);
    own.retain(|stack| !is_start_up(&stack.frames, chain));
    let all = samples(&own);
    own.retain(|stack| !holds_chain(&stack.frames, program, chain));
    own.sort_by_key(|stack| std::cmp::Reverse(stack.samples));
    let others = own.iter().map(|stack| format!("{} {}", stack.frames.join(";"), stack.samples)).collect();
    ChainShare { exact: all - samples(&own), all, start_up: recorded - all, others }
}

fn is_start_up(frames: &[&str], chain: &[&str]) -> bool {
    frames.contains(&"_start") && !frames.iter().any(|frame| chain.contains(frame))
}

fn holds_chain(frames: &[&str], program: &str, chain: &[&str]) -> bool {
    let start_up =
        |frame: &&&str| frame.starts_with(program) || **frame == "_start" || frame.starts_with("__libc_start");
    let before = frames.iter().take_while(start_up).count();
    let rest = &frames[before..];
    let Some((found, after)) = rest.split_at_checked(chain.len()) else { return false };
    found == chain && !after.iter().any(|frame| chain.contains(frame))
}

/// A function and the samples in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hot<'a> {
    pub(crate) function: &'a str,
    /// Samples in the function itself.
    pub(crate) own: u64,
    /// Samples in the function and in what it calls.
    pub(crate) total: u64,
}

/// Ends the name of a function that was inlined into the frame before it.
const INLINED: &str = "_[i]";

/// All functions, those with the most samples of their own first. What was inlined counts for the
/// function that it was inlined into.
pub(crate) fn hottest<'a>(stacks: &[Stack<'a>]) -> Vec<Hot<'a>> {
    let mut functions: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for stack in stacks {
        let frames = || stack.frames.iter().copied().filter(|frame| !frame.ends_with(INLINED));
        for function in frames().collect::<BTreeSet<_>>() {
            functions.entry(function).or_default().1 += stack.samples;
        }
        if let Some(leaf) = frames().next_back() {
            functions.entry(leaf).or_default().0 += stack.samples;
        }
    }
    let hot = |(function, (own, total))| Hot { function, own, total };
    let mut functions: Vec<_> = functions.into_iter().map(hot).collect();
    functions.sort_by_key(|hot| (std::cmp::Reverse((hot.own, hot.total)), hot.function));
    functions
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "prog;_start;main;a;b 6\nprog;_start;main;a;b;sys_read_[k] 2\nprog;main;b 1\nother;main 5\nno count\n";

    #[test]
    fn share_of_a_chain() {
        let stacks = parse(TEXT);
        assert_eq!(stacks.len(), 4);
        let share = |program, chain: &[&str]| chain_share(&stacks, program, chain);
        let others = vec!["prog;main;b 1".to_owned()];
        assert_eq!(share("prog", &["main", "a", "b"]), ChainShare { exact: 8, all: 9, start_up: 0, others });
        assert_eq!((share("absent", &["main"]).exact, share("absent", &["main"]).all), (0, 0));
        assert_eq!(
            chain_share(&[], "prog", &["main"]),
            ChainShare { exact: 0, all: 0, start_up: 0, others: Vec::new() }
        );
    }

    #[test]
    fn start_up_code_is_told_apart() {
        let stacks = parse("prog;_start;__libc_start_main_impl;mmap 2\nprog;[incomplete];mmap 1\nprog;_start;a 1\n");
        let share = chain_share(&stacks, "prog", &["main", "a"]);
        assert_eq!((share.exact, share.all, share.start_up, share.others.len()), (0, 2, 2, 2));
    }

    #[test]
    fn a_chain_is_exact() {
        let exact = |line: &str| chain_share(&parse(line), "prog", &["main", "a"]).exact == 1;
        assert!(exact("prog;__libc_start_main_impl;main;a 1"));
        assert!(exact("prog;main;a 1"));
        assert!(!exact("other;main;a 1"));
        assert!(!exact("prog;bogus;main;a 1"));
        assert!(!exact("prog;main;x;a 1"));
        assert!(!exact("prog;main;a;a 1"));
        assert!(!exact("prog;main 1"));
    }

    #[test]
    fn hottest_functions() {
        let stacks = parse("m;a;a 3\nm;b;fold_[i] 5\nm 1\n");
        let hot = hottest(&stacks);
        assert_eq!(hot[0], Hot { function: "b", own: 5, total: 5 });
        assert_eq!(hot[1], Hot { function: "a", own: 3, total: 3 });
        assert_eq!(hot[2], Hot { function: "m", own: 1, total: 9 });
    }
}
