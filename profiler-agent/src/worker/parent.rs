//! The agent's side of a worker: its queue, its time limit, its restarts.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::error::Error;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use profiler_common::address::Svma;
use profiler_unwind::{Part, UnwindTable};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout, timeout_at};

use super::message::{self, Header, MAX_ADDRESSES, MAX_REPLY_BYTES, Status};
use super::{
    Description, FileError, FileKey, Frame, GeneratedNames, MapKey, Question, Reply, Role, TableSource, WorkerFailure,
    debug_message, description_message, name_message, table_message,
};
use crate::debug_files::{self, DebugFile, Missing, Place};
use crate::debuginfod::DebugCache;

/// Requests that may wait: each holds a file descriptor open. More are refused, for the caller to
/// count.
pub const QUEUE_REQUESTS: usize = 1024;

/// Bytes that one read from the socket may bring: its default buffer is a little smaller.
const READ_BYTES: usize = 256 << 10;

/// Files known by build id that are noted in a request, at most: an executable has one, and that one more.
const MOST_NOTED: usize = 8;

/// Files that are looked for in a request, at most: a split unit for each address is hundreds, and file systems
/// may be slow. What is asked for beyond that is not there.
const MOST_LOOKED_FOR: u32 = 1000;

/// How long a worker whose socket is closed may take to be gone. Beyond it how it ended stays
/// unknown.
const EXIT_LIMIT: Duration = Duration::from_secs(1);

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

/// What is known of debug files.
#[derive(Debug, Default)]
struct Known {
    /// Those that servers sent.
    downloaded: Option<Arc<DebugCache>>,
    missing: Missing,
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
        let reply = answer.into_reply(self.role, request.key, flight.lacking);
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

/// What was asked. It stays in the queue until it is answered, so that its file stays open for
/// another child.
#[derive(Debug)]
struct Request {
    /// A [`FileKey`] or a [`MapKey`], as the role has it.
    key: u32,
    file: Arc<OwnedFd>,
    /// None in questions about generated code.
    place: Option<Place>,
    /// Empty in requests for tables and descriptions.
    words: Vec<u64>,
}

/// How far the first request of the queue got.
#[derive(Debug, Default)]
struct Flight {
    deadline: Option<Instant>,
    sent_bytes: usize,
    /// The header and the payload, as far as they came, and before them pieces that were taken in.
    received: Vec<u8>,
    /// Bytes of those pieces.
    taken_bytes: usize,
    /// How many files the child asked for, and how many were looked for.
    questions: u32,
    looked_for: u32,
    /// The answer to the question in `received`, until it is sent.
    answer: Option<Option<(String, OwnedFd)>>,
    /// Files known by build id that the child asked for in vain, and the build ids of others.
    lacking: Vec<DebugFile>,
    found: Vec<Vec<u8>>,
    /// What came before of a table that comes in pieces, and in how many bytes, with headers.
    parts: Vec<Part>,
    parts_bytes: usize,
}

impl Flight {
    /// What is not taken in yet.
    fn waiting(&self) -> &[u8] {
        self.received.get(self.taken_bytes..).unwrap_or_default()
    }

    fn payload(&self) -> &[u8] {
        self.waiting().get(Header::BYTES..).unwrap_or_default()
    }

    /// Looks for the file that the child asks for, unless that was done before the future was dropped.
    fn look_for_wanted(&mut self, request: &Request, known: &mut Known) -> Result<(), &'static str> {
        if self.answer.is_some() {
            return Ok(());
        }
        let place = request.place.as_ref().ok_or("a question for a file")?;
        let (wanted, candidate) = debug_message::decode(self.payload())?;
        self.questions += 1;
        if self.questions > debug_message::MAX_QUESTIONS {
            return Err("questions without end");
        }
        let found = if self.looked_for >= MOST_LOOKED_FOR || known.missing.has(request.key, &wanted) {
            None
        } else {
            self.looked_for += 1;
            let found = debug_files::open(place, known.downloaded.as_deref(), &wanted, candidate);
            if found.is_none() && candidate == 0 {
                known.missing.note(request.key, &wanted);
            }
            found
        };
        match (&found, wanted.build_id()) {
            (None, Some(_)) if self.lacking.len() < MOST_NOTED => self.lacking.push(wanted),
            (Some(_), Some(id)) if self.found.len() < MOST_NOTED => self.found.push(id.to_vec()),
            _ => {}
        }
        self.answer = Some(found.map(|(path, file)| (path.to_string_lossy().into_owned(), file)));
        Ok(())
    }

    /// Takes in a piece of a table, behind its header; what follows stays.
    fn take_parts(&mut self, header: Header) -> Result<(), &'static str> {
        let piece_bytes = Header::BYTES + header.payload_bytes;
        self.parts_bytes += piece_bytes;
        if self.parts_bytes > MAX_REPLY_BYTES {
            return Err("a table that is too long");
        }
        let piece = self.received.get(self.taken_bytes..).and_then(|waiting| waiting.get(Header::BYTES..piece_bytes));
        table_message::decode_parts(piece.unwrap_or_default(), &mut self.parts)?;
        self.taken_bytes += piece_bytes;
        Ok(())
    }
}

/// A reply without its key.
enum Answer {
    Table(UnwindTable, Option<TableSource>),
    Symbols(Vec<(Svma, Vec<Frame>)>),
    Generated(GeneratedNames),
    Description(Description),
    Failed(FileError),
}

impl Answer {
    fn decode(role: Role, request: &Request, header: Header, flight: &mut Flight) -> Result<Self, &'static str> {
        let parts = std::mem::take(&mut flight.parts);
        let payload = flight.payload();
        Ok(match (header.status, role) {
            (Status::Done, Role::Tables) => {
                let (table, source) = table_message::decode_answer(parts, payload)?;
                Self::Table(table, source)
            }
            (Status::Done, Role::Symbols) => Self::Symbols(message::decode_symbols(&request.words, payload)?),
            (Status::Done, Role::Generated) => {
                Self::Generated(name_message::decode_names(request.words.len() / 2, payload)?)
            }
            (Status::Done, Role::Describe) => Self::Description(description_message::decode(payload)?),
            (failed, _) => Self::Failed(message::decode_error(failed, payload)?),
        })
    }

    fn into_reply(self, role: Role, key: u32, lacking: Vec<DebugFile>) -> Reply {
        match (self, role) {
            (Self::Table(table, source), _) => Reply::Table { key: FileKey(key), result: Ok(table), source },
            (Self::Symbols(symbols), _) => Reply::Symbols { key: FileKey(key), result: Ok(symbols), lacking },
            (Self::Generated(names), _) => Reply::Generated { key: MapKey(key), result: Ok(names) },
            (Self::Description(description), _) => Reply::Description { key: FileKey(key), result: Ok(description) },
            (Self::Failed(error), Role::Tables) => Reply::Table { key: FileKey(key), result: Err(error), source: None },
            (Self::Failed(error), Role::Symbols) => Reply::Symbols { key: FileKey(key), result: Err(error), lacking },
            (Self::Failed(error), Role::Generated) => Reply::Generated { key: MapKey(key), result: Err(error) },
            (Self::Failed(error), Role::Describe) => Reply::Description { key: FileKey(key), result: Err(error) },
        }
    }
}

/// A running child and the socket to it. The child is killed when this is dropped; the runtime
/// collects it.
#[derive(Debug)]
struct Link {
    role: Role,
    child: Child,
    socket: UnixStream,
}

impl Link {
    fn start(role: Role, program: &Path) -> Result<Self, WorkerError> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(WorkerError::Socket)?;
        ours.set_nonblocking(true).map_err(WorkerError::Socket)?;
        let socket = UnixStream::from_std(ours).map_err(WorkerError::Socket)?;
        let child = Command::new(program)
            .arg0("spanflame")
            .args(["worker", role.word()])
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            // Ctrl-C at a terminal, and timeout(1), signal the whole group: the worker is to work on.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| WorkerError::Start { program: program.to_owned(), source })?;
        Ok(Self { role, child, socket })
    }

    /// Whether the child is there and, as it has to be, silent.
    fn is_idle(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(rustix::net::recv(&self.socket, &mut [0u8], flags), Err(Errno::WOULDBLOCK))
    }

    /// Sends what is left to send of `request`; the file goes with the first byte.
    async fn send(&mut self, request: &Request, flight: &mut Flight) -> Result<(), WorkerFailure> {
        let bytes = message::encode_request(&request.words);
        while let Some(rest) = bytes.get(flight.sent_bytes..).filter(|rest| !rest.is_empty()) {
            let first = flight.sent_bytes == 0;
            let attempt = || {
                let files = [request.file.as_fd()];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if first && !control.push(SendAncillaryMessage::ScmRights(&files)) {
                    return Err(io::Error::other("no room for a file descriptor"));
                }
                Ok(rustix::net::sendmsg(&self.socket, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL)?)
            };
            match self.socket.async_io(Interest::WRITABLE, attempt).await {
                Ok(sent_bytes) => flight.sent_bytes += sent_bytes,
                Err(error) => return Err(self.ending(&error).await),
            }
        }
        Ok(())
    }

    /// Sends what was found for the child's question, and forgets the question.
    async fn hand_over(&mut self, flight: &mut Flight) -> Result<(), WorkerFailure> {
        let Some(answer) = &flight.answer else { return Ok(()) };
        let attempt = || {
            let files: Vec<_> = answer.iter().map(|(_path, file)| file.as_fd()).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files)) {
                return Err(io::Error::other("no room for a file descriptor"));
            }
            let bytes = debug_message::answer(answer.as_ref().map_or("", |(path, _file)| path));
            // The child has read all before it asked, so there is room for all of it.
            let sent_bytes =
                rustix::net::sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
            if sent_bytes == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
        };
        if let Err(error) = self.socket.async_io(Interest::WRITABLE, attempt).await {
            return Err(self.ending(&error).await);
        }
        (flight.answer, flight.received, flight.taken_bytes) = (None, Vec::new(), 0);
        Ok(())
    }

    /// Receives what is left to receive: the header and all of its payload. Where there is to be more,
    /// the next header may be there already.
    async fn receive(&mut self, flight: &mut Flight) -> Result<Header, WorkerFailure> {
        loop {
            let waiting = flight.waiting();
            if let Some(header) = waiting.first_chunk::<{ Header::BYTES }>() {
                let header = Header::decode(*header).map_err(WorkerFailure::Nonsense)?;
                match waiting.len().cmp(&(Header::BYTES + header.payload_bytes)) {
                    Ordering::Less => {}
                    Ordering::Equal => return Ok(header),
                    Ordering::Greater if header.more => return Ok(header),
                    Ordering::Greater => return Err(WorkerFailure::Nonsense("more than its length says")),
                }
            }
            let received = &mut flight.received;
            // Once for all the pieces of a read: each may be a few bytes, and much may be behind it.
            received.drain(..std::mem::take(&mut flight.taken_bytes));
            received.reserve(READ_BYTES);
            let read = async {
                self.socket.readable().await?;
                self.socket.try_read_buf(received)
            };
            match read.await {
                Ok(0) => return Err(self.ending(&io::ErrorKind::UnexpectedEof.into()).await),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(self.ending(&error).await),
            }
        }
    }

    /// How the child ended, after `error` on its socket.
    async fn ending(&mut self, error: &io::Error) -> WorkerFailure {
        match timeout(EXIT_LIMIT, self.child.wait()).await {
            Ok(Ok(status)) if status.signal() == Some(Signal::XCPU.as_raw()) => {
                WorkerFailure::OutOfCpuTime(self.role.cpu_limit())
            }
            Ok(Ok(status)) => WorkerFailure::Crashed(status.to_string()),
            _ => WorkerFailure::Crashed(error.to_string()),
        }
    }
}

/// An error and its cause in one line: the failure is compared and kept, the error can't be.
fn not_started(error: &WorkerError) -> WorkerFailure {
    let cause = error.source().map(|cause| format!(": {cause}"));
    WorkerFailure::NotStarted(format!("{error}{}", cause.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an executable in `folder`, known by `key`, gets for the split unit `name`.
    fn asked(flight: &mut Flight, known: &mut Known, (folder, key): (&Path, u32), name: &str) -> bool {
        let file = Arc::new(std::fs::File::open("/dev/null").unwrap().into());
        let place = Place { path: folder.join("program").to_str().unwrap().to_owned(), root: None };
        let request = Request { key, file, place: Some(place), words: Vec::new() };
        let wanted = DebugFile::SplitUnit { folder: Vec::new(), name: name.into() };
        flight.received = [vec![0; Header::BYTES], debug_message::encode(&wanted, 0)].concat();
        assert_eq!(flight.look_for_wanted(&request, known), Ok(()));
        flight.answer.take().unwrap().is_some()
    }

    #[test]
    fn what_is_missing_is_looked_for_once_and_not_without_end() {
        let folder = std::env::temp_dir().join(format!("spanflame-missing-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (first, second) = ((folder.as_path(), 1), (folder.as_path(), 2));
        let (mut flight, mut known) = (Flight::default(), Known::default());
        assert!(!asked(&mut flight, &mut known, first, "late.dwo"));
        std::fs::write(folder.join("late.dwo"), "").unwrap();
        std::fs::write(folder.join("there.dwo"), "").unwrap();
        let mut next = Flight::default();
        let seen = [(first, "late.dwo"), (second, "late.dwo"), (first, "there.dwo"), (first, "there.dwo")]
            .map(|(whose, name)| asked(&mut next, &mut known, whose, name));
        assert_eq!(seen, [false, true, true, true]);
        for index in 0..2 * MOST_LOOKED_FOR {
            assert!(!asked(&mut next, &mut known, first, &format!("{index}.dwo")));
        }
        assert_eq!(next.looked_for, MOST_LOOKED_FOR);
        assert!(!asked(&mut next, &mut known, first, "there.dwo"), "too many in this request");
        assert!(asked(&mut Flight::default(), &mut known, first, "there.dwo"), "the next one");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
