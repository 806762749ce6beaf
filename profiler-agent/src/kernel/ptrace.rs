//! Stopping a thread for a moment to read it: for kernels without the iterator over threads.
//!
//! `PTRACE_SEIZE` and `PTRACE_INTERRUPT` (ptrace(2)) send no signal, and a process that was stopped stays
//! stopped. But system calls that are not restarted after a stop (`epoll_wait`, see signal(7)) return EINTR.

use std::collections::HashMap;
use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use profiler_common::address::Tid;
use profiler_common::record::OTHER_REGISTER_WORDS;
use tokio::sync::oneshot;

/// The general registers of the largest regset, in words: `struct user_regs_struct` on x86_64 has 27,
/// `struct user_pt_regs` on aarch64 has 34.
const WORDS: usize = 40;

/// The registers of a stopped thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// It runs 32-bit code; then the rest is of no meaning.
    pub is_32_bit: bool,
    /// pc, sp, fp, lr.
    pub registers: [u64; 4],
    /// x86_64: the base of fs.
    pub thread_pointer: u64,
    /// x86_64's `profiler_common::row::OTHER_REGISTERS`.
    pub other: [u64; OTHER_REGISTER_WORDS],
}

/// Stops threads, one at a time, from a thread of its own. When that ends, the kernel lets go of all that it
/// traced (ptrace(2)), and of those, too, that were told to stop and have not yet: nobody else can.
pub struct Stopper {
    requests: Option<mpsc::SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
}

/// A thread that is to be stopped until `over` has no sender any more.
struct Request {
    tid: Tid,
    limit: Duration,
    stopped: oneshot::Sender<io::Result<Stopped>>,
    over: mpsc::Receiver<()>,
}

impl Stopper {
    /// Starts its thread.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start() -> io::Result<Self> {
        let (requests, received) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("stopper".to_owned()).spawn(move || serve(&received))?;
        Ok(Self { requests: Some(requests), thread: Some(thread) })
    }

    /// Stops a thread, calls `read` while it stands, and lets it go on. In an uninterruptible system call it does
    /// not stop until that is over. One that did not stop in time may be asked for again, and is not waited for then.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when it does not stop within `limit`; others when it may not be stopped (it has
    /// ended, or somebody else traces it).
    pub async fn while_stopped<T>(&self, tid: Tid, limit: Duration, read: impl FnOnce(Stopped) -> T) -> io::Result<T> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let (stopped, answer) = oneshot::channel();
        let (_reading, over) = mpsc::sync_channel(1);
        let requests = self.requests.as_ref().ok_or_else(gone)?;
        requests.send(Request { tid, limit, stopped, over }).map_err(|_ended| gone())?;
        let stopped = answer.await.map_err(|_ended| gone())??;
        Ok(read(stopped))
    }
}

impl Drop for Stopper {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn serve(requests: &mpsc::Receiver<Request>) {
    // Those that have not stopped yet.
    let mut late: HashMap<Tid, Attached> = HashMap::new();
    for Request { tid, limit, stopped, over } in requests {
        let (attached, limit) = match late.remove(&tid) {
            Some(attached) => (Ok(attached), Duration::ZERO),
            None => (Attached::to(tid), limit),
        };
        let mut attached = match attached {
            Ok(attached) => attached,
            Err(error) => {
                let _nobody_waits = stopped.send(Err(error));
                continue;
            }
        };
        let registers = attached.wait(limit).and_then(|()| attached.registers());
        let stands = registers.is_ok();
        if registers.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            late.insert(tid, attached);
        }
        if stopped.send(registers).is_ok() && stands {
            let _no_sender = over.recv();
        }
    }
}

/// A thread that is traced by us, and was told to stop. Dropping it lets the thread go on if it has stopped.
struct Attached {
    tid: libc::pid_t,
    /// It stands; then, a signal that it was given as it stopped: it gets it when it goes on.
    stands: Option<libc::c_int>,
}

impl Attached {
    fn to(tid: Tid) -> io::Result<Self> {
        let tid = tid.0.cast_signed();
        // SAFETY: no memory of ours is named.
        check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, 0, 0) })?;
        let attached = Self { tid, stands: None };
        // SAFETY: no memory of ours is named.
        check(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0) })?;
        Ok(attached)
    }

    /// Waits until it stands.
    fn wait(&mut self, limit: Duration) -> io::Result<()> {
        let end = Instant::now() + limit;
        loop {
            let mut status = 0;
            // SAFETY: `status` is ours and lives as long as the call.
            let waited = unsafe { libc::waitpid(self.tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
            match waited {
                0 if Instant::now() >= end => return Err(io::ErrorKind::TimedOut.into()),
                0 => std::thread::sleep(Duration::from_micros(50)),
                -1 => return Err(io::Error::last_os_error()),
                _ if libc::WIFSTOPPED(status) => {
                    let is_signal = status >> 16 != libc::PTRACE_EVENT_STOP;
                    self.stands = Some(if is_signal { libc::WSTOPSIG(status) } else { 0 });
                    return Ok(());
                }
                _ => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            }
        }
    }

    fn registers(&self) -> io::Result<Stopped> {
        const NT_PRSTATUS: libc::c_int = 1;
        let mut words = [0_u64; WORDS];
        let mut regset = libc::iovec { iov_base: words.as_mut_ptr().cast(), iov_len: size_of_val(&words) };
        // SAFETY: `regset` names all of `words`; both are ours and live as long as the call.
        check(unsafe { libc::ptrace(libc::PTRACE_GETREGSET, self.tid, NT_PRSTATUS, &raw mut regset) })?;
        Ok(meaning(&words, regset.iov_len))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.stands.is_none() {
            // What stands is let go of here, with its signal; the rest, as our thread ends.
            let _not_yet = self.wait(Duration::ZERO);
        }
        if let Some(signal) = self.stands {
            // SAFETY: no memory of ours is named; the last argument is the number of a signal.
            unsafe { libc::ptrace(libc::PTRACE_DETACH, self.tid, 0, signal) };
        }
    }
}

/// `struct user_regs_struct` (linux/arch/x86/include/asm/user_64.h): r15, r14, r13, r12, rbp, rbx, r11, r10,
/// r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, eflags, rsp, ss, fs_base, ...; as `struct pt_regs` up to ss.
#[cfg(target_arch = "x86_64")]
fn meaning(words: &[u64; WORDS], bytes: usize) -> Stopped {
    const R11: usize = 6;
    let mut other = [0; OTHER_REGISTER_WORDS];
    other.copy_from_slice(&words[R11..R11 + OTHER_REGISTER_WORDS]);
    let registers = [words[16], words[19], words[4], words[5]];
    Stopped { is_32_bit: bytes < 27 * 8, registers, thread_pointer: words[21], other }
}

/// `struct user_pt_regs` (linux/arch/arm64/include/uapi/asm/ptrace.h): x0 to x30, sp, pc, pstate.
#[cfg(not(target_arch = "x86_64"))]
fn meaning(words: &[u64; WORDS], bytes: usize) -> Stopped {
    let lr = words[30] & !super::load::POINTER_AUTH_MASK;
    let registers = [words[32], words[31], words[29], lr];
    Stopped { is_32_bit: bytes < 34 * 8, registers, thread_pointer: 0, other: [0; OTHER_REGISTER_WORDS] }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Enough for one that can stop.
    const LIMIT: Duration = Duration::from_millis(500);

    fn stop(stopper: &Stopper, tid: Tid) -> io::Result<Stopped> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(stopper.while_stopped(tid, LIMIT, |stopped| stopped))
    }

    #[test]
    fn a_stopped_thread_shows_its_registers_and_goes_on() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let tid = Tid(child.id());
        let stopper = Stopper::start().unwrap();
        let stopped = stop(&stopper, tid).unwrap();
        assert!(
            !stopped.is_32_bit && stopped.registers[0] != 0 && stopped.registers[1].is_multiple_of(8),
            "{stopped:?}"
        );
        assert!(!stop(&stopper, tid).unwrap().is_32_bit, "it was let go");
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        assert!(stop(&stopper, tid).is_err(), "it has ended");
    }

    /// A process that can't be interrupted until this pipe is closed: it waits for a child, as vfork(2) does.
    fn uninterruptible() -> (libc::pid_t, std::io::PipeWriter) {
        use std::os::fd::AsRawFd as _;
        let (reader, writer) = std::io::pipe().unwrap();
        // SAFETY: until its end the child makes nothing but system calls.
        let pid = unsafe { libc::fork() };
        if pid != 0 {
            return (pid, writer);
        }
        // SAFETY: nobody uses this descriptor any more.
        unsafe { libc::close(writer.as_raw_fd()) };
        let mut byte = 0_u8;
        // SAFETY: with these flags it is a fork: the new process has a memory of its own.
        if unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_VFORK | libc::SIGCHLD, 0, 0, 0, 0) } == 0 {
            // SAFETY: `byte` is ours and lives as long as the call.
            unsafe { libc::read(reader.as_raw_fd(), (&raw mut byte).cast(), 1) };
        }
        // SAFETY: it runs nothing of ours any more.
        unsafe { libc::_exit(0) }
    }

    #[test]
    fn who_does_not_stop_in_time_is_not_stopped_later() {
        let (pid, hold) = uninterruptible();
        let end = Instant::now() + Duration::from_secs(30);
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        while !stat().contains(") D ") && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        let stopper = Stopper::start().unwrap();
        for _ in 0..2 {
            let error = stop(&stopper, Tid(pid.cast_unsigned())).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        }
        drop(stopper);
        drop(hold);
        let mut status = 0;
        // SAFETY: `status` is ours and lives as long as the call.
        while unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(libc::WIFEXITED(status), "{status:#x}");
    }
}
