//! What a worker may do: little. Applied once, before the first request is read.

use std::io;
use std::path::Path;
use std::time::Duration;

use libc::c_long;
use rustix::process::{Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::Role;

/// How nice those for names are: below everything that serves requests, above `SCHED_IDLE`, which may
/// starve for minutes. Tables are little work, and samples wait for them.
const NICE: i32 = 10;
/// Open files: 3 standard ones, `statm`, what comes with a request, and the cache of symbols: of each of 16
/// files the executable, its symbols in memory and its debug file, the last two opened twice.
const MAX_OPEN_FILES: u64 = 128;
/// Bytes of a file that is written, at most: the symbolizer's in memory, which no other limit counts. Who writes
/// more is ended (SIGXFSZ).
pub(super) const MAX_FILE_BYTES: usize = 64 << 20;
/// Where the descriptors of this process are files (proc_pid_fd(5)).
const DESCRIPTORS: &str = "/proc/self/fd";

/// A restriction that could not be applied: the worker does not run without.
#[derive(Debug, thiserror::Error)]
#[error("{step} failed")]
pub(super) struct SandboxError {
    step: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl SandboxError {
    fn at<E: Into<Box<dyn std::error::Error + Send + Sync>>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self { step, source: source.into() }
    }
}

/// Restricts this process to what `role` needs. It has one thread. Tells in which directory its descriptors
/// are, by their numbers.
pub(super) fn enter(role: Role) -> Result<&'static Path, SandboxError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(SandboxError::at("to die with the parent"))?;
    if role != Role::Tables {
        rustix::process::nice(NICE).map_err(SandboxError::at("nice"))?;
    }
    set_limits(role)?;
    // When memory runs out this process goes before the agent and before what it observes. Without
    // /proc or on a kernel that refuses nothing is lost but that order.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let descriptors = if opens_files(role) { confine()? } else { Path::new(DESCRIPTORS) };
    drop_capabilities(role)?;
    seccompiler::apply_filter(&filter(role)?).map_err(SandboxError::at("seccomp"))?;
    Ok(descriptors)
}

/// Whether what reads files opens them itself: blazesym takes no descriptors.
fn opens_files(role: Role) -> bool {
    role == Role::Symbols
}

/// Leaves nothing to open but what is open: the root directory becomes the one with this process's
/// descriptors. A process that may not do that (CAP_SYS_CHROOT) goes without.
fn confine() -> Result<&'static Path, SandboxError> {
    if rustix::process::chroot(DESCRIPTORS).is_err() {
        return Ok(Path::new(DESCRIPTORS));
    }
    rustix::process::chdir("/").map_err(SandboxError::at("chdir"))?;
    Ok(Path::new("/"))
}

/// Address space: files are mapped by the symbolizer only, those with DWARF twice. Data: what is allocated; beyond it the
/// process aborts, and the file that wanted it gets an error.
fn set_limits(role: Role) -> Result<(), SandboxError> {
    let (address_space_bytes, data_bytes) = match role {
        Role::Tables | Role::Generated => (1 << 30, 512 << 20),
        Role::Symbols | Role::Describe => (16 << 30, 1 << 30),
    };
    let limits = [
        (Resource::As, address_space_bytes),
        (Resource::Data, data_bytes),
        (Resource::Fsize, MAX_FILE_BYTES as u64),
        (Resource::Core, 0),
        (Resource::Nofile, MAX_OPEN_FILES),
    ];
    for (resource, limit) in limits {
        // A limit that is lower already can't be raised, and need not be.
        let bound = |present: Option<u64>| Some(present.map_or(limit, |present| present.min(limit)));
        let present = rustix::process::getrlimit(resource);
        let new = Rlimit { current: bound(present.current), maximum: bound(present.maximum) };
        rustix::process::setrlimit(resource, new).map_err(SandboxError::at("setrlimit"))?;
    }
    Ok(())
}

/// Lets this process use `more` CPU time, to the next second, than it has used; then the kernel ends it
/// (SIGXCPU). A process that a file has taken over can do the same: the parent's time limit remains.
pub(super) fn allow_cpu_time(more: Duration) -> io::Result<()> {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime).tv_sec.unsigned_abs();
    let maximum = rustix::process::getrlimit(Resource::Cpu).maximum;
    let limit = used.saturating_add(more.as_secs()).saturating_add(1);
    let current = Some(maximum.map_or(limit, |maximum| maximum.min(limit)));
    Ok(rustix::process::setrlimit(Resource::Cpu, Rlimit { current, maximum })?)
}

/// Keeps the one to read files, and only where files are opened: opening a descriptor again checks the
/// permissions of its file again.
fn drop_capabilities(role: Role) -> Result<(), SandboxError> {
    let failed = || SandboxError::at::<io::Error>("capset");
    let present = rustix::thread::capabilities(None).map_err(|error| failed()(error.into()))?;
    let useful = if opens_files(role) { CapabilitySet::DAC_READ_SEARCH } else { CapabilitySet::empty() };
    let kept = present.permitted & useful;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(|error| failed()(error.into()))
}

/// System calls that every role may make. `execve` is in no list, so capabilities can't come back.
const ALWAYS: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_recvmsg,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_sched_yield,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// System calls of those who open files: looking them up by name, and making them in memory.
const OPENING: &[c_long] = &[
    libc::SYS_newfstatat,
    libc::SYS_statx,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    libc::SYS_memfd_create,
];

/// A call that is allowed where one of its arguments compares as stated with a value.
type Conditional = (c_long, u8, SeccompCmpOp, u64);

/// To open files for reading, and not even to create them. musl uses `open` where there is one.
const OPEN: &[Conditional] = &[
    (libc::SYS_openat, 2, SeccompCmpOp::MaskedEq(bits(libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC)), 0),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, 1, SeccompCmpOp::MaskedEq(bits(libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC)), 0),
];

/// Memory that is not executable; signals (for `abort`) to this process only: it may run as root.
fn conditional() -> Vec<Conditional> {
    let own_pid = bits(rustix::process::getpid().as_raw_pid());
    vec![
        (libc::SYS_mmap, 2, SeccompCmpOp::MaskedEq(bits(libc::PROT_EXEC)), 0),
        (libc::SYS_mprotect, 2, SeccompCmpOp::MaskedEq(bits(libc::PROT_EXEC)), 0),
        (libc::SYS_tgkill, 0, SeccompCmpOp::Eq, own_pid),
        (libc::SYS_tkill, 0, SeccompCmpOp::Eq, own_pid),
    ]
}

/// `prlimit64` of this process's CPU time only.
fn own_cpu_time() -> Result<SeccompRule, seccompiler::BackendError> {
    let equal = |argument, value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
    SeccompRule::new(vec![equal(0, 0)?, equal(1, Resource::Cpu as u64)?])
}

/// The filter of `role`. What it does not allow fails with EPERM and does not kill: the call does not happen
/// either way, and a libc that tries another call first goes on with its fall-back. The name of a file is not
/// told to anybody, and where [`confine`] was refused, nobody takes one from a file: with the right name,
/// opening reboots a node (/dev/watchdog).
fn filter(role: Role) -> Result<BpfProgram, SandboxError> {
    let failed = || SandboxError::at::<seccompiler::BackendError>("building the seccomp filter");
    let mut rules: Vec<(c_long, Vec<SeccompRule>)> = ALWAYS.iter().map(|&call| (call, Vec::new())).collect();
    let mut conditional = conditional();
    if opens_files(role) {
        rules.extend(OPENING.iter().map(|&call| (call, Vec::new())));
        conditional.extend(OPEN.iter().cloned());
    }
    for (call, argument, comparison, value) in conditional {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, comparison, value);
        let rule = condition.and_then(|condition| SeccompRule::new(vec![condition])).map_err(failed())?;
        rules.push((call, vec![rule]));
    }
    rules.push((libc::SYS_prlimit64, vec![own_cpu_time().map_err(failed())?]));
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let architecture = std::env::consts::ARCH.try_into().map_err(failed())?;
    SeccompFilter::new(rules.into_iter().collect(), refuse, SeccompAction::Allow, architecture)
        .and_then(BpfProgram::try_from)
        .map_err(failed())
}

/// An `int` argument as the filter compares it.
const fn bits(argument: i32) -> u64 {
    argument.cast_unsigned() as u64
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    use std::os::fd::AsRawFd as _;

    use super::*;

    /// Filters hold for the thread that installs them, so a thread of the test can try one.
    fn filtered<T: Send + 'static>(role: Role, attempt: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(move || {
            seccompiler::apply_filter(&filter(role).unwrap()).unwrap();
            attempt()
        });
        thread.join().unwrap()
    }

    #[test]
    fn sockets_programs_signals_and_writes_are_refused() {
        for role in Role::ALL {
            let refused = filtered(role, || {
                [
                    std::net::UdpSocket::bind("127.0.0.1:0").err(),
                    std::process::Command::new("/bin/true").spawn().err(),
                    rustix::process::kill_process(rustix::process::getpid(), Signal::URG).err().map(Into::into),
                    OpenOptions::new().write(true).open("/dev/null").err(),
                    File::create("/dev/null").err(),
                    std::fs::read_link("/proc/self/exe").err(),
                    std::fs::canonicalize("/proc/self/exe").err(),
                    rustix::process::chroot("/").err().map(Into::into),
                ]
            });
            for (index, error) in refused.into_iter().enumerate() {
                let error = error.unwrap_or_else(|| panic!("{role:?}: call {index} went through"));
                assert_eq!(error.kind(), PermissionDenied, "{role:?}: call {index}: {error}");
            }
        }
    }

    #[test]
    fn only_who_must_opens_files() {
        for role in [Role::Tables, Role::Generated, Role::Describe] {
            let refused = || [File::open("/proc/self/stat").err(), std::fs::metadata("/proc/self/stat").err()];
            for error in filtered(role, refused) {
                assert_eq!(error.unwrap().kind(), PermissionDenied, "{role:?}");
            }
        }
        assert!(filtered(Role::Symbols, || File::open("/proc/self/stat").is_ok()));
    }

    /// In a process of its own, for the root directory is one of the whole process.
    #[test]
    fn who_opens_files_finds_nothing_but_its_own() {
        const CHILD: &str = "SPANFLAME_TEST_CONFINED";
        const NAME: &str = "worker::sandbox::tests::who_opens_files_finds_nothing_but_its_own";
        if std::env::var_os(CHILD).is_none() {
            let itself = std::env::current_exe().unwrap();
            let child = std::process::Command::new(itself).args(["--exact", NAME]).env(CHILD, "").output().unwrap();
            let said = String::from_utf8_lossy(&child.stdout);
            assert!(child.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let file = File::open("/etc/passwd").unwrap();
        let may = rustix::thread::capabilities(None).unwrap().permitted.contains(CapabilitySet::SYS_CHROOT);
        let descriptors = confine().unwrap();
        drop_capabilities(Role::Symbols).unwrap();
        let (own, others) = filtered(Role::Symbols, move || {
            let own = std::fs::read(descriptors.join(file.as_raw_fd().to_string()));
            let others = ["/etc/passwd", "../../etc/passwd", "/proc/self/stat", "/dev/null", "/0/../../etc/passwd"];
            (own, others.map(|path| File::open(path).err().map(|error| error.kind())))
        });
        assert!(own.unwrap().starts_with(b"root:"));
        assert_eq!(descriptors, Path::new(if may { "/" } else { DESCRIPTORS }));
        if may {
            assert!(others.iter().all(|error| matches!(error, Some(NotFound | NotADirectory))), "{others:?}");
        }
    }

    #[test]
    fn of_limits_only_the_own_cpu_time_can_be_set() {
        let parent = rustix::process::getppid();
        let (cpu, files, parents_cpu) = filtered(Role::Tables, move || {
            let unlimited = || Rlimit { current: None, maximum: None };
            (
                rustix::process::setrlimit(Resource::Cpu, rustix::process::getrlimit(Resource::Cpu)),
                rustix::process::setrlimit(Resource::Nofile, unlimited()),
                rustix::process::prlimit(parent, Resource::Cpu, unlimited()).map(drop),
            )
        });
        let refused = Err(rustix::io::Errno::PERM);
        assert_eq!((cpu, files, parents_cpu), (Ok(()), refused, refused));
    }
}
