//! The threads of processes at one moment, each with its stack: text for people, JSON for programs.

use std::collections::HashMap;
use std::fmt::Write as _;

use indexmap::IndexMap;
use profiler_model::{Bias, Profile, Sample, clean};
use serde::Serialize;

use crate::ExportError;
use crate::folded::INCOMPLETE;
use crate::frame::{Mark, frames};

/// The system call that a thread waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SystemCall {
    /// Its number.
    pub number: u64,
    /// Its name, if that is known.
    pub name: Option<&'static str>,
}

impl SystemCall {
    /// The number alone.
    #[must_use]
    pub const fn without_name(self) -> Self {
        Self { name: None, ..self }
    }
}

/// What is known of a thread beside its stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its process.
    pub pid: u32,
    /// Its number. Its stack is the first one in the profile that is labelled so.
    pub tid: u32,
    /// Its name; whatever it chose.
    pub name: String,
    /// As in `/proc/PID/stat`: R runs or waits for a CPU, S waits, D waits and can't be interrupted, T is
    /// stopped, t is traced, Z has ended, I is an idle kernel thread.
    pub state: char,
    /// The system call that it waits in.
    pub system_call: Option<SystemCall>,
    /// Why there is no stack, if so.
    pub unseen: Option<String>,
}

/// A process and its threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Its threads.
    pub threads: Vec<Thread>,
}

/// One function of a stack.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
struct Frame<'p> {
    function: String,
    /// The source file; empty when not known.
    file: &'p str,
    /// The line in it; 0 when not known.
    line: u32,
    /// The file that holds the code.
    object: &'p str,
    /// The address as that file states it, in memory where it is generated code or the kernel's: a number in
    /// base 16, as 64 bits are too many for some readers of JSON.
    address: String,
    /// What is special about it.
    mark: Option<Mark>,
}

/// A stack, the innermost function first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Stack<'p> {
    frames: Vec<Frame<'p>>,
    /// Why its outermost callers are missing, if so.
    incomplete: Option<&'static str>,
}

#[derive(Serialize)]
struct ThreadJson<'a> {
    tid: u32,
    name: &'a str,
    state: char,
    system_call: Option<SystemCall>,
    frames: &'a [Frame<'a>],
    incomplete: Option<&'a str>,
    unseen: Option<&'a str>,
}

#[derive(Serialize)]
struct ProcessJson<'a> {
    pid: u32,
    name: &'a str,
    threads: Vec<ThreadJson<'a>>,
}

#[derive(Serialize)]
struct DumpJson<'a> {
    processes: Vec<ProcessJson<'a>>,
    notes: Vec<&'a str>,
}

/// The processes with the stacks that a profile has of their threads.
pub struct Dump<'p> {
    processes: Vec<Process>,
    stacks: HashMap<u32, Stack<'p>>,
    notes: Vec<&'p str>,
}

impl<'p> Dump<'p> {
    /// Looks up the stack of every thread.
    #[must_use]
    pub fn new(profile: &'p Profile, mut processes: Vec<Process>) -> Self {
        let mut stacks = HashMap::new();
        for sample in profile.samples() {
            stacks.entry(sample.labels.tid.0).or_insert_with(|| stack(profile, &sample));
        }
        for process in &mut processes {
            process.name = clean(&process.name).into_owned();
            for thread in &mut process.threads {
                thread.name = clean(&thread.name).into_owned();
            }
        }
        Self { processes, stacks, notes: profile.notes().collect() }
    }

    fn stack(&self, thread: &Thread) -> &Stack<'p> {
        const NONE: &Stack<'static> = &Stack { frames: Vec::new(), incomplete: None };
        self.stacks.get(&thread.tid).unwrap_or(NONE)
    }

    /// A block for each stack: a line `TID name state [system call]` for each thread that has it, then the
    /// functions, innermost first. What runs goes first, then what waits and can't be interrupted, then
    /// the rest, each in the order of the threads' numbers.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for process in &self.processes {
            let many = if process.threads.len() == 1 { "" } else { "s" };
            // Writing to a string does not fail.
            let _ = writeln!(text, "process {} {}: {} thread{many}", process.pid, process.name, process.threads.len());
            for (stack, threads) in self.groups(process) {
                text.push('\n');
                for thread in &threads {
                    let _ = writeln!(text, "{}", heading(thread));
                }
                let unseen = threads.first().and_then(|thread| thread.unseen.as_deref());
                write_stack(&mut text, stack, unseen);
            }
            text.push('\n');
        }
        text
    }

    /// The threads of a process by their stacks and states.
    fn groups<'a>(&'a self, process: &'a Process) -> Vec<(&'a Stack<'p>, Vec<&'a Thread>)> {
        let mut groups: IndexMap<(&Stack<'p>, char, Option<&str>), Vec<&Thread>> = IndexMap::new();
        for thread in &process.threads {
            let key = (self.stack(thread), thread.state, thread.unseen.as_deref());
            groups.entry(key).or_default().push(thread);
        }
        let rank = |state: char| match state {
            'R' => 0,
            'D' => 1,
            _ => 2,
        };
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_by_key(|((_stack, state, _unseen), _threads)| rank(*state));
        groups.into_iter().map(|((stack, ..), threads)| (stack, threads)).collect()
    }

    /// For programs: one JSON object, in one line.
    ///
    /// # Errors
    /// When serializing fails.
    pub fn json(&self) -> Result<Vec<u8>, ExportError> {
        let thread = |thread| {
            let Thread { tid, name, state, system_call, unseen, .. }: &Thread = thread;
            let Stack { frames, incomplete } = self.stack(thread);
            ThreadJson {
                tid: *tid,
                name,
                state: *state,
                system_call: *system_call,
                frames,
                incomplete: *incomplete,
                unseen: unseen.as_deref(),
            }
        };
        let processes = self.processes.iter().map(|process| ProcessJson {
            pid: process.pid,
            name: &process.name,
            threads: process.threads.iter().map(thread).collect(),
        });
        let dump = DumpJson { processes: processes.collect(), notes: self.notes.clone() };
        serde_json::to_vec(&dump).map_err(|source| ExportError::Json { functions: 0, source })
    }
}

/// `TID name state [system call]`.
fn heading(thread: &Thread) -> String {
    let mut line = format!("{} {} {}", thread.tid, thread.name, thread.state);
    match thread.system_call {
        Some(SystemCall { name: Some(name), .. }) => line.push_str(&format!(" [{name}]")),
        Some(SystemCall { number, name: None }) => line.push_str(&format!(" [system call {number}]")),
        None => {}
    }
    line
}

fn write_stack(text: &mut String, stack: &Stack<'_>, unseen: Option<&str>) {
    for frame in &stack.frames {
        let mark = frame.mark.map_or("", Mark::suffix);
        let place = match (frame.file, frame.line) {
            ("", _) if frame.mark == Some(Mark::Kernel) || frame.object.starts_with('[') => String::new(),
            ("", _) => format!("  [{}]", frame.object.rsplit('/').next().unwrap_or_default()),
            (file, 0) => format!("  {file}"),
            (file, line) => format!("  {file}:{line}"),
        };
        let _ = writeln!(text, "    {}{mark}{place}", frame.function);
    }
    if let Some(reason) = stack.incomplete {
        let _ = writeln!(text, "    {INCOMPLETE}{reason}]");
    }
    if let Some(why) = unseen {
        let _ = writeln!(text, "    [not seen: {}]", clean(why));
    }
}

fn stack<'p>(profile: &'p Profile, sample: &Sample<'p>) -> Stack<'p> {
    let mut stack = Stack { frames: Vec::new(), incomplete: None };
    let doubtful: Vec<usize> = profile.callers_perhaps_missing(sample.stack).collect();
    for (place, id) in sample.stack.iter().enumerate() {
        let key = profile.location_key(*id);
        let mapping = key.mapping.map(|mapping| &profile[mapping]);
        let object = mapping.map_or("", |mapping| &profile[mapping.path]);
        let bias = mapping.map_or(Bias(0), |mapping| mapping.bias);
        for frame in frames(profile, *id) {
            stack.frames.push(Frame {
                function: frame.name.into_owned(),
                file: frame.line.map_or("", |line| &profile[profile[line.function].file]),
                line: frame.line.map_or(0, |line| line.line),
                object,
                address: key.address.in_file(bias).to_string(),
                mark: frame.mark,
            });
        }
        if doubtful.contains(&place)
            && let Some(last) = stack.frames.last_mut()
        {
            last.mark = Some(Mark::CallerMayBeMissing);
        }
    }
    if sample.labels.incomplete() {
        stack.incomplete = Some(sample.labels.stop.name());
    }
    stack
}
