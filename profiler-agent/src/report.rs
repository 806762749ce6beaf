//! What people are told: how it goes, and what came of it.

use std::io::{IsTerminal as _, Write as _};

use profiler_common::record::StopReason;
use profiler_export::broken;
use profiler_model::{Figures, Profile};

use crate::cli;

/// A line on the terminal that says how it goes.
pub(crate) struct Progress {
    terminal: bool,
    started: std::time::Instant,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), started: std::time::Instant::now() }
    }

    pub(crate) fn show(&mut self, samples: u64) {
        if self.terminal {
            let seconds = self.started.elapsed().as_secs();
            let _closed = write!(std::io::stderr(), "\rrecording: {seconds} s, {samples} samples (Ctrl-C stops) ");
        }
    }

    pub(crate) fn clear(&mut self) {
        if self.terminal {
            let _closed = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// Says on stderr how good the profile is, or why it is empty.
pub(crate) fn tell(profile: &Profile, why_empty: Option<&str>) {
    cli::complain(&summary(profile, why_empty));
    cli::complain(&conservation(profile));
    for note in profile.notes() {
        cli::complain(note);
    }
}

fn summary(profile: &Profile, why_empty: Option<&str>) -> String {
    let figures = Figures::of(profile);
    let quality = &profile.quality;
    let mut text = format!("{} samples in {:.1} s", figures.samples, profile.about().duration_ns as f64 / 1e9);
    if figures.samples > 0 {
        let share = 100.0 * (1.0 - figures.incomplete as f64 / figures.samples as f64);
        let place = broken(profile).into_iter().find(|broken| !broken.function.is_empty());
        let reasons = reasons(&figures, place.map(|broken| broken.function).as_deref());
        text.push_str(&format!(", {share:.1}% of the stacks complete{reasons}"));
    }
    text.push_str(&format!(", {} lost", quality.samples_lost()));
    if let Some(missed) = quality.missed_by_kernel {
        text.push_str(&format!(", {} missed by the kernel (+- {})", missed.count, missed.uncertainty));
    }
    if let Some(why) = why_empty {
        text.push_str(&format!("; {why}"));
    }
    text
}

/// Why there are no samples, of processes that matched what was asked for or of none; `None` when there are.
pub(crate) fn why_empty(profile: &Profile, has_matched: bool) -> Option<String> {
    if Figures::of(profile).samples > 0 {
        return None;
    }
    Some(match profile.quality.samples_lost() {
        0 if !has_matched => "no process matched".to_owned(),
        0 => "no CPU time was used (idle and waiting threads are not sampled)".to_owned(),
        lost => format!("all samples were lost ({lost})"),
    })
}

/// Why stacks lack callers, if more than one in a hundred does: the most frequent reason first; and the
/// function where most of them end.
fn reasons(figures: &Figures, place: Option<&str>) -> String {
    if figures.incomplete.saturating_mul(100) <= figures.samples {
        return String::new();
    }
    let complete = [StopReason::Complete, StopReason::NoUserStack];
    let mut reasons: Vec<_> = figures.stops.iter().filter(|(reason, _count)| !complete.contains(reason)).collect();
    reasons.sort_by_key(|(_reason, count)| std::cmp::Reverse(**count));
    let reasons: Vec<_> = reasons.into_iter().map(|(reason, count)| format!("{count} {}", reason.name())).collect();
    let place = place.map(|function| format!("; most end in {function}")).unwrap_or_default();
    format!(" ({}{place})", reasons.join(", "))
}

/// What became of every sample that was taken, each by name.
fn conservation(profile: &Profile) -> String {
    let quality = &profile.quality;
    let mut text = format!("{} taken = {} written", quality.samples_taken, Figures::of(profile).samples);
    for (name, count) in quality.filtered.iter().chain(&quality.lost) {
        text.push_str(&format!(" + {count} {name}"));
    }
    for (name, count) in &quality.errors {
        text.push_str(&format!("; {count} {name}"));
    }
    text
}

/// Columns that a table may take.
pub(crate) fn terminal_width() -> usize {
    rustix::termios::tcgetwinsize(std::io::stdout()).map_or(100, |size| usize::from(size.ws_col).max(60))
}

#[cfg(test)]
mod tests {
    use profiler_common::counter::{Counter, CounterKind};

    use super::*;

    fn figures(samples: u64, stops: &[(StopReason, u64)]) -> Figures {
        let incomplete = stops.iter().map(|(_reason, count)| count).sum();
        let complete = [(StopReason::Complete, samples - incomplete)];
        Figures { samples, incomplete, stops: stops.iter().copied().chain(complete).collect(), ..Figures::default() }
    }

    #[test]
    fn many_incomplete_stacks_are_explained() {
        let stops = [(StopReason::UnsupportedCfi, 5), (StopReason::StackCopyEnded, 61)];
        assert_eq!(reasons(&figures(1000, &stops), None), " (61 stack_copy_ended, 5 unsupported_cfi)");
        let named = " (61 stack_copy_ended, 5 unsupported_cfi; most end in walk)";
        assert_eq!(reasons(&figures(1000, &stops), Some("walk")), named);
        assert_eq!(reasons(&figures(6600, &stops), Some("walk")), "");
        assert_eq!(reasons(&figures(0, &[]), None), "");
    }

    /// What the terminal and the graphs name is explained.
    #[test]
    fn readme_explains_every_name() {
        let readme = include_str!("../../README.md");
        let shown = |counter: &&Counter| {
            !matches!(counter.kind(), CounterKind::Taken) && **counter != Counter::SamplesDelivered
        };
        let counters = Counter::ALL.iter().filter(shown).map(|counter| counter.name());
        let complete = [StopReason::Complete, StopReason::NoUserStack];
        let stops = StopReason::ALL.iter().filter(|reason| !complete.contains(reason)).map(|reason| reason.name());
        for name in counters.chain(stops) {
            assert!(readme.contains(&format!("`{name}`")), "{name}");
        }
    }
}
