//! Looking at threads until each was seen once: those off the CPU where they stand, the others by their
//! next sample.
//!
//! A thread that stands is read between two looks at its switch count: it did not move meanwhile when
//! neither look finds it on a CPU and the count is the same.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::{Duration, Instant};

use profiler_common::address::{Cpu, Pid, Tid};
use profiler_common::record::{OTHER_REGISTER_WORDS, SampleHeader, StopReason};
use profiler_common::thread::{FLAG_32_BIT, FLAG_ON_CPU, FLAG_USER, Thread as Record};

use super::memory::ThreadMemory;
use super::status::Status;
use crate::kernel::Stopper;
use crate::locate::LocatedSample;
use crate::session::{Session, SessionError};
use crate::{clock, proc_fs};

/// How long threads are looked at that switch too often to be read, or run too little to be sampled.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long one thread is waited for to stop, before others are looked at.
const STOP: Duration = Duration::from_millis(10);

/// From one look to the next, when threads are left.
const PAUSE: Duration = Duration::from_millis(1);

/// The state of a thread that a tracer stopped (proc_pid_stat(5)).
const TRACED: char = 't';

/// A thread that was there at the first look.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) pid: Pid,
    pub(super) comm: [u8; 16],
    pub(super) sight: Sight,
}

/// What became of a thread.
#[derive(Debug)]
pub(super) enum Sight {
    /// It is still to be seen.
    Awaited,
    /// Its stack is in the session.
    Stack(Status),
    /// It has ended meanwhile.
    Ended,
    /// It could not be read; why.
    Nothing(Status, String),
}

impl Sight {
    /// Of a thread that has ended, and is still listed.
    fn zombie(status: Status) -> Self {
        Self::Nothing(status, "it has ended, and nobody has waited for it".to_owned())
    }

    /// Of a thread that was not seen; why, if it is there still.
    fn missed(pid: Pid, tid: Tid, why: String) -> Self {
        Status::of((pid, tid), false).map_or(Self::Ended, |status| Self::Nothing(status, why))
    }
}

/// All threads of the first look, by number.
pub(super) type Threads = std::collections::BTreeMap<Tid, Seen>;

/// A stack that was read, and the switch count before.
struct Candidate {
    switches: u64,
    status: Status,
    sample: LocatedSample,
}

/// Sees every thread of the processes that the session follows.
pub(super) async fn in_place(session: &mut Session) -> Result<Threads, SessionError> {
    let end = Instant::now() + PATIENCE;
    let mut threads: Option<Threads> = None;
    loop {
        let words = session.threads()?;
        let records = by_number(&words);
        let threads = threads.get_or_insert_with(|| {
            let seen = |record: &Record<'_>| Seen { pid: record.pid, comm: record.comm, sight: Sight::Awaited };
            records.iter().map(|(tid, record)| (*tid, seen(record))).collect()
        });
        let give_up = Instant::now() > end;
        let candidates = read(session, threads, &records, give_up);
        let words = session.threads()?;
        confirm(session, threads, candidates, &by_number(&words));
        if give_up {
            give_up_on(threads);
        }
        let left: HashSet<Tid> = awaited(threads).map(|(tid, _seen)| *tid).collect();
        session.pick(left.clone())?;
        if left.is_empty() {
            return Ok(std::mem::take(threads));
        }
        let unseen = session.wait(PAUSE).await;
        for tid in left.difference(unseen) {
            if let Some(seen) = threads.get_mut(tid) {
                seen.sight = Sight::Stack(Status::RUNNING);
            }
        }
    }
}

fn awaited(threads: &mut Threads) -> impl Iterator<Item = (&Tid, &mut Seen)> {
    threads.iter_mut().filter(|(_tid, seen)| matches!(seen.sight, Sight::Awaited))
}

fn by_number(words: &[u64]) -> HashMap<Tid, Record<'_>> {
    let mut rest = words;
    let records = std::iter::from_fn(|| {
        let (record, after) = Record::decode(rest)?;
        rest = after;
        Some((record.tid, record))
    });
    records.collect()
}

/// Takes in what was read of threads that have not moved since.
fn confirm(
    session: &mut Session,
    threads: &mut Threads,
    candidates: Vec<Candidate>,
    records: &HashMap<Tid, Record<'_>>,
) {
    for Candidate { switches, status, sample } in candidates {
        let tid = sample.header.tid;
        let stood = |record: &&Record<'_>| record.flags & FLAG_ON_CPU == 0 && record.switches == switches;
        if let (Some(seen), Some(_)) = (threads.get_mut(&tid), records.get(&tid).filter(stood)) {
            seen.sight = Sight::Stack(status);
            session.take_in(sample);
        }
    }
}

/// Reads the awaited threads that stand.
fn read(
    session: &mut Session,
    threads: &mut Threads,
    records: &HashMap<Tid, Record<'_>>,
    give_up: bool,
) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for (tid, seen) in awaited(threads) {
        let Some(record) = records.get(tid).filter(|record| record.pid == seen.pid) else {
            seen.sight = Sight::Ended;
            continue;
        };
        if record.flags & FLAG_ON_CPU != 0 {
            continue;
        }
        let Some(status) = Status::of((seen.pid, *tid), record.flags & FLAG_32_BIT != 0) else { continue };
        if status.is_over() {
            seen.sight = Sight::zombie(status);
            continue;
        }
        let mut other = [0; OTHER_REGISTER_WORDS];
        other.copy_from_slice(record.other_registers);
        let mut memory = ThreadMemory::new(record.tid, other, record.thread_pointer);
        let located = session.locate(header(record), record.kernel_frames, &mut memory, give_up);
        if let Some(sample) = located {
            candidates.push(Candidate { switches: record.switches, status, sample });
        }
    }
    candidates
}

fn header(record: &Record<'_>) -> SampleHeader {
    let stop = if record.flags & FLAG_32_BIT != 0 {
        StopReason::Process32Bit
    } else if record.flags & FLAG_USER == 0 {
        StopReason::NoUserStack
    } else {
        StopReason::Complete
    };
    SampleHeader {
        time: clock::monotonic(),
        pid: record.pid,
        tid: record.tid,
        cpu: Cpu(0),
        generation: 0,
        comm: record.comm,
        kernel_mode: true,
        whole_stack: false,
        stop,
        registers: record.registers,
    }
}

fn give_up_on(threads: &mut Threads) {
    let why = format!("it runs too little to be sampled, and too often to be read in {} s", PATIENCE.as_secs());
    for (tid, seen) in awaited(threads) {
        seen.sight = Sight::missed(seen.pid, *tid, why.clone());
    }
}

/// Sees every thread of these processes by stopping it for a moment.
pub(super) async fn by_stopping(session: &mut Session, processes: &[Pid]) -> Result<Threads, SessionError> {
    let end = Instant::now() + PATIENCE;
    let stopper = Stopper::start().map_err(SessionError::Stopper)?;
    let mut threads = Threads::new();
    let mut before = HashMap::new();
    for pid in processes {
        for tid in proc_fs::threads(*pid) {
            threads.insert(tid, Seen { pid: *pid, comm: proc_fs::comm(tid), sight: Sight::Awaited });
        }
    }
    loop {
        let mut left = false;
        for (tid, seen) in awaited(&mut threads) {
            let now = Instant::now();
            if now > end + PATIENCE {
                seen.sight = Sight::missed(seen.pid, *tid, "there was no time left to stop it".to_owned());
                continue;
            }
            let Some(status) = status_before_stops(&mut before, (seen.pid, *tid)) else {
                seen.sight = Sight::Ended;
                continue;
            };
            match stop_and_read(session, &stopper, (*tid, status), seen, now > end).await {
                Some(sight) => seen.sight = sight,
                None => left = true,
            }
        }
        if !left {
            return Ok(threads);
        }
        session.wait(PAUSE).await;
    }
}

/// What /proc says of a thread; what it said before we told the thread to stop, where that stop is all that it says now.
fn status_before_stops(before: &mut HashMap<Tid, Status>, (pid, tid): (Pid, Tid)) -> Option<Status> {
    let now = Status::of((pid, tid), false)?;
    if now.state == TRACED {
        return Some(before.get(&tid).cloned().unwrap_or(now));
    }
    before.insert(tid, now.clone());
    Some(now)
}

/// `None` when it has to wait for a table, or until the thread stops.
async fn stop_and_read(
    session: &mut Session,
    stopper: &Stopper,
    (tid, status): (Tid, Status),
    seen: &Seen,
    give_up: bool,
) -> Option<Sight> {
    if status.is_over() {
        return Some(Sight::zombie(status));
    }
    let limit = if status.state == 'D' { Duration::ZERO } else { STOP };
    let read = stopper.while_stopped(tid, limit, |stopped| {
        let flags = FLAG_USER | if stopped.is_32_bit { FLAG_32_BIT } else { 0 };
        let (pid, comm, registers) = (seen.pid, seen.comm, stopped.registers);
        let other_registers = stopped.other.as_slice();
        let (thread_pointer, kernel_frames) = (stopped.thread_pointer, [].as_slice());
        let record =
            Record { pid, tid, comm, switches: 0, flags, registers, thread_pointer, other_registers, kernel_frames };
        let mut memory = ThreadMemory::new(tid, stopped.other, thread_pointer);
        session.locate(header(&record), &[], &mut memory, give_up).map(|sample| (sample, stopped.is_32_bit))
    });
    match read.await {
        Ok(None) => None,
        Ok(Some((sample, is_32_bit))) => {
            session.take_in(sample);
            let system_call = status.system_call.map(|call| if is_32_bit { call.without_name() } else { call });
            Some(Sight::Stack(Status { system_call, ..status }))
        }
        Err(error) if error.kind() == io::ErrorKind::TimedOut => give_up.then(|| {
            let why = format!("it did not stop in {} s: nothing interrupts the call that it is in", PATIENCE.as_secs());
            Sight::missed(seen.pid, tid, why)
        }),
        Err(error) => Some(Sight::missed(seen.pid, tid, format!("it can't be stopped: {error}"))),
    }
}
