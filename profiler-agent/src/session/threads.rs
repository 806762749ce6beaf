//! What a session offers to look at threads, each once: where they stand, or by one sample.

use std::collections::HashSet;
use std::time::Duration;

use profiler_common::address::{MonotonicNs, Tid};
use profiler_common::record::{Sample, SampleHeader, StopReason};
use profiler_common::step::Machine;

use super::closing::FINISH;
use super::{Session, SessionError};
use crate::clock;
use crate::kernel::KernelError;
use crate::locate::{LocatedSample, locate_standing, recheck};

/// The threads that were seen, and those that wait for it.
pub(super) struct Picked {
    /// When the look began: what is older was left in the ring by the one before.
    since: MonotonicNs,
    /// Those of which a sample is wanted.
    awaited: HashSet<Tid>,
    /// The samples that came.
    records: Vec<Box<[u64]>>,
    /// Threads that were unwound where they stood.
    standing: Vec<LocatedSample>,
}

impl Picked {
    fn since(since: MonotonicNs) -> Self {
        Self { since, awaited: HashSet::new(), records: Vec::new(), standing: Vec::new() }
    }

    /// Keeps the record if it is the first of a thread of which one is wanted.
    pub(super) fn offer(&mut self, record: &[u64]) {
        let Ok(Sample { header, .. }) = Sample::decode(record) else { return };
        if header.time >= self.since && self.awaited.remove(&header.tid) {
            self.records.push(record.into());
        }
    }
}

impl Session {
    /// Reads what is mapped, and has the tables of all of it built. Nothing is sampled yet, and then only
    /// the threads that are picked.
    pub(crate) async fn get_ready(&mut self) {
        self.forget_threads();
        self.prepare(FINISH).await;
    }

    /// Why threads can't be read while they run on; `None` when they can.
    pub(crate) fn without_threads(&self) -> Option<&KernelError> {
        self.without_threads.as_ref()
    }

    /// The records of all threads of the processes of interest, as they are now.
    pub(crate) fn threads(&mut self) -> Result<Vec<u64>, SessionError> {
        Ok(self.sampling.threads()?)
    }

    /// Wants one sample of each of these threads, and no other samples.
    pub(crate) fn pick(&mut self, threads: HashSet<Tid>) -> Result<(), SessionError> {
        if !threads.is_empty() {
            self.sampling.start()?;
        }
        self.look().awaited = threads;
        Ok(())
    }

    /// Lets time pass, and takes in what came meanwhile. Returns the threads whose sample is still wanted.
    pub(crate) async fn wait(&mut self, time: Duration) -> &HashSet<Tid> {
        self.run_until(tokio::time::sleep(time)).await;
        self.drain();
        &self.look().awaited
    }

    /// Unwinds a thread that stands. `None` when it has to wait for a table, which is asked for then.
    pub(crate) fn locate(
        &mut self,
        header: SampleHeader,
        kernel_frames: &[u64],
        memory: &mut impl Machine,
        give_up: bool,
    ) -> Option<LocatedSample> {
        let located = locate_standing(header, kernel_frames, memory, &self.tracker, give_up);
        match located {
            Ok(located) => Some(located),
            Err(file) => {
                self.tracker.demand(file);
                self.request_tables();
                None
            }
        }
    }

    /// Takes in the stack of a thread that stood.
    pub(crate) fn take_in(&mut self, sample: LocatedSample) {
        self.look().standing.push(sample);
    }

    /// Whether callers are missing in a stack that was seen where its thread stood, since they were forgotten.
    pub(crate) fn has_cut_stacks(&self) -> bool {
        let is_whole = |stop| matches!(stop, StopReason::Complete | StopReason::NoUserStack);
        self.picked.iter().flat_map(|picked| &picked.standing).any(|sample| !is_whole(sample.stop))
    }

    /// Forgets what was seen of threads.
    pub(crate) fn forget_threads(&mut self) {
        self.picked = Some(Picked::since(clock::monotonic()));
    }

    fn look(&mut self) -> &mut Picked {
        self.picked.get_or_insert_with(|| Picked::since(clock::monotonic()))
    }

    /// Sends on what was seen, now that all is known that was mapped then.
    pub(super) fn take_in_picked(&mut self) {
        let Some(Picked { records, standing, .. }) = self.picked.take() else { return };
        for sample in standing {
            self.generated.add(recheck(sample, &self.tracker), &mut self.aggregator, &self.tracker);
        }
        for record in records {
            self.waiting.push(&record);
        }
        // Sampling has ended.
        self.forget_threads();
    }
}

#[cfg(test)]
mod tests {
    use profiler_common::record::{HEADER_WORDS, shape_word, word};

    use super::*;

    #[test]
    fn a_look_takes_its_own_samples_each_thread_once() {
        let record = |tid: u64, time_ns| {
            let mut words = [0; HEADER_WORDS];
            words[word::SHAPE] = shape_word(0, 0, 0, 0);
            words[word::TIME_NS] = time_ns;
            words[word::PID_TID] = 7 | tid << 32;
            words
        };
        let mut picked = Picked::since(MonotonicNs(100));
        picked.awaited = HashSet::from([Tid(8), Tid(9)]);
        for (tid, time_ns, kept) in [(8, 99, 0), (8, 100, 1), (8, 101, 1), (7, 102, 1), (9, 103, 2)] {
            picked.offer(&record(tid, time_ns));
            assert_eq!(picked.records.len(), kept, "{tid} at {time_ns}");
        }
    }
}
