//! What the tests of the profiler itself have in common: programs of known call chains, running
//! `spanflame record` on them, and reading what it wrote.
//!
//! The tests load programs into the kernel, so they need root; elsewhere they say that they were
//! skipped and why ([`lab`]). One recording goes on at a time, whatever the number of test threads.
#![forbid(unsafe_code)]
#![expect(clippy::expect_used, reason = "a harness: what goes wrong fails the test")]

pub mod cgroup;
mod dump;
pub mod kind;
mod lab;
pub mod memory;
mod pprof;
mod profile;
mod record;
pub mod reference;
mod stack;
#[cfg(target_arch = "x86_64")]
pub mod steps;
pub mod system;
mod workload;

pub use dump::{Dump, Thread};
pub use lab::{Lab, lab};
pub use pprof::Pprof;
pub use profile::{Profile, Share};
pub use record::{Ended, Record, Running};
pub use stack::{ANY, CLOCK, LIBC, NAMELESS, ONE, READ, Stack, begins, matches, parse};
pub use workload::{Compiler, WORKLOADS, Workload};

/// The root of a C program without threads: what stands above `main`.
pub const START: [&str; 3] = ["_start", LIBC, LIBC];

/// A chain that begins with [`START`] and `main`.
#[must_use]
pub fn from_main<'a>(below: &[&'a str]) -> Vec<&'a str> {
    START.iter().chain(&["main"]).chain(below).copied().collect()
}
