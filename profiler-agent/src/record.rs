//! `spanflame record`: from a command line to a written profile.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use profiler_common::address::Pid;
use profiler_common::limits::CHUNK_BYTES;
use profiler_export::ExportError;
use profiler_export::top::Top;
use profiler_model::Profile;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};

use crate::cache_folder::{self, FolderError};
use crate::cli::{self, Record, TableOptions};
use crate::debuginfod::{Debuginfod, DebuginfodError};
use crate::ending::{Stopped, end_command};
use crate::kernel::{KernelError, LoadOptions, check_frequency, check_support, online_cpus, terminal};
use crate::launch::{self, LaunchError, Launched};
use crate::output::{Output, OutputError, create_all};
use crate::report::{self, Progress};
use crate::select::{NoMatch, SelectOptions, Survey};
use crate::session::{Session, SessionError, about, family};
use crate::signals::Signals;
use crate::source_map::SourceMap;
use crate::table_cache::{TableCache, TableCacheError};
use crate::tracker::Interest;
use crate::{clock, proc_fs};

/// Rows in the table of the hottest functions.
const TABLE_ROWS: usize = 25;

/// How long ended children may gather before they are looked at: orphans of the command may end by the
/// thousand in a second. Its own end is seen so much later at worst.
const REST: Duration = Duration::from_millis(100);

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Nothing to profile was named.
    #[error(
        "say what to profile: -p PID, --name, --unit, --container or --cgroup, -a for the whole node, or -- COMMAND"
    )]
    NoTarget,
    /// No process is as it was asked for.
    #[error(transparent)]
    NoMatch(#[from] NoMatch),
    /// No process is as it was asked for, yet.
    #[error("{0}; or wait for it with --wait")]
    NoMatchYet(NoMatch),
    /// There is no such process.
    #[error("no process {0}. Find it with: pgrep -a NAME")]
    NoProcess(Pid),
    /// The kernel told of no thread of it.
    #[error("process {0} was not seen: it ended just then, or the kernel tells of none of its threads")]
    Vanished(Pid),
    /// /proc does not show it.
    #[error(
        "process {0} is there, but /proc/{0} can't be read: {1}. Run as root (CAP_SYS_PTRACE), or mount /proc without \
         hidepid"
    )]
    Hidden(Pid, #[source] std::io::Error),
    /// It has ended.
    #[error("process {0} has ended already (a zombie: its parent has yet to wait for it). Find another: pgrep -a NAME")]
    Ended(Pid),
    /// It is a thread.
    #[error("{0} is a thread of process {1}. Use {1}")]
    Thread(Pid, Pid),
    /// The command can't be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// An output can't be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The recording failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A check of the kernel's side failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The file for raw records can't be created.
    #[error("cannot write raw records: {0}. Choose another place with --raw")]
    Raw(std::io::Error),
    /// The result can't be shown.
    #[error("cannot show the result: {0}")]
    Show(#[from] ExportError),
    /// The result can't be written as JSON.
    #[error("cannot write the result as JSON: {0}. Leave --json out")]
    Json(serde_json::Error),
    /// Ctrl-C came once more while the profile was being finished.
    #[error("interrupted again: nothing was written")]
    Interrupted,
    /// Stdout can't be written.
    #[error("cannot print the result on stdout: {0}. Write it to a file with -o")]
    Print(#[source] std::io::Error),
    /// The folder for tables can't be used.
    #[error(transparent)]
    TableCache(#[from] TableCacheError),
    /// Servers can't be asked for debug information.
    #[error(transparent)]
    Debuginfod(#[from] DebuginfodError),
    /// Signals can't be waited for.
    #[error("cannot wait for signals: {0}")]
    Signals(#[source] std::io::Error),
    /// Nothing can be waited for.
    #[error("cannot set up the event loop: {0}. Try: ulimit -n 1024")]
    Runtime(#[source] std::io::Error),
}

impl RecordError {
    /// The exit code: 2 bad usage, 3 not permitted or not supported here, 1 otherwise.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        let kernel = match self {
            Self::NoTarget | Self::Output(OutputError::Format(_) | OutputError::Same { .. }) => {
                return ExitCode::from(2);
            }
            Self::Kernel(error) | Self::Session(SessionError::Kernel(error)) => Some(error),
            _ => None,
        };
        ExitCode::from(if kernel.is_some_and(KernelError::is_environment) { 3 } else { 1 })
    }
}

/// Runs the command.
///
/// # Errors
/// With what failed and what to do; then nothing is left behind: no child, no file.
pub fn run(options: &Record) -> Result<ExitCode, RecordError> {
    check_target(options)?;
    check_support()?;
    check_frequency(options.frequency.get())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RecordError::Runtime)?;
    runtime.block_on(record(options))
}

pub(crate) fn check_target(options: &Record) -> Result<(), RecordError> {
    let names_processes = !options.pid.is_empty() || options.select.names_processes();
    if !names_processes && !options.all && options.exec.is_empty() {
        return Err(RecordError::NoTarget);
    }
    check_named(&options.pid, &options.select)
}

/// Whether these, and those that are left out by their numbers, are processes that have not ended.
pub(crate) fn check_named(pids: &[u32], select: &SelectOptions) -> Result<(), RecordError> {
    check_pids(pids)?;
    check_pids(&select.excluded_pids())
}

/// Whether these are processes that have not ended.
pub(crate) fn check_pids(pids: &[u32]) -> Result<(), RecordError> {
    for pid in pids.iter().copied().map(Pid) {
        match proc_fs::process_of_thread(pid) {
            // With hidepid=invisible it looks as if there was none.
            Err(error) if proc_fs::exists(pid) => return Err(RecordError::Hidden(pid, error)),
            Err(_none) => return Err(RecordError::NoProcess(pid)),
            Ok(process) if process != pid => return Err(RecordError::Thread(pid, process)),
            Ok(_) if proc_fs::living_thread(pid).is_none() => return Err(RecordError::Ended(pid)),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Every executable costs a descriptor. That the limit can't be raised is found when one can't be
/// opened, and counted.
pub(crate) fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _refused = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

async fn record(options: &Record) -> Result<ExitCode, RecordError> {
    let mut signals = Signals::new().map_err(RecordError::Signals)?;
    let outputs = create_all(&options.output)?;
    let mut launched = match options.exec.as_slice() {
        [] => None,
        command => Some(Launched::start(command)?),
    };
    // After the start: the command keeps the limit that it was given.
    raise_open_files();
    let (mut session, started_ns) = start(options, launched.as_ref()).await?;
    let stopped = wait_for_end(&mut session, options, launched.as_mut(), &mut signals).await?;
    let has_matched = session.has_matched();
    // First of all it stops sampling; the command is told to end while the profile is finished. When
    // there is no profile, there is nothing to wait for either.
    let delivered = async {
        let profile = finish(session, started_ns, &mut signals).await?;
        Ok::<_, RecordError>(deliver(options, &profile, has_matched, outputs))
    };
    let ended = async {
        Ok(match &mut launched {
            Some(launched) => end_command(launched, stopped).await,
            None => None,
        })
    };
    let (delivered, ended) = tokio::try_join!(biased; delivered, ended)?;
    delivered?;
    let Some(launched) = launched else { return Ok(ExitCode::SUCCESS) };
    launched.leave();
    Ok(match stopped {
        // Ended by us for the time, its code says nothing of it.
        Stopped::ByTime => ExitCode::SUCCESS,
        _ => ExitCode::from(ended.map_or(launch::KILLED, launch::exit_code)),
    })
}

/// Begins to sample, lets the command run, and tells when that was (`CLOCK_MONOTONIC`).
pub(crate) async fn start(options: &Record, launched: Option<&Launched>) -> Result<(Session, u64), RecordError> {
    // Nobody waits for those that are not excluded.
    let why = if options.select.names_processes() { RecordError::NoMatchYet } else { RecordError::NoMatch };
    let interest = interest(options, launched).map_err(why)?;
    let about = about(title(options), options.frequency);
    let sources = SourceMap::new(&options.source_map);
    let mut session = Session::build(&load_options(options, &interest)?, interest, about, sources)?;
    if let Some(cache) = table_cache(&options.tables)? {
        session.cache_tables(cache);
    }
    if options.debuginfod {
        session.use_debuginfod(Debuginfod::from_environment()?);
    }
    if let Some(path) = &options.raw {
        session.keep_raw(std::fs::File::create(path).map_err(RecordError::Raw)?);
    }
    session.start().await?;
    let started_ns = clock::monotonic().0;
    if let Some(launched) = launched {
        launched.go();
    }
    Ok((session, started_ns))
}

/// The profile, unless somebody does not want to wait for it.
pub(crate) async fn finish(
    mut session: Session,
    started_ns: u64,
    signals: &mut Signals,
) -> Result<Profile, RecordError> {
    let sampled = tokio::select! {
        biased;
        sampled = session.end(started_ns) => sampled?,
        () = signals.interrupted_again() => return Err(RecordError::Interrupted),
    };
    let waited = tokio::select! {
        biased;
        () = session.fetch_debug_files() => true,
        () = signals.interrupted_anew() => false,
    };
    if !waited {
        session.note("interrupted: debug information of servers that was not there yet is left out".to_owned());
    }
    Ok(session.close(sampled)?)
}

/// Writes and prints the profile, each output as far as it goes: a full disk costs one file.
fn deliver(
    options: &Record,
    profile: &Profile,
    has_matched: bool,
    mut outputs: Vec<Output>,
) -> Result<(), RecordError> {
    let why_empty = report::why_empty(profile, has_matched);
    let written: Vec<_> = outputs.iter_mut().map(|output| output.write(profile)).collect();
    let printed = print(options, profile, why_empty.as_deref());
    let mut failures = Vec::new();
    for (output, written) in outputs.iter().zip(written) {
        match written {
            Ok(()) => cli::complain(&format!("wrote {}", output.path().display())),
            Err(error) => failures.push(error.into()),
        }
    }
    failures.extend(printed.err());
    report::tell(profile, why_empty.as_deref());
    let last: Option<RecordError> = failures.pop();
    for failure in failures {
        cli::complain(&cli::with_causes(&failure));
    }
    last.map_or(Ok(()), Err)
}

/// Prints what was asked for on stdout: the table is the answer when there are no files.
fn print(options: &Record, profile: &Profile, why_empty: Option<&str>) -> Result<(), RecordError> {
    let text = if options.json {
        let mut json = Top::of(profile).json()?;
        json.push(b'\n');
        json
    } else if !options.output.is_empty() {
        return Ok(());
    } else if let Some(why) = why_empty {
        format!("No functions to show: {why}.\n").into_bytes()
    } else {
        Top::of(profile).table(TABLE_ROWS, report::terminal_width()).into_bytes()
    };
    cli::answer(&text).map_err(RecordError::Print)
}

/// What the recording is to be of. Somebody who names processes by what they are wants to know when there is none.
fn interest(options: &Record, launched: Option<&Launched>) -> Result<Interest, NoMatch> {
    let children = !options.no_children;
    let roots: Vec<Pid> = options.pid.iter().copied().map(Pid).collect();
    let selection = options.select.selection();
    let survey = |pids: &[Pid]| match &selection {
        Some(selection) if !options.wait => Survey::of(selection, pids, roots.is_empty()).map(|_some| ()),
        _ => Ok(()),
    };
    let interest = match launched {
        Some(launched) => Interest::launched(launched.pid(), children),
        None if roots.is_empty() => {
            survey(&proc_fs::all_pids().unwrap_or_default())?;
            Interest::node()
        }
        None => {
            let family = family(&roots, children);
            survey(&family)?;
            Interest::processes(family.into_iter().collect(), children)
        }
    };
    Ok(interest.selecting(selection))
}

fn title(options: &Record) -> String {
    let selected = options.select.selection().map(|selection| selection.title()).filter(|title| !title.is_empty());
    let scope = match (options.exec.as_slice(), options.pid.as_slice()) {
        ([], []) => return selected.unwrap_or_else(|| "whole node".to_owned()),
        ([], pids) => title_of(&pids.iter().copied().map(Pid).collect::<Vec<_>>()),
        (command, _) => command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "),
    };
    selected.map_or(scope.clone(), |selected| format!("{selected} of {scope}"))
}

/// These processes, for people.
pub(crate) fn title_of(pids: &[Pid]) -> String {
    let named = pids.iter().map(|pid| match proc_fs::name(*pid) {
        Some(name) => format!("{name} (pid {pid})"),
        None => format!("pid {pid}"),
    });
    named.collect::<Vec<_>>().join(", ")
}

fn load_options(options: &Record, interest: &Interest) -> Result<LoadOptions, KernelError> {
    /// Room for a quarter of a second of samples of this size: at first they bring copies of stacks.
    const USUAL_RECORD_BYTES: u64 = 8 << 10;
    const LEAST_RING_BYTES: u32 = 4 << 20;
    const MOST_RING_BYTES: u32 = 16 << 20;
    const SIDEBAND_BYTES: usize = 16 << 20;
    let cpus = online_cpus()?.len() as u64;
    let quarter_second = cpus * u64::from(options.frequency.get()) * USUAL_RECORD_BYTES / 4;
    let ring_bytes = u32::try_from(quarter_second.next_power_of_two()).unwrap_or(MOST_RING_BYTES);
    Ok(LoadOptions {
        sample_all: interest.samples_all(),
        follow_children: interest.follows_children(),
        frequency_hz: options.frequency.get(),
        row_chunks: row_chunks(&options.tables),
        ring_bytes: ring_bytes.clamp(LEAST_RING_BYTES, MOST_RING_BYTES),
        sideband_bytes: SIDEBAND_BYTES,
        unwind: !options.no_unwind,
        whole_stack: options.raw.is_some(),
        threads: false,
    })
}

/// The pieces of memory that are for unwind rows.
pub(crate) fn row_chunks(options: &TableOptions) -> u32 {
    /// The part of all memory that they are.
    const ROWS_SHARE: u64 = 4;
    u32::try_from(options.memory / ROWS_SHARE / CHUNK_BYTES as u64).unwrap_or(u32::MAX)
}

/// The cache that was asked for; the usual one where it can be had.
pub(crate) fn table_cache(options: &TableOptions) -> Result<Option<TableCache>, TableCacheError> {
    const USUAL: &str = "/var/cache/spanflame";
    match options.table_cache.as_deref() {
        Some(path) if path.as_os_str() == "none" => Ok(None),
        Some(path) => TableCache::open(path).map(Some),
        None if !rustix::process::geteuid().is_root() => Ok(None),
        None => match TableCache::open(&cache_folder::resolved(Path::new(USUAL))) {
            Ok(cache) => Ok(Some(cache)),
            // A read-only system has none, and can do without.
            Err(TableCacheError(FolderError::Open { .. })) => Ok(None),
            Err(unsafe_folder) => {
                cli::complain(&format!("tables are not cached: {unsafe_folder}"));
                Ok(None)
            }
        },
    }
}

pub(crate) async fn wait_for_end(
    session: &mut Session,
    options: &Record,
    mut launched: Option<&mut Launched>,
    signals: &mut Signals,
) -> Result<Stopped, RecordError> {
    let mut child = signal(SignalKind::child()).map_err(RecordError::Signals)?;
    let end = options.duration.map(|duration| Instant::now() + duration);
    let mut rested = Instant::now();
    let mut progress = Progress::new();
    let stopped = loop {
        if launched.as_mut().is_some_and(|launched| launched.ended().is_some()) {
            break Stopped::ByCommand;
        }
        if launched.is_none() && session.all_ended() {
            break Stopped::ProcessesEnded;
        }
        let child_ended = async {
            sleep_until(rested).await;
            child.recv().await;
        };
        let next = async {
            tokio::select! {
                biased;
                signal = signals.next() => Some(Stopped::BySignal { signal, by_keys: by_keys(signal) }),
                () = at(end) => Some(Stopped::ByTime),
                () = child_ended => None,
                () = sleep(Duration::from_secs(1)) => None,
            }
        };
        if let Some(stopped) = session.run_until(next).await {
            break stopped;
        }
        rested = Instant::now() + REST;
        if let Some(launched) = &launched {
            launched.reap_orphans(&session.workers());
        }
        progress.show(session.samples_delivered());
    };
    progress.clear();
    Ok(stopped)
}

/// At this time, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Whether this signal came from the keys of our terminal.
fn by_keys(signal: Signal) -> bool {
    matches!(signal, Signal::INT | Signal::QUIT) && terminal::last_from_keys()
}
