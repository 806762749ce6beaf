//! What must hold before anything is loaded.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::KernelError;

/// Refuses where sampling would be unsafe or wrong: JIT off, or another pid namespace.
///
/// # Errors
/// With the sentence that says what to do.
pub fn check_support() -> Result<(), KernelError> {
    if fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").is_ok_and(|text| text.trim() == "0") {
        return Err(KernelError::JitOff);
    }
    if !in_initial_pid_namespace() {
        return Err(KernelError::PidNamespace);
    }
    Ok(())
}

/// `PROC_PID_INIT_INO` (linux/include/linux/proc_ns.h): the inode of the initial pid namespace.
fn in_initial_pid_namespace() -> bool {
    const INITIAL: u64 = 0xEFFF_FFFC;
    fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == INITIAL)
}

/// Refuses a rate that the kernel would refuse or throttle.
///
/// # Errors
/// When `frequency_hz` is over `kernel.perf_event_max_sample_rate`.
pub fn check_frequency(frequency_hz: u32) -> Result<(), KernelError> {
    const PATH: &str = "/proc/sys/kernel/perf_event_max_sample_rate";
    let text = fs::read_to_string(PATH).map_err(|source| KernelError::Read { path: PATH.to_owned(), source })?;
    let max_hz = text
        .trim()
        .parse()
        .map_err(|_not_a_number| KernelError::Unexpected { path: PATH.to_owned(), found: text.clone() })?;
    if frequency_hz > max_hz {
        return Err(KernelError::RateTooHigh { requested_hz: frequency_hz, max_hz });
    }
    Ok(())
}
