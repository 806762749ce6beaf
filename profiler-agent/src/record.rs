//! `spanflame record`: from a command line to a written profile.

use std::collections::HashSet;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use profiler_common::address::Pid;
use profiler_export::ExportError;
use profiler_export::top::Top;
use profiler_model::{Figures, Profile};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{self, Record};
use crate::kernel::{KernelError, LoadOptions, check_frequency, check_support, online_cpus};
use crate::launch::{self, LaunchError, Launched};
use crate::output::{Output, OutputError};
use crate::session::{Session, SessionError, about, family};
use crate::tracker::Interest;
use crate::{clock, proc_fs};

/// Rows in the table of the hottest functions.
const TABLE_ROWS: usize = 25;

/// How long a command may take to end after it was told to.
const END_OF_COMMAND: Duration = Duration::from_secs(5);

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Nothing to profile was named.
    #[error("say what to profile: -p PID, -a for the whole node, or -- COMMAND")]
    NoTarget,
    /// There is no such process.
    #[error("no process {0}. Find it with: pgrep -a NAME")]
    NoProcess(Pid),
    /// It is a thread.
    #[error("{0} is a thread of process {1}. Use -p {1}")]
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
    /// The result can't be shown.
    #[error("cannot show the result: {0}")]
    Show(#[from] ExportError),
    /// A second signal came while the profile was being finished.
    #[error("interrupted again: nothing was written")]
    Interrupted,
    /// The result can't be printed, or signals can't be waited for.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

impl RecordError {
    /// The exit code: 2 bad usage, 3 not permitted or not supported here, 1 otherwise.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        let kernel = match self {
            Self::NoTarget | Self::Output(OutputError::Format(_)) => return ExitCode::from(2),
            Self::Kernel(error) | Self::Session(SessionError::Kernel(error)) => Some(error),
            _ => None,
        };
        ExitCode::from(if kernel.is_some_and(KernelError::is_environment) { 3 } else { 1 })
    }
}

/// Runs the command.
///
/// # Errors
/// With what failed and what to do; then nothing is left behind: no child, no empty file.
pub fn run(options: &Record) -> Result<ExitCode, RecordError> {
    check_target(options)?;
    check_support()?;
    check_frequency(options.frequency.get())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(record(options))
}

fn check_target(options: &Record) -> Result<(), RecordError> {
    if options.pid.is_empty() && !options.all && options.exec.is_empty() {
        return Err(RecordError::NoTarget);
    }
    for pid in options.pid.iter().copied().map(Pid) {
        match proc_fs::process_of_thread(pid) {
            None => return Err(RecordError::NoProcess(pid)),
            Some(process) if process != pid => return Err(RecordError::Thread(pid, process)),
            Some(_) => {}
        }
    }
    Ok(())
}

/// Every executable costs a descriptor. That the limit can't be raised is found when one can't be
/// opened, and counted.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _refused = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

async fn record(options: &Record) -> Result<ExitCode, RecordError> {
    let mut signals = Signals::new()?;
    let mut outputs = options.output.iter().map(|path| Output::create(path)).collect::<Result<Vec<_>, _>>()?;
    let mut launched = match options.exec.as_slice() {
        [] => None,
        command => Some(Launched::start(command)?),
    };
    // After the start: the command keeps the limit that it was given.
    raise_open_files();
    let interest = interest(options, launched.as_ref());
    let title = title(options);
    let mut session = Session::build(&load_options(options)?, interest, about(title, options.frequency))?;
    session.start()?;
    let started_ns = clock::monotonic().0;
    if let Some(launched) = &launched {
        launched.go();
    }
    let stopped = wait_for_end(&mut session, options, launched.as_mut(), &mut signals).await?;
    let profile = {
        let finish = session.finish(started_ns);
        let interrupted = async {
            match &mut launched {
                Some(launched) => end_command(launched, stopped).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(finish);
        tokio::pin!(interrupted);
        let mut command_over = false;
        loop {
            tokio::select! {
                profile = &mut finish => break profile?,
                () = &mut interrupted, if !command_over => command_over = true,
                _ = signals.next() => return Err(RecordError::Interrupted),
            }
        }
    };
    // Each as far as it goes: a full disk costs one file, not the profile.
    let written: Vec<_> = outputs.iter_mut().map(|output| output.write(&profile)).collect();
    show(options, &profile, &outputs)?;
    written.into_iter().collect::<Result<(), _>>()?;
    if let Some(launched) = &mut launched {
        end_command(launched, stopped).await;
    }
    Ok(match launched.as_mut().and_then(Launched::ended) {
        // Ended by us for the time, its code says nothing of it.
        Some(status) if stopped != Stopped::ByTime => ExitCode::from(launch::exit_code(status)),
        _ => ExitCode::SUCCESS,
    })
}

fn interest(options: &Record, launched: Option<&Launched>) -> Interest {
    if options.all {
        return Interest::All;
    }
    let children = !options.no_children;
    let pids: HashSet<Pid> = match launched {
        Some(launched) => HashSet::from([launched.pid()]),
        None => {
            let roots: Vec<Pid> = options.pid.iter().copied().map(Pid).collect();
            family(&roots, children).into_iter().collect()
        }
    };
    Interest::Only { pids, children, launched: launched.is_some() }
}

fn title(options: &Record) -> String {
    if options.all {
        return "whole node".to_owned();
    }
    if !options.exec.is_empty() {
        return options.exec.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    }
    let named = options.pid.iter().map(|pid| match proc_fs::name(Pid(*pid)) {
        Some(name) => format!("{name} (pid {pid})"),
        None => format!("pid {pid}"),
    });
    named.collect::<Vec<_>>().join(", ")
}

fn load_options(options: &Record) -> Result<LoadOptions, KernelError> {
    /// Room for a quarter of a second of samples of this size.
    const USUAL_RECORD_BYTES: u64 = 2048;
    const LEAST_RING_BYTES: u32 = 1 << 20;
    const MOST_RING_BYTES: u32 = 16 << 20;
    const SIDEBAND_BYTES: usize = 16 << 20;
    /// 32 MiB: 4 million rows. rustc with its LLVM alone has 2.2 million.
    const ROW_CHUNKS: u32 = 8;
    let cpus = online_cpus()?.len() as u64;
    let quarter_second = cpus * u64::from(options.frequency.get()) * USUAL_RECORD_BYTES / 4;
    let ring_bytes = u32::try_from(quarter_second.next_power_of_two()).unwrap_or(MOST_RING_BYTES);
    Ok(LoadOptions {
        sample_all: options.all,
        follow_children: !options.no_children,
        frequency_hz: options.frequency.get(),
        row_chunks: ROW_CHUNKS,
        ring_bytes: ring_bytes.clamp(LEAST_RING_BYTES, MOST_RING_BYTES),
        sideband_bytes: SIDEBAND_BYTES,
        unwind: !options.no_unwind,
        without_cpu: options.without_cpu,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    ByTime,
    BySignal(Signal),
    ByCommand,
    ProcessesEnded,
}

/// The signals that end a recording, from its first step on.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The next one. Cancel-safe.
    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hang_up.recv() => Signal::HUP,
        }
    }
}

async fn wait_for_end(
    session: &mut Session,
    options: &Record,
    mut launched: Option<&mut Launched>,
    signals: &mut Signals,
) -> Result<Stopped, RecordError> {
    let mut child = signal(SignalKind::child())?;
    let end = options.duration.map(|duration| tokio::time::Instant::now() + duration);
    let mut progress = Progress::new();
    loop {
        if launched.as_mut().is_some_and(|launched| launched.ended().is_some()) {
            progress.clear();
            return Ok(Stopped::ByCommand);
        }
        if launched.is_none() && session.all_ended() {
            progress.clear();
            return Ok(Stopped::ProcessesEnded);
        }
        let over = async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        let next = async {
            tokio::select! {
                () = over => Some(Stopped::ByTime),
                signal = signals.next() => Some(Stopped::BySignal(signal)),
                _ = child.recv() => None,
                () = tokio::time::sleep(Duration::from_secs(1)) => None,
            }
        };
        if let Some(stopped) = session.run_until(next).await {
            progress.clear();
            return Ok(stopped);
        }
        if let Some(launched) = &launched {
            launched.reap_orphans();
        }
        progress.show(session.samples_delivered());
    }
}

/// Ends a command that outlived the recording, and all that it started: by the signal that ended us,
/// or by SIGTERM. An interrupt from the terminal went to the command as well. What a command leaves
/// running that ended by itself is left alone.
async fn end_command(launched: &mut Launched, stopped: Stopped) {
    match stopped {
        Stopped::ByCommand => return,
        Stopped::BySignal(Signal::INT) if in_foreground() => {}
        Stopped::BySignal(signal) => launched.signal(signal),
        Stopped::ByTime | Stopped::ProcessesEnded => launched.signal(Signal::TERM),
    }
    let end = tokio::time::Instant::now() + END_OF_COMMAND;
    while (launched.ended().is_none() || launched.is_left()) && tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    launched.signal(Signal::KILL);
}

/// Whether we, and so the command, are what the terminal's keys send signals to.
fn in_foreground() -> bool {
    rustix::termios::tcgetpgrp(std::io::stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// A line on the terminal that says how it goes.
struct Progress {
    terminal: bool,
    started: std::time::Instant,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), started: std::time::Instant::now() }
    }

    fn show(&mut self, samples: u64) {
        if self.terminal {
            let seconds = self.started.elapsed().as_secs();
            let _closed = write!(std::io::stderr(), "\rrecording: {seconds} s, {samples} samples (Ctrl-C stops) ");
        }
    }

    fn clear(&mut self) {
        if self.terminal {
            let _closed = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn show(options: &Record, profile: &Profile, outputs: &[Output]) -> Result<(), RecordError> {
    if options.json {
        let mut json = Top::of(profile).json()?;
        json.push(b'\n');
        cli::answer(&json)?;
    } else if outputs.is_empty() {
        cli::answer(Top::of(profile).table(TABLE_ROWS, terminal_width()).as_bytes())?;
    }
    for output in outputs {
        cli::complain(&format!("wrote {}", output.path().display()));
    }
    cli::complain(&summary(profile));
    cli::complain(&conservation(profile));
    for note in profile.notes() {
        cli::complain(note);
    }
    Ok(())
}

fn summary(profile: &Profile) -> String {
    let figures = Figures::of(profile);
    let quality = &profile.quality;
    let mut text = format!("{} samples in {:.1} s", figures.samples, profile.about().duration_ns as f64 / 1e9);
    if figures.samples > 0 {
        let share = 100.0 * (1.0 - figures.incomplete as f64 / figures.samples as f64);
        text.push_str(&format!(", {share:.1}% of the stacks complete"));
    }
    text.push_str(&format!(", {} lost", quality.samples_lost()));
    if let Some(missed) = quality.missed_by_kernel {
        text.push_str(&format!(", {} missed by the kernel (+- {})", missed.count, missed.uncertainty));
    }
    if figures.samples == 0 {
        text.push_str(". No CPU time was used: idle and waiting threads are not sampled");
    }
    text
}

/// What became of every sample that was taken, each by name.
fn conservation(profile: &Profile) -> String {
    let quality = &profile.quality;
    let mut text = format!("{} taken = {} written", quality.samples_taken, Figures::of(profile).samples);
    for (name, count) in quality.filtered.iter().chain(&quality.lost) {
        text.push_str(&format!(" + {count} {name}"));
    }
    for (name, count) in &quality.errors {
        text.push_str(&format!("; {count} {name}"));
    }
    text
}

fn terminal_width() -> usize {
    rustix::termios::tcgetwinsize(std::io::stdout()).map_or(100, |size| usize::from(size.ws_col).max(60))
}
