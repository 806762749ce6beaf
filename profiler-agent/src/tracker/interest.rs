//! Which processes are wanted: the one owner of that question.
//!
//! Where processes are asked for by what they are, the kernel samples all that could be meant, and samples of others
//! are left out here. A process that is not wanted and yet brings samples is then no longer sampled, but its children
//! are, and itself from its next exec on. So short lives are seen, and the rest costs next to nothing.

use std::collections::HashSet;

use profiler_common::address::{MonotonicNs, Pid};

use super::process::ALWAYS;
use super::selected::Selected;
use crate::clock;
use crate::counts::Counts;
use crate::kernel::sideband::SidebandEvent;
use crate::kernel::{Followed, KernelError};
use crate::proc_fs;
use crate::select::{Selection, Verdict};

/// Which processes are of interest.
pub(crate) struct Interest {
    scope: Scope,
    /// Which of the scope are, if not all.
    selected: Option<Selected>,
    /// When the kernel was told of all that the scope began with.
    followed_at: MonotonicNs,
}

enum Scope {
    /// Every process.
    Node,
    /// These, and what they fork if `children`.
    Some {
        pids: HashSet<Pid>,
        children: bool,
        /// They wait for their first exec.
        launched: bool,
    },
}

impl Interest {
    /// In every process.
    pub(crate) const fn node() -> Self {
        Self { scope: Scope::Node, selected: None, followed_at: ALWAYS }
    }

    /// In these processes, and in what they fork if `children`.
    pub(crate) const fn processes(pids: HashSet<Pid>, children: bool) -> Self {
        Self { scope: Scope::Some { pids, children, launched: false }, selected: None, followed_at: ALWAYS }
    }

    /// In this process from its first exec on, and in what it forks if `children`.
    pub(crate) fn launched(pid: Pid, children: bool) -> Self {
        Self {
            scope: Scope::Some { pids: HashSet::from([pid]), children, launched: true },
            selected: None,
            followed_at: ALWAYS,
        }
    }

    /// In those of them that are selected.
    pub(crate) fn selecting(self, selection: Option<Selection>) -> Self {
        let selected = selection.map(Selected::new);
        Self { selected, ..self }
    }

    /// Whether the kernel samples all processes, without asking which.
    pub(crate) const fn samples_all(&self) -> bool {
        matches!(self.scope, Scope::Node) && self.selected.is_none()
    }

    /// Whether what is forked is of interest as well.
    pub(crate) const fn follows_children(&self) -> bool {
        match &self.scope {
            Scope::Node => true,
            Scope::Some { children, .. } => *children,
        }
    }

    /// Whether it is in few processes, so that they are made ready before a sample needs it.
    pub(super) fn is_in_few(&self) -> bool {
        match (&self.scope, &self.selected) {
            (Scope::Some { .. }, _) => true,
            (Scope::Node, Some(selected)) => selected.names_processes(),
            (Scope::Node, None) => false,
        }
    }

    /// Whether there was a process of interest, now or before.
    pub(crate) fn has_matched(&self) -> bool {
        self.selected.as_ref().is_none_or(Selected::has_matched)
    }

    /// What is said of samples of a process at some time.
    pub(crate) fn verdict(&self, pid: Pid, time: MonotonicNs) -> Verdict {
        match &self.selected {
            // The kernel has asked.
            None => Verdict::Wanted,
            Some(selected) => selected.verdict(pid, time),
        }
    }

    /// Whether what a process does at some time is of interest.
    pub(super) fn holds(&self, pid: Pid, time: MonotonicNs) -> bool {
        self.is_in_scope(pid) && self.verdict(pid, time) == Verdict::Wanted
    }

    /// The same, before the records up to then were applied.
    pub(super) fn may_hold(&self, pid: Pid, time: MonotonicNs, followed: &Followed) -> bool {
        match &self.selected {
            Some(_) => self.verdict(pid, time) == Verdict::Wanted,
            None => self.is_in_scope(pid) || followed.contains(pid),
        }
    }

    fn is_in_scope(&self, pid: Pid) -> bool {
        match &self.scope {
            Scope::Node => true,
            Scope::Some { pids, .. } => pids.contains(&pid),
        }
    }

    /// Notes that a process was forked. Returns whether it is of interest.
    pub(super) fn forked(&mut self, parent: Pid, child: Pid, time: MonotonicNs) -> bool {
        if let Scope::Some { pids, children, .. } = &mut self.scope {
            if !pids.contains(&parent) || !*children {
                if time > self.followed_at {
                    // Whoever had this number has ended.
                    pids.remove(&child);
                }
                return false;
            }
            pids.insert(child);
        }
        self.holds(child, time)
    }

    /// The processes that it is in now, if these are known.
    pub(super) fn now(&self) -> Vec<Pid> {
        match (&self.scope, &self.selected) {
            // They are not what they will be.
            (Scope::Some { launched: true, .. }, _) => Vec::new(),
            (_, Some(selected)) => selected.wanted(),
            (Scope::Some { pids, .. }, None) => pids.iter().copied().collect(),
            (Scope::Node, None) => proc_fs::all_pids().unwrap_or_default(),
        }
    }

    /// Tells the kernel which processes to sample; a launched one from its next exec on.
    pub(super) fn follow(&mut self, followed: &mut Followed, counts: &mut Counts) -> Result<(), KernelError> {
        if let Some(selected) = &mut self.selected {
            selected.bar(matches!(self.scope, Scope::Node));
        }
        match &mut self.scope {
            Scope::Node => {
                if let Some(selected) = &mut self.selected {
                    selected.follow_node(followed, counts);
                }
                Ok(())
            }
            Scope::Some { pids, children, launched } => {
                for pid in pids.iter() {
                    if *launched { followed.follow_from_exec(*pid)? } else { follow(*pid, followed)? }
                }
                if *children && !*launched {
                    follow_forked_meanwhile(pids, followed)?;
                }
                if let Some(selected) = &mut self.selected {
                    pids.iter().for_each(|pid| selected.learn(*pid, ALWAYS));
                }
                self.followed_at = clock::monotonic();
                Ok(())
            }
        }
    }

    /// Learns from records, which are in order, what processes are.
    pub(super) fn learn(&mut self, events: &[SidebandEvent], followed: &mut Followed) {
        let Some(selected) = &mut self.selected else { return };
        let (is_node, children) = match &self.scope {
            Scope::Node => (true, true),
            Scope::Some { children, .. } => (false, *children),
        };
        events.iter().for_each(|event| selected.note(event, (is_node, children)));
        tell(selected, followed);
    }

    /// Looks at every process again: records since `lost_from` may be missing. Returns those of interest.
    pub(super) fn look_again(&mut self, lost_from: MonotonicNs, followed: &mut Followed) -> Vec<Pid> {
        let mut all = proc_fs::all_pids().unwrap_or_default();
        if let Scope::Some { pids, .. } = &mut self.scope {
            pids.extend(all.iter().copied().filter(|pid| followed.contains(*pid)));
            all = pids.iter().copied().collect();
        }
        let Some(selected) = &mut self.selected else { return all };
        selected.look_again(&all, lost_from, |pid| followed.contains(pid));
        tell(selected, followed);
        selected.wanted()
    }

    /// Processes that came to be of interest as they are: what they have mapped is not known. Those that are not due
    /// stay.
    pub(super) fn take_unscanned(&mut self, is_due: impl Fn(Pid) -> bool) -> Vec<(Pid, MonotonicNs)> {
        self.selected.as_mut().map(|selected| selected.take_unscanned(is_due)).unwrap_or_default()
    }

    /// Has no more samples taken of these processes, which bring some and are not wanted, unless one of `events` that
    /// are to come may change that. Returns whether there were such.
    pub(super) fn pause(&mut self, pids: HashSet<Pid>, events: &[SidebandEvent], followed: &mut Followed) -> bool {
        let Some(selected) = &mut self.selected else { return false };
        let has_paused = selected.pause(pids, events);
        tell(selected, followed);
        has_paused
    }

    /// Notices processes that were moved to another control group, and forgets those that have ended: samples from
    /// `needed_from` on are still to be judged.
    pub(super) fn tidy(&mut self, now: MonotonicNs, needed_from: MonotonicNs, followed: &mut Followed) {
        let Some(selected) = &mut self.selected else { return };
        selected.recheck(now);
        tell(selected, followed);
        let over = selected.forget(needed_from, |pid| followed.contains(pid));
        if let Scope::Some { pids, .. } = &mut self.scope {
            pids.retain(|pid| !over.contains(pid));
        }
    }

    /// A process of the scope has ended, and is forgotten.
    pub(super) fn ended(&mut self, pid: Pid) {
        if let (Scope::Some { pids, .. }, None) = (&mut self.scope, &self.selected) {
            pids.remove(&pid);
        }
    }

    /// Whether all processes of the scope are over; those of the node never are.
    pub(super) fn all(&self, is_over: impl Fn(Pid) -> bool) -> bool {
        match &self.scope {
            Scope::Node => false,
            Scope::Some { pids, .. } => pids.iter().all(|pid| is_over(*pid)),
        }
    }
}

/// Tells the kernel whose samples it is to leave out.
fn tell(selected: &mut Selected, followed: &mut Followed) {
    for (pid, pause) in selected.take_pauses() {
        followed.pause(pid, pause);
    }
}

/// Follows what was forked between the look at /proc and the first following: from then on the kernel follows by
/// itself.
fn follow_forked_meanwhile(pids: &mut HashSet<Pid>, followed: &mut Followed) -> Result<(), KernelError> {
    let mut may_miss_some = true;
    while std::mem::take(&mut may_miss_some) {
        let known: Vec<Pid> = pids.iter().copied().collect();
        let family = proc_fs::with_descendants(&known).unwrap_or_default();
        let new: Vec<Pid> = family.into_iter().filter(|pid| pids.insert(*pid)).collect();
        for pid in new {
            may_miss_some |= may_have_forked_unseen(pid, followed);
            follow(pid, followed)?;
        }
    }
    Ok(())
}

/// Whether the kernel may not have followed what a process that is new in /proc has forked up to now. It has where it
/// follows the process itself, or every look would find new ones while processes begin without end.
pub(super) fn may_have_forked_unseen(pid: Pid, followed: &Followed) -> bool {
    !followed.contains(pid) && proc_fs::living_thread(pid).is_some()
}

/// Has a process sampled until the kernel sees its end. If it has ended already, another one would be that gets the
/// same number.
fn follow(pid: Pid, followed: &mut Followed) -> Result<(), KernelError> {
    followed.follow(pid)?;
    if proc_fs::living_thread(pid).is_none() {
        followed.forget(pid);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_the_number_of_an_ended_child_is_of_no_interest() {
        let [root, child, stranger] = [1, 2, 3].map(Pid);
        let time = MonotonicNs(1);
        let mut interest = Interest::processes(HashSet::from([root]), true);
        assert!(interest.forked(root, child, time) && interest.holds(child, time));
        assert!(!interest.forked(stranger, child, time) && !interest.holds(child, time));
        assert!(interest.forked(root, child, time) && interest.holds(child, time));
        interest.followed_at = MonotonicNs(2);
        assert!(!interest.forked(stranger, child, time) && interest.holds(child, time), "that is known already");
    }
}
