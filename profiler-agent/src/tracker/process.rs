//! One process: what is mapped where, now and a moment ago.
//!
//! Samples are located some time after they were taken, so every mapping has the time from which
//! and up to which it was there.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use profiler_common::address::{FileOffset, MonotonicNs, Pid, Tid, VirtualAddress};

use super::executables::ANONYMOUS;
use super::frame_setup::FrameSetups;
use crate::kernel::sideband::FileId;
use crate::worker::FileKey;

/// Times before any sample, and after all.
pub(crate) const ALWAYS: MonotonicNs = MonotonicNs(0);
pub(super) const NEVER: MonotonicNs = MonotonicNs(u64::MAX);

/// Mappings of code that a process can have here: more are left out, and counted. A range table holds
/// a quarter of them. Generated code leaves room for that of files.
const MOST_LIVE: usize = 16_384;
const MOST_GENERATED: usize = MOST_LIVE / 2;

/// Mappings of the past that are remembered, at most: a process that replaces its code faster than
/// this has its oldest samples cut.
const MOST_PAST: usize = 4096;

/// Names, and programs that it ran, that are remembered, at most.
const MOST_NAMES: usize = 64;

/// States of a process's range table whose times are remembered, at most.
const MOST_GENERATIONS: usize = 1024;

/// How long after code of a file took the place of other code it is expected to happen again. The kernel knows of the
/// first time some 10 ms later; from then on samples come with the stack, for user space to unwind.
const REPLACING_NS: u64 = 2_000_000_000;

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
    pub(super) since: MonotonicNs,
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

/// A state of a process's ranges that the kernel was given.
#[derive(Clone, Copy, Debug)]
struct Generation {
    number: u32,
    /// The newest sideband record that went into it.
    known_up_to: MonotonicNs,
    published_at: MonotonicNs,
}

/// A file that a process maps to tell that it writes there about code that it makes.
#[derive(Clone, Debug)]
pub(crate) struct JitDump {
    pub(crate) id: FileId,
    pub(crate) file: Arc<OwnedFd>,
    pub(crate) path: String,
    pub(crate) since: MonotonicNs,
}

/// A process that is or was being sampled.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    /// Names and since when; never empty.
    names: Vec<(MonotonicNs, Arc<str>)>,
    /// By first address, none overlapping.
    live: BTreeMap<VirtualAddress, CodeMapping>,
    past: Vec<CodeMapping>,
    /// When code was last replaced or removed.
    last_removal: MonotonicNs,
    /// When code of a file last took the place of other code of a file, and which file that was.
    last_replacement: Option<(MonotonicNs, FileKey)>,
    /// The kernel was told to copy its stacks.
    pub(crate) has_copies: bool,
    /// The newest sideband record that went into `live`.
    known_up_to: MonotonicNs,
    /// Records up to this time are in the scan of /proc already.
    pub(crate) scanned_at: MonotonicNs,
    /// When it is read from there again, at the earliest, for having come to be of interest once more.
    pub(crate) rescan_from: MonotonicNs,
    generations: VecDeque<Generation>,
    pub(crate) slot: Option<Slot>,
    /// Its ranges in the kernel are not those of `live`.
    pub(crate) dirty: bool,
    /// Not published again before this time.
    pub(crate) publish_from: MonotonicNs,
    /// Its last table was not whole, or there was none: that was counted.
    pub(crate) table_lacking: bool,
    /// When a thread of it ended after the first one, so perhaps the last one: /proc is asked.
    pub(crate) ended: Option<MonotonicNs>,
    pub(crate) first_thread_ended: bool,
    /// Its threads that have not ended; `None` when they were not all seen to begin.
    threads: Option<u32>,
    last_exec: Option<MonotonicNs>,
    /// When it began to be what it is: by a fork or an exec; never empty.
    images: Vec<MonotonicNs>,
    pub(crate) jitdump: Option<JitDump>,
    frame_setups: FrameSetups,
}

impl Process {
    pub(crate) fn new(pid: Pid, name: Arc<str>, since: MonotonicNs) -> Self {
        Self {
            pid,
            names: vec![(since, name)],
            live: BTreeMap::new(),
            past: Vec::new(),
            last_removal: ALWAYS,
            last_replacement: None,
            has_copies: false,
            known_up_to: since,
            scanned_at: ALWAYS,
            rescan_from: ALWAYS,
            generations: VecDeque::new(),
            slot: None,
            dirty: true,
            publish_from: ALWAYS,
            table_lacking: false,
            ended: None,
            first_thread_ended: false,
            threads: None,
            last_exec: None,
            images: vec![since],
            jitdump: None,
            frame_setups: FrameSetups::default(),
        }
    }

    /// The child that this process forked at `time`.
    pub(crate) fn fork(&self, pid: Pid, time: MonotonicNs) -> Self {
        let mut child = Self::new(pid, self.name_at(time), time);
        child.threads = Some(1);
        let now = self.live.iter().filter(|(_start, mapping)| mapping.since <= time);
        child.live = now.map(|(start, mapping)| (*start, CodeMapping { since: time, ..*mapping })).collect();
        child
    }

    /// The pid was used before: what samples of that process may still need goes on with this one,
    /// which began at `time`.
    pub(crate) fn succeed(&mut self, previous: Self, time: MonotonicNs) {
        self.past = previous.past;
        self.past.extend(previous.live.into_values().map(|mapping| CodeMapping { until: time, ..mapping }));
        self.generations = previous.generations;
        self.last_removal = time;
        let own = std::mem::replace(&mut self.names, previous.names);
        self.names.extend(own);
        let own = std::mem::replace(&mut self.images, previous.images);
        self.images.extend(own);
    }

    /// When what was the process at `time` began to be that: nothing that an earlier process or program
    /// of this pid did holds for it.
    pub(crate) fn image_at(&self, time: MonotonicNs) -> MonotonicNs {
        self.images.iter().rev().find(|since| **since <= time).or(self.images.first()).copied().unwrap_or(ALWAYS)
    }

    /// When what is the process now began to be that.
    pub(crate) fn image(&self) -> MonotonicNs {
        self.images.last().copied().unwrap_or(ALWAYS)
    }

    /// When it last began to run another program.
    pub(crate) fn last_exec(&self) -> Option<MonotonicNs> {
        self.last_exec
    }

    /// One of its threads ended: perhaps the last one, if the first one has ended as well.
    pub(crate) fn thread_exited(&mut self, thread: Tid, time: MonotonicNs) {
        self.first_thread_ended |= thread.0 == self.pid.0;
        self.threads = self.threads.and_then(|threads| threads.checked_sub(1));
        if self.first_thread_ended {
            self.ended = Some(time);
        }
    }

    /// It made a thread.
    pub(crate) fn thread_began(&mut self) {
        self.threads = self.threads.and_then(|threads| threads.checked_add(1));
    }

    /// Records of it may be missing, or came in another order: its threads can't be counted.
    pub(crate) fn lose_count_of_threads(&mut self) {
        self.threads = None;
    }

    /// Whether all its threads were seen to begin and to end. Otherwise only /proc knows.
    pub(crate) fn is_over(&self) -> bool {
        self.threads == Some(0)
    }

    pub(crate) fn rename(&mut self, name: Arc<str>, time: MonotonicNs) {
        self.names.push((time, name));
    }

    /// It has this name now. If that is news, it has had it since `lost_from`, or since it was given
    /// the last one that we saw.
    pub(crate) fn renamed_unseen(&mut self, name: Arc<str>, lost_from: MonotonicNs) {
        if let Some((since, known)) = self.names.last()
            && *known != name
        {
            self.names.push((lost_from.max(*since), name));
        }
    }

    /// The process's name at `time`.
    pub(crate) fn name_at(&self, time: MonotonicNs) -> Arc<str> {
        let name = self.names.iter().rev().find(|(since, _name)| *since <= time).or(self.names.first());
        name.map_or_else(|| Arc::from(""), |(_since, name)| Arc::clone(name))
    }

    /// The process runs another program from `time` on: nothing is mapped.
    pub(crate) fn exec(&mut self, time: MonotonicNs) {
        let gone = std::mem::take(&mut self.live).into_values();
        self.past.extend(gone.map(|mapping| CodeMapping { until: time, ..mapping }));
        self.changed(time);
        self.last_removal = time;
        self.last_replacement = None;
        self.first_thread_ended = false;
        // The kernel has ended all others (`de_thread`, linux/fs/exec.c).
        self.threads = Some(1);
        self.ended = None;
        self.last_exec = Some(time);
        self.images.push(time);
        self.jitdump = None;
        self.frame_setups.forget();
    }

    /// Code is mapped from `since` on, in place of what was there. Returns whether there was room to
    /// note it.
    pub(crate) fn map(
        &mut self,
        range: (VirtualAddress, VirtualAddress),
        file_offset: FileOffset,
        file: FileKey,
        since: MonotonicNs,
    ) -> bool {
        let (start, end) = range;
        let new = CodeMapping { start, end, file_offset, file, since, until: NEVER };
        if self.live.get(&start).is_some_and(|known| CodeMapping { since, ..*known } == new) {
            return true;
        }
        let hit = self.unmap(start, end, since);
        if !hit.is_empty() {
            self.last_removal = since;
        }
        if file != ANONYMOUS && hit.iter().any(|old| old.file != ANONYMOUS && old.rows_of() != new.rows_of()) {
            self.last_replacement = Some((since, file));
        }
        let most = if file == ANONYMOUS { MOST_GENERATED } else { MOST_LIVE };
        let room = self.live.len() < most;
        if room {
            self.live.insert(start, new);
        }
        self.changed(since);
        room
    }

    /// Ends what is mapped in `[start, end)`; what sticks out stays. Returns what was there.
    fn unmap(&mut self, start: VirtualAddress, end: VirtualAddress, time: MonotonicNs) -> Vec<CodeMapping> {
        let before = self.live.range(..start).next_back().filter(|(_start, mapping)| mapping.end > start);
        let inside = self.live.range(start..end.max(start));
        let hit: Vec<CodeMapping> = before.into_iter().chain(inside).map(|(_start, mapping)| *mapping).collect();
        for mapping in &hit {
            self.live.remove(&mapping.start);
            self.remember(CodeMapping { until: time, ..*mapping });
            if mapping.start < start {
                self.live.insert(mapping.start, CodeMapping { end: start, ..*mapping });
            }
            if end < mapping.end {
                let skipped = FileOffset(mapping.file_offset.0.wrapping_add(end.0 - mapping.start.0));
                self.live.insert(end, CodeMapping { start: end, file_offset: skipped, ..*mapping });
            }
        }
        hit
    }

    /// The file whose code lately took the place of other code of a file.
    pub(crate) fn lately_replaced_by(&self, now: MonotonicNs) -> Option<FileKey> {
        let (last, file) = self.last_replacement?;
        (now.0.saturating_sub(last.0) < REPLACING_NS).then_some(file)
    }

    fn remember(&mut self, gone: CodeMapping) {
        if self.past.len() >= 2 * MOST_PAST {
            self.past.drain(..MOST_PAST);
        }
        self.past.push(gone);
    }

    fn changed(&mut self, time: MonotonicNs) {
        self.dirty = true;
        self.known_up_to = self.known_up_to.max(time);
    }

    /// What is mapped now, in the order of addresses.
    pub(crate) fn live(&self) -> impl Iterator<Item = &CodeMapping> {
        self.live.values()
    }

    /// Whether it has a file mapped now.
    pub(crate) fn maps(&self, file: FileKey) -> bool {
        self.live.values().any(|mapping| mapping.file == file)
    }

    /// The files that are or were a moment ago mapped.
    pub(crate) fn files(&self) -> impl Iterator<Item = FileKey> {
        self.live.values().chain(&self.past).map(|mapping| mapping.file)
    }

    /// The code at `address` at `time`.
    pub(crate) fn mapping_at(&self, address: VirtualAddress, time: MonotonicNs) -> Option<&CodeMapping> {
        let live = self.live.range(..=address).next_back().map(|(_start, mapping)| mapping);
        live.filter(|mapping| mapping.holds(address, time))
            .or_else(|| self.past.iter().rev().find(|mapping| mapping.holds(address, time)))
    }

    /// Whether a frame pointer leads from generated code that goes on `at` an address to its caller; `time` is a
    /// sample's.
    pub(crate) fn keeps_frame_pointers(&self, code: &CodeMapping, at: VirtualAddress, time: MonotonicNs) -> bool {
        self.frame_setups.has(self, code, at, time)
    }

    /// The kernel uses the state `number` from `now` on.
    pub(crate) fn published(&mut self, number: u32, now: MonotonicNs) {
        self.dirty = false;
        self.generations.push_back(Generation { number, known_up_to: self.known_up_to, published_at: now });
        if self.generations.len() > MOST_GENERATIONS {
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
        let Some(state) = self.generations.iter().find(|state| state.number == generation) else {
            return true;
        };
        if self.last_removal <= state.known_up_to {
            return false;
        }
        let then = self.mapping_at(address, state.known_up_to).map(CodeMapping::rows_of);
        then.is_some() && then != self.mapping_at(address, time).map(CodeMapping::rows_of)
    }

    /// Whether the kernel was given the state `generation` before `time`.
    pub(crate) fn was_published_before(&self, generation: u32, time: MonotonicNs) -> bool {
        self.generations.iter().any(|state| state.number == generation && state.published_at < time)
    }

    /// Forgets what only samples from before `oldest` can need.
    pub(crate) fn forget(&mut self, oldest: MonotonicNs) {
        self.past.retain(|mapping| mapping.until >= oldest);
        self.past.drain(..self.past.len().saturating_sub(MOST_PAST));
        while self.generations.get(1).is_some_and(|next| next.published_at < oldest) {
            self.generations.pop_front();
        }
        self.names.drain(..self.names.len().saturating_sub(MOST_NAMES));
        self.images.drain(..self.images.len().saturating_sub(MOST_NAMES));
        if let Some(current) = self.names.iter().rposition(|(since, _name)| *since <= oldest) {
            self.names.drain(..current);
        }
    }

    /// Ends every live mapping that `keep` does not want, as of `time`.
    pub(crate) fn retain(&mut self, time: MonotonicNs, mut keep: impl FnMut(&CodeMapping) -> bool) {
        let before = self.past.len();
        let past = &mut self.past;
        self.live.retain(|_start, mapping| {
            let kept = keep(mapping);
            if !kept {
                past.push(CodeMapping { until: time, ..*mapping });
            }
            kept
        });
        if self.past.len() > before {
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
        assert!(process.live().next().is_none());
    }

    #[test]
    fn stale_generations_are_known() {
        let mut process = process();
        process.published(7, MonotonicNs(1));
        let at = |process: &Process, generation, address| {
            process.replaced_since(generation, VirtualAddress(address), MonotonicNs(60))
        };
        assert!(!at(&process, 7, 0x2000));
        process.map((VirtualAddress(0x9000), VirtualAddress(0xa000)), FileOffset(0), B, MonotonicNs(40));
        assert!(!at(&process, 7, 0x2000), "more code is no other code");
        process.map((VirtualAddress(0x2000), VirtualAddress(0x3000)), FileOffset(0), B, MonotonicNs(50));
        assert!(at(&process, 7, 0x2000));
        assert!(!at(&process, 7, 0x9000));
        process.published(8, MonotonicNs(90));
        assert!(!at(&process, 8, 0x2000));
        assert!(at(&process, 9, 0x2000), "a generation that is not remembered proves nothing");
        process.forget(MonotonicNs(90));
        assert!(!at(&process, 7, 0x9000), "samples of that time may have used it");
        process.forget(MonotonicNs(91));
        assert!(at(&process, 7, 0x9000), "forgotten");
    }

    #[test]
    fn what_replaces_code_of_files_is_remembered_for_a_while() {
        let at = |file, file_offset, start| {
            let mut process = process();
            let range = (VirtualAddress(start), VirtualAddress(start + 0x1000));
            process.map(range, FileOffset(file_offset), file, MonotonicNs(50));
            process
        };
        assert!(process().lately_replaced_by(MonotonicNs(50)).is_none());
        let replaced = at(B, 0, 0x2000);
        assert_eq!(replaced.lately_replaced_by(MonotonicNs(49 + REPLACING_NS)), Some(B));
        assert_eq!(replaced.lately_replaced_by(MonotonicNs(50 + REPLACING_NS)), None);
        assert!(at(A, 0, 0x2000).lately_replaced_by(MonotonicNs(50)).is_some(), "another place in the same file");
        for (file, file_offset, start) in [(A, 0x1100, 0x2000), (B, 0, 0x6000), (ANONYMOUS, 0, 0x2000)] {
            assert_eq!(at(file, file_offset, start).lately_replaced_by(MonotonicNs(50)), None, "{file:?} {start:#x}");
        }
        let mut next = at(B, 0, 0x2000);
        next.exec(MonotonicNs(60));
        assert_eq!(next.lately_replaced_by(MonotonicNs(60)), None);
    }

    #[test]
    fn a_child_has_its_parents_code_from_the_fork_on() {
        let child = process().fork(Pid(2), MonotonicNs(30));
        assert_eq!(file_at(&child, 0x1000, 30), Some((A, 0x100)));
        assert_eq!(file_at(&child, 0x1000, 29), None);
    }
}
