//! Everything that touches the kernel's tracing interfaces: the BPF object, its maps, perf events.
//!
//! This is the only folder of the agent with `unsafe` code and the only one that names `aya`.

pub mod btf;
mod check;
pub mod counters;
mod error;
mod file_bytes;
mod load;
mod mapped;
mod memory;
mod perf_event;
mod programs;
mod ptrace;
mod records;
pub mod sideband;
mod tables;
pub mod terminal;
mod threads;
mod wake;

pub use check::{check_frequency, check_support};
pub use error::KernelError;
pub(crate) use file_bytes::FileBytes;
#[cfg(target_arch = "aarch64")]
pub(crate) use load::POINTER_AUTH_MASK;
pub use load::{Kernel, LoadOptions, Sampling};
pub use memory::{give_back_freed_memory, read_memory};
pub use programs::{ProgramFigures, verifier_report};
pub use ptrace::{Stopped, Stopper};
pub use records::Records;
pub use tables::{Followed, Tables};
pub use wake::Wake;

/// The numbers of the online CPUs.
///
/// # Errors
/// When `/sys/devices/system/cpu/online` can't be read or understood.
pub fn online_cpus() -> Result<Vec<u32>, KernelError> {
    read_cpu_list("/sys/devices/system/cpu/online")
}

/// One more than the highest number that a CPU can have, be it online or not: the numbers may have gaps.
fn cpu_numbers() -> Result<u32, KernelError> {
    let possible = read_cpu_list("/sys/devices/system/cpu/possible")?;
    Ok(possible.into_iter().max().map_or(1, |highest| highest + 1))
}

fn read_cpu_list(path: &str) -> Result<Vec<u32>, KernelError> {
    let text = std::fs::read_to_string(path).map_err(|source| KernelError::Read { path: path.to_owned(), source })?;
    parse_cpu_list(text.trim()).ok_or_else(|| KernelError::Unexpected { path: path.to_owned(), found: text })
}

/// `0-3,5` as numbers; bounded by the kernel's `NR_CPUS` (at most 8192).
fn parse_cpu_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last < first || last >= 8192 {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::parse_cpu_list;

    #[test]
    fn cpu_lists() {
        assert_eq!(parse_cpu_list("0-2,5").unwrap(), [0, 1, 2, 5]);
        assert_eq!(parse_cpu_list("0").unwrap(), [0]);
        for bad in ["", "1-", "3-1", "0-99999", "a"] {
            assert_eq!(parse_cpu_list(bad), None, "{bad:?}");
        }
    }
}
