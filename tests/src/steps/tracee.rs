//! A program under `ptrace`, one instruction at a time.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use std::time::Duration;

use nix::errno::Errno;
use nix::libc::user_regs_struct;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::system::{cpu_time, wait_for};

/// `int3`, after which a trap is the program's own.
const INT3: u8 = 0xcc;

/// `AT_ENTRY` (linux/include/uapi/linux/auxvec.h).
const AT_ENTRY: u64 = 9;

/// The general registers of a stopped program.
pub(super) type CpuRegisters = user_regs_struct;

/// Why the program stopped.
pub(super) enum Stop {
    /// It has executed an instruction, or a signal's handler begins.
    Stepped,
    /// It is about to get a signal.
    Signal(Signal),
    /// Another program begins in the process.
    Exec,
    /// It has ended.
    Ended,
}

/// A process that stops before its program's first instruction; killed when dropped.
pub(super) struct Tracee {
    pid: Pid,
    ended: bool,
}

impl Tracee {
    /// Starts a program. A shell stops itself, is attached to, and becomes the program.
    #[expect(clippy::zombie_processes, reason = "it is waited for as what it is: traced")]
    pub(super) fn start<S: AsRef<OsStr>>(program: &Path, arguments: &[S]) -> Self {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]).arg(program).args(arguments);
        shell.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C");
        shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = shell.spawn().expect("starting a shell");
        let pid = Pid::from_raw(child.id().cast_signed());
        let tracee = Self { pid, ended: false };
        wait(pid, WaitPidFlag::WUNTRACED);
        ptrace::attach(pid).expect("attaching to a shell");
        wait(pid, WaitPidFlag::__WALL);
        let options = Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_EXITKILL;
        ptrace::setoptions(pid, options).expect("tracing a shell");
        kill(pid, Signal::SIGCONT).expect("continuing a shell");
        let mut signal = None;
        loop {
            ptrace::cont(pid, signal).expect("continuing a shell");
            signal = match wait(pid, WaitPidFlag::__WALL) {
                WaitStatus::PtraceEvent(_, _, event) if event == Event::PTRACE_EVENT_EXEC as i32 => return tracee,
                WaitStatus::Stopped(_, Signal::SIGSTOP | Signal::SIGCONT) => None,
                WaitStatus::Stopped(_, signal) => Some(signal),
                status => panic!("{} did not start: {status:?}", program.display()),
            };
        }
    }

    /// Lets it run up to the first instruction behind the loader: nothing has called that.
    pub(super) fn run_to_entry(&mut self) {
        let vector = std::fs::read(format!("/proc/{}/auxv", self.pid)).expect("reading a program's start values");
        let words: Vec<u64> = vector.as_chunks().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect();
        let entry = words.as_chunks().0.iter().find(|[kind, _]| *kind == AT_ENTRY).map(|[_, value]| *value);
        let entry = entry.expect("a program with an entry point");
        let place = std::ptr::without_provenance_mut(usize::try_from(entry).expect("64 bits"));
        let code = ptrace::read(self.pid, place).expect("reading the entry point");
        ptrace::write(self.pid, place, code & !0xff | i64::from(INT3)).expect("stopping at the entry point");
        self.run_until(Signal::SIGTRAP);
        ptrace::write(self.pid, place, code).expect("restoring the entry point");
        let mut registers = self.registers();
        registers.rip = entry;
        ptrace::setregs(self.pid, registers).expect("going back to the entry point");
    }

    /// Lets it run until it has used this much of a CPU.
    pub(super) fn run_for(&mut self, time: Duration) {
        ptrace::cont(self.pid, None).expect("continuing a program");
        let pid = self.pid.as_raw().cast_unsigned();
        wait_for("a program that works", || cpu_time(pid).is_some_and(|used| used >= time));
        kill(self.pid, Signal::SIGSTOP).expect("stopping a program");
        self.wait_until(Signal::SIGSTOP);
    }

    fn run_until(&mut self, signal: Signal) {
        ptrace::cont(self.pid, None).expect("continuing a program");
        self.wait_until(signal);
    }

    fn wait_until(&mut self, expected: Signal) {
        loop {
            match wait(self.pid, WaitPidFlag::__WALL) {
                WaitStatus::Stopped(_, signal) if signal == expected => return,
                WaitStatus::Stopped(_, signal) => ptrace::cont(self.pid, signal).expect("continuing a program"),
                WaitStatus::PtraceEvent(..) => ptrace::cont(self.pid, None).expect("continuing a program"),
                status => panic!("a program that was to run on: {status:?}"),
            }
        }
    }

    /// The process.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    pub(super) fn registers(&self) -> CpuRegisters {
        ptrace::getregs(self.pid).expect("the registers of a stopped program")
    }

    /// One instruction, or the beginning of the handler of `signal`. `opcode` is what is executed.
    pub(super) fn step(&mut self, signal: Option<Signal>, opcode: u8) -> Stop {
        match ptrace::step(self.pid, signal) {
            Ok(()) => {}
            // Killed in between, by a signal of its own.
            Err(Errno::ESRCH) => {}
            Err(error) => panic!("stepping a program: {error}"),
        }
        match wait(self.pid, WaitPidFlag::__WALL) {
            WaitStatus::Stopped(_, Signal::SIGTRAP) if opcode != INT3 || signal.is_some() => Stop::Stepped,
            WaitStatus::Stopped(_, signal) => Stop::Signal(signal),
            WaitStatus::PtraceEvent(..) => Stop::Exec,
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                self.ended = true;
                Stop::Ended
            }
            status => panic!("a stepped program: {status:?}"),
        }
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        if !self.ended {
            let _gone = kill(self.pid, Signal::SIGKILL);
            while let Ok(status) = waitpid(self.pid, Some(WaitPidFlag::__WALL)) {
                if matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)) {
                    break;
                }
            }
        }
    }
}

fn wait(pid: Pid, flags: WaitPidFlag) -> WaitStatus {
    loop {
        match waitpid(pid, Some(flags)) {
            Err(Errno::EINTR) => {}
            result => return result.expect("waiting for a traced program"),
        }
    }
}
