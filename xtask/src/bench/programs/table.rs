//! The table: a line for each program, and whether the demand holds.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::measure::{Complete, Cut, Measured};

/// The least share of complete stacks.
const LEAST: f64 = 0.99;
/// Fewer samples do not tell.
const FEWEST: u64 = 100;
/// So many standard errors is spanflame's share below perf's before that is no chance any more: one in 740.
const STANDARD_ERRORS: f64 = 3.0;
/// Cuts that the table shows; the JSON has them all.
const SHOWN: usize = 4;

/// Opens the table.
pub(super) const HEAD: &str = "| program | spanflame | of | complete | perf | of | complete | verdict | cut above |\n\
                               |---|--:|--:|--:|--:|--:|--:|---|---|";

/// A program, and what came of it.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) outcome: Outcome,
}

pub(super) enum Outcome {
    Measured {
        measured: Measured,
        /// Why the least share is not asked for.
        exception: Option<&'static str>,
    },
    /// It can't be measured here; why.
    Skipped(String),
    /// It was not measured; why.
    Failed(String),
}

/// What a row says about the demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Holds,
    /// As an exception that is known.
    Excepted,
    Skipped,
    TooFew,
    TooLittle,
    BehindPerf,
    Failed,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Excepted => "known exception",
            Self::Skipped => "skipped",
            Self::TooFew => "TOO FEW SAMPLES",
            Self::TooLittle => "LESS THAN 99%",
            Self::BehindPerf => "BEHIND PERF",
            Self::Failed => "FAILED",
        }
    }

    fn is_good(self) -> bool {
        matches!(self, Self::Holds | Self::Excepted | Self::Skipped)
    }
}

impl Complete {
    fn share(self) -> f64 {
        self.complete as f64 / self.all.max(1) as f64
    }

    /// Whether this share is smaller than another one by more than chance (two proportions with a common one).
    fn is_behind(self, other: Self) -> bool {
        let (all, others) = (self.all.max(1) as f64, other.all.max(1) as f64);
        let common = (self.complete + other.complete) as f64 / (all + others);
        let error = (common * (1.0 - common) * (1.0 / all + 1.0 / others)).sqrt();
        other.share() - self.share() > STANDARD_ERRORS * error
    }
}

fn judge(spanflame: Complete, perf: Complete, is_excepted: bool) -> Verdict {
    if spanflame.all < FEWEST || perf.all < FEWEST {
        Verdict::TooFew
    } else if spanflame.is_behind(perf) {
        Verdict::BehindPerf
    } else if spanflame.share() >= LEAST {
        Verdict::Holds
    } else if is_excepted {
        Verdict::Excepted
    } else {
        Verdict::TooLittle
    }
}

impl Row {
    fn verdict(&self) -> Verdict {
        match &self.outcome {
            Outcome::Measured { measured, exception } => judge(measured.spanflame, measured.perf, exception.is_some()),
            Outcome::Skipped(_) => Verdict::Skipped,
            Outcome::Failed(_) => Verdict::Failed,
        }
    }

    /// Its line of the table.
    pub(super) fn markdown(&self) -> String {
        let (name, verdict) = (self.name, self.verdict());
        match &self.outcome {
            Outcome::Skipped(why) | Outcome::Failed(why) => {
                let why = why.replace('|', "\\|").replace('\n', " ");
                format!("| {name} | | | | | | | {} | {why} |", verdict.name())
            }
            Outcome::Measured { measured: Measured { spanflame, cuts, perf }, exception } => {
                let exception = exception.filter(|_| verdict == Verdict::Excepted).map(|why| format!(": {why}"));
                format!(
                    "| {name} | {} | {} | {:.2}% | {} | {} | {:.2}% | {}{} | {} |",
                    spanflame.complete,
                    spanflame.all,
                    100.0 * spanflame.share(),
                    perf.complete,
                    perf.all,
                    100.0 * perf.share(),
                    verdict.name(),
                    exception.unwrap_or_default(),
                    shown(cuts).replace('|', "\\|"),
                )
            }
        }
    }

    /// All of it.
    pub(super) fn json(&self) -> Value {
        let (name, verdict) = (self.name, self.verdict().name());
        match &self.outcome {
            Outcome::Skipped(why) | Outcome::Failed(why) => json!({ "name": name, "verdict": verdict, "why": why }),
            Outcome::Measured { measured: Measured { spanflame, cuts, perf }, exception } => json!({
                "name": name,
                "verdict": verdict,
                "exception": exception,
                "spanflame": { "complete": spanflame.complete, "all": spanflame.all },
                "perf": { "complete": perf.complete, "all": perf.all },
                "cuts": cuts.iter().map(Cut::json).collect::<Vec<_>>(),
            }),
        }
    }
}

impl Cut {
    fn json(&self) -> Value {
        json!({ "reason": self.reason, "place": self.place, "samples": self.samples })
    }
}

fn shown(cuts: &[Cut]) -> String {
    let cut = |cut: &Cut| format!("{} {} above `{:.60}`", cut.samples, cut.reason, cut.place);
    let mut shown: Vec<_> = cuts.iter().take(SHOWN).map(cut).collect();
    let rest: u64 = cuts.iter().skip(SHOWN).map(|cut| cut.samples).sum();
    if rest > 0 {
        shown.push(format!("{rest} elsewhere"));
    }
    shown.join(", ")
}

/// Says how many programs meet the demand; fails where one does not.
pub(super) fn conclude(rows: &[Row]) -> Result<()> {
    let with = |verdict| rows.iter().filter(|row| row.verdict() == verdict).count();
    println!(
        "{} of {} programs: at least 99% complete and not behind perf; {} known exceptions, {} skipped",
        with(Verdict::Holds),
        rows.len(),
        with(Verdict::Excepted),
        with(Verdict::Skipped)
    );
    let bad: Vec<_> = rows.iter().filter(|row| !row.verdict().is_good()).map(|row| row.name).collect();
    if !bad.is_empty() {
        bail!("the demand does not hold for: {}", bad.join(", "));
    }
    if with(Verdict::Skipped) == rows.len() {
        bail!("nothing was measured: `cargo xtask setup --for bench` installs the programs");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(complete: u64, all: u64) -> Complete {
        Complete { complete, all }
    }

    #[test]
    fn a_program_is_judged_by_both_demands() {
        let judged =
            |ours: (u64, u64), perf: (u64, u64)| judge(complete(ours.0, ours.1), complete(perf.0, perf.1), false);
        assert_eq!(judged((1990, 2000), (1000, 2000)), Verdict::Holds);
        assert_eq!(judged((1979, 2000), (1000, 2000)), Verdict::TooLittle);
        assert_eq!(judged((99, 99), (1000, 2000)), Verdict::TooFew);
        assert_eq!(judged((1990, 2000), (0, 0)), Verdict::TooFew);
        // One of a thousand is chance, and ten are not.
        assert_eq!(judged((1106, 1107), (1541, 1541)), Verdict::Holds);
        assert_eq!(judged((1097, 1107), (1541, 1541)), Verdict::BehindPerf);
    }

    #[test]
    fn an_exception_is_not_behind_perf_either() {
        let judged = |perf| judge(complete(8, 600), complete(perf, 600), true);
        assert_eq!((judged(2), judged(300)), (Verdict::Excepted, Verdict::BehindPerf));
        assert_eq!(judge(complete(600, 600), complete(2, 600), true), Verdict::Holds);
    }

    #[test]
    fn a_row_shows_where_stacks_are_cut() {
        let cut = |place: &str, samples| Cut { reason: "no_table".to_owned(), place: place.to_owned(), samples };
        let cuts = vec![cut("a|b", 5), cut("c", 4), cut("d", 3), cut("e", 2), cut("f", 1), cut("g", 1)];
        let measured = Measured { spanflame: complete(984, 1000), cuts, perf: complete(500, 1000) };
        let row = Row { name: "x", outcome: Outcome::Measured { measured, exception: None } };
        assert_eq!(
            row.markdown(),
            "| x | 984 | 1000 | 98.40% | 500 | 1000 | 50.00% | LESS THAN 99% | 5 no_table above `a\\|b`, 4 no_table \
             above `c`, 3 no_table above `d`, 2 no_table above `e`, 2 elsewhere |"
        );
        assert_eq!(row.json()["cuts"].as_array().map(Vec::len), Some(6));
        assert!(conclude(&[row]).is_err());
        let skipped = || Row { name: "y", outcome: Outcome::Skipped("not installed: y".to_owned()) };
        assert!(conclude(&[skipped()]).is_err(), "nothing was measured");
    }
}
