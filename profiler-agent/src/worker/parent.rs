//! The agent's side of a worker: its queue, its time limit, its restarts.

use std::collections::VecDeque;
use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use profiler_common::address::Svma;
use tokio::time::{Instant, timeout_at};

use super::flight::{Answer, Flight, Known, Request};
use super::link::Link;
use super::message::{MAX_ADDRESSES, Status};
use super::{FileKey, MapKey, Question, Reply, Role, WorkerFailure, name_message};
use crate::debug_files::Place;
use crate::debuginfod::DebugCache;

/// Requests that may wait: each holds a file descriptor open. More are refused, for the caller to
/// count.
pub const QUEUE_REQUESTS: usize = 1024;

/// Why a worker could not be started.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No socket pair.
    #[error("cannot make a worker's socket (is the limit of open files high enough: ulimit -n?)")]
    Socket(#[source] io::Error),
    /// The program did not start.
    #[error("cannot start {program} as a worker (is /proc mounted, is the limit of processes high enough: ulimit -u?)")]
    Start {
        /// The program's path.
        program: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// A child process, what it was asked and what it shall be asked.
#[derive(Debug)]
pub struct Worker {
    role: Role,
    program: PathBuf,
    /// None: to be started for the next request.
    link: Option<Link>,
    /// The first one is in flight, as far as `flight` says.
    queue: VecDeque<Request>,
    flight: Flight,
    restarts: u64,
    /// Where debug files are, and are not.
    debug_files: Known,
}

impl Worker {
    /// Starts `program worker ROLE`, whose `main` calls [`super::run`]. Use `/proc/self/exe`.
    ///
    /// The child is killed when the thread that calls this ends.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub fn spawn(role: Role, program: &Path) -> Result<Self, WorkerError> {
        Ok(Self { link: Some(Link::start(role, program)?), ..Self::later(role, program) })
    }

    /// As [`Self::spawn`], but the child is started for the first request.
    #[must_use]
    pub fn later(role: Role, program: &Path) -> Self {
        let program = program.to_owned();
        let (queue, flight) = (VecDeque::new(), Flight::default());
        Self { role, program, link: None, queue, flight, restarts: 0, debug_files: Known::default() }
    }

    /// Has these files used as well, where debug information is looked for by build id.
    pub fn use_downloaded(&mut self, cache: Arc<DebugCache>) {
        self.debug_files.downloaded = Some(cache);
    }

    /// Has the next request answered by a child that knows nothing of those before. Nothing happens while there
    /// are requests.
    pub fn forget(&mut self) {
        if self.queue.is_empty() {
            self.link = None;
        }
    }

    /// Queues the request for a file's unwind table; `place` is where the file is, from where its debug file is
    /// found. False: the queue is full, nothing was queued. For a worker with [`Role::Tables`].
    pub fn request_table(&mut self, key: FileKey, file: Arc<OwnedFd>, place: Place) -> bool {
        let room = self.queue.len() < QUEUE_REQUESTS;
        if room {
            self.queue.push_back(Request { key: key.0, file, place: Some(place), words: Vec::new() });
        }
        room
    }

    /// Queues the request for the functions at `addresses`, at most [`MAX_ADDRESSES`]; `place` is where the
    /// file is, from where others that belong to it are found. False: the queue
    /// is full, or these are too many; nothing was queued. For a worker with [`Role::Symbols`].
    pub fn request_symbols(&mut self, key: FileKey, file: &Arc<OwnedFd>, place: Place, addresses: &[Svma]) -> bool {
        let room = self.queue.len() < QUEUE_REQUESTS && addresses.len() <= MAX_ADDRESSES;
        if room {
            let words = addresses.iter().map(|address| address.0).collect();
            self.queue.push_back(Request { key: key.0, file: Arc::clone(file), place: Some(place), words });
        }
        room
    }

    /// Queues questions about a perf map or jitdump, at most [`super::MAX_QUESTIONS`]. The file is read
    /// on from where the last request with this key ended. False: the queue is full, or these are too
    /// many. For a worker with [`Role::Generated`].
    pub fn request_generated(&mut self, key: MapKey, file: &Arc<OwnedFd>, questions: &[Question]) -> bool {
        let room = self.queue.len() < QUEUE_REQUESTS && questions.len() <= name_message::MAX_QUESTIONS;
        if room {
            let words = name_message::encode_questions(key, questions);
            self.queue.push_back(Request { key: key.0, file: Arc::clone(file), place: None, words });
        }
        room
    }

    /// Queues the request for what a file at `place` offers. False: the queue is full. For a worker with
    /// [`Role::Describe`].
    pub fn request_description(&mut self, key: FileKey, file: Arc<OwnedFd>, place: Place) -> bool {
        let room = self.queue.len() < QUEUE_REQUESTS;
        if room {
            self.queue.push_back(Request { key: key.0, file, place: Some(place), words: Vec::new() });
        }
        room
    }

    /// The next answer, in the order of the requests; without requests it waits for ever.
    ///
    /// Cancel-safe: for `select!`. The time limit runs on while nobody calls this, but an answer
    /// that is there by then is taken first.
    pub async fn next_reply(&mut self) -> Reply {
        let Some(request) = self.queue.front() else { return std::future::pending().await };
        let limit = self.role.time_limit();
        let deadline = *self.flight.deadline.get_or_insert_with(|| Instant::now() + limit);
        if self.flight.sent_bytes == 0 && self.link.as_ref().is_some_and(|link| !link.is_idle()) {
            self.link = None;
            self.restarts += 1;
        }
        let outcome = async {
            let link = match &mut self.link {
                Some(link) => link,
                none => none.insert(Link::start(self.role, &self.program).map_err(|error| not_started(&error))?),
            };
            link.send(request, &mut self.flight).await?;
            let mut header = link.receive(&mut self.flight).await?;
            while header.more || header.status == Status::Wanted {
                if header.more {
                    self.flight.take_parts(header).map_err(WorkerFailure::Nonsense)?;
                } else {
                    self.flight.look_for_wanted(request, &mut self.debug_files).map_err(WorkerFailure::Nonsense)?;
                    link.hand_over(&mut self.flight).await?;
                }
                header = link.receive(&mut self.flight).await?;
            }
            let answer = Answer::decode(self.role, request, header, &mut self.flight);
            Ok((header.last, answer.map_err(WorkerFailure::Nonsense)?))
        };
        let outcome = timeout_at(deadline, outcome).await.unwrap_or(Err(WorkerFailure::TimedOut(limit)));
        let (last, answer) = match outcome {
            Ok((last, answer)) => (last, answer),
            Err(failure) => {
                self.restarts += 1;
                if let Some(cache) = &self.debug_files.downloaded {
                    self.flight.found.iter().for_each(|build_id| cache.set_absent(build_id));
                }
                (true, Answer::Failed(failure.into()))
            }
        };
        if last {
            self.link = None;
        }
        let flight = std::mem::take(&mut self.flight);
        let reply = answer.into_reply(self.role, request, flight.lacking);
        self.queue.pop_front();
        reply
    }

    /// Requests that were not answered yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.queue.len()
    }

    /// How often the child was lost: it died, or it was killed for its time or its answer. A child
    /// that exits between requests to give its memory back does not count.
    #[must_use]
    pub const fn restarts(&self) -> u64 {
        self.restarts
    }

    /// The child's process id, while it runs.
    #[must_use]
    pub fn child_id(&self) -> Option<u32> {
        self.link.as_ref().and_then(|link| link.child.id())
    }
}

/// An error and its cause in one line: the failure is compared and kept, the error can't be.
fn not_started(error: &WorkerError) -> WorkerFailure {
    let cause = error.source().map(|cause| format!(": {cause}"));
    WorkerFailure::NotStarted(format!("{error}{}", cause.unwrap_or_default()))
}
