//! `spanflame dump`: the stack of every thread of a process now, whether it runs or waits.

mod look;
mod memory;
mod status;

use std::collections::{BTreeMap, HashSet};
use std::process::ExitCode;

use profiler_common::address::Pid;
use profiler_export::threads::{Dump, Process, Thread};
use profiler_model::Profile;

use self::look::{Seen, Sight, Threads};
use crate::cli::{self, DumpOptions};
use crate::kernel::{LoadOptions, check_frequency, check_support};
use crate::record::{RecordError, check_pids, raise_open_files, row_chunks, table_cache, title_of};
use crate::session::{Session, about};
use crate::signals::Signals;
use crate::source_map::SourceMap;
use crate::tracker::Interest;
use crate::{clock, proc_fs};

/// Samples a second on each CPU, for the threads that run: where the kernel allows it, so that a thread that
/// runs is seen within a millisecond.
const FAST_HZ: u32 = 999;

/// Otherwise.
const SLOW_HZ: u32 = 99;

/// Runs the command.
///
/// # Errors
/// With what failed and what to do.
pub fn run(options: &DumpOptions) -> Result<ExitCode, RecordError> {
    check_pids(&options.pid)?;
    check_support()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RecordError::Runtime)?;
    runtime.block_on(dump(options))
}

async fn dump(options: &DumpOptions) -> Result<ExitCode, RecordError> {
    let mut signals = Signals::new().map_err(RecordError::Signals)?;
    raise_open_files();
    tokio::select! {
        biased;
        _signal = signals.next() => Err(RecordError::Interrupted),
        seen = see(options) => {
            let (profile, threads) = seen?;
            print(options, &profile, threads)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Every thread, and its stack in the profile.
async fn see(options: &DumpOptions) -> Result<(Profile, Threads), RecordError> {
    let frequency_hz = if check_frequency(FAST_HZ).is_ok() { FAST_HZ } else { SLOW_HZ };
    let pids: HashSet<Pid> = options.pid.iter().copied().map(Pid).collect();
    let load = LoadOptions {
        sample_all: false,
        follow_children: false,
        frequency_hz,
        row_chunks: row_chunks(&options.tables),
        ring_bytes: 4 << 20,
        sideband_bytes: 16 << 20,
        unwind: true,
        whole_stack: false,
        threads: !options.ptrace,
    };
    let about =
        about(title_of(&options.pid), std::num::NonZeroU32::new(frequency_hz).unwrap_or(std::num::NonZeroU32::MIN));
    let interest = Interest::Only { pids, children: false, launched: false };
    let mut session = Session::build(&load, interest, about, SourceMap::new(&options.source_map))?;
    if let Some(cache) = table_cache(&options.tables)? {
        session.cache_tables(cache);
    }
    session.get_ready().await;
    let started_ns = clock::monotonic().0;
    let why_not = session.without_threads().map(ToString::to_string);
    let by_stopping = options.ptrace || why_not.is_some();
    let pids: Vec<Pid> = options.pid.iter().copied().map(Pid).collect();
    let mut threads = Threads::new();
    let mut missed = 0;
    for _ in 0..options.times.get() {
        session.forget_threads();
        threads = if by_stopping {
            look::by_stopping(&mut session, &pids).await?
        } else {
            look::in_place(&mut session).await?
        };
        missed += u32::from(threads.values().any(|seen| matches!(seen.sight, Sight::Nothing(..))));
    }
    let mut profile = session.finish(started_ns).await?;
    if missed > 0 && options.times.get() > 1 {
        profile.add_note(&format!("{missed} of {} looks did not see every thread", options.times));
    }
    if by_stopping {
        let why = why_not.map_or_else(|| "as was asked for".to_owned(), |why| format!("in place it did not go: {why}"));
        profile.add_note(&format!(
            "each thread was stopped for a moment ({why}): system calls in which threads waited may have returned EINTR"
        ));
    }
    Ok((profile, threads))
}

/// Prints the threads on stdout, and on stderr what there is to say of them.
fn print(options: &DumpOptions, profile: &Profile, threads: Threads) -> Result<(), RecordError> {
    let ended = threads.values().filter(|seen| matches!(seen.sight, Sight::Ended)).count();
    let processes = processes(threads);
    if let Some(gone) = options.pid.iter().find(|pid| processes.iter().all(|process| process.pid != **pid)) {
        return Err(RecordError::NoProcess(Pid(*gone)));
    }
    let dump = Dump::new(profile, processes);
    let text = if options.json {
        let mut json = dump.json()?;
        json.push(b'\n');
        json
    } else {
        dump.text().into_bytes()
    };
    cli::answer(&text).map_err(RecordError::Print)?;
    for note in profile.notes() {
        cli::complain(note);
    }
    if ended > 0 {
        cli::complain(&format!("{ended} more threads have ended while they were looked at"));
    }
    Ok(())
}

/// The threads by process, without those that have ended.
fn processes(threads: Threads) -> Vec<Process> {
    let mut processes: BTreeMap<Pid, Vec<Thread>> = BTreeMap::new();
    for (tid, Seen { pid, comm, sight }) in threads {
        let (status, unseen) = match sight {
            Sight::Stack(status) => (status, None),
            Sight::Nothing(status, why) => (status, Some(why)),
            Sight::Awaited | Sight::Ended => continue,
        };
        let name = comm.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        let thread =
            Thread { pid: pid.0, tid: tid.0, name, state: status.state, system_call: status.system_call, unseen };
        processes.entry(pid).or_default().push(thread);
    }
    let process = |(pid, threads): (Pid, Vec<Thread>)| {
        let first = threads.first().map(|thread| thread.name.clone());
        Process { pid: pid.0, name: proc_fs::name(pid).or(first).unwrap_or_default(), threads }
    };
    processes.into_iter().map(process).collect()
}
