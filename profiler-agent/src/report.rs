//! What people are told: how it goes, and what came of it.

use std::io::{IsTerminal as _, Write as _};

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

/// Says on stderr how good the profile is.
pub(crate) fn tell(profile: &Profile) {
    cli::complain(&summary(profile));
    cli::complain(&conservation(profile));
    for note in profile.notes() {
        cli::complain(note);
    }
}

fn summary(profile: &Profile) -> String {
    let figures = Figures::of(profile);
    let quality = &profile.quality;
    let mut text = format!("{} samples in {:.1} s", figures.samples, profile.about().duration_ns as f64 / 1e9);
    if figures.samples > 0 {
        let share = 100.0 * (1.0 - figures.incomplete as f64 / figures.samples as f64);
        text.push_str(&format!(", {share:.1}% of the stacks complete"));
    }
    text.push_str(&format!(", {} lost", quality.samples_lost()));
    if let Some(missed) = quality.missed_by_kernel {
        text.push_str(&format!(", {} missed by the kernel (+- {})", missed.count, missed.uncertainty));
    }
    if figures.samples == 0 {
        text.push_str(". No CPU time was used: idle and waiting threads are not sampled");
    }
    text
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
