//! What is known of every process that could be meant, and what follows from it over time.

use std::collections::{HashMap, HashSet};

use profiler_common::address::{MonotonicNs, Pid};
use profiler_common::counter::Counter;

use super::interest::may_have_forked_unseen;
use super::process::ALWAYS;
use crate::cgroup::Cgroup;
use crate::counts::Counts;
use crate::kernel::Followed;
use crate::kernel::sideband::{SidebandEvent, SidebandKind};
use crate::proc_fs;
use crate::select::{Facts, Says, Selection, Verdict};

/// Processes whose control groups are looked at again each second: they may have been moved.
const RECHECKED_AT_ONCE: usize = 100;

/// Changes of what is said of a process that are remembered, at most.
const MOST_VERDICTS: usize = 64;

/// What is known of all processes that could be meant.
pub(super) struct Selected {
    selection: Selection,
    /// Left out from the start. Later these numbers may be those of others.
    barred: HashSet<Pid>,
    known: HashMap<Pid, Known>,
    /// Whose control group is looked at next; the last one first.
    recheck: Vec<Pid>,
    /// Wanted, without having begun to be by a fork or an exec, since then.
    unscanned: HashMap<Pid, MonotonicNs>,
    /// Some process was wanted at some time.
    has_matched: bool,
    /// What the kernel is to be told, in this order: to leave out the samples of a process, or to take them again.
    pauses: Vec<(Pid, bool)>,
}

/// A process that could be meant.
#[derive(Clone)]
struct Known {
    facts: Facts,
    /// Its control group may be another one than its parent's, or than before its exec.
    may_have_moved: bool,
    /// Its program is the next that is mapped, since that exec.
    exec: Option<MonotonicNs>,
    /// What was said of it, and since when; never empty.
    verdicts: Vec<(MonotonicNs, Verdict)>,
    is_paused: bool,
    /// When its first thread ended.
    ended: Option<MonotonicNs>,
}

impl Known {
    fn new(facts: Facts, since: MonotonicNs, verdict: Verdict) -> Self {
        let verdicts = vec![(since, verdict)];
        Self { facts, may_have_moved: false, exec: None, verdicts, is_paused: false, ended: None }
    }

    fn verdict_at(&self, time: MonotonicNs) -> Verdict {
        let at = self.verdicts.iter().rev().find(|(since, _verdict)| *since <= time).or(self.verdicts.first());
        at.map_or(Verdict::Unknown, |(_since, verdict)| *verdict)
    }

    fn last(&self) -> (MonotonicNs, Verdict) {
        self.verdicts.last().copied().unwrap_or((ALWAYS, Verdict::Unknown))
    }

    fn is_wanted(&self) -> bool {
        self.last().1 == Verdict::Wanted
    }

    /// From `time` on this is said of it. Returns whether it was not wanted before, and is now.
    fn say(&mut self, verdict: Verdict, time: MonotonicNs) -> bool {
        let (since, before) = self.last();
        if before == verdict {
            return false;
        }
        if time <= since {
            self.verdicts.pop();
        }
        self.verdicts.push((time.max(since), verdict));
        self.verdicts.drain(..self.verdicts.len().saturating_sub(MOST_VERDICTS));
        verdict == Verdict::Wanted
    }

    /// Forgets what only samples from before `oldest` can need.
    fn forget(&mut self, oldest: MonotonicNs) {
        if let Some(current) = self.verdicts.iter().rposition(|(since, _verdict)| *since <= oldest) {
            self.verdicts.drain(..current);
        }
    }
}

impl Selected {
    pub(super) fn new(selection: Selection) -> Self {
        let (barred, known, recheck, unscanned, pauses) = Default::default();
        Self { selection, barred, known, recheck, unscanned, has_matched: false, pauses }
    }

    pub(super) fn names_processes(&self) -> bool {
        self.selection.names_processes()
    }

    /// Whether a process was wanted, now or before.
    pub(super) const fn has_matched(&self) -> bool {
        self.has_matched
    }

    /// Whose samples the kernel is to leave out, or to take again, in this order.
    pub(super) fn take_pauses(&mut self) -> Vec<(Pid, bool)> {
        std::mem::take(&mut self.pauses)
    }

    /// Leaves out what nobody wants to see, from now on.
    pub(super) fn bar(&mut self, whole_node: bool) {
        self.barred = self.selection.barred(whole_node);
    }

    pub(super) fn verdict(&self, pid: Pid, time: MonotonicNs) -> Verdict {
        self.known.get(&pid).map_or(Verdict::Unknown, |known| known.verdict_at(time))
    }

    fn came_as_it_is(&mut self, pid: Pid, since: MonotonicNs) {
        self.unscanned.entry(pid).or_insert(since);
    }

    /// Processes that came to be wanted as they are: what they have mapped is not known. Those that are not due stay.
    pub(super) fn take_unscanned(&mut self, is_due: impl Fn(Pid) -> bool) -> Vec<(Pid, MonotonicNs)> {
        self.unscanned.extract_if(|pid, _since| is_due(*pid)).collect()
    }

    /// Has no more samples taken of processes that are not wanted, unless one of `events` may change that. Returns
    /// whether there were such.
    pub(super) fn pause(&mut self, pids: HashSet<Pid>, events: &[SidebandEvent]) -> bool {
        let mut has_paused = false;
        for pid in pids {
            let Some(known) = self.known.get_mut(&pid) else { continue };
            if !known.is_paused && !known.is_wanted() && events.iter().all(|event| event.pid != pid) {
                known.is_paused = true;
                self.pauses.push((pid, true));
                has_paused = true;
            }
        }
        has_paused
    }

    /// Forgets what only samples from before `needed_from` can need. Returns the processes that have ended.
    pub(super) fn forget(&mut self, needed_from: MonotonicNs, is_followed: impl Fn(Pid) -> bool) -> Vec<Pid> {
        let is_over =
            |pid: &Pid, known: &Known| known.ended.is_some_and(|ended| ended < needed_from) && !is_followed(*pid);
        let over = self.known.extract_if(|pid, known| is_over(pid, known)).map(|(pid, _known)| pid).collect();
        self.known.values_mut().for_each(|known| known.forget(needed_from));
        over
    }

    pub(super) fn wanted(&self) -> Vec<Pid> {
        self.known.iter().filter(|(_pid, known)| known.is_wanted()).map(|(pid, _known)| *pid).collect()
    }

    /// Has the kernel sample every process, but those that are not wanted, until they change.
    pub(super) fn follow_node(&mut self, followed: &mut Followed, counts: &mut Counts) {
        let mut may_miss_some = true;
        while std::mem::take(&mut may_miss_some) {
            let all = proc_fs::all_pids().unwrap_or_default();
            let new: Vec<Pid> = all.into_iter().filter(|pid| !self.known.contains_key(pid)).collect();
            for pid in new {
                may_miss_some |= may_have_forked_unseen(pid, followed);
                // Before it is looked at: an exec in between makes it one that is sampled.
                let told = followed.follow_from_exec(pid);
                self.learn(pid, ALWAYS);
                if told.is_err() {
                    counts.add(Counter::FollowTableFull, 1);
                }
                if let Some(known) = self.known.get_mut(&pid) {
                    known.is_paused = !known.is_wanted();
                    followed.pause(pid, known.is_paused);
                }
            }
        }
    }

    /// Looks at a process that is there at the start, or of which no fork was told. Of one that has ended nothing is
    /// known until a record tells.
    pub(super) fn learn(&mut self, pid: Pid, since: MonotonicNs) {
        self.begin(pid, since, self.selection.facts(pid));
    }

    fn begin(&mut self, pid: Pid, since: MonotonicNs, facts: Option<Facts>) {
        let Some(barred) = self.is_barred(pid, since) else { return };
        let verdict = facts.map_or(Verdict::Unknown, |facts| self.selection.judge(&Facts { barred, ..facts }));
        self.has_matched |= verdict == Verdict::Wanted;
        self.known.insert(pid, Known::new(Facts { barred, ..facts.unwrap_or_default() }, since, verdict));
    }

    /// Whether a process that is new is left out: at the start by its number, and always with who has forked it.
    /// `None` when it has ended, and may have been.
    fn is_barred(&self, pid: Pid, since: MonotonicNs) -> Option<bool> {
        if since == ALWAYS && self.barred.contains(&pid) {
            return Some(true);
        }
        if self.barred.is_empty() {
            return Some(false);
        }
        let mut ancestors = proc_fs::ancestors(pid).peekable();
        if ancestors.peek().is_none() {
            return (!self.selection.excludes_families()).then_some(false);
        }
        let nearest = ancestors.find_map(|ancestor| self.known.get(&ancestor));
        Some(nearest.is_some_and(|known| known.facts.barred))
    }

    /// Learns from a record; the kernel samples the whole node or some of it, with their children or without.
    pub(super) fn note(&mut self, event: &SidebandEvent, (is_node, children): (bool, bool)) {
        let (pid, time) = (event.pid, event.time);
        match &event.kind {
            SidebandKind::Forked { parent } if *parent != pid => {
                if children {
                    self.forked(*parent, pid, time);
                }
                return;
            }
            SidebandKind::Forked { .. } | SidebandKind::Gap | SidebandKind::Lost { .. } => return,
            SidebandKind::BpfCode(_) => return,
            SidebandKind::Exited => {
                if let Some(known) = self.known.get_mut(&pid).filter(|_| event.tid.0 == pid.0) {
                    known.ended = Some(time);
                }
                return;
            }
            SidebandKind::Renamed { .. } if event.tid.0 != pid.0 => return,
            SidebandKind::Mapped(_) | SidebandKind::Exec { .. } | SidebandKind::Renamed { .. } => {}
        }
        if is_node && !self.known.contains_key(&pid) {
            // That it was forked was not told.
            self.learn(pid, time);
        }
        let Some(known) = self.known.get_mut(&pid) else { return };
        match &event.kind {
            SidebandKind::Exec { comm } => {
                known.facts.comm = self.selection.of_name(comm);
                known.facts.program = Says::default();
                known.may_have_moved = true;
                known.exec = Some(time);
                known.ended = None;
                // What the new program maps is told.
                self.unscanned.remove(&pid);
                // The kernel has done so, unless it was told to pause just then.
                if std::mem::take(&mut known.is_paused) {
                    self.pauses.push((pid, false));
                }
                self.decide(pid, time);
            }
            SidebandKind::Mapped(mapping) => {
                if let Some(exec) = known.exec.take()
                    && self.selection.uses_names()
                    && let Some(name) = proc_fs::file_name(&mapping.path)
                {
                    known.facts.program = self.selection.of_name(&name);
                    self.decide(pid, exec);
                }
            }
            SidebandKind::Renamed { comm } => {
                known.facts.comm = self.selection.of_name(comm);
                // What it maps is told.
                let is_new_program = known.exec.is_some();
                if self.decide(pid, time) && !is_new_program {
                    self.came_as_it_is(pid, time);
                }
            }
            _ => {}
        }
    }

    /// A child is what its parent is, until it is told otherwise.
    fn forked(&mut self, parent: Pid, child: Pid, time: MonotonicNs) {
        let Some(of_parent) = self.known.get(&parent) else {
            return;
        };
        let facts = of_parent.facts;
        let mut known = Known::new(facts, time, of_parent.verdict_at(time));
        known.may_have_moved = of_parent.may_have_moved;
        if let Some(before) = self.known.get(&child) {
            if before.last().0 > time && before.last().0 != ALWAYS {
                // What happened later is known already.
                return;
            }
            // The kernel was told of the process that had this number before.
            if before.is_paused {
                self.pauses.push((child, false));
            }
            let verdicts = std::mem::take(&mut known.verdicts);
            known.verdicts = before.verdicts.iter().copied().chain(verdicts).collect();
        }
        self.known.insert(child, known);
    }

    /// Says anew of a process whether it is wanted, since then. Returns whether it came to be.
    fn decide(&mut self, pid: Pid, time: MonotonicNs) -> bool {
        let Some(known) = self.known.get_mut(&pid) else { return false };
        let is_lacking = known.may_have_moved || known.facts.cgroup.is_none();
        if is_lacking && self.selection.needs_cgroup(&known.facts) {
            known.may_have_moved = false;
            if let Some(cgroup) = Cgroup::of(pid) {
                known.facts.cgroup = Some(self.selection.of_cgroup(&cgroup));
            }
        }
        let came = known.say(self.selection.judge(&known.facts), time);
        self.has_matched |= came;
        if came && std::mem::take(&mut known.is_paused) {
            self.pauses.push((pid, false));
        }
        came
    }

    /// Looks at these processes again, which are all that there are of those that could be meant: records since
    /// `lost_from` may be missing. What they map is read anew, too.
    pub(super) fn look_again(&mut self, pids: &[Pid], lost_from: MonotonicNs, is_followed: impl Fn(Pid) -> bool) {
        let living: HashSet<Pid> = pids.iter().copied().filter(|pid| self.look_at(*pid, lost_from)).collect();
        for (pid, known) in &mut self.known {
            // Its end was perhaps not told.
            if known.ended.is_none() && !is_followed(*pid) {
                known.ended = Some(lost_from);
            }
            // What nobody told that it became can't be seen any more.
            let may_have_changed = known.ended.is_none_or(|ended| ended >= lost_from) && !living.contains(pid);
            if may_have_changed && !known.is_wanted() && !known.facts.barred {
                known.say(Verdict::Unknown, lost_from);
            }
        }
        self.unscanned.clear();
    }

    /// Looks at a process, if it lives. Returns whether it does.
    fn look_at(&mut self, pid: Pid, lost_from: MonotonicNs) -> bool {
        let Some(facts) = self.selection.facts(pid) else { return false };
        match self.known.get_mut(&pid) {
            None => self.begin(pid, lost_from, Some(facts)),
            Some(known) => {
                let cgroup = facts.cgroup.or(known.facts.cgroup);
                known.facts = Facts { barred: known.facts.barred, cgroup, ..facts };
                self.decide(pid, lost_from);
            }
        }
        true
    }

    /// Looks at some control groups again.
    pub(super) fn recheck(&mut self, now: MonotonicNs) {
        for _ in 0..RECHECKED_AT_ONCE {
            let Some(pid) = self.recheck.pop() else {
                let selection = &self.selection;
                let lives = |known: &Known| known.ended.is_none() && selection.needs_cgroup(&known.facts);
                self.recheck = self.known.iter().filter(|(_, known)| lives(known)).map(|(pid, _)| *pid).collect();
                return;
            };
            if let Some(known) = self.known.get_mut(&pid) {
                known.may_have_moved = true;
                if self.decide(pid, now) {
                    self.came_as_it_is(pid, now);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
