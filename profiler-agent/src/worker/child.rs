//! The child's side: one request after the other, each answered whatever its file does.

use std::any::Any;
use std::fs::File;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use profiler_common::address::Svma;
use rustix::fs::FileType;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::generated::Generated;
use super::message::{self, Header, MAX_REPLY_BYTES, MAX_STRING_BYTES, MAX_WORDS, Status};
use super::symbols::Symbols;
use super::{FileError, Role, debug_message, describe, description_message, name_message, sandbox, tables};
use crate::debug_files::DebugFile;
use crate::kernel::give_back_freed_memory;

/// Memory, of its own and of files in memory, that a child may keep between requests. With more it exits
/// after the answer, and a new one starts for the next request: nothing else gives all memory back (what
/// is freed may lie between what is not). What is known of generated code has a bound of its own below this.
const fn most_kept_bytes(role: Role) -> u64 {
    match role {
        Role::Tables | Role::Symbols | Role::Describe => 48 << 20,
        Role::Generated => 160 << 20,
    }
}

/// By so much its memory grows before it looks for what it can give back.
const GIVE_BACK_BYTES: u64 = 1 << 20;

/// Why a child ends early.
#[derive(Debug, thiserror::Error)]
enum ChildError {
    #[error(transparent)]
    Sandbox(#[from] sandbox::SandboxError),
    #[error("can't read how much memory is in use")]
    Memory(#[source] io::Error),
    #[error("can't limit the CPU time")]
    CpuTime(#[source] io::Error),
    #[error("the socket to the parent failed")]
    Socket(#[from] io::Error),
    #[error("the parent's request makes no sense")]
    Request,
}

/// The `main` of `spanflame worker ROLE`: answers the requests that arrive on file descriptor 0, a
/// Unix stream socket, until its other end is closed. To be called before any thread starts.
#[must_use]
pub fn run(role: Role) -> ExitCode {
    match serve(role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            // The parent learns the exit code; without stderr there is nobody else to tell.
            let _ = writeln!(io::stderr(), "spanflame worker {}: {error}{cause}", role.word());
            ExitCode::FAILURE
        }
    }
}

fn serve(role: Role) -> Result<(), ChildError> {
    // A panic is an answer; its text goes there and not to stderr, where files could fill the log.
    std::panic::set_hook(Box::new(|_| {}));
    // A name that is refused is no loss.
    let _refused = rustix::thread::set_name(role.process_name());
    let mut memory = Memory::open()?;
    let descriptors = sandbox::enter(role)?;
    let stdin = io::stdin();
    let socket = stdin.as_fd();
    let (mut symbols, mut generated) = (Symbols::new(descriptors), Generated::default());
    while let Some((file, words)) = receive(socket)? {
        sandbox::allow_cpu_time(role.cpu_limit()).map_err(ChildError::CpuTime)?;
        let ask = |wanted: &DebugFile, candidate| ask(socket, wanted, candidate);
        let work = AssertUnwindSafe(|| match role {
            Role::Tables => tables::build(file, &ask, |payload| {
                let header = Header { status: Status::Done, last: false, more: true, payload_bytes: payload.len() };
                // That the parent is gone is found when the answer is complete.
                let _gone = send(socket, &header.encode()).and_then(|()| send(socket, payload));
            }),
            Role::Symbols => {
                let addresses: Vec<Svma> = words.iter().map(|word| Svma(*word)).collect();
                symbols.answer(file, &addresses, &ask).map(|frames| message::encode_symbols(&frames))
            }
            Role::Generated => {
                let (key, questions) = name_message::decode_questions(&words);
                generated.answer(key, &file, &questions).map(|names| name_message::encode_names(&names))
            }
            Role::Describe => {
                describe::describe(file, &ask).map(|description| description_message::encode(&description))
            }
        });
        // Unwind-safe, because neither cache is used again after a panic: this child ends then.
        let result = catch_unwind(work).unwrap_or_else(|panic| Err(FileError::Panicked(panic_text(&*panic))));
        let (status, payload) = match result {
            Ok(payload) if payload.len() <= MAX_REPLY_BYTES => (Status::Done, payload),
            Ok(_) => message::encode_error(&FileError::Unsupported("too big an answer".to_owned())),
            Err(error) => message::encode_error(&error),
        };
        let last = status == Status::Panicked || memory.kept_bytes()? + symbols.kept_bytes() > most_kept_bytes(role);
        send(socket, &Header { status, last, more: false, payload_bytes: payload.len() }.encode())?;
        send(socket, &payload)?;
        if last {
            break;
        }
    }
    Ok(())
}

/// The next request; none when the parent is gone.
fn receive(socket: BorrowedFd<'_>) -> Result<Option<(OwnedFd, Vec<u64>)>, ChildError> {
    let Some((count, file)) = receive_number(socket)? else { return Ok(None) };
    let count = count as usize;
    let Some(file) = file.filter(|_| count <= MAX_WORDS) else { return Err(ChildError::Request) };
    let mut bytes = vec![0; count * 8];
    fill(socket, &mut bytes)?;
    let (words, _) = bytes.as_chunks();
    Ok(Some((file, words.iter().map(|&word| u64::from_le_bytes(word)).collect())))
}

/// A number, and the file that comes with it; none when the parent is gone.
fn receive_number(socket: BorrowedFd<'_>) -> Result<Option<(u32, Option<OwnedFd>)>, ChildError> {
    let mut number = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut number)], &mut control, flags)
    });
    let received_bytes = received.map_err(io::Error::from)?.bytes;
    if received_bytes == 0 {
        return Ok(None);
    }
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    fill(socket, &mut number[received_bytes..])?;
    Ok(Some((u32::from_le_bytes(number), file)))
}

/// Asks the parent for a file. When the socket fails there is none, and the answer to the request fails next.
fn ask(socket: BorrowedFd<'_>, wanted: &DebugFile, candidate: usize) -> Option<(String, OwnedFd)> {
    let payload = debug_message::encode(wanted, candidate);
    let header = Header { status: Status::Wanted, last: false, more: false, payload_bytes: payload.len() };
    send(socket, &header.encode()).ok()?;
    send(socket, &payload).ok()?;
    let (length, file) = receive_number(socket).ok()??;
    let mut path = vec![0; (length as usize).min(MAX_STRING_BYTES)];
    fill(socket, &mut path).ok()?;
    Some((String::from_utf8_lossy(&path).into_owned(), file?))
}

/// Reads until `buffer` is full.
fn fill(socket: BorrowedFd<'_>, mut buffer: &mut [u8]) -> Result<(), ChildError> {
    while !buffer.is_empty() {
        let read_bytes = rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut *buffer));
        match read_bytes.map_err(io::Error::from)? {
            0 => return Err(ChildError::Socket(io::ErrorKind::UnexpectedEof.into())),
            read_bytes => buffer = &mut buffer[read_bytes..],
        }
    }
    Ok(())
}

/// Writes all of `bytes`.
fn send(socket: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), ChildError> {
    while !bytes.is_empty() {
        let sent_bytes = rustix::io::retry_on_intr(|| rustix::io::write(socket, bytes)).map_err(io::Error::from)?;
        bytes = &bytes[sent_bytes..];
    }
    Ok(())
}

/// What tells how much memory this process has; opened while that is still allowed.
struct Memory {
    statm: File,
    page_bytes: u64,
    /// What was kept when memory was last given back.
    kept_bytes: u64,
}

impl Memory {
    fn open() -> Result<Self, ChildError> {
        let statm = File::open("/proc/self/statm").map_err(ChildError::Memory)?;
        Ok(Self { statm, page_bytes: rustix::param::page_size() as u64, kept_bytes: 0 })
    }

    /// What is still in use; the rest was given back, if it was much.
    fn kept_bytes(&mut self) -> Result<u64, ChildError> {
        let mut bytes = self.anonymous_bytes()?;
        if bytes > self.kept_bytes.saturating_add(GIVE_BACK_BYTES) {
            give_back_freed_memory();
            bytes = self.anonymous_bytes()?;
            self.kept_bytes = bytes;
        }
        self.kept_bytes = self.kept_bytes.min(bytes);
        Ok(bytes)
    }

    /// Resident memory that no file backs: resident less shared pages (proc_pid_statm(5)).
    fn anonymous_bytes(&self) -> Result<u64, ChildError> {
        let mut text = [0; 128];
        let length = self.statm.read_at(&mut text, 0).map_err(ChildError::Memory)?;
        let text = String::from_utf8_lossy(&text[..length]);
        let mut pages = text.split(' ').skip(1).map_while(|field| field.parse::<u64>().ok());
        let (resident, shared) = (pages.next().unwrap_or_default(), pages.next().unwrap_or_default());
        Ok(resident.saturating_sub(shared) * self.page_bytes)
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

/// Which contents a descriptor leads to. Two files can't share it while one of them is open, and a
/// file that is written to gets another one (ctime).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    pub(super) size_bytes: u64,
    modified: (i64, u64),
    changed: (i64, u64),
}

/// Refuses what is no ELF file before any parser sees it: reading a pipe or a device could block or
/// do worse.
pub(super) fn examine(file: &OwnedFd) -> Result<Identity, FileError> {
    let unreadable = |error: rustix::io::Errno| FileError::Unreadable(error.to_string());
    let status = rustix::fs::fstat(file).map_err(unreadable)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(FileError::Unreadable("not a regular file".to_owned()));
    }
    let mut magic = [0; 4];
    rustix::io::pread(file, &mut magic, 0).map_err(unreadable)?;
    if magic != *b"\x7fELF" {
        return Err(FileError::NotElf);
    }
    Ok(Identity {
        device: status.st_dev,
        inode: status.st_ino,
        size_bytes: status.st_size.try_into().unwrap_or_default(),
        modified: (status.st_mtime, status.st_mtime_nsec),
        changed: (status.st_ctime, status.st_ctime_nsec),
    })
}
