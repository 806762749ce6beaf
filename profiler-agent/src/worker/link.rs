//! A worker's child process and the socket to it.

use std::cmp::Ordering;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::flight::{Flight, Request};
use super::message::{self, Header};
use super::{Role, WorkerError, WorkerFailure, debug_message};

/// Bytes that one read from the socket may bring: its default buffer is a little smaller.
const READ_BYTES: usize = 256 << 10;

/// How long a worker whose socket is closed may take to be gone. Beyond it how it ended stays
/// unknown.
const EXIT_LIMIT: Duration = Duration::from_secs(1);

/// A running child and the socket to it. The child is killed when this is dropped; the runtime
/// collects it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) role: Role,
    pub(super) child: Child,
    pub(super) socket: UnixStream,
}

impl Link {
    pub(super) fn start(role: Role, program: &Path) -> Result<Self, WorkerError> {
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
    pub(super) fn is_idle(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(rustix::net::recv(&self.socket, &mut [0u8], flags), Err(Errno::WOULDBLOCK))
    }

    /// Sends what is left to send of `request`; the file goes with the first byte.
    pub(super) async fn send(&mut self, request: &Request, flight: &mut Flight) -> Result<(), WorkerFailure> {
        let bytes = message::encode_request(&request.words);
        while let Some(rest) = bytes.get(flight.sent_bytes..).filter(|rest| !rest.is_empty()) {
            let first = flight.sent_bytes == 0;
            let attempt = || send_with(&self.socket, rest, first.then(|| request.file.as_fd()));
            match self.socket.async_io(Interest::WRITABLE, attempt).await {
                Ok(sent_bytes) => flight.sent_bytes += sent_bytes,
                Err(error) => return Err(self.ending(&error).await),
            }
        }
        Ok(())
    }

    /// Sends what was found for the child's question, and forgets the question.
    pub(super) async fn hand_over(&mut self, flight: &mut Flight) -> Result<(), WorkerFailure> {
        let Some(answer) = &flight.answer else { return Ok(()) };
        let attempt = || {
            let bytes = debug_message::answer(answer.as_ref().map_or("", |(path, _file)| path));
            // The child has read all before it asked, so there is room for all of it.
            let sent_bytes = send_with(&self.socket, &bytes, answer.as_ref().map(|(_path, file)| file.as_fd()))?;
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
    pub(super) async fn receive(&mut self, flight: &mut Flight) -> Result<Header, WorkerFailure> {
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
    pub(super) async fn ending(&mut self, error: &io::Error) -> WorkerFailure {
        match timeout(EXIT_LIMIT, self.child.wait()).await {
            Ok(Ok(status)) if status.signal() == Some(Signal::XCPU.as_raw()) => {
                WorkerFailure::OutOfCpuTime(self.role.cpu_limit())
            }
            Ok(Ok(status)) => WorkerFailure::Crashed(status.to_string()),
            _ => WorkerFailure::Crashed(error.to_string()),
        }
    }
}

/// Sends what there is room for of `bytes`, and a file with it; returns how much that was.
fn send_with(socket: &UnixStream, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(file) = &file
        && !control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(file)))
    {
        return Err(io::Error::other("no room for a file descriptor"));
    }
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}
