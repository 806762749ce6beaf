//! Counts that follow from the samples of a profile.

use std::collections::BTreeMap;

use profiler_common::record::StopReason;

use crate::profile::Profile;

/// Counts over all samples of a profile. They saturate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Samples.
    pub samples: u64,
    /// Samples whose stack lacks callers.
    pub incomplete: u64,
    /// Samples by the reason why their user stack ends.
    pub stops: BTreeMap<StopReason, u64>,
    /// Frames; a frame of a stack that was seen 3 times counts 3 times, inlined functions do not
    /// count.
    pub frames: u64,
    /// Frames whose location has no symbols.
    pub frames_without_symbols: u64,
    /// Frames that were found by the frame pointer.
    pub frames_by_frame_pointer: u64,
    /// Samples that may lack a caller ([`Profile::callers_perhaps_missing`]).
    pub callers_perhaps_missing: u64,
}

impl Figures {
    /// Counts the samples of a profile.
    #[must_use]
    pub fn of(profile: &Profile) -> Self {
        let mut figures = Self::default();
        for sample in profile.samples() {
            let add = |to: &mut u64, frames: usize| *to = to.saturating_add(sample.count.saturating_mul(frames as u64));
            add(&mut figures.samples, 1);
            add(&mut figures.incomplete, usize::from(sample.labels.incomplete()));
            add(figures.stops.entry(sample.labels.stop).or_default(), 1);
            add(&mut figures.frames, sample.stack.len());
            let without = sample.stack.iter().filter(|id| profile.lines(**id).is_none_or(<[_]>::is_empty));
            add(&mut figures.frames_without_symbols, without.count());
            let guessed = sample.stack.iter().filter(|id| profile.location_key(**id).found_by.frame_pointer());
            add(&mut figures.frames_by_frame_pointer, guessed.count());
            let doubtful = profile.callers_perhaps_missing(sample.stack).next();
            add(&mut figures.callers_perhaps_missing, usize::from(doubtful.is_some()));
        }
        figures
    }
}
