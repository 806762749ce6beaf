//! Steps, their outcomes and the totals of a run.

use std::time::Instant;

use anyhow::{Result, bail};

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It held; what was measured.
    Passed(String),
    /// It did not hold; why.
    Failed(String),
    /// It could not be tried here; why. It fails nothing.
    Skipped(String),
    /// It should have been possible after set-up; why it was not. It fails where CI=true.
    SkippedUnexpectedly(String),
}

impl From<Result<()>> for Outcome {
    fn from(result: Result<()>) -> Self {
        match result {
            Ok(()) => Self::Passed(String::new()),
            Err(error) => Self::Failed(format!("{error:#}")),
        }
    }
}

/// What a run has done so far.
#[derive(Default)]
pub(crate) struct Report {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
    unexpected: usize,
}

impl Report {
    /// Runs one step, prints its name, outcome and time.
    pub(crate) fn step(&mut self, name: &str, step: impl FnOnce() -> Outcome) {
        println!("\n== {name}");
        let start = Instant::now();
        let outcome = step();
        let seconds = start.elapsed().as_secs_f64();
        self.add(name, seconds, outcome);
    }

    /// Counts and prints an outcome.
    pub(crate) fn add(&mut self, name: &str, seconds: f64, outcome: Outcome) {
        let (word, detail) = match outcome {
            Outcome::Passed(detail) => {
                self.passed += 1;
                ("passed", detail)
            }
            Outcome::Failed(why) => {
                self.failed.push(name.to_owned());
                ("FAILED", why)
            }
            Outcome::Skipped(why) => {
                self.skipped.push(format!("{name}: {why}"));
                ("skipped", why)
            }
            Outcome::SkippedUnexpectedly(why) => {
                self.skipped.push(format!("{name}: {why}"));
                self.unexpected += 1;
                ("skipped (unexpected)", why)
            }
        };
        let separator = if detail.is_empty() { "" } else { ": " };
        println!("== {name}: {word} in {seconds:.1} s{separator}{detail}");
    }

    /// The totals as one line.
    pub(crate) fn totals(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len())
    }

    /// Prints skips, failures and totals; fails when a step failed, or in CI (`CI=true`) when one
    /// was skipped that should have run.
    pub(crate) fn finish(&self, in_ci: bool) -> Result<()> {
        println!();
        for skip in &self.skipped {
            println!("skipped {skip}");
        }
        for name in &self.failed {
            println!("FAILED  {name}");
        }
        println!("{}", self.totals());
        if !self.failed.is_empty() {
            bail!("failed: {}", self.failed.join(", "));
        }
        if in_ci && self.unexpected > 0 {
            bail!("CI=true and {} unexpected skip(s)", self.unexpected);
        }
        Ok(())
    }
}

/// Is this a CI run, where nothing may be skipped that set-up makes possible?
pub(crate) fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_and_verdict() {
        let mut report = Report::default();
        report.add("a", 0.0, Outcome::Passed(String::new()));
        report.add("b", 0.0, Outcome::Skipped("archive".to_owned()));
        assert_eq!(report.totals(), "1 passed, 0 failed, 1 skipped");
        assert!(report.finish(true).is_ok());
        report.add("c", 0.0, Outcome::SkippedUnexpectedly("no root".to_owned()));
        assert!(report.finish(false).is_ok());
        assert!(report.finish(true).is_err());
        report.add("d", 0.0, Outcome::Failed("why".to_owned()));
        assert!(report.finish(false).is_err());
        assert_eq!(report.totals(), "1 passed, 1 failed, 2 skipped");
    }
}
