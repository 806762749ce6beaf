//! `spanflame doctor`: how well a process can be profiled, where its stacks break, and what to do.
//!
//! ```text
//! record for 2 s -> Profile ---------------------------> broken stacks -> Fix
//!                 -> Tracker -> worker (descriptions) -> code ----------> Fix -> Report
//! ```
//!
//! | file | what |
//! |---|---|
//! | `family` | the process and its children, and which of them works |
//! | `code` | the files that they run, and what each offers |
//! | `generated` | the code that it makes at run time, and where it tells of it |
//! | `run_time` | which run time makes it |
//! | `packages` | which package a file is of |
//! | `fix`, `advice` | what can be done, and when |
//! | `report`, `text` | the answer, for programs and for people |

mod advice;
mod code;
mod family;
mod fix;
#[cfg(test)]
mod fixture;
mod generated;
mod packages;
mod report;
mod run_time;
mod text;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use profiler_common::address::Pid;
use profiler_model::Profile;

use self::code::Code;
use self::family::Member;
use self::generated::Generated;
use self::packages::Packages;
use self::report::{Findings, Report};
use self::run_time::RunTime;
use crate::cli::{self, Doctor, Record};
use crate::debuginfod::Debuginfod;
use crate::kernel::{check_frequency, check_support};
use crate::record::{self, RecordError};
use crate::select::{SelectOptions, Survey};
use crate::signals::Signals;
use crate::{proc_fs, report as terminal};

/// Runs the command.
///
/// # Errors
/// When the process can't be looked at. What is found out about it is no error.
pub fn run(options: &Doctor) -> Result<ExitCode, RecordError> {
    record::check_named(options.pid.as_slice(), &options.select)?;
    let pid = named(options)?;
    let record = recording(options, pid);
    record::check_target(&record)?;
    let report = if proc_fs::is_kernel_thread(pid) {
        Report::of_kernel_thread(pid)
    } else {
        check_support()?;
        check_frequency(options.frequency.get())?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RecordError::Runtime)?;
        runtime.block_on(examine(pid, &record))?
    };
    let text = if options.json {
        report.json().map_err(RecordError::Json)?
    } else {
        // Who reads it from a file has room.
        let width = if std::io::stdout().is_terminal() { terminal::terminal_width() } else { usize::MAX };
        text::text(&report, width)
    };
    cli::answer(text.as_bytes()).map_err(RecordError::Print)?;
    Ok(ExitCode::SUCCESS)
}

/// The process that is to be looked at.
fn named(options: &Doctor) -> Result<Pid, RecordError> {
    let pids = match options.pid.map(Pid) {
        Some(pid) => vec![pid],
        None => proc_fs::all_pids().unwrap_or_default(),
    };
    match options.select.selection() {
        Some(selection) => Ok(Survey::of(&selection, &pids, options.pid.is_none())?.root()?),
        // The command line has one of the two.
        None => options.pid.map(Pid).ok_or(RecordError::NoTarget),
    }
}

/// The recording that it makes.
fn recording(options: &Doctor, pid: Pid) -> Record {
    Record {
        pid: vec![pid.0],
        all: false,
        no_children: options.no_children,
        // What else was asked for says which process.
        select: SelectOptions { exclude: options.select.exclude.clone(), ..SelectOptions::default() },
        wait: false,
        duration: Some(options.duration),
        frequency: options.frequency,
        tables: options.tables.clone(),
        debuginfod: options.debuginfod,
        output: Vec::new(),
        source_map: Vec::new(),
        json: options.json,
        raw: None,
        no_unwind: false,
        exec: Vec::new(),
    }
}

async fn examine(named: Pid, options: &Record) -> Result<Report, RecordError> {
    // Of those that end meanwhile.
    let (packages, command) = (Packages::of(named), proc_fs::command_line(named));
    let Sampled { profile, mut code, generated, family } = sample(named, options).await?;
    if code.is_empty() && proc_fs::living_thread(named).is_none() {
        // It ended before anything of it was seen.
        return Err(RecordError::Ended(named));
    }
    let pid = family::who_works(named, &family);
    let (packages, command) =
        if pid == named { (packages, command) } else { (Packages::of(pid), proc_fs::command_line(pid)) };
    let downloaded = options.debuginfod.then(Debuginfod::from_environment).transpose()?;
    code::describe(&mut code, downloaded.map(|debuginfod| debuginfod.cache())).await?;
    code::count(&mut code, &profile);
    let run_time = RunTime::of(code.iter().map(|code| code.path.as_str()), &command);
    let files = code.iter().filter(|code| code.description().is_some());
    let owners = packages.owners(&files.map(|code| code.path.as_str()).collect::<Vec<_>>());
    Ok(Report::of(Findings { named, pid, family, run_time, command, profile, code, generated, packages, owners }))
}

/// What a recording brought.
struct Sampled {
    profile: Profile,
    code: Vec<Code>,
    generated: Generated,
    family: Vec<Member>,
}

/// Samples the process and its children, and notes what they have mapped while they are there.
async fn sample(named: Pid, options: &Record) -> Result<Sampled, RecordError> {
    let mut signals = Signals::new().map_err(RecordError::Signals)?;
    record::raise_open_files();
    let (mut session, started_ns) = record::start(options, None).await?;
    session.keep_ended();
    let _for_whatever_reason = record::wait_for_end(&mut session, options, None, &mut signals).await?;
    let mut family = family::members(session.tracker(), named);
    let code = code::of_processes(session.tracker(), family.iter().map(|member| Pid(member.pid)));
    let mut told = Vec::new();
    for member in family.iter().take(family::MOST_TOLD) {
        let pid = Pid(member.pid);
        told.push((pid, Generated::of_process(session.tracker(), pid).await));
    }
    let profile = record::finish(session, started_ns, &mut signals).await?;
    family::count(&mut family, &profile);
    let works = family::who_works(named, family.get(..family::MOST_TOLD).unwrap_or(&family));
    let generated = told.into_iter().find(|(pid, _generated)| *pid == works);
    Ok(Sampled { profile, code, generated: generated.unwrap_or_default().1, family })
}
