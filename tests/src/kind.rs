//! Kinds of stacks: programs whose every sample is judged, many of them in one recording.

use std::fmt::Write as _;
use std::path::Path;

use crate::stack::begins;
use crate::{ANY, Lab, Profile, START, Stack, from_main};

/// The least share of the samples of a kind that must be complete, where nothing says otherwise.
const LEAST_COMPLETE: f64 = 0.995;
/// Fewer samples do not tell.
const FEWEST: u64 = 200;
/// The largest share of samples before `main`, behind it, and in libraries that `main` calls: some
/// milliseconds.
const MOST_OUTSIDE: f64 = 0.04;

type Rename = Box<dyn Fn(&str) -> Option<String>>;

/// A program and all that its stacks may be.
pub struct Kind {
    /// The workload.
    pub workload: &'static str,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Chains from the root on. A sample may have hit any function of them.
    pub chains: Vec<Vec<String>>,
    /// Stacks that have to be cut: the reason, and the chain from the cut on.
    pub cuts: Vec<(&'static str, Vec<String>)>,
    /// Gives a frame the name that it has in the chains, where it has another one.
    rename: Rename,
}

impl Kind {
    /// A program that is given the CPU time that it is to take in milliseconds, with chains from `main` on.
    #[must_use]
    pub fn new(workload: &'static str, cpu_ms: u32, below_main: &[&[&str]]) -> Self {
        let chains = below_main.iter().map(|below| owned(&from_main(below))).collect();
        Self { workload, arguments: vec![cpu_ms.to_string()], chains, cuts: Vec::new(), rename: Box::new(|_| None) }
    }

    /// Adds an argument.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Adds a chain that does not begin with `main`'s callers.
    #[must_use]
    pub fn chain(mut self, chain: &[&str]) -> Self {
        self.chains.push(owned(chain));
        self
    }

    /// Adds a chain that has to be cut above its first frame for this reason.
    #[must_use]
    pub fn cut(mut self, reason: &'static str, chain: &[&str]) -> Self {
        self.cuts.push((reason, owned(chain)));
        self
    }

    /// Has frames renamed before they are judged: a stripped program's have no names.
    #[must_use]
    pub fn renamed(mut self, rename: impl Fn(&str) -> Option<String> + 'static) -> Self {
        self.rename = Box::new(rename);
        self
    }

    /// The names in the chains.
    fn names(&self) -> impl Iterator<Item = &String> {
        self.chains.iter().chain(self.cuts.iter().map(|(_reason, chain)| chain)).flatten()
    }

    fn judge(&self, stack: &Stack) -> Verdict {
        let user: Vec<_> = stack.user.iter().map(|name| (self.rename)(name).unwrap_or_else(|| name.clone())).collect();
        let user = user.as_slice();
        let own =
            |name: &String| !START.contains(&name.as_str()) && name != "main" && self.names().any(|own| own == name);
        if let Some(reason) = &stack.incomplete {
            let due = self.cuts.iter().any(|(why, chain)| why == reason && begins(user, chain));
            // From anywhere on, but as it is from there.
            let starts = |chain: &[String], from: usize| chain[from] != ANY && begins(user, &chain[from..]);
            let right = || self.chains.iter().any(|chain| (0..chain.len()).any(|from| starts(chain, from)));
            let right = due || right() || !user.iter().any(own);
            return if due {
                Verdict::CutAsDue
            } else if right {
                Verdict::Cut
            } else {
                Verdict::Wrong
            };
        }
        let inside = |chain: &[String]| user.len() > 1 && begins(user, chain);
        if self.chains.iter().any(|chain| inside(chain)) {
            return Verdict::Complete;
        }
        // Start and end of the process, and what `main` calls of libraries.
        if user.iter().any(own) { Verdict::Wrong } else { Verdict::Outside }
    }

    /// Judges all samples of the program; what is wrong with them, if anything is: none may have a wrong
    /// caller, and nearly all have to be complete.
    ///
    /// # Errors
    /// With what is wrong, for people.
    pub fn check(&self, profile: &Profile) -> Result<(), String> {
        let mut found = Found::default();
        let mut odd = String::new();
        for stack in profile.of(self.workload) {
            let verdict = self.judge(stack);
            *found.of(verdict) += stack.samples;
            if matches!(verdict, Verdict::Wrong | Verdict::Cut) {
                let reason = stack.incomplete.as_deref().unwrap_or("complete");
                let _infallible = writeln!(odd, "  {} {verdict:?} {reason}: {}", stack.samples, stack.user.join(";"));
            }
        }
        println!("{}: {found:?}", self.workload);
        let judged = found.complete + found.cut;
        let enough = judged + found.cut_as_due >= FEWEST && (self.cuts.is_empty() || found.cut_as_due > 0);
        #[expect(clippy::cast_precision_loss, reason = "counts of samples are small")]
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let whole = share(found.complete, judged) >= LEAST_COMPLETE;
        let inside = share(found.outside, judged + found.cut_as_due + found.outside) <= MOST_OUTSIDE;
        if found.wrong == 0 && whole && enough && inside {
            return Ok(());
        }
        Err(format!("{}: {found:?}\n{odd}", self.workload))
    }
}

fn owned(chain: &[&str]) -> Vec<String> {
    chain.iter().map(|name| (*name).to_owned()).collect()
}

#[derive(Clone, Copy, Debug)]
enum Verdict {
    Complete,
    CutAsDue,
    Cut,
    Outside,
    Wrong,
}

/// Samples by what became of them.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    /// With the whole chain to the root.
    complete: u64,
    /// Cut where nothing leads on, and saying so.
    cut_as_due: u64,
    /// Cut elsewhere; what is shown is right.
    cut: u64,
    /// Without the program's own functions below `main`.
    outside: u64,
    /// With a caller that was none.
    wrong: u64,
}

impl Found {
    fn of(&mut self, verdict: Verdict) -> &mut u64 {
        match verdict {
            Verdict::Complete => &mut self.complete,
            Verdict::CutAsDue => &mut self.cut_as_due,
            Verdict::Cut => &mut self.cut,
            Verdict::Outside => &mut self.outside,
            Verdict::Wrong => &mut self.wrong,
        }
    }
}

/// Runs programs side by side under one recording, and judges their samples.
///
/// # Panics
/// When something is wrong with those of one, with what is wrong with all.
#[must_use]
pub fn check_all(lab: &Lab, options: &[&str], kinds: &[Kind]) -> Profile {
    let mut script = String::new();
    for kind in kinds {
        let program = lab.workload(kind.workload);
        let _infallible = write!(script, "'{}' {} & ", program.display(), kind.arguments.join(" "));
    }
    let profile = lab.record(options).of(Path::new("/bin/sh"), &["-c", &(script + "wait")]).profile();
    let wrong: Vec<_> = kinds.iter().filter_map(|kind| kind.check(&profile).err()).collect();
    assert!(wrong.is_empty(), "{}\n{:?}", wrong.join("\n"), profile.quality);
    profile
}
