//! What /proc says of a thread: its state, and the system call that it waits in.

use std::fs;

use profiler_common::address::{Pid, Tid};
use profiler_export::threads::SystemCall;
use syscalls::Sysno;

use crate::proc_fs;

/// A thread's state, and the system call that it waits in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    /// As in `/proc/PID/stat`: R, S, D, T, t, Z, X, I.
    pub(super) state: char,
    pub(super) system_call: Option<SystemCall>,
}

impl Status {
    /// A thread that runs.
    pub(super) const RUNNING: Self = Self { state: 'R', system_call: None };

    /// What /proc says of the thread now; `None` when it has ended.
    pub(super) fn of((pid, tid): (Pid, Tid), is_32_bit: bool) -> Option<Self> {
        let state = char::from(proc_fs::state_of_thread(pid, tid)?);
        let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
        Some(Self { state, system_call: system_call(&text, is_32_bit) })
    }

    /// Whether the thread has ended; it is listed until it is waited for, the first one until all others end.
    pub(super) const fn is_over(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

/// `NUMBER`, six arguments, sp and pc; `-1 sp pc` outside of system calls, or `running`
/// (proc_pid_syscall(5)). Kernel threads have zeros throughout, so that no sp is the mark of no system call.
/// The numbers of 32-bit code are others, so they have no names here.
fn system_call(text: &str, is_32_bit: bool) -> Option<SystemCall> {
    let mut fields = text.split_ascii_whitespace();
    let number: u64 = fields.next()?.parse().ok()?;
    if fields.nth(6) == Some("0x0") {
        return None;
    }
    let known = usize::try_from(number).ok().filter(|_number| !is_32_bit).and_then(Sysno::new);
    Some(SystemCall { number, name: known.map(|call| call.name()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_calls_have_their_names() {
        let read = if cfg!(target_arch = "x86_64") { 0 } else { 63 };
        let waits = system_call(&format!("{read} 0x0 0x7f 0x1 0x0 0x0 0x0 0x7ffd 0x7f12\n"), false);
        assert_eq!(waits, Some(SystemCall { number: read, name: Some("read") }));
        let old = system_call(&format!("{read} 0x0\n"), true);
        assert_eq!(old, Some(SystemCall { number: read, name: None }));
        assert_eq!(system_call("99999 0x0\n", false), Some(SystemCall { number: 99999, name: None }));
        let kernel_thread = "0 0x0 0x0 0x0 0x0 0x0 0x0 0x0 0x0\n";
        for none in [kernel_thread, "running\n", "-1 0x7ffd 0x7f12\n", "", "\n", "x"] {
            assert_eq!(system_call(none, false), None, "{none:?}");
        }
    }

    #[test]
    fn we_run() {
        let (pid, tid) = (Pid(std::process::id()), Tid(std::process::id()));
        // Another thread of the test may be the first one.
        assert!(Status::of((pid, tid), false).is_some_and(|status| "RS".contains(status.state)));
        assert_eq!(Status::of((pid, Tid(u32::MAX)), false), None);
    }
}
