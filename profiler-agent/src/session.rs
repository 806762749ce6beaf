//! One recording: every stage, built in the order in which data goes through them, and the loop
//! that moves the data.
//!
//! ```text
//! ring buffer -> Waiting -> locate -> Generated -> Aggregator -> (symbols) -> Profile
//! sideband -> Tracker -> wanted tables -> worker -> Tracker -> kernel maps
//! ```

mod closing;
mod dozing;
mod threads;

use std::collections::HashSet;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io::{self, BufWriter};
use std::path::Path;
use std::time::Duration;

use profiler_common::address::{MonotonicNs, Pid};
use profiler_common::counter::Counter;
use profiler_model::{About, Profile};
use tokio::time::{Instant, sleep_until, timeout_at};

use self::dozing::Dozing;
use self::threads::Picked;
use crate::aggregate::Aggregator;
use crate::bpf_code::BpfCode;
use crate::counts::Counts;
use crate::debuginfod::Debuginfod;
use crate::generated::Generated;
use crate::kernel::counters::Counters;
use crate::kernel::sideband::{Sideband, SidebandEvent};
use crate::kernel::{Kernel, KernelError, LoadOptions, Records, Sampling, Wake};
use crate::missed::BusyTime;
use crate::source_map::SourceMap;
use crate::symbols;
use crate::table_cache::TableCache;
use crate::tracker::{Interest, Tracker};
use crate::waiting::Waiting;
use crate::worker::{Reply, Role, Worker, WorkerError};
use crate::{clock, proc_fs};

/// How often samples are fetched and symbols asked for. Sooner when the kernel says that much waits.
const TICK: Duration = Duration::from_millis(100);

/// How long sampling waits for the first tables. The largest programs take half of it.
const PREPARE: Duration = Duration::from_secs(1);

/// Requests that the worker for tables has at once: one in work, one at hand.
const TABLES_IN_FLIGHT: usize = 2;

/// How long after its time stamp a sideband record is in its ring, as a rule: it is written
/// microseconds later, but an interrupt may come in between, and a virtual CPU may be stopped. What
/// comes later still is applied and counted (`sideband_late`).
const SETTLE_NS: u64 = 5_000_000;

/// How often what is no longer needed is given back.
const TIDY_NS: u64 = 1_000_000_000;

/// Why a recording could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The kernel's side.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The worker processes.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// Waiting for the kernel.
    #[error("cannot wait for the kernel's events: {0}")]
    Wait(#[from] io::Error),
    /// The thread that stops others.
    #[error("cannot start the thread that stops those to be looked at: {0}. Raise the limit: ulimit -u unlimited")]
    Stopper(#[source] io::Error),
}

/// A recording that goes on.
pub(crate) struct Session {
    records: Records,
    sideband: Sideband,
    events: Vec<SidebandEvent>,
    bpf_code: BpfCode,
    waiting: Waiting,
    tracker: Tracker,
    generated: Generated,
    aggregator: Aggregator,
    tables_worker: Worker,
    symbols_worker: Worker,
    generated_worker: Worker,
    counters: Counters,
    counts: Counts,
    wake: Wake,
    next_tick: Instant,
    sampling: Sampling,
    busy: BusyTime,
    tidied: MonotonicNs,
    /// Sideband records up to this time are applied, on all CPUs.
    settled: MonotonicNs,
    frequency_hz: u32,
    raw: Option<BufWriter<File>>,
    /// The threads that are to be seen once each; `None`: all samples are wanted.
    picked: Option<Picked>,
    /// Why threads can't be read while they run on.
    without_threads: Option<KernelError>,
    /// The servers to ask for debug information.
    debuginfod: Option<Debuginfod>,
}

impl Session {
    /// Loads the kernel programs and builds all stages. Nothing is sampled yet.
    pub(crate) fn build(
        options: &LoadOptions,
        interest: Interest,
        about: About,
        sources: SourceMap,
    ) -> Result<Self, SessionError> {
        let program = Path::new("/proc/self/exe");
        let tables_worker = Worker::spawn(Role::Tables, program)?;
        let symbols_worker = Worker::spawn(Role::Symbols, program)?;
        let Kernel { records, sideband, tables, followed, counters, sampling, without_threads, .. } =
            Kernel::load(options)?;
        let wake = Wake::on(&records, &sideband)?;
        let mut tracker = Tracker::new(interest, tables, followed);
        tracker.follow()?;
        Ok(Self {
            records,
            sideband,
            events: Vec::new(),
            bpf_code: BpfCode::default(),
            waiting: Waiting::default(),
            tracker,
            generated: Generated::default(),
            aggregator: Aggregator::new(Profile::new(about), sources),
            tables_worker,
            symbols_worker,
            generated_worker: Worker::later(Role::Generated, program),
            counters,
            counts: Counts::default(),
            wake,
            next_tick: Instant::now(),
            sampling,
            busy: BusyTime::start(),
            tidied: MonotonicNs(0),
            settled: MonotonicNs(0),
            frequency_hz: options.frequency_hz,
            raw: None,
            picked: None,
            without_threads,
            debuginfod: None,
        })
    }

    /// Reads what is mapped already, has the tables of the processes that were asked for built, and
    /// starts sampling. Stacks deeper than a stack copy would be cut until their table is there.
    pub(crate) async fn start(&mut self) -> Result<(), SessionError> {
        self.prepare(PREPARE).await;
        self.busy = BusyTime::start();
        self.sampling.start()?;
        Ok(())
    }

    /// Reads what is mapped already, and has the tables of it built, for as long as this.
    async fn prepare(&mut self, limit: Duration) {
        self.tracker.scan_all();
        self.tracker.publish();
        self.request_tables();
        let deadline = Instant::now() + limit;
        while self.tables_worker.pending() > 0 {
            let Ok(reply) = timeout_at(deadline, self.tables_worker.next_reply()).await else { break };
            self.answered(reply);
        }
    }

    /// Keeps tables that take long to build there.
    pub(crate) fn cache_tables(&mut self, cache: TableCache) {
        self.tracker.cache = Some(cache);
    }

    /// Asks servers for debug information at the end.
    pub(crate) fn use_debuginfod(&mut self, debuginfod: Debuginfod) {
        self.symbols_worker.use_downloaded(debuginfod.cache());
        self.debuginfod = Some(debuginfod);
    }

    /// Adds a sentence for the user.
    pub(crate) fn note(&mut self, sentence: String) {
        self.counts.note(sentence);
    }

    /// Writes every record to `file` as well: the number of its words, then the words.
    pub(crate) fn keep_raw(&mut self, file: File) {
        self.raw = Some(BufWriter::new(file));
    }

    /// Samples so far.
    pub(crate) fn samples_delivered(&self) -> u64 {
        self.counters.total(Counter::SamplesDelivered).unwrap_or(0)
    }

    /// Has processes that ended kept until the recording ends.
    pub(crate) fn keep_ended(&mut self) {
        self.tracker.keeps_ended = true;
    }

    /// What is known of processes and what they have mapped.
    pub(crate) const fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    /// The children that are ours to wait for.
    pub(crate) fn workers(&self) -> [Option<Pid>; 3] {
        [&self.tables_worker, &self.symbols_worker, &self.generated_worker].map(|worker| worker.child_id().map(Pid))
    }

    /// Whether there was a process of interest, now or before.
    pub(crate) fn has_matched(&self) -> bool {
        self.tracker.has_matched()
    }

    /// Whether all processes of interest have ended.
    pub(crate) fn all_ended(&self) -> bool {
        self.tracker.all_ended()
    }

    /// Moves data until `stop` is over.
    pub(crate) async fn run_until<T>(&mut self, stop: impl Future<Output = T>) -> T {
        let mut stop = std::pin::pin!(stop);
        let mut tick = std::pin::pin!(sleep_until(self.next_tick));
        let dozing = Dozing::new();
        loop {
            tokio::select! {
                biased;
                // The most frequent one goes first: to ask the others costs as much as to drain a ring.
                () = self.wake.due(&self.sideband) => {
                    if !self.drain() {
                        self.wake.calm();
                    }
                }
                result = poll_fn(|context| dozing.poll(stop.as_mut(), context)) => return result,
                () = &mut tick => {
                    self.tick();
                    tick.as_mut().reset(self.next_tick);
                }
                reply = self.tables_worker.next_reply() => self.answered(reply),
                reply = self.symbols_worker.next_reply() => self.answered(reply),
                reply = self.generated_worker.next_reply() => self.answered(reply),
            }
        }
    }

    /// Fetches what waits in the kernel's rings. Returns whether more is to come: there were sideband records, or some
    /// are not applied yet.
    fn drain(&mut self) -> bool {
        let settled = MonotonicNs(clock::monotonic().0.saturating_sub(SETTLE_NS));
        while let Some(record) = self.records.take() {
            if let Some(picked) = &mut self.picked {
                picked.offer(record);
                continue;
            }
            if let Some(raw) = &mut self.raw
                && let Err(error) = write_raw(raw, record)
            {
                self.counts.note(format!("not all records were written: {error}"));
                self.raw = None;
            }
            self.waiting.push(record);
        }
        let left = self.events.len();
        self.sideband.drain(&mut self.events);
        self.bpf_code.take_from(&mut self.events);
        let new = self.events.get_mut(left..).unwrap_or_default();
        self.tracker.learn(new);
        let hurry = self.tracker.open_early(new, settled);
        self.wake.pace(hurry);
        let has_news = !self.events.is_empty();
        self.tracker.apply(&mut self.events, settled);
        self.settled = self.tracker.known_up_to();
        self.request_tables();
        has_news
    }

    fn tick(&mut self) {
        let now = clock::monotonic();
        self.drain();
        self.settle();
        if self.tracker.pause(std::mem::take(&mut self.waiting.unwanted), &self.events) {
            // The kernel sampled it again if it has executed a program since the last look, and was told not to.
            self.drain();
        }
        if now.0.saturating_sub(self.tidied.0) >= TIDY_NS {
            self.tidied = now;
            let oldest = [self.waiting.oldest(), self.generated.oldest()].into_iter().flatten().min();
            self.tracker.tidy(now, oldest.unwrap_or(self.settled).min(self.settled));
        }
        self.generated.request(&mut self.generated_worker, &self.tracker, false);
        symbols::request(&mut self.aggregator, &self.tracker, &mut self.symbols_worker);
        self.next_tick = Instant::now() + TICK;
    }

    fn settle(&mut self) {
        let Self { waiting, tracker, generated, aggregator, counts, settled, .. } = self;
        let mut refused = HashSet::new();
        let needed = waiting.settle(*settled, tracker, counts, |sample| {
            if tracker.is_refused(sample.header.pid) {
                refused.insert(sample.header.pid);
            }
            generated.add(sample, aggregator, tracker);
        });
        for pid in refused {
            self.counts.note(format!(
                "process {pid} could not be looked at, so its stacks are cut: /proc/{pid}/maps was refused. Run as \
                 root, or with CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH and CAP_CHECKPOINT_RESTORE"
            ));
        }
        for file in needed {
            self.tracker.demand(file);
        }
        self.request_tables();
    }

    /// The worker gets few requests at a time, so that what samples wait for goes before the rest.
    fn request_tables(&mut self) {
        while self.tables_worker.pending() < TABLES_IN_FLIGHT
            && let Some(wanted) = self.tracker.take_wanted()
        {
            // Its queue is far from full.
            let _asked = self.tables_worker.request_table(wanted.key, wanted.file, wanted.place);
        }
    }

    fn answered(&mut self, reply: Reply) {
        match reply {
            Reply::Table { key, file, result, source, contents } => {
                let result = self.tracker.unless_rewritten((key, &file), result);
                self.tracker.note_contents(key, contents.filter(|_| result.is_ok()));
                self.tracker.keep_table(&file, &result, source);
                self.tracker.table_built(key, result);
                self.request_tables();
                self.settle();
            }
            Reply::Symbols { key, file, result, lacking } => {
                let result = self.tracker.unless_rewritten((key, &file), result);
                let executable = self.tracker.executable(key);
                let first = self.aggregator.wanted.first(key);
                if let Some(debuginfod) = &mut self.debuginfod {
                    match &result {
                        Ok(_) => debuginfod.lacks(first, executable, lacking),
                        // What was known before stays.
                        Err(why) if debuginfod.is_second(key) => {
                            return debuginfod.failed(key, &why.to_string(), &mut self.counts);
                        }
                        Err(_) => {}
                    }
                }
                let path = executable.map_or("", |executable| executable.path.as_str());
                symbols::answered(&mut self.aggregator, &mut self.counts, (key, path), result);
                symbols::request(&mut self.aggregator, &self.tracker, &mut self.symbols_worker);
            }
            Reply::Generated { key, result } => {
                self.generated.answered(key, result, (&mut self.aggregator, &self.tracker, &mut self.counts));
            }
            // No worker of ours has such requests.
            Reply::Description { .. } => {}
        }
    }
}

fn write_raw(raw: &mut impl io::Write, record: &[u64]) -> io::Result<()> {
    let length = record.len() as u64;
    [length].iter().chain(record).try_for_each(|word| raw.write_all(&word.to_ne_bytes()))
}

/// What the profile says about where it was made.
pub(crate) fn about(title: String, frequency_hz: std::num::NonZeroU32) -> About {
    let system = rustix::system::uname();
    About {
        title,
        host: system.nodename().to_string_lossy().into_owned(),
        kernel_release: system.release().to_string_lossy().into_owned(),
        sample_rate_hz: frequency_hz,
        start_unix_ns: clock::unix_ns(),
        duration_ns: 0,
    }
}

/// All processes that a recording of `roots` begins with.
pub(crate) fn family(roots: &[Pid], children: bool) -> Vec<Pid> {
    if children { proc_fs::with_descendants(roots).unwrap_or_else(|_unlisted| roots.to_vec()) } else { roots.to_vec() }
}
