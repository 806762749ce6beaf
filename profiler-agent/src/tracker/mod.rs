//! The processes, their mappings and their executables, as the sideband tells; and the kernel's
//! tables, kept true to them.

mod eviction;
mod executable;
mod executables;
mod frame_setup;
mod interest;
mod open;
mod placement;
mod process;
mod rescan;
mod selected;
mod space;
mod tables;
mod trampoline;

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use profiler_common::address::{MonotonicNs, Pid, VirtualAddress};

use self::executable::Unwinding;
use self::executables::{Executables, Foreseen, Found, TRAMPOLINES};
use self::open::Presence;
use self::placement::Placement;
use self::process::Process;
use crate::clock;
use crate::counts::Counts;
use crate::debug_files::Place;
use crate::kernel::sideband::{Mapping, SidebandEvent, SidebandKind};
use crate::kernel::{Followed, KernelError, Tables};
use crate::proc_fs;
use crate::select::Verdict;
use crate::table_cache::TableCache;
use crate::worker::FileKey;
use profiler_common::counter::Counter;
use profiler_unwind::UnwindTable;

pub(crate) use self::executable::Executable;
pub(crate) use self::interest::Interest;
pub(crate) use self::open::{Opening, folder_in, open_in, open_owned, root_of, tmp_in};
pub(crate) use self::process::{ALWAYS, CodeMapping as Code, Process as TrackedProcess};

/// How long a file that nobody maps, and mappings of the past, are kept for samples still on their way.
const GRACE_NS: u64 = 5_000_000_000;

/// How long an ended process is kept, at least. There may be hundreds a second.
const ENDED_GRACE_NS: u64 = 1_000_000_000;

/// Refused processes that are remembered.
const MOST_REFUSED: usize = 4096;

/// A table that is to be built.
pub(crate) struct WantedTable {
    pub(crate) key: FileKey,
    pub(crate) file: Arc<OwnedFd>,
    /// Where it is.
    pub(crate) place: Place,
}

/// All that is known of processes and executables; the one owner of the kernel's tables.
pub(crate) struct Tracker {
    interest: Interest,
    processes: HashMap<Pid, Process>,
    /// Processes that may have other ranges than the kernel knows.
    touched: Vec<Pid>,
    executables: Executables,
    placement: Placement,
    followed: Followed,
    /// Processes whose /proc/PID/maps may not be read.
    refused: HashSet<Pid>,
    /// All sideband records up to this time are applied.
    applied_up_to: MonotonicNs,
    /// Records from this time on may be missing, and /proc is not read again yet.
    gap_since: Option<MonotonicNs>,
    rescan_from: MonotonicNs,
    /// The tables to build, in this order.
    wanted: VecDeque<FileKey>,
    /// Tables that wait for the rows that others gave up for them: no more than are built at once.
    held: Vec<(FileKey, UnwindTable)>,
    pub(crate) cache: Option<TableCache>,
    /// Ended processes are kept to the end: for somebody who looks for a few seconds and asks then who they were.
    pub(crate) keeps_ended: bool,
    pub(crate) counts: Counts,
}

impl Tracker {
    pub(crate) fn new(interest: Interest, tables: Tables, followed: Followed) -> Self {
        let mut tracker = Self {
            interest,
            processes: HashMap::new(),
            touched: Vec::new(),
            executables: Executables::new(),
            placement: Placement::new(tables),
            followed,
            refused: HashSet::new(),
            applied_up_to: ALWAYS,
            gap_since: None,
            rescan_from: ALWAYS,
            wanted: VecDeque::new(),
            held: Vec::new(),
            cache: None,
            keeps_ended: false,
            counts: Counts::default(),
        };
        tracker.place_tables_of_generated_code();
        tracker
    }

    /// Tells the kernel which processes to sample; a launched one from its next exec on.
    pub(crate) fn follow(&mut self) -> Result<(), KernelError> {
        self.interest.follow(&mut self.followed, &mut self.counts)
    }

    /// Reads from /proc what all processes of interest have mapped now.
    pub(crate) fn scan_all(&mut self) {
        for pid in self.interest.now() {
            self.scan(pid);
        }
    }

    /// Reads from /proc what the process has mapped now.
    fn scan(&mut self, pid: Pid) {
        // A node runs hundreds of executables, and few of them burn time.
        let eager = self.interest.is_in_few();
        let scanned_at = clock::monotonic();
        let mappings = match proc_fs::executable_mappings(pid) {
            Ok(mappings) => mappings,
            Err(error) => {
                if error.kind() == std::io::ErrorKind::PermissionDenied && self.refused.len() < MOST_REFUSED {
                    self.refused.insert(pid);
                }
                return;
            }
        };
        if mappings.is_empty() {
            // A kernel thread.
            return;
        }
        let name = proc_fs::name(pid).unwrap_or_default();
        let mut process = Process::new(pid, Arc::from(name), ALWAYS);
        process.scanned_at = scanned_at;
        process.first_thread_ended = proc_fs::living_thread(pid) != Some(pid);
        self.processes.insert(pid, process);
        for mapping in &mappings {
            self.map(pid, mapping, (ALWAYS, ALWAYS), eager);
        }
        self.rest(pid, scanned_at);
    }

    /// Applies what happened up to `until`, and tells the kernel. Later records stay: of another CPU
    /// an earlier one may still be missing.
    pub(crate) fn apply(&mut self, events: &mut Vec<SidebandEvent>, until: MonotonicNs) {
        events.sort_by_key(|event| event.time);
        let settled = events.partition_point(|event| event.time <= until);
        self.apply_first(settled, events);
        self.scan_new();
        self.applied_up_to = self.applied_up_to.max(until);
        if self.gap_since.is_some() && until >= self.rescan_from {
            self.catch_up(events);
        }
        self.place_held();
        self.publish_touched();
    }

    /// Reads what processes have mapped that came to be of interest as they are. One that comes and goes is read now
    /// and then.
    fn scan_new(&mut self) {
        let now = clock::monotonic();
        let is_due = |pid| self.processes.get(&pid).is_none_or(|process| process.may_be_read(now));
        for (pid, since) in self.interest.take_unscanned(is_due) {
            if self.processes.contains_key(&pid) {
                self.rescan_process(pid, since);
            } else {
                self.scan(pid);
            }
            self.touched.push(pid);
        }
    }

    /// Applies the first ones of these records, which are in order, and takes them out.
    fn apply_first(&mut self, count: usize, events: &mut Vec<SidebandEvent>) {
        for (index, event) in events.iter().enumerate().take(count) {
            self.apply_one(event, events.get(index + 1..).unwrap_or_default());
        }
        events.drain(..count);
    }

    /// Learns from new records, each once and in order, what processes are.
    pub(crate) fn learn(&mut self, events: &mut [SidebandEvent]) {
        events.sort_by_key(|event| event.time);
        self.interest.learn(events, &mut self.followed);
    }

    /// Opens the files of new mappings, which were learned of, whose turn comes after `until`: short lives are over by
    /// then. Returns whether there is hurry: processes had to be looked at for that, or the kernel has tables of them
    /// that are not true any more.
    pub(crate) fn open_early(&mut self, events: &[SidebandEvent], until: MonotonicNs) -> bool {
        let mut hurry = false;
        for event in events.iter().filter(|event| event.time > until) {
            let SidebandKind::Mapped(mapping) = &event.kind else { continue };
            if !self.interest.may_hold(event.pid, event.time, &self.followed) {
                continue;
            }
            hurry |= self.processes.get(&event.pid).is_some_and(|process| process.slot.is_some());
            match self.executables.open_early(event.pid, mapping, event.time) {
                Foreseen::Known => continue,
                Foreseen::New(key) if self.has_room_in_advance() => self.ask(key),
                Foreseen::New(_) | Foreseen::Looked => {}
            }
            hurry = true;
        }
        hurry
    }

    /// The time up to which everything is known that happened.
    pub(crate) fn known_up_to(&self) -> MonotonicNs {
        self.gap_since.map_or(self.applied_up_to, |since| since.min(self.applied_up_to))
    }

    /// Applies a record; `later` are those after it that have come, in order.
    fn apply_one(&mut self, event: &SidebandEvent, later: &[SidebandEvent]) {
        let time = event.time;
        match event.kind {
            SidebandKind::Lost { count } => return self.counts.add(Counter::SidebandLost, count),
            SidebandKind::Gap => {
                self.counts.add(Counter::SidebandFull, 1);
                let since = time.max(self.applied_up_to);
                self.gap_since = Some(self.gap_since.map_or(since, |earlier| earlier.min(since)));
                return;
            }
            _ if time <= self.applied_up_to => {
                self.counts.add(Counter::SidebandLate, 1);
                if let Some(process) = self.processes.get_mut(&event.pid) {
                    process.lose_count_of_threads();
                }
            }
            _ => {}
        }
        if let SidebandKind::Forked { parent } = event.kind {
            return self.forked(parent, event.pid, time);
        }
        if !self.interest.holds(event.pid, time) {
            // One that was of interest before goes on, but for what it maps.
            let is_known = self.processes.contains_key(&event.pid);
            if !is_known || matches!(event.kind, SidebandKind::Mapped(_)) {
                return;
            }
        }
        let scanned = self.processes.get(&event.pid).is_some_and(|process| time <= process.scanned_at);
        if scanned && event.kind != SidebandKind::Exited {
            return;
        }
        match &event.kind {
            SidebandKind::Mapped(mapping) => {
                let process = self.process_or_new(event.pid, time);
                // A program is mapped first, stays mapped, and can't be written to while it runs.
                let is_program = process.last_exec().is_some() && process.live().next().is_none();
                let to = if is_program { last_sign_of_life(event, later) } else { time };
                self.map(event.pid, mapping, (time, to), true);
            }
            SidebandKind::Exec { comm } => {
                let process = self.process_or_new(event.pid, time);
                process.exec(time);
                process.rename(Arc::from(comm.as_str()), time);
            }
            SidebandKind::Renamed { comm } if event.tid.0 == event.pid.0 => {
                self.process_or_new(event.pid, time).rename(Arc::from(comm.as_str()), time);
            }
            SidebandKind::Exited => {
                if let Some(process) = self.processes.get_mut(&event.pid) {
                    process.thread_exited(event.tid, time);
                }
            }
            SidebandKind::Renamed { .. } | SidebandKind::Forked { .. } => {}
            SidebandKind::Gap | SidebandKind::Lost { .. } | SidebandKind::BpfCode(_) => {}
        }
    }

    fn process_or_new(&mut self, pid: Pid, time: MonotonicNs) -> &mut Process {
        self.touched.push(pid);
        self.processes.entry(pid).or_insert_with(|| Process::new(pid, Arc::from(""), time))
    }

    fn forked(&mut self, parent: Pid, child: Pid, time: MonotonicNs) {
        if parent == child {
            if let Some(process) = self.processes.get_mut(&child) {
                process.thread_began();
            }
            return;
        }
        if !self.interest.forked(parent, child, time) {
            if let Some(previous) = self.processes.get_mut(&child).filter(|_| !self.interest.holds(child, time)) {
                previous.ended.get_or_insert(time);
            }
            return;
        }
        if self.processes.get(&child).is_some_and(|process| time <= process.scanned_at) {
            return;
        }
        let mut process = match self.processes.get(&parent) {
            Some(parent) => parent.fork(child, time),
            None => Process::new(child, Arc::from(""), time),
        };
        if let Some(previous) = self.processes.remove(&child) {
            if previous.slot.is_some() {
                self.placement.remove_process(child);
            }
            self.placement.release_slot(previous.slot, clock::monotonic());
            process.succeed(previous, time);
        }
        if time <= self.applied_up_to {
            // Threads that it began may have been told of already.
            process.lose_count_of_threads();
        }
        self.processes.insert(child, process);
        self.touched.push(child);
    }

    /// Notes a mapping that is there since then and surely was to `to`; `eager`: its table is built at once, not when a
    /// sample needs it.
    fn map(&mut self, pid: Pid, mapping: &Mapping, (since, to): (MonotonicNs, MonotonicNs), eager: bool) {
        if executables::tells_of_jitdump(mapping) {
            return self.note_jitdump(pid, mapping, since);
        }
        let presence = if since == ALWAYS { Presence::at(clock::monotonic()) } else { Presence { from: since, to } };
        let Some(file) = self.file_of(pid, mapping, presence, eager) else { return };
        if let Some(process) = self.processes.get_mut(&pid)
            && !process.map((mapping.start, mapping.end), mapping.file_offset, file, since)
            && !std::mem::replace(&mut process.table_lacking, true)
        {
            self.counts.add(Counter::RangesTruncated, 1);
        }
    }

    /// The process writes there about the code that it makes. There is no code in the mapping itself.
    fn note_jitdump(&mut self, pid: Pid, mapping: &Mapping, since: MonotonicNs) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.jitdump.as_ref().is_none_or(|known| known.id != mapping.file) {
            process.jitdump = Executables::open_jitdump(pid, mapping, since).or(process.jitdump.take());
        }
    }

    /// The file of a mapping; `None` where no user code is.
    fn file_of(&mut self, pid: Pid, mapping: &Mapping, presence: Presence, eager: bool) -> Option<FileKey> {
        let key = match self.executables.find(pid, mapping, presence) {
            Found::Known(key) => key,
            Found::New(key) => {
                if eager && self.has_room_in_advance() {
                    self.ask(key);
                }
                key
            }
            Found::Unreadable(key) => {
                self.counts.add(Counter::ExecutableUnreadable, 1);
                key
            }
            Found::Nothing => return None,
        };
        self.executables.get_mut(key)?.idle_since = None;
        Some(key)
    }

    /// Whether nothing of the process runs any more. A pid that is in use again by a process of no
    /// interest is over, too: the kernel has stopped following it.
    fn is_over(&self, pid: Pid) -> bool {
        if self.processes.get(&pid).is_some_and(Process::is_over) {
            return true;
        }
        let followed = self.interest.samples_all() || self.followed.contains(pid);
        !followed || proc_fs::living_thread(pid).is_none()
    }

    /// Gives back what has waited long enough: tables in quarantine, ended processes, closed files.
    /// Samples from `needed_from` on are still to be located.
    pub(crate) fn tidy(&mut self, now: MonotonicNs, needed_from: MonotonicNs) {
        self.placement.expire(now);
        self.interest.tidy(now, needed_from, &mut self.followed);
        self.scan_new();
        self.executables.forget_early();
        self.confirm_execs(now);
        self.end_copies(now);
        let over = |since: MonotonicNs| now.0.saturating_sub(since.0) > GRACE_NS;
        let grace_ns = if self.keeps_ended { u64::MAX } else { ENDED_GRACE_NS };
        let unneeded = |ended: MonotonicNs| now.0.saturating_sub(ended.0) > grace_ns && ended < needed_from;
        let ended: Vec<Pid> = self
            .processes
            .values()
            .filter(|process| process.ended.is_some_and(unneeded))
            .map(|process| process.pid)
            .collect();
        for pid in ended {
            if !self.is_over(pid) {
                // Another thread lives on.
                if let Some(process) = self.processes.get_mut(&pid) {
                    process.ended = None;
                }
                continue;
            }
            if let Some(process) = self.processes.remove(&pid) {
                if process.slot.is_some() {
                    // The kernel forgot it at its end, but perhaps was told of it again since then.
                    self.placement.remove_process(pid);
                }
                self.placement.release_slot(process.slot, now);
            }
            self.interest.ended(pid);
        }
        for process in self.processes.values_mut() {
            process.forget(MonotonicNs(needed_from.0.saturating_sub(GRACE_NS)));
        }
        let used: HashSet<FileKey> = self.processes.values().flat_map(Process::files).collect();
        let mut closed = Vec::new();
        let lacks = |(_key, known): (FileKey, &Executable)| matches!(known.unwinding, Unwinding::NoRoom { .. });
        let mut room = if self.executables.iter().any(lacks) { self.rows_to_be_had(now) } else { 0 };
        for (key, executable) in self.executables.iter_mut() {
            if used.contains(&key) {
                executable.idle_since = None;
                if let Unwinding::NoRoom { retry_from } = executable.unwinding
                    && retry_from <= now
                    && let Some(rest) = room.checked_sub(executable.row_count)
                {
                    room = rest;
                    executable.unwinding = Unwinding::Unasked;
                }
            } else if over(*executable.idle_since.get_or_insert(now)) && executable.file.is_some() {
                closed.push(key);
            }
        }
        for key in closed {
            self.executables.close(key);
        }
    }

    /// What is said of samples of a process at some time.
    pub(crate) fn verdict(&self, pid: Pid, time: MonotonicNs) -> Verdict {
        self.interest.verdict(pid, time)
    }

    /// Has no more samples taken of processes that bring some and are not wanted; `events` are to come. Returns
    /// whether there were such: an exec that has not been read may need to be answered at once.
    pub(crate) fn pause(&mut self, pids: HashSet<Pid>, events: &[SidebandEvent]) -> bool {
        self.interest.pause(pids, events, &mut self.followed)
    }

    pub(crate) fn process(&self, pid: Pid) -> Option<&Process> {
        self.processes.get(&pid)
    }

    /// The processes that are known, in no order.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &Process> {
        self.processes.values()
    }

    /// Whether what unwinds `code` also does where a thread of `pid` was interrupted at `pc`.
    pub(crate) fn is_unwound_at(&self, pid: Pid, code: &Code, pc: VirtualAddress) -> bool {
        code.file != TRAMPOLINES || trampoline::has_its_row(pid, pc)
    }

    pub(crate) fn executable(&self, key: FileKey) -> Option<&Executable> {
        self.executables.get(key)
    }

    pub(crate) fn tables(&self) -> &Tables {
        self.placement.tables()
    }

    /// Whether it could not be looked at, so that its stacks are cut.
    pub(crate) fn is_refused(&self, pid: Pid) -> bool {
        self.refused.contains(&pid) && !self.processes.contains_key(&pid)
    }

    /// Whether there was a process of interest, now or before.
    pub(crate) fn has_matched(&self) -> bool {
        self.interest.has_matched()
    }

    /// Whether all processes of interest have ended.
    pub(crate) fn all_ended(&self) -> bool {
        self.interest.all(|pid| self.is_over(pid))
    }
}

/// When a process last told, by one of `later`, that it still ran the program that it ran at `event`; nothing is known
/// of what was lost, and a pid may be used again.
fn last_sign_of_life(event: &SidebandEvent, later: &[SidebandEvent]) -> MonotonicNs {
    let is_lost = |kind: &SidebandKind| matches!(kind, SidebandKind::Gap | SidebandKind::Lost { .. });
    let is_another = |kind: &SidebandKind| match kind {
        SidebandKind::Exec { .. } => true,
        SidebandKind::Forked { parent } => *parent != event.pid,
        _ => false,
    };
    let known = later.iter().take_while(|later| !is_lost(&later.kind)).filter(|later| later.pid == event.pid);
    known.take_while(|later| !is_another(&later.kind)).last().map_or(event.time, |last| last.time)
}

#[cfg(test)]
mod tests {
    use profiler_common::address::Tid;

    use super::*;

    #[test]
    fn a_sign_of_life_is_one_of_the_same_program_of_which_nothing_was_lost() {
        let event = |time, pid, kind| SidebandEvent { time: MonotonicNs(time), pid: Pid(pid), tid: Tid(pid), kind };
        let exec = || SidebandKind::Exec { comm: "other".to_owned() };
        let forked = |parent| SidebandKind::Forked { parent: Pid(parent) };
        let last = |later: &[SidebandEvent]| last_sign_of_life(&event(10, 7, exec()), later).0;
        assert_eq!(last(&[]), 10);
        assert_eq!(last(&[event(20, 8, SidebandKind::Exited)]), 10, "another process");
        let exited = || event(20, 7, SidebandKind::Exited);
        assert_eq!(last(&[event(15, 7, forked(7)), event(16, 8, exec()), exited()]), 20);
        assert_eq!(last(&[event(15, 7, forked(7)), event(16, 7, exec()), exited()]), 15, "another program");
        assert_eq!(last(&[event(16, 7, forked(1)), exited()]), 10, "another process of this id");
        for kind in [SidebandKind::Gap, SidebandKind::Lost { count: 1 }] {
            assert_eq!(last(&[event(15, 0, kind), exited()]), 10, "perhaps another program");
        }
    }
}
