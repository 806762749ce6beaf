//! Spanflame's kernel programs: entry points only.
//!
//! `sample` runs on every tick of a CPU's clock event, fills in the header of a record and
//! tail-calls `unwind`, which walks the user stack and writes the record. `fork`, `exec` and `exit`
//! keep the tables of processes true. `threads` tells of threads whether they run or not.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod arch;
mod barrier;
mod finish;
mod follow;
mod maps;
mod sample;
mod settings;
mod task;
mod threads;
mod unwind;

use aya_ebpf::macros::{perf_event, raw_tracepoint};
use aya_ebpf::programs::{PerfEventContext, RawTracePointContext};

/// One tick of a CPU's clock event.
#[perf_event]
pub fn sample(ctx: PerfEventContext) -> u32 {
    sample::run(&ctx);
    0
}

/// The user stack of the sample that this CPU is taking, 31 frames a run.
#[perf_event]
pub fn unwind(ctx: PerfEventContext) -> u32 {
    unwind::run(&ctx);
    0
}

/// A process or thread was forked: follow the child of a followed process.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn fork(ctx: RawTracePointContext) -> i32 {
    follow::on_fork(&ctx);
    0
}

/// A process runs another program: its ranges are void at once.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn exec(_ctx: RawTracePointContext) -> i32 {
    follow::on_exec();
    0
}

/// A thread ends; with the last one, so does its process.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn exit(ctx: RawTracePointContext) -> i32 {
    follow::on_exit(&ctx);
    0
}

/// One thread of all, or the end of the list: an iterator runs when its file is read.
#[unsafe(link_section = "iter/task")]
#[unsafe(no_mangle)]
pub extern "C" fn threads(context: *const threads::Context) -> i32 {
    threads::run(context);
    0
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never linked into a program: the verifier refuses what is not proven to end.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
