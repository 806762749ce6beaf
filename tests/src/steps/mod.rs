//! Unwinding at every instruction of a program, beside a record of what was really called.
//!
//! The program runs under `ptrace`, one instruction at a time. Each call and each return is seen, so
//! its callers are known without unwinding. At each stop the profiler's rows and its `step` unwind the
//! registers and the memory of the stopped program: the callers have to be the same, or to be cut with
//! a reason.
//!
//! Only the first thread is looked at; others and children run on.

mod image;
mod instruction;
mod judge;
mod shadow;
mod tally;
mod tracee;

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

pub use image::Files;
pub use tally::{Finding, Found, Tally};

use image::Image;
use instruction::maps_memory;
use judge::{believe, judge};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use shadow::Shadow;
use tracee::{Stop, Tracee};

/// How often all callers are compared, also those that were before.
const ANEW_EVERY: u64 = 4096;

/// Where looking begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// At the very first instruction, the loader's.
    Loader,
    /// At the program's entry point.
    Entry,
    /// When the program has worked for so long. What unwinding says there counts as true until the
    /// returns tell.
    After(Duration),
}

/// Runs a program and looks at `steps` of its instructions, or at those up to its end.
///
/// # Panics
/// When the program can't be started or traced.
pub fn walk<S: AsRef<OsStr>>(files: &mut Files, program: &Path, arguments: &[S], from: From, steps: u64) -> Tally {
    stay_on_this_cpu();
    let mut tracee = Tracee::start(program, arguments);
    match from {
        From::Loader => {}
        From::Entry => tracee.run_to_entry(),
        From::After(time) => tracee.run_for(time),
    }
    let mut image = Image::new(tracee.pid(), files);
    let mut tally = Tally::default();
    let mut cpu = tracee.registers();
    let mut shadow = Shadow::new(cpu.rsp);
    if matches!(from, From::After(_)) {
        believe(&cpu, &mut shadow.stack, &mut image);
    }
    let mut signal = None;
    for step in 0..steps {
        judge(&cpu, &mut shadow.stack, &mut image, step % ANEW_EVERY == 0, &mut tally);
        let code = image.code(cpu.rip);
        let stop = tracee.step(signal, code[0]);
        image.data_changed();
        match stop {
            Stop::Ended => break,
            Stop::Signal(next) => {
                signal = Some(next);
                continue;
            }
            Stop::Exec => {
                image.read_mappings();
                tally.forget_places();
                cpu = tracee.registers();
                shadow = Shadow::new(cpu.rsp);
            }
            Stop::Stepped => {
                let before = std::mem::replace(&mut cpu, tracee.registers());
                if maps_memory(&code, before.rax) {
                    image.read_mappings();
                }
                if signal.is_none() || !shadow.handler_begins(&before, &cpu, &mut image) {
                    shadow.stepped(&before, &cpu, &code, &mut image);
                }
                tally.count_strange_returns(&mut shadow.strange_returns, &image);
            }
        }
        signal = None;
    }
    tally
}

/// Going over to another CPU and back would take most of the time of a step.
fn stay_on_this_cpu() {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu());
    // Without it all is the same, only slower.
    let _slower = sched_setaffinity(None, &cpus);
}
