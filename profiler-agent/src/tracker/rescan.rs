//! Reading /proc again, when sideband records are missing.

use std::sync::Arc;

use profiler_common::address::{MonotonicNs, Pid};

use super::open::Presence;
use super::process::Process;
use super::{Tracker, executables};
use crate::clock;
use crate::kernel::sideband::{Mapping, SidebandEvent};
use crate::proc_fs;
use crate::worker::FileKey;

/// From one reading of all of /proc, or of one process there, to the next, at least, and how many times what the last
/// one took.
const RESCAN_NS: u64 = 500_000_000;
const RESCAN_FACTOR: u64 = 10;

/// The earliest time for the next reading after one that began at `began` and ended at `ended`.
fn next_after(began: MonotonicNs, ended: MonotonicNs) -> MonotonicNs {
    let cost_ns = ended.0.saturating_sub(began.0);
    MonotonicNs(ended.0.saturating_add(RESCAN_NS.max(cost_ns.saturating_mul(RESCAN_FACTOR))))
}

impl Tracker {
    /// Reads /proc again if records are missing. `events`, those that are not applied yet, are applied
    /// before: what they tell is known to the moment.
    pub(crate) fn catch_up(&mut self, events: &mut Vec<SidebandEvent>) {
        let Some(since) = self.gap_since else { return };
        events.sort_by_key(|event| event.time);
        self.apply_first(events.len(), events);
        let began = clock::monotonic();
        self.rescan(since);
        self.gap_since = None;
        self.rescan_from = next_after(began, clock::monotonic());
        self.publish();
    }

    /// Reads every process of interest again: records since `lost_from` may be missing. Only what
    /// /proc confirms stays; what it does not is gone since then.
    fn rescan(&mut self, lost_from: MonotonicNs) {
        for pid in self.interest.look_again(lost_from, &mut self.followed) {
            if self.processes.contains_key(&pid) {
                self.rescan_process(pid, lost_from);
            } else {
                self.scan(pid);
            }
        }
        // That a process ended was not told either, nor which threads began.
        let now = clock::monotonic();
        self.processes.values_mut().for_each(Process::lose_count_of_threads);
        for process in self.processes.values_mut().filter(|process| process.ended.is_none()) {
            if proc_fs::living_thread(process.pid).is_none() {
                process.ended = Some(now);
            }
        }
    }

    pub(super) fn rescan_process(&mut self, pid: Pid, lost_from: MonotonicNs) {
        let scanned_at = clock::monotonic();
        let Ok(mappings) = proc_fs::executable_mappings(pid) else { return };
        if mappings.is_empty() {
            // It has ended, and has only to be waited for: what it had mapped it had to its end.
            return;
        }
        let name = proc_fs::name(pid).unwrap_or_default();
        let (dumps, mappings): (Vec<Mapping>, Vec<Mapping>) =
            mappings.into_iter().partition(executables::tells_of_jitdump);
        for dump in &dumps {
            self.note_jitdump(pid, dump, lost_from);
        }
        let mut found: Vec<(&Mapping, FileKey)> = mappings
            .iter()
            .filter_map(|mapping| Some((mapping, self.file_of(pid, mapping, Presence::at(scanned_at), false)?)))
            .collect();
        found.sort_unstable_by_key(|(mapping, _file)| mapping.start);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.scanned_at = scanned_at;
        process.first_thread_ended = proc_fs::living_thread(pid) != Some(pid);
        process.renamed_unseen(Arc::from(name), lost_from);
        process.retain(lost_from, |known| {
            let after = found.partition_point(|(mapping, _file)| mapping.start <= known.start);
            let holder = after.checked_sub(1).and_then(|at| found.get(at));
            holder.is_some_and(|(mapping, file)| *file == known.file && known.end <= mapping.end)
        });
        for (mapping, file) in found {
            process.map((mapping.start, mapping.end), mapping.file_offset, file, lost_from);
        }
        self.rest(pid, scanned_at);
    }

    /// Leaves a process alone for a while that was read since `began`.
    pub(super) fn rest(&mut self, pid: Pid, began: MonotonicNs) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.rest(began, clock::monotonic());
        }
    }
}

impl Process {
    /// Is left alone for a while, since it was read from `began` to `ended`.
    fn rest(&mut self, began: MonotonicNs, ended: MonotonicNs) {
        self.rescan_from = next_after(began, ended);
    }

    /// Whether it is left alone no longer.
    pub(super) fn may_be_read(&self, now: MonotonicNs) -> bool {
        self.rescan_from <= now
    }
}

#[cfg(test)]
mod tests {
    use super::super::process::ALWAYS;
    use super::*;

    #[test]
    fn a_process_is_left_alone_once_it_was_read() {
        let mut process = Process::new(Pid(7), Arc::from("a"), ALWAYS);
        let may_be_read =
            |process: &Process| [0, 6 + RESCAN_NS, 7 + RESCAN_NS].map(|now| process.may_be_read(MonotonicNs(now)));
        assert_eq!(may_be_read(&process), [true; 3]);
        process.rest(MonotonicNs(5), MonotonicNs(7));
        assert_eq!(may_be_read(&process), [false, false, true]);
    }

    #[test]
    fn what_takes_long_is_read_less_often() {
        assert_eq!(next_after(MonotonicNs(5), MonotonicNs(7)), MonotonicNs(7 + RESCAN_NS));
        let (began, ended) = (MonotonicNs(5), MonotonicNs(5 + RESCAN_NS));
        assert_eq!(next_after(began, ended), MonotonicNs(ended.0 + 10 * RESCAN_NS));
        assert_eq!(next_after(began, MonotonicNs(u64::MAX)), MonotonicNs(u64::MAX));
    }
}
