//! Which processes are followed, and the end of what was known of a process.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::programs::RawTracePointContext;
use profiler_common::counter::Counter;

use crate::maps::{EXECS, FOLLOWED, PROCESSES, count};
use crate::settings;
use crate::task::{half, word};

/// The process (tgid) of the current task.
#[inline(always)]
fn current_process() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// `sched_process_fork(struct task_struct *parent, struct task_struct *child)`.
#[inline(always)]
pub(crate) fn on_fork(ctx: &RawTracePointContext) {
    if settings::follow_children() == 0 {
        return;
    }
    let parent: *const u8 = ctx.arg(0);
    let child: *const u8 = ctx.arg(1);
    let parent_process = half(parent as u64, settings::task_tgid());
    let child_process = half(child as u64, settings::task_tgid());
    if parent_process == child_process || FOLLOWED.get_ptr(parent_process).is_none() {
        return;
    }
    if FOLLOWED.insert(child_process, 1, 0).is_err() {
        count(Counter::FollowTableFull);
    }
}

/// `sched_process_exec`: the current process runs another program from now on.
#[inline(always)]
pub(crate) fn on_exec() {
    let process = current_process();
    if settings::sample_all() != 0 || FOLLOWED.get_ptr(process).is_some() {
        // SAFETY: the helper has no preconditions.
        let now = unsafe { bpf_ktime_get_ns() };
        // Without it a table of the old program may be given to the new one: its samples say so.
        let _ = EXECS.insert(process, now, 0);
    }
    // Not being there is the rule rather than the exception: nothing to report.
    let _ = PROCESSES.remove(process);
    if let Some(followed) = FOLLOWED.get_ptr_mut(process) {
        // SAFETY: a value of the map that the look-up just returned; one 4-byte store.
        unsafe { *followed = 1 };
    }
}

/// `sched_process_exit(struct task_struct *)`: the kernel has already counted the thread out of
/// `signal->live` (`do_exit`, linux/kernel/exit.c).
#[inline(always)]
pub(crate) fn on_exit(ctx: &RawTracePointContext) {
    let task: *const u8 = ctx.arg(0);
    let signal = word(task as u64, settings::task_signal());
    if half(signal, settings::signal_live()) == 0 {
        let process = current_process();
        // Most processes are in neither table.
        let _ = PROCESSES.remove(process);
        let _ = FOLLOWED.remove(process);
    }
}
