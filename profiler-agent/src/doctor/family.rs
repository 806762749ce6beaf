//! A process and its children: servers have the work done by those.

use std::collections::HashMap;

use profiler_common::address::Pid;
use profiler_model::Profile;
use serde::Serialize;

use crate::clock;
use crate::tracker::Tracker;

/// Processes that are asked where they tell of the code that they make.
pub(super) const MOST_TOLD: usize = 64;

/// A child counts where the named process has less than one in so many of its samples.
const IDLE_SHARE: u64 = 20;

/// A process that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Member {
    pub(super) pid: u32,
    pub(super) name: String,
    pub(super) samples: u64,
}

/// The processes that are sampled: the named one first, then by their numbers.
pub(super) fn members(tracker: &Tracker, named: Pid) -> Vec<Member> {
    let member = |process: &crate::tracker::TrackedProcess| Member {
        pid: process.pid.0,
        name: process.name_at(clock::monotonic()).to_string(),
        samples: 0,
    };
    let mut members: Vec<Member> = tracker.processes().map(member).collect();
    members.sort_by_key(|member| (member.pid != named.0, member.pid));
    members
}

/// Counts the samples of each.
pub(super) fn count(members: &mut [Member], profile: &Profile) {
    let mut samples: HashMap<u32, u64> = HashMap::new();
    for sample in profile.samples() {
        *samples.entry(sample.labels.pid.0).or_default() += sample.count;
    }
    for member in members {
        member.samples = samples.remove(&member.pid).unwrap_or_default();
    }
}

/// The process that advice is about: the named one, or where that leaves the work to its children, the busiest.
pub(super) fn who_works(named: Pid, members: &[Member]) -> Pid {
    let own = members.iter().find(|member| member.pid == named.0).map_or(0, |member| member.samples);
    let busiest = members.iter().rev().max_by_key(|member| member.samples);
    busiest.filter(|busiest| own.saturating_mul(IDLE_SHARE) < busiest.samples).map_or(named, |busiest| Pid(busiest.pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_the_work_is_looked_at() {
        let works = |samples: &[u64]| {
            let member = |(samples, pid): (&u64, u32)| Member { pid, name: String::new(), samples: *samples };
            who_works(Pid(1), &samples.iter().zip(1..).map(member).collect::<Vec<_>>()).0
        };
        assert_eq!(works(&[]), 1);
        assert_eq!(works(&[0, 0, 0]), 1, "all are idle");
        assert_eq!(works(&[0, 3, 7, 7]), 3, "the first of the busiest");
        assert_eq!(works(&[5, 100]), 1);
        assert_eq!(works(&[4, 100]), 2);
    }
}
