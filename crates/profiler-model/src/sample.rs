//! The table of samples: how often each stack was seen with each set of labels.

use profiler_common::address::{Cpu, Pid, Tid};
use profiler_common::record::StopReason;

use crate::location::LocationId;
use crate::positions::Positions;
use crate::stack::StackId;
use crate::string::StringId;

/// What is known of a sample besides its stack. Samples merge only when all of it is equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Labels {
    /// The process.
    pub pid: Pid,
    /// The thread.
    pub tid: Tid,
    /// The CPU; `None` when samples of all CPUs are to merge.
    pub cpu: Option<Cpu>,
    /// The thread's name.
    pub thread: StringId,
    /// The process's name.
    pub process: StringId,
    /// Why the user stack ends where it ends.
    pub stop: StopReason,
}

impl Labels {
    /// Whether callers are missing from the stack.
    #[must_use]
    pub const fn incomplete(&self) -> bool {
        !matches!(self.stop, StopReason::Complete | StopReason::NoUserStack)
    }
}

/// A stack, its labels, and how often they were seen together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample<'a> {
    /// The stack, leaf first: kernel frames, then user frames.
    pub stack: &'a [LocationId],
    /// The labels.
    pub labels: &'a Labels,
    /// How many samples.
    pub count: u64,
}

/// Counts by stack and labels.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    counts: Vec<((StackId, Labels), u64)>,
    positions: Positions,
}

impl Samples {
    pub(crate) fn add(&mut self, stack: StackId, labels: Labels, count: u64) {
        let key = (stack, labels);
        let counts = &self.counts;
        match self.positions.find_or_note(&key, |index| &counts[index].0, counts.len()) {
            Some(index) => {
                let total = &mut self.counts[index].1;
                *total = total.saturating_add(count);
            }
            None => self.counts.push((key, count)),
        }
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (StackId, &Labels, u64)> {
        self.counts.iter().map(|((stack, labels), count)| (*stack, labels, *count))
    }
}
