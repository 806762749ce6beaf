//! One process: what is mapped where, now and a moment ago.
//!
//! Samples are located some time after they were taken, so every mapping has the time from which
//! and up to which it was there.

use std::collections::VecDeque;
use std::sync::Arc;

use profiler_common::address::{FileOffset, MonotonicNs, Pid, Tid, VirtualAddress};

use super::executables::ANONYMOUS;
use crate::worker::FileKey;

/// Times before any sample, and after all.
pub(crate) const ALWAYS: MonotonicNs = MonotonicNs(0);
const NEVER: MonotonicNs = MonotonicNs(u64::MAX);

/// How long what is gone is remembered: longer than any sample waits to be located.
const MEMORY: u64 = 60_000_000_000;

/// Mappings of the past that are remembered, at most: a process that replaces its code faster than
/// this has its oldest samples cut.
const MOST_PAST: usize = 4096;

/// Names that are remembered, at most.
const MOST_NAMES: usize = 64;

/// States of a process's range table whose times are remembered.
const GENERATIONS: usize = 64;

/// Code in a process, for some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CodeMapping {
    /// The first address.
    pub(crate) start: VirtualAddress,
    /// The address after the last one.
    pub(crate) end: VirtualAddress,
    /// What of the file is at `start`.
    pub(crate) file_offset: FileOffset,
    /// The file.
    pub(crate) file: FileKey,
    since: MonotonicNs,
    until: MonotonicNs,
}

impl CodeMapping {
    /// What decides by which rows an address in it is unwound.
    fn rows_of(&self) -> (FileKey, u64) {
        let bias = if self.file == ANONYMOUS { 0 } else { self.start.0.wrapping_sub(self.file_offset.0) };
        (self.file, bias)
    }

    fn holds(&self, address: VirtualAddress, time: MonotonicNs) -> bool {
        self.start <= address && address < self.end && self.since <= time && time < self.until
    }
}

/// Where a process's range table is, in the table of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// The header's place; the ranges follow.
    pub(crate) start: u32,
    /// Entries, the header included.
    pub(crate) length: u32,
}

/// A process that is or was being sampled.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    /// Names and since when; never empty.
    names: Vec<(MonotonicNs, Arc<str>)>,
    /// In the order of addresses, none overlapping.
    live: Vec<CodeMapping>,
    past: Vec<CodeMapping>,
    /// When code was last replaced or removed.
    last_removal: MonotonicNs,
    /// The newest sideband record that went into `live`.
    known_up_to: MonotonicNs,
    /// Records up to this time are in the scan of /proc already.
    pub(crate) scanned_at: MonotonicNs,
    /// Published states and what they know.
    generations: VecDeque<(u32, MonotonicNs)>,
    pub(crate) slot: Option<Slot>,
    /// Its ranges in the kernel are not those of `live`.
    pub(crate) dirty: bool,
    /// When its last known thread ended; it is looked at again before it is dropped.
    pub(crate) ended: Option<MonotonicNs>,
    first_thread_ended: bool,
    last_exec: Option<MonotonicNs>,
}

impl Process {
    pub(crate) fn new(pid: Pid, name: Arc<str>, since: MonotonicNs) -> Self {
        Self {
            pid,
            names: vec![(since, name)],
            live: Vec::new(),
            past: Vec::new(),
            last_removal: ALWAYS,
            known_up_to: since,
            scanned_at: ALWAYS,
            generations: VecDeque::new(),
            slot: None,
            dirty: true,
            ended: None,
            first_thread_ended: false,
            last_exec: None,
        }
    }

    /// The child that this process forked at `time`.
    pub(crate) fn fork(&self, pid: Pid, time: MonotonicNs) -> Self {
        let mut child = Self::new(pid, self.name_at(time), time);
        let now = self.live.iter().filter(|mapping| mapping.since <= time);
        child.live = now.map(|mapping| CodeMapping { since: time, ..*mapping }).collect();
        child
    }

    /// When it last began to run another program.
    pub(crate) fn last_exec(&self) -> Option<MonotonicNs> {
        self.last_exec
    }

    /// One of its threads ended: it was the last one, if the first one has ended as well.
    pub(crate) fn thread_exited(&mut self, thread: Tid, time: MonotonicNs) {
        self.first_thread_ended |= thread.0 == self.pid.0;
        if self.first_thread_ended {
            self.ended = Some(time);
        }
    }

    pub(crate) fn rename(&mut self, name: Arc<str>, time: MonotonicNs) {
        self.names.push((time, name));
    }

    /// The process's name at `time`.
    pub(crate) fn name_at(&self, time: MonotonicNs) -> Arc<str> {
        let name = self.names.iter().rev().find(|(since, _name)| *since <= time).or(self.names.first());
        name.map_or_else(|| Arc::from(""), |(_since, name)| Arc::clone(name))
    }

    /// The process runs another program from `time` on: nothing is mapped.
    pub(crate) fn exec(&mut self, time: MonotonicNs) {
        self.past.extend(self.live.drain(..).map(|mapping| CodeMapping { until: time, ..mapping }));
        self.changed(time);
        self.last_removal = time;
        self.first_thread_ended = false;
        self.ended = None;
        self.last_exec = Some(time);
    }

    /// Code is mapped from `since` on, in place of what was there.
    pub(crate) fn map(
        &mut self,
        range: (VirtualAddress, VirtualAddress),
        file_offset: FileOffset,
        file: FileKey,
        since: MonotonicNs,
    ) {
        let (start, end) = range;
        let new = CodeMapping { start, end, file_offset, file, since, until: NEVER };
        if self.live.iter().any(|known| CodeMapping { since, ..*known } == new) {
            return;
        }
        if self.unmap(start, end, since) {
            self.last_removal = since;
        }
        let at = self.live.partition_point(|mapping| mapping.start < start);
        self.live.insert(at, new);
        self.changed(since);
    }

    /// Ends what is mapped in `[start, end)`; what sticks out stays. Returns whether there was any.
    fn unmap(&mut self, start: VirtualAddress, end: VirtualAddress, time: MonotonicNs) -> bool {
        let (hit, mut kept): (Vec<_>, Vec<_>) =
            self.live.drain(..).partition(|mapping| mapping.start < end && start < mapping.end);
        for mapping in &hit {
            self.past.push(CodeMapping { until: time, ..*mapping });
            if mapping.start < start {
                kept.push(CodeMapping { end: start, ..*mapping });
            }
            if end < mapping.end {
                let skipped = FileOffset(mapping.file_offset.0.wrapping_add(end.0 - mapping.start.0));
                kept.push(CodeMapping { start: end, file_offset: skipped, ..*mapping });
            }
        }
        kept.sort_by_key(|mapping| mapping.start);
        self.live = kept;
        !hit.is_empty()
    }

    fn changed(&mut self, time: MonotonicNs) {
        self.dirty = true;
        self.known_up_to = self.known_up_to.max(time);
    }

    /// What is mapped now, in the order of addresses.
    pub(crate) fn live(&self) -> &[CodeMapping] {
        &self.live
    }

    /// The files that are or were a moment ago mapped.
    pub(crate) fn files(&self) -> impl Iterator<Item = FileKey> {
        self.live.iter().chain(&self.past).map(|mapping| mapping.file)
    }

    /// The code at `address` at `time`.
    pub(crate) fn mapping_at(&self, address: VirtualAddress, time: MonotonicNs) -> Option<&CodeMapping> {
        let at = self.live.partition_point(|mapping| mapping.end <= address);
        self.live
            .get(at)
            .filter(|mapping| mapping.holds(address, time))
            .or_else(|| self.past.iter().rev().find(|mapping| mapping.holds(address, time)))
    }

    /// The kernel uses state `generation` from now on.
    pub(crate) fn published(&mut self, generation: u32) {
        self.dirty = false;
        self.generations.push_back((generation, self.known_up_to));
        if self.generations.len() > GENERATIONS {
            self.generations.pop_front();
        }
    }

    /// Whether code at `address` is other than in the state `generation`: then its rows were not
    /// those to unwind with at `time`.
    pub(crate) fn replaced_since(&self, generation: u32, address: VirtualAddress, time: MonotonicNs) -> bool {
        if generation == 0 {
            // Not unwound with any state.
            return false;
        }
        let Some((_generation, known)) = self.generations.iter().find(|(known, _time)| *known == generation) else {
            return true;
        };
        if self.last_removal <= *known {
            return false;
        }
        let then = self.mapping_at(address, *known).map(CodeMapping::rows_of);
        then.is_some() && then != self.mapping_at(address, time).map(CodeMapping::rows_of)
    }

    /// Forgets what no waiting sample can need.
    pub(crate) fn forget(&mut self, now: MonotonicNs) {
        let oldest = MonotonicNs(now.0.saturating_sub(MEMORY));
        self.past.retain(|mapping| mapping.until >= oldest);
        self.past.drain(..self.past.len().saturating_sub(MOST_PAST));
        self.names.drain(..self.names.len().saturating_sub(MOST_NAMES));
        if let Some(current) = self.names.iter().rposition(|(since, _name)| *since <= oldest) {
            self.names.drain(..current);
        }
    }

    /// Ends every live mapping that `keep` does not want, as of `time`.
    pub(crate) fn retain(&mut self, time: MonotonicNs, keep: impl Fn(&CodeMapping) -> bool) {
        let (kept, gone): (Vec<_>, Vec<_>) = self.live.drain(..).partition(keep);
        self.live = kept;
        if !gone.is_empty() {
            self.past.extend(gone.into_iter().map(|mapping| CodeMapping { until: time, ..mapping }));
            self.last_removal = time;
            self.changed(time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: FileKey = FileKey(1);
    const B: FileKey = FileKey(2);

    fn process() -> Process {
        let mut process = Process::new(Pid(1), Arc::from("p"), ALWAYS);
        process.map((VirtualAddress(0x1000), VirtualAddress(0x5000)), FileOffset(0x100), A, ALWAYS);
        process
    }

    fn file_at(process: &Process, address: u64, time: u64) -> Option<(FileKey, u64)> {
        process
            .mapping_at(VirtualAddress(address), MonotonicNs(time))
            .map(|mapping| (mapping.file, address - mapping.start.0 + mapping.file_offset.0))
    }

    #[test]
    fn a_mapping_replaces_what_it_covers_and_only_that() {
        let mut process = process();
        process.map((VirtualAddress(0x2000), VirtualAddress(0x3000)), FileOffset(0), B, MonotonicNs(50));
        for (address, before, after) in [(0x1fff, A, A), (0x2000, A, B), (0x2fff, A, B), (0x3000, A, A)] {
            assert_eq!(file_at(&process, address, 49).unwrap().0, before, "{address:x}");
            assert_eq!(file_at(&process, address, 50).unwrap().0, after, "{address:x}");
        }
        assert_eq!(file_at(&process, 0x3010, 60), Some((A, 0x2110)), "the offset of the rest moves along");
        assert_eq!(file_at(&process, 0x5000, 60), None);
    }

    #[test]
    fn exec_ends_everything() {
        let mut process = process();
        process.exec(MonotonicNs(50));
        assert_eq!(file_at(&process, 0x1000, 49), Some((A, 0x100)));
        assert_eq!(file_at(&process, 0x1000, 50), None);
        assert!(process.live().is_empty());
    }

    #[test]
    fn stale_generations_are_known() {
        let mut process = process();
        process.published(7);
        let at = |process: &Process, generation, address| {
            process.replaced_since(generation, VirtualAddress(address), MonotonicNs(60))
        };
        assert!(!at(&process, 7, 0x2000));
        process.map((VirtualAddress(0x9000), VirtualAddress(0xa000)), FileOffset(0), B, MonotonicNs(40));
        assert!(!at(&process, 7, 0x2000), "more code is no other code");
        process.map((VirtualAddress(0x2000), VirtualAddress(0x3000)), FileOffset(0), B, MonotonicNs(50));
        assert!(at(&process, 7, 0x2000));
        assert!(!at(&process, 7, 0x9000));
        process.published(8);
        assert!(!at(&process, 8, 0x2000));
        assert!(at(&process, 9, 0x2000), "a generation that is not remembered proves nothing");
    }

    #[test]
    fn a_child_has_its_parents_code_from_the_fork_on() {
        let child = process().fork(Pid(2), MonotonicNs(30));
        assert_eq!(file_at(&child, 0x1000, 30), Some((A, 0x100)));
        assert_eq!(file_at(&child, 0x1000, 29), None);
    }
}
