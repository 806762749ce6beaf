//! `spanflame dump`: the stack of every thread of a process now, whether it runs or waits.

mod look;
mod memory;
mod status;

use std::collections::BTreeMap;
use std::process::ExitCode;

use profiler_common::address::Pid;
use profiler_export::threads::{Dump, Process, Thread};
use profiler_model::Profile;

use self::look::{Seen, Sight, Threads};
use crate::cli::{self, DumpOptions};
use crate::debuginfod::Debuginfod;
use crate::kernel::{LoadOptions, check_frequency, check_support};
use crate::record::{RecordError, check_pids, raise_open_files, row_chunks, table_cache, title_of};
use crate::select::Survey;
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
    check_pids(&options.select.excluded_pids())?;
    let (mut pids, mut gone) = there(&options.pid);
    if pids.is_empty()
        && let Some(last) = gone.pop()
    {
        complain(&gone);
        return Err(last);
    }
    if let Some(selection) = options.select.selection() {
        let all = proc_fs::all_pids().unwrap_or_default();
        let whole_node = options.pid.is_empty();
        let survey = Survey::of(&selection, if whole_node { &all } else { &pids }, whole_node);
        pids = survey.inspect_err(|_none| complain(&gone))?.pids;
    }
    check_support()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RecordError::Runtime)?;
    let all_seen = runtime.block_on(dump(options, &pids))?;
    // Behind the answer, where a terminal shows it.
    complain(&gone);
    Ok(ExitCode::from(u8::from(!all_seen || !gone.is_empty())))
}

fn complain(errors: &[RecordError]) {
    errors.iter().for_each(|error| cli::complain(&cli::with_causes(error)));
}

/// Those of the processes that can be looked at, each once, and what is the matter with the others.
fn there(pids: &[u32]) -> (Vec<Pid>, Vec<RecordError>) {
    let (mut there, mut gone) = (Vec::new(), Vec::new());
    for pid in pids {
        match check_pids(&[*pid]) {
            Ok(()) if there.contains(&Pid(*pid)) => {}
            Ok(()) => there.push(Pid(*pid)),
            Err(error) => gone.push(error),
        }
    }
    (there, gone)
}

/// Returns whether all of these processes were seen.
async fn dump(options: &DumpOptions, pids: &[Pid]) -> Result<bool, RecordError> {
    let mut signals = Signals::new().map_err(RecordError::Signals)?;
    raise_open_files();
    tokio::select! {
        biased;
        _signal = signals.next() => Err(RecordError::Interrupted),
        seen = see(options, pids) => {
            let (profile, threads) = seen?;
            print(options, pids, &profile, threads)
        }
    }
}

/// Every thread, and its stack in the profile.
async fn see(options: &DumpOptions, pids: &[Pid]) -> Result<(Profile, Threads), RecordError> {
    let frequency_hz = if check_frequency(FAST_HZ).is_ok() { FAST_HZ } else { SLOW_HZ };
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
    let about = about(title_of(pids), std::num::NonZeroU32::new(frequency_hz).unwrap_or(std::num::NonZeroU32::MIN));
    let interest = Interest::processes(pids.iter().copied().collect(), false);
    let mut session = Session::build(&load, interest, about, SourceMap::new(&options.source_map))?;
    if let Some(cache) = table_cache(&options.tables)? {
        session.cache_tables(cache);
    }
    if options.debuginfod {
        session.use_debuginfod(Debuginfod::from_environment()?);
    }
    session.get_ready().await;
    let started_ns = clock::monotonic().0;
    let why_not = session.without_threads().map(ToString::to_string);
    let by_stopping = options.ptrace || why_not.is_some();
    let mut threads = Threads::new();
    let (mut missed, mut cut) = (0, 0);
    for _ in 0..options.times.get() {
        session.forget_threads();
        threads = if by_stopping {
            look::by_stopping(&mut session, pids).await?
        } else {
            look::in_place(&mut session).await?
        };
        missed += u32::from(threads.values().any(|seen| matches!(seen.sight, Sight::Nothing(..))));
        cut += u32::from(session.has_cut_stacks());
    }
    let mut profile = session.finish(started_ns).await?;
    if missed > 0 && options.times.get() > 1 {
        profile.add_note(&format!("{missed} of {} looks did not see every thread", options.times));
    }
    if cut > 0 && options.times.get() > 1 {
        profile.add_note(&format!("{cut} of {} looks saw a stack whose callers are missing", options.times));
    }
    if by_stopping {
        let why = why_not.map_or_else(|| "as was asked for".to_owned(), |why| format!("in place it did not go: {why}"));
        profile.add_note(&format!(
            "each thread was stopped for a moment ({why}): system calls in which threads waited may have returned EINTR"
        ));
    }
    Ok((profile, threads))
}

/// Prints the threads on stdout, and on stderr what there is to say of them. Returns whether there is one of each
/// process.
fn print(options: &DumpOptions, pids: &[Pid], profile: &Profile, threads: Threads) -> Result<bool, RecordError> {
    let ended = threads.values().filter(|seen| matches!(seen.sight, Sight::Ended)).count();
    let processes = processes(threads);
    let unseen = |pid: &&Pid| processes.iter().all(|process| process.pid != pid.0);
    let mut gone: Vec<RecordError> = pids.iter().filter(unseen).map(|pid| RecordError::Vanished(*pid)).collect();
    if processes.is_empty()
        && let Some(last) = gone.pop()
    {
        return Err(last);
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
    gone.iter().for_each(|error| cli::complain(&error.to_string()));
    Ok(gone.is_empty())
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
