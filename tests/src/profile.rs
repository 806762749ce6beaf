//! What a recording gave, and the checks that every recording must pass.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{Pprof, Stack};

/// A finished recording: the same profile in all its forms.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The folded stacks.
    pub stacks: Vec<Stack>,
    /// The pprof.
    pub pprof: Pprof,
    /// The answer on stdout.
    pub json: Value,
    /// What it says about its own work, by name.
    pub quality: BTreeMap<String, u64>,
}

impl Profile {
    pub(crate) fn new(folded: &str, pprof: &[u8], json: Value) -> Self {
        let number = |(name, value): (&String, &Value)| (name.clone(), value.as_u64().expect("a count"));
        let quality = json["quality"].as_object().expect("a quality section").iter().map(number).collect();
        let profile = Self { stacks: crate::parse(folded), pprof: Pprof::decode(pprof), json, quality };
        profile.check_conservation();
        profile
    }

    /// A figure of the quality section; 0 when it is not there.
    #[must_use]
    pub fn figure(&self, name: &str) -> u64 {
        self.quality.get(name).copied().unwrap_or(0)
    }

    /// taken = written + filtered + lost, every part named, and all outputs of one opinion.
    fn check_conservation(&self) {
        let named = |prefix| -> u64 {
            self.quality.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, count)| count).sum()
        };
        let (taken, written) = (self.figure("samples_taken"), self.figure("samples_written"));
        let (filtered, lost) = (self.figure("samples_filtered"), self.figure("samples_lost"));
        assert_eq!(taken, written + filtered + lost, "taken = written + filtered + lost: {:?}", self.quality);
        assert_eq!((named("filtered_"), named("lost_")), (filtered, lost), "{:?}", self.quality);
        assert_eq!(self.figure("lost_unaccounted"), 0, "lost without a reason: {:?}", self.quality);
        assert_eq!(self.figure("surplus_samples"), 0, "counted twice: {:?}", self.quality);
        assert_eq!(named("stacks_ended_"), written, "every stack has an end: {:?}", self.quality);
        assert_eq!(samples(&self.stacks), written, "folded");
        assert_eq!(
            self.pprof.0.sample.iter().map(|sample| sample.value[0]).sum::<i64>().cast_unsigned(),
            written,
            "pprof"
        );
        assert_eq!(self.json["samples"].as_u64(), Some(written), "JSON");
        let incomplete: Vec<_> = self.stacks.iter().filter(|stack| stack.incomplete.is_some()).cloned().collect();
        assert_eq!(samples(&incomplete), self.figure("stacks_incomplete"), "incomplete stacks");
        let comments = self.pprof.comments();
        for (name, value) in &self.quality {
            assert_eq!(comments.get(name.as_str()), Some(&value.to_string().as_str()), "comment {name} of the pprof");
        }
    }

    /// The stacks of the processes with this name.
    #[must_use]
    pub fn of(&self, process: &str) -> Vec<&Stack> {
        self.stacks.iter().filter(|stack| stack.process == process).collect()
    }

    /// The samples of a process, and those of them with exactly one of these chains.
    #[must_use]
    pub fn share(&self, process: &str, chains: &[&[&str]]) -> Share {
        let of_process = self.of(process);
        let right = of_process.iter().filter(|stack| chains.iter().any(|chain| stack.is(chain)));
        Share { right: right.map(|stack| stack.samples).sum(), all: of_process.iter().map(|stack| stack.samples).sum() }
    }

    /// Checks that of a process's samples at least the share `least` (0 to 1) has exactly one of these
    /// chains, from the root to the leaf; kernel frames may follow.
    ///
    /// # Panics
    /// When it is less, or when there are too few samples to tell.
    pub fn check_chains(&self, process: &str, chains: &[&[&str]], least: f64) {
        const FEWEST: u64 = 200;
        let share = self.share(process, chains);
        println!("{process}: {} of {} samples have the chain ({:.2}%)", share.right, share.all, 100.0 * share.part());
        assert!(
            share.part() >= least && share.all >= FEWEST,
            "{process}: {} of {} samples have the chain, {least} x and {FEWEST} samples were to\n{}\n{:?}",
            share.right,
            share.all,
            self.others(process, chains),
            self.quality,
        );
    }

    /// As [`Self::check_chains`], with one chain.
    ///
    /// # Panics
    /// As [`Self::check_chains`].
    pub fn check_chain(&self, process: &str, chain: &[&str], least: f64) {
        self.check_chains(process, &[chain], least);
    }

    /// The stacks of a process that have none of the chains, the most frequent first.
    fn others(&self, process: &str, chains: &[&[&str]]) -> String {
        let mut others = self.of(process);
        others.retain(|stack| !chains.iter().any(|chain| stack.is(chain)));
        others.sort_by_key(|stack| std::cmp::Reverse(stack.samples));
        let line = |stack: &&Stack| {
            let reason = stack.incomplete.as_deref().unwrap_or("complete");
            format!("  {} {reason}: {} | {}", stack.samples, stack.user.join(";"), stack.kernel.join(";"))
        };
        others.iter().take(12).map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Some of all samples.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Those that are right.
    pub right: u64,
    /// All.
    pub all: u64,
}

impl Share {
    /// The share, from 0 to 1; 0 of nothing.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of samples are small")]
    pub fn part(self) -> f64 {
        self.right as f64 / self.all.max(1) as f64
    }
}

fn samples(stacks: &[Stack]) -> u64 {
    stacks.iter().map(|stack| stack.samples).sum()
}
