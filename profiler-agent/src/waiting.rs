//! Samples on their way from the ring buffer to the profile: they wait until the sideband has told
//! what was mapped when they were taken, and until the tables that they need are built.

use std::collections::{HashSet, VecDeque};

use profiler_common::address::{MonotonicNs, Pid};
use profiler_common::counter::Counter;
use profiler_common::record::Sample;

use crate::counts::Counts;
use crate::locate::{LocatedSample, locate};
use crate::select::Verdict;
use crate::tracker::Tracker;
use crate::worker::FileKey;

/// Words of waiting samples, at most (32 MiB). Beyond it samples make do with what is known.
const MOST_WORDS: usize = 4 << 20;

/// Samples that are not located yet.
#[derive(Default)]
pub(crate) struct Waiting {
    /// In the order in which they came.
    fresh: VecDeque<Box<[u64]>>,
    /// Those that need a table that is being built.
    for_table: Vec<Box<[u64]>>,
    words: usize,
    /// Processes whose samples were left out, since this was last emptied.
    pub(crate) unwanted: HashSet<Pid>,
}

impl Waiting {
    /// Takes in a record as it came from the ring buffer.
    pub(crate) fn push(&mut self, record: &[u64]) {
        self.words += record.len();
        self.fresh.push_back(record.into());
    }

    /// Locates the samples up to `settled`, the time up to which the tracker knows everything, and
    /// hands them on. Returns the files whose tables are needed for more.
    pub(crate) fn settle(
        &mut self,
        settled: MonotonicNs,
        tracker: &Tracker,
        counts: &mut Counts,
        mut done: impl FnMut(LocatedSample),
    ) -> HashSet<FileKey> {
        let mut needed = HashSet::new();
        let mut due = std::mem::take(&mut self.for_table);
        let mut excess = self.words.saturating_sub(MOST_WORDS);
        while let Some(record) = self.fresh.front() {
            if Sample::decode(record).is_ok_and(|sample| sample.header.time > settled) {
                if excess == 0 {
                    break;
                }
                excess = excess.saturating_sub(record.len());
                counts.add(Counter::WaitingOverflow, 1);
            }
            due.extend(self.fresh.pop_front());
        }
        for record in due {
            let Ok(sample) = Sample::decode(&record) else {
                counts.add(Counter::LostUndecodable, 1);
                self.words -= record.len();
                continue;
            };
            if !self.is_wanted(&sample, tracker, counts) {
                self.words -= record.len();
                continue;
            }
            let mut located = locate(&sample, tracker, false);
            if located.is_err() && self.words > MOST_WORDS {
                counts.add(Counter::WaitingOverflow, 1);
                located = locate(&sample, tracker, true);
            }
            match located {
                Ok(located) => {
                    self.words -= record.len();
                    done(located);
                }
                Err(file) => {
                    needed.insert(file);
                    self.for_table.push(record);
                }
            }
        }
        needed
    }

    /// Whether the sample's process is one that was asked for; one that is not counts as left out.
    fn is_wanted(&mut self, sample: &Sample<'_>, tracker: &Tracker, counts: &mut Counts) -> bool {
        let why = match tracker.verdict(sample.header.pid, sample.header.time) {
            Verdict::Wanted => return true,
            Verdict::Unwanted => Counter::FilteredProcess,
            Verdict::Unknown => Counter::FilteredUnknown,
        };
        counts.add(why, 1);
        self.unwanted.insert(sample.header.pid);
        false
    }

    /// The time of the oldest sample that is not located yet.
    pub(crate) fn oldest(&self) -> Option<MonotonicNs> {
        let time = |record: &[u64]| Sample::decode(record).ok().map(|sample| sample.header.time);
        self.for_table.iter().chain(&self.fresh).filter_map(|record| time(record)).min()
    }

    /// Whether samples wait for a table.
    pub(crate) fn needs_tables(&self) -> bool {
        !self.for_table.is_empty()
    }

    /// Locates everything that is left with what is known.
    pub(crate) fn give_up(&mut self, tracker: &Tracker, counts: &mut Counts, mut done: impl FnMut(LocatedSample)) {
        for record in self.for_table.drain(..).chain(self.fresh.drain(..)).collect::<Vec<_>>() {
            let sample = match Sample::decode(&record) {
                Ok(sample) if !self.is_wanted(&sample, tracker, counts) => continue,
                sample => sample,
            };
            match sample.map(|sample| locate(&sample, tracker, true)) {
                Ok(Ok(located)) => done(located),
                Ok(Err(_)) | Err(_) => counts.add(Counter::LostUndecodable, 1),
            }
        }
        self.words = 0;
    }
}
