//! What is said of processes, as records come, are lost, and /proc is looked at.

use std::process::{Child, Command};

use profiler_common::address::{FileOffset, Tid, VirtualAddress};

use super::*;
use crate::kernel::sideband::{FileId, Mapping};
use crate::select::{SelectOptions, Selector};

#[test]
fn a_sample_is_judged_by_its_own_time() {
    let mut known = Known::new(Facts::default(), ALWAYS, Verdict::Unwanted);
    assert!(known.say(Verdict::Wanted, MonotonicNs(50)), "it came to be wanted");
    assert!(!known.say(Verdict::Wanted, MonotonicNs(60)));
    assert!(!known.say(Verdict::Unwanted, MonotonicNs(70)));
    let at = |known: &Known| [0, 49, 50, 69, 70, 1000].map(|time| known.verdict_at(MonotonicNs(time)));
    let (no, yes) = (Verdict::Unwanted, Verdict::Wanted);
    assert_eq!(at(&known), [no, no, yes, yes, no, no]);
    // The program's name is known a moment after the exec, and holds from that on.
    assert!(known.say(Verdict::Wanted, MonotonicNs(70)));
    assert_eq!(at(&known), [no, no, yes, yes, yes, yes]);
    known.forget(MonotonicNs(60));
    assert_eq!(at(&known), [yes; 6], "what was before is forgotten");
}

/// No process has these numbers (`PID_MAX_LIMIT`, linux/include/linux/threads.h).
const SHELL: Pid = Pid(1 << 30);
const FIRST: Pid = Pid(SHELL.0 + 1);
const SECOND: Pid = Pid(SHELL.0 + 2);
const THIRD: Pid = Pid(SHELL.0 + 3);

fn selected(name: &[&str], exclude: &[&str]) -> Selected {
    let options = SelectOptions {
        name: name.iter().map(|name| Selector::name(name).unwrap()).collect(),
        exclude: exclude.iter().map(|text| text.parse().unwrap()).collect(),
        ..SelectOptions::default()
    };
    let mut selected = Selected::new(options.selection().unwrap());
    selected.bar(true);
    selected
}

fn event(time: u64, pid: Pid, kind: SidebandKind) -> SidebandEvent {
    SidebandEvent { time: MonotonicNs(time), pid, tid: Tid(pid.0), kind }
}

fn exec(time: u64, pid: Pid, comm: &str) -> SidebandEvent {
    event(time, pid, SidebandKind::Exec { comm: comm.to_owned() })
}

fn renamed(time: u64, pid: Pid, comm: &str) -> SidebandEvent {
    event(time, pid, SidebandKind::Renamed { comm: comm.to_owned() })
}

fn forked(time: u64, parent: Pid, pid: Pid) -> SidebandEvent {
    event(time, pid, SidebandKind::Forked { parent })
}

/// Has the records of a whole node told.
fn tell(selected: &mut Selected, events: &[SidebandEvent]) {
    events.iter().for_each(|event| selected.note(event, (true, true)));
}

fn verdicts<const TIMES: usize>(selected: &Selected, pid: Pid, times: [u64; TIMES]) -> [Verdict; TIMES] {
    times.map(|time| selected.verdict(pid, MonotonicNs(time)))
}

#[test]
fn who_comes_and_goes_waits_since_it_came_first() {
    let mut selected = selected(&["^yes$"], &[]);
    tell(&mut selected, &[exec(1, FIRST, "no"), exec(2, SECOND, "no"), exec(3, THIRD, "no")]);
    let began = |pid| event(4, pid, SidebandKind::Mapped(mapping()));
    tell(&mut selected, &[FIRST, SECOND, THIRD].map(began));
    tell(&mut selected, &[renamed(10, FIRST, "yes"), renamed(15, FIRST, "no"), renamed(20, SECOND, "yes")]);
    tell(&mut selected, &[renamed(30, FIRST, "yes"), renamed(40, THIRD, "yes"), exec(50, THIRD, "yes")]);
    assert_eq!(
        selected.take_unscanned(|pid| pid != FIRST),
        [(SECOND, MonotonicNs(20))],
        "an exec tells what is mapped"
    );
    assert_eq!(selected.take_unscanned(|_all| true), [(FIRST, MonotonicNs(10))], "since it came first");
    assert!(selected.take_unscanned(|_all| true).is_empty());
}

fn mapping() -> Mapping {
    let file = FileId { device_major: 8, device_minor: 1, inode: 2, generation: 0 };
    let [start, end] = [0x1000, 0x2000].map(VirtualAddress);
    Mapping { start, end, file_offset: FileOffset(0), file, path: "/bin/other".into() }
}

#[test]
fn the_kernel_leaves_out_what_brings_samples_and_is_not_wanted() {
    let mut selected = selected(&["^yes$"], &[]);
    tell(&mut selected, &[exec(1, SHELL, "no"), exec(1, FIRST, "yes"), forked(2, SHELL, SECOND)]);
    let all = || HashSet::from([SHELL, FIRST]);
    assert!(!selected.pause(all(), &[exec(3, SHELL, "yes")]), "it is about to change");
    assert_eq!(selected.take_pauses(), []);
    assert!(selected.pause(all(), &[]));
    assert_eq!(selected.take_pauses(), [(SHELL, true)]);
    assert!(!selected.pause(all(), &[]), "once is enough");
    tell(&mut selected, &[renamed(4, SHELL, "yes")]);
    assert_eq!(selected.take_pauses(), [(SHELL, false)]);
    assert!(selected.pause(HashSet::from([SECOND]), &[]));
    tell(&mut selected, &[exec(5, SECOND, "still-not")]);
    assert_eq!(selected.take_pauses(), [(SECOND, true), (SECOND, false)], "the kernel samples it from its exec on");
    assert!(selected.pause(HashSet::from([SECOND]), &[]));
    tell(&mut selected, &[forked(6, SHELL, SECOND)]);
    assert_eq!(selected.take_pauses(), [(SECOND, true), (SECOND, false)], "another process has its number");
}

/// What was told of them before the loss holds; what may have been lost is not known.
#[test]
fn those_that_have_ended_when_records_are_lost() {
    let (no, yes, unknown) = (Verdict::Unwanted, Verdict::Wanted, Verdict::Unknown);
    let mut by_name = selected(&["^yes$"], &[]);
    tell(&mut by_name, &[exec(1, SHELL, "sh"), forked(10, SHELL, FIRST), exec(11, FIRST, "yes")]);
    tell(&mut by_name, &[forked(12, SHELL, SECOND), event(15, SECOND, SidebandKind::Exited), forked(25, SHELL, THIRD)]);
    // Lost: that THIRD became `yes`.
    by_name.look_again(&[SHELL, FIRST, SECOND, THIRD], MonotonicNs(20), |_pid| false);
    assert_eq!(verdicts(&by_name, FIRST, [10, 11, 20, 30]), [no, yes, yes, yes]);
    assert_eq!(verdicts(&by_name, SECOND, [12, 15]), [no, no], "it was over before");
    assert_eq!(verdicts(&by_name, THIRD, [25, 30]), [unknown, unknown]);
    assert_eq!(verdicts(&by_name, SHELL, [10, 19, 20]), [no, no, unknown]);
    let mut others = selected(&[], &["name=^no$"]);
    tell(&mut others, &[exec(1, FIRST, "no"), exec(1, SECOND, "yes")]);
    tell(&mut others, &[event(21, THIRD, SidebandKind::Mapped(mapping()))]);
    others.look_again(&[FIRST, SECOND, THIRD], MonotonicNs(20), |_pid| false);
    assert_eq!([FIRST, SECOND, THIRD].map(|pid| verdicts(&others, pid, [30])), [[unknown], [yes], [unknown]]);
}

#[test]
fn those_that_live_when_records_are_lost() {
    let us = Pid(std::process::id());
    let mut selected = selected(&["^profiler_agent-"], &[]);
    selected.barred.clear();
    tell(&mut selected, &[exec(1, us, "other")]);
    selected.look_again(&[us], MonotonicNs(20), |_pid| true);
    assert_eq!(verdicts(&selected, us, [19, 20]), [Verdict::Unwanted, Verdict::Wanted]);
}

/// A child of ours, which ends with this.
struct Running(Child);

impl Running {
    fn begin() -> (Self, Pid) {
        let child = Command::new("/bin/sleep").arg("600").spawn().unwrap();
        let pid = Pid(child.id());
        (Self(child), pid)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn what_an_excluded_process_starts_is_left_out_when_records_are_lost() {
    let us = Pid(std::process::id());
    let mut selected = selected(&[], &[&format!("pid={us}")]);
    selected.learn(us, ALWAYS);
    let (_running, child) = Running::begin();
    let parent = proc_fs::ancestors(us).next().unwrap();
    selected.look_again(&[child, us, parent], MonotonicNs(20), |_pid| true);
    assert_eq!(verdicts(&selected, child, [20]), [Verdict::Unwanted]);
    assert_eq!(verdicts(&selected, parent, [20]), [Verdict::Wanted]);
    tell(&mut selected, &[exec(30, FIRST, "gone")]);
    assert_eq!(verdicts(&selected, FIRST, [30]), [Verdict::Unknown], "whose child it was is not known any more");
}

#[test]
fn who_gets_the_number_of_an_excluded_process_is_not_left_out() {
    let us = Pid(std::process::id());
    let (_running, child) = Running::begin();
    let mut selected = selected(&[], &[&format!("pid={child}")]);
    selected.learn(us, ALWAYS);
    selected.learn(child, ALWAYS);
    assert_eq!(verdicts(&selected, child, [20]), [Verdict::Unwanted]);
    selected.known.remove(&child);
    selected.look_again(&[us, child], MonotonicNs(20), |_pid| true);
    assert_eq!(verdicts(&selected, child, [20]), [Verdict::Wanted]);
}

#[test]
fn changes_without_end_are_bounded() {
    let mut known = Known::new(Facts::default(), ALWAYS, Verdict::Unknown);
    for time in 1..1000 {
        known.say(if time % 2 == 0 { Verdict::Wanted } else { Verdict::Unwanted }, MonotonicNs(time));
    }
    assert_eq!(known.verdicts.len(), MOST_VERDICTS);
    assert_eq!(known.verdict_at(MonotonicNs(998)), Verdict::Wanted);
}
