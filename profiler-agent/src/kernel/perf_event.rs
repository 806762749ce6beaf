//! Perf events, opened by ourselves: `aya` opens its own without the flags that we need.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use super::KernelError;

/// `struct perf_event_attr` up to `PERF_ATTR_SIZE_VER5`, 112 bytes
/// (linux/include/uapi/linux/perf_event.h): every kernel since 4.1 takes this size.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_freq: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_watermark: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clockid: i32,
    sample_regs_intr: u64,
    aux_watermark: u32,
    sample_max_stack: u16,
    reserved: u16,
}

const _: () = assert!(size_of::<Attributes>() == 112);

const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_COUNT_SW_CPU_CLOCK: u64 = 0;
const PERF_COUNT_SW_DUMMY: u64 = 9;
const PERF_SAMPLE_TID: u64 = 1 << 1;
const PERF_SAMPLE_TIME: u64 = 1 << 2;
const PERF_SAMPLE_CPU: u64 = 1 << 7;
/// Bits of the flag word, in the order of the bit fields of the structure.
mod flag {
    pub(super) const DISABLED: u64 = 1 << 0;
    pub(super) const EXCLUDE_IDLE: u64 = 1 << 7;
    pub(super) const MMAP: u64 = 1 << 8;
    pub(super) const COMM: u64 = 1 << 9;
    pub(super) const FREQ: u64 = 1 << 10;
    pub(super) const TASK: u64 = 1 << 13;
    pub(super) const WATERMARK: u64 = 1 << 14;
    pub(super) const SAMPLE_ID_ALL: u64 = 1 << 18;
    pub(super) const MMAP2: u64 = 1 << 23;
    pub(super) const COMM_EXEC: u64 = 1 << 24;
    pub(super) const USE_CLOCKID: u64 = 1 << 25;
    pub(super) const KSYMBOL: u64 = 1 << 29;
}

/// `_IO('$', 0)`, `_IO('$', 1)` and `_IOW('$', 8, __u32)`.
const PERF_EVENT_IOC_ENABLE: libc::Ioctl = 0x2400;
const PERF_EVENT_IOC_DISABLE: libc::Ioctl = 0x2401;
const PERF_EVENT_IOC_SET_BPF: libc::Ioctl = 0x4004_2408;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;

/// An open perf event of one CPU.
pub(super) struct PerfEvent {
    fd: OwnedFd,
}

impl PerfEvent {
    /// The CPU's software clock, `frequency_hz` times a second of time that is not idle; disabled.
    pub(super) fn cpu_clock(cpu: u32, frequency_hz: u32) -> Result<Self, KernelError> {
        Self::open(
            cpu,
            &Attributes {
                config: PERF_COUNT_SW_CPU_CLOCK,
                sample_freq: u64::from(frequency_hz),
                flags: flag::DISABLED | flag::EXCLUDE_IDLE | flag::FREQ,
                ..Attributes::default()
            },
        )
    }

    /// Counts nothing, but carries the records of executable mappings, exec, fork, exit and BPF code.
    /// `mmap2` without `mmap` delivers no record of mappings.
    pub(super) fn sideband(cpu: u32) -> Result<Self, KernelError> {
        Self::open(
            cpu,
            &Attributes {
                config: PERF_COUNT_SW_DUMMY,
                sample_type: PERF_SAMPLE_TID | PERF_SAMPLE_TIME | PERF_SAMPLE_CPU,
                flags: flag::DISABLED
                    | flag::MMAP
                    | flag::MMAP2
                    | flag::COMM
                    | flag::COMM_EXEC
                    | flag::TASK
                    | flag::WATERMARK
                    | flag::SAMPLE_ID_ALL
                    | flag::USE_CLOCKID
                    | flag::KSYMBOL,
                wakeup_watermark: 1,
                clockid: libc::CLOCK_MONOTONIC,
                ..Attributes::default()
            },
        )
    }

    fn open(cpu: u32, attributes: &Attributes) -> Result<Self, KernelError> {
        let attributes = Attributes { kind: PERF_TYPE_SOFTWARE, size: 112, ..*attributes };
        // SAFETY: `attributes` is a live structure that says its own size; the other arguments are
        // numbers: any process, this CPU, no group.
        let result = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                -1 as libc::pid_t,
                libc::c_int::try_from(cpu).unwrap_or(libc::c_int::MAX),
                -1 as libc::c_int,
                PERF_FLAG_FD_CLOEXEC,
            )
        };
        let failed = || KernelError::PerfEvent { cpu, paranoid: paranoid_level(), source: io::Error::last_os_error() };
        let fd = i32::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(failed)?;
        // SAFETY: the system call just returned this descriptor; nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Runs `program` at each tick.
    pub(super) fn set_program(&self, program: BorrowedFd<'_>) -> Result<(), KernelError> {
        self.control(PERF_EVENT_IOC_SET_BPF, program.as_raw_fd(), "ioctl(PERF_EVENT_IOC_SET_BPF)")
    }

    pub(super) fn enable(&self) -> Result<(), KernelError> {
        self.control(PERF_EVENT_IOC_ENABLE, 0, "ioctl(PERF_EVENT_IOC_ENABLE)")
    }

    pub(super) fn disable(&self) -> Result<(), KernelError> {
        self.control(PERF_EVENT_IOC_DISABLE, 0, "ioctl(PERF_EVENT_IOC_DISABLE)")
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    fn control(&self, request: libc::Ioctl, argument: libc::c_int, what: &'static str) -> Result<(), KernelError> {
        // SAFETY: these three requests take a number and touch no memory of ours.
        if unsafe { libc::ioctl(self.fd.as_raw_fd(), request, argument) } < 0 {
            return Err(KernelError::System { what, source: io::Error::last_os_error() });
        }
        Ok(())
    }
}

fn paranoid_level() -> String {
    std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid")
        .map_or_else(|_unreadable| "unknown".to_owned(), |text| text.trim().to_owned())
}
