//! The memory of a profiler, in a control group of its own: what the kernel charges to the group, less the pages of
//! files, plus those in memory (memfd), plus the rings of perf, which are charged to no group.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::bench::family;

/// Where the memory controller is: v1, or the only tree there is.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"];

/// A group is empty after that time, or stays.
const LIMIT: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(50);

/// A control group, removed when it is dropped: all in it has to have ended.
pub(super) struct Group {
    pub(super) path: PathBuf,
}

impl Group {
    pub(super) fn new() -> Result<Self> {
        let Some(root) = ROOTS.iter().map(Path::new).find(|root| root.join("cgroup.procs").exists()) else {
            bail!("no memory controller in {}", ROOTS.join(", "));
        };
        let path = root.join(format!("spanflame-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self { path })
    }

    /// Bytes of a process, and of all that it has started.
    pub(super) fn bytes(&self, pid: u32) -> Result<u64> {
        let read = |name: &str| {
            let path = self.path.join(name);
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let is_v1 = self.path.join("memory.usage_in_bytes").exists();
        let usage = read(if is_v1 { "memory.usage_in_bytes" } else { "memory.current" })?;
        let usage: u64 = usage.trim().parse().context("the usage of a control group")?;
        let files = file_bytes(&read("memory.stat")?, is_v1);
        let rings: u64 = family(pid).into_iter().map(ring_bytes).sum();
        Ok(usage.saturating_sub(files) + rings)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What a process that has ended had started may end a little later.
        let end = Instant::now() + LIMIT;
        while let Err(error) = fs::remove_dir(&self.path) {
            if Instant::now() > end {
                eprintln!("removing {}: {error}", self.path.display());
                return;
            }
            sleep(INTERVAL);
        }
    }
}

/// Pages of files that are on a disk (Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst: both caches
/// count shared memory).
fn file_bytes(statistics: &str, is_v1: bool) -> u64 {
    let (cache, shared) = if is_v1 { ("total_cache", "total_shmem") } else { ("file", "shmem") };
    let value = |name: &str| {
        let line = statistics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
    };
    value(cache).saturating_sub(value(shared))
}

/// The rings of perf events that a process has mapped.
fn ring_bytes(pid: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().filter(|line| line.ends_with("anon_inode:[perf_event]")).filter_map(mapped_bytes).sum()
}

fn mapped_bytes(line: &str) -> Option<u64> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    u64::from_str_radix(end, 16).ok()?.checked_sub(u64::from_str_radix(start, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_what_is_no_shared_memory() {
        let text = "cache 1\nshmem 2\ntotal_cache 300\ntotal_rss 7\ntotal_shmem 100\n";
        assert_eq!(file_bytes(text, true), 200);
        assert_eq!(file_bytes("anon 4\nfile 300\nshmem 50\n", false), 250);
        assert_eq!(mapped_bytes("7f00001000-7f00003000 rw-s 0 0:10 9 anon_inode:[perf_event]"), Some(0x2000));
    }
}
