//! Stopping a thread for a moment to read it: for kernels without the iterator over threads.
//!
//! `PTRACE_SEIZE` and `PTRACE_INTERRUPT` (ptrace(2)) send no signal, and a process that was stopped stays
//! stopped. But system calls that are not restarted after a stop (`epoll_wait`, see signal(7)) return EINTR.

use std::io;
use std::time::{Duration, Instant};

use profiler_common::address::Tid;
use profiler_common::record::OTHER_REGISTER_WORDS;

/// How long a thread may take to stop. In an uninterruptible system call it does not, until that is over.
const STOP: Duration = Duration::from_millis(100);

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
    /// x86_64's `profiler_common::row::OTHER_REGISTERS`.
    pub other: [u64; OTHER_REGISTER_WORDS],
}

/// Stops a thread, calls `read` while it stands, and lets it go on.
///
/// # Errors
/// When it may not be stopped (it has ended, or somebody else traces it), or does not stop in 100 ms.
pub fn while_stopped<T>(tid: Tid, read: impl FnOnce(Stopped) -> T) -> io::Result<T> {
    let mut attached = Attached::to(tid)?;
    attached.stop()?;
    Ok(read(attached.registers()?))
}

/// A thread that is traced by us. Dropping it lets the thread go on.
struct Attached {
    tid: libc::pid_t,
    /// A signal that it was given as it stopped: it gets it when it goes on.
    signal: libc::c_int,
}

impl Attached {
    fn to(tid: Tid) -> io::Result<Self> {
        let tid = tid.0.cast_signed();
        // SAFETY: no memory of ours is named.
        check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, 0, 0) })?;
        Ok(Self { tid, signal: 0 })
    }

    fn stop(&mut self) -> io::Result<()> {
        // SAFETY: no memory of ours is named.
        check(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, self.tid, 0, 0) })?;
        let end = Instant::now() + STOP;
        loop {
            let mut status = 0;
            // SAFETY: `status` is ours and lives as long as the call.
            let waited = unsafe { libc::waitpid(self.tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
            match waited {
                0 if Instant::now() > end => return Err(io::ErrorKind::TimedOut.into()),
                0 => std::thread::sleep(Duration::from_micros(50)),
                -1 => return Err(io::Error::last_os_error()),
                _ if libc::WIFSTOPPED(status) => {
                    let is_signal = status >> 16 != libc::PTRACE_EVENT_STOP;
                    self.signal = if is_signal { libc::WSTOPSIG(status) } else { 0 };
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
        // A thread that did not stop can't be detached: it is when we end, and goes on meanwhile.
        // SAFETY: no memory of ours is named; the last argument is the number of a signal.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.tid, 0, self.signal) };
    }
}

/// `struct user_regs_struct` (linux/arch/x86/include/asm/user_64.h): r15, r14, r13, r12, rbp, rbx, r11, r10,
/// r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, eflags, rsp, ss, ...; as `struct pt_regs` up to there.
#[cfg(target_arch = "x86_64")]
fn meaning(words: &[u64; WORDS], bytes: usize) -> Stopped {
    const R11: usize = 6;
    let mut other = [0; OTHER_REGISTER_WORDS];
    other.copy_from_slice(&words[R11..R11 + OTHER_REGISTER_WORDS]);
    Stopped { is_32_bit: bytes < 27 * 8, registers: [words[16], words[19], words[4], words[5]], other }
}

/// `struct user_pt_regs` (linux/arch/arm64/include/uapi/asm/ptrace.h): x0 to x30, sp, pc, pstate.
#[cfg(not(target_arch = "x86_64"))]
fn meaning(words: &[u64; WORDS], bytes: usize) -> Stopped {
    let lr = words[30] & !super::load::POINTER_AUTH_MASK;
    let registers = [words[32], words[31], words[29], lr];
    Stopped { is_32_bit: bytes < 34 * 8, registers, other: [0; OTHER_REGISTER_WORDS] }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_stopped_thread_shows_its_registers_and_goes_on() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let tid = Tid(child.id());
        let stopped = while_stopped(tid, |stopped| stopped).unwrap();
        assert!(!stopped.is_32_bit && stopped.registers[0] != 0 && stopped.registers[1] % 8 == 0, "{stopped:?}");
        assert!(!while_stopped(tid, |stopped| stopped.is_32_bit).unwrap(), "it was let go");
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        assert!(while_stopped(tid, |_| ()).is_err(), "it has ended");
    }
}
