//! The short life that `cargo xtask bench short-lives` starts many times a second: `spanflame-brief
//! MILLISECONDS` uses that much CPU time in a known chain of calls.
#![forbid(unsafe_code)]

use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

fn main() {
    let enough = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(20);
    let enough = Duration::from_millis(enough);
    // Beside others the clock goes on without us.
    let last = Instant::now() + 20 * enough;
    while cpu_time() < enough && Instant::now() < last {
        outer(black_box(1));
    }
}

/// Linux, Documentation/scheduler/sched-stats.rst: time on the CPU in ns, time waiting, slices.
fn cpu_time() -> Duration {
    let text = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(u64::MAX))
}

#[inline(never)]
fn outer(x: u64) -> u64 {
    black_box(inner(x + 1)) ^ x
}

#[inline(never)]
fn inner(x: u64) -> u64 {
    black_box(leaf(x + 1)) ^ x
}

#[inline(never)]
fn leaf(mut x: u64) -> u64 {
    for _ in 0..1_000_000 {
        x = black_box(x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407));
    }
    x
}
