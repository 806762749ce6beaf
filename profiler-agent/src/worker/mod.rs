//! The worker: ELF and DWARF of other people's programs are parsed in child processes, nowhere else.
//!
//! One child builds unwind tables, one symbolizes, so that a huge DWARF never delays a table; a third
//! one, started when there is something to read, reads what processes write about code that they made
//! at run time. A child gets file descriptors and addresses over a socket and answers one request at a time. What
//! a hostile or truncated file can do (SIGBUS, a panic, a hang, too much memory) costs that file an
//! error and the worker a restart.
//!
//! | file | side |
//! |---|---|
//! | `parent`, `flight`, `link` | the agent: queue, time limits, restarts; the request on its way; the child and its socket |
//! | `message`, `*_message` | both: what goes over the socket, every length bounded |
//! | `child` | the child: its loop |
//! | `sandbox` | the child: limits, capabilities, system calls |
//! | `tables`, `frames`, `symbols`, `demangle`, `generated`, `describe` | the child: the work |

mod child;
mod debug_message;
mod demangle;
mod describe;
mod description_message;
mod flight;
mod frames;
mod generated;
mod link;
mod message;
mod name_message;
mod parent;
mod sandbox;
mod symbols;
pub(crate) mod table_message;
mod tables;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use profiler_common::address::{MonotonicNs, Svma, VirtualAddress};
use profiler_unwind::{Coverage, Sections, UnwindTable};

use crate::debug_files::DebugFile;

pub use child::run;
pub use message::{MAX_ADDRESSES, MAX_FRAMES_PER_ADDRESS, MAX_REPLY_BYTES, MAX_STRING_BYTES};
pub use name_message::MAX_QUESTIONS;
pub use parent::{QUEUE_REQUESTS, Worker, WorkerError};

/// What the names of all workers' processes begin with.
pub const NAME_START: &str = "spanflame:";

/// What a child does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Builds unwind tables.
    Tables,
    /// Symbolizes addresses.
    Symbols,
    /// Names code that was made at run time.
    Generated,
    /// Says what files offer, for people who ask.
    Describe,
}

impl Role {
    const ALL: [Self; 4] = [Self::Tables, Self::Symbols, Self::Generated, Self::Describe];

    /// The command-line word: `spanflame worker WORD`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tables => "tables",
            Self::Symbols => "symbols",
            Self::Generated => "generated",
            Self::Describe => "describe",
        }
    }

    /// The name of its process: started as `/proc/self/exe`, it would be called `exe`.
    const fn process_name(self) -> &'static std::ffi::CStr {
        match self {
            Self::Tables => c"spanflame:table",
            Self::Symbols => c"spanflame:symb",
            Self::Generated => c"spanflame:gen",
            Self::Describe => c"spanflame:desc",
        }
    }

    /// The role of a command-line word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.word() == word)
    }

    /// How much CPU time one request may take; then the kernel ends the child. The slowest files seen
    /// need a tenth.
    #[must_use]
    pub const fn cpu_limit(self) -> Duration {
        match self {
            Self::Tables | Self::Generated | Self::Describe => Duration::from_secs(20),
            Self::Symbols => Duration::from_secs(60),
        }
    }

    /// How long one request may take, also where the child has to wait for a CPU or for a file's bytes;
    /// then it is killed.
    #[must_use]
    pub const fn time_limit(self) -> Duration {
        match self {
            Self::Tables | Self::Generated | Self::Describe => Duration::from_secs(50),
            Self::Symbols => Duration::from_secs(180),
        }
    }
}

/// The caller's number for an executable file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileKey(pub u32);

/// The caller's number for a perf map or jitdump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapKey(pub u32);

/// What code was at an address at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The address, in the process.
    pub address: VirtualAddress,
    /// The time.
    pub time: MonotonicNs,
}

/// The answer to a [`Question`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing is known of that address; perhaps later.
    Unknown,
    /// Code was replaced at that time: it may have been the old or the new one.
    Replaced,
    /// That one of [`GeneratedNames::frames`].
    Function(u32),
}

/// Answers to questions about one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GeneratedNames {
    /// The functions, each once.
    pub frames: Vec<Frame>,
    /// To each question, in their order.
    pub meanings: Vec<Meaning>,
    /// The file tells of more code than is kept in memory, so some has no name.
    pub left_out: bool,
}

/// One function at an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Frame {
    /// The name for people, demangled; a Rust name without its hash.
    pub name: String,
    /// The name as the symbol table or DWARF has it.
    pub system_name: String,
    /// The source file as DWARF names it; empty when unknown.
    pub file: String,
    /// The line in `file`, from 1; 0 when unknown.
    pub line: u32,
    /// The column in `line`, from 1; 0 when unknown.
    pub column: u32,
    /// This function was inlined into the one that follows.
    pub inlined: bool,
    /// Where a function without a name starts, by its call frame information; 0 when it has a name.
    pub nameless_start: Svma,
}

/// What a file offers for unwinding and naming its code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Rows of its unwind table.
    pub rows: u64,
    /// Rows of call frame information that a row of ours can't express.
    pub refused: u64,
    /// Pieces of call frame information that can't be read.
    pub unreadable: u64,
    /// How its code is unwound.
    pub coverage: Coverage,
    /// What it has.
    pub sections: Sections,
    /// The file on this system that holds its debug information; empty when there is none.
    pub debug_file: String,
    /// The file that holds its `.debug_frame`, where its code is unwound by one that is not its own; else empty.
    pub frames_file: String,
    /// Compilation units whose part of the debug information is not there (split DWARF), of the first 64.
    pub missing_parts: u64,
    /// Where the compiler wrote the first of these; else empty.
    pub missing_part: String,
}

/// The answer to one request.
#[derive(Debug)]
pub enum Reply {
    /// To [`Worker::request_table`].
    Table {
        /// The file.
        key: FileKey,
        /// What was asked about.
        file: Arc<OwnedFd>,
        /// Its table.
        result: Result<UnwindTable, FileError>,
        /// What it was made from.
        source: Option<TableSource>,
        /// All of the file, if it is small.
        contents: Option<ContentsDigest>,
    },
    /// To [`Worker::request_symbols`].
    Symbols {
        /// The file.
        key: FileKey,
        /// What was asked about.
        file: Arc<OwnedFd>,
        /// For each address asked for, in that order, its functions, innermost first: one without a
        /// name when the file names none but has one there; none when it has none.
        result: Result<Vec<(Svma, Vec<Frame>)>, FileError>,
        /// Files known by build id that were looked for to answer this, and not found.
        lacking: Vec<DebugFile>,
    },
    /// To [`Worker::request_generated`].
    Generated {
        /// The file.
        key: MapKey,
        /// As many answers as there were questions.
        result: Result<GeneratedNames, FileError>,
    },
    /// To [`Worker::request_description`].
    Description {
        /// The file.
        key: FileKey,
        /// What it offers.
        result: Result<Description, FileError>,
    },
}

/// SHA-256 of all bytes of a file.
pub type ContentsDigest = [u8; 32];

/// What a table was made from: all that was read of the file, in that order. A file of this size with the
/// same bytes in these places has the same table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSource {
    /// The size of the file.
    pub size_bytes: u64,
    /// Where it was read; at most [`Self::MAX_PIECES`].
    pub pieces: Vec<Piece>,
    /// SHA-256 of all pieces, one behind the other.
    pub digest: [u8; 32],
}

/// A piece of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The first byte.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

impl TableSource {
    /// Pieces, at most: a program with more functions without call frame information, each read by itself,
    /// has its table built every time.
    pub const MAX_PIECES: usize = 32 * 1024;
}

/// Why a file gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It could not be read.
    #[error("the file can't be read: {0}")]
    Unreadable(String),
    /// It is no ELF file.
    #[error("not an ELF file")]
    NotElf,
    /// It is an ELF file of a kind that is not handled.
    #[error("unsupported file: {0}")]
    Unsupported(String),
    /// Its contents make no sense.
    #[error("corrupt file: {0}")]
    Corrupt(String),
    /// The parser panicked.
    #[error("the parser panicked: {0}")]
    Panicked(String),
    /// The worker failed while it had this file.
    #[error("the worker that had the file {0}")]
    Worker(#[from] WorkerFailure),
}

/// How a worker failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkerFailure {
    /// It died: SIGBUS for a truncated file, SIGABRT for too much memory, ...
    #[error("died: {0}")]
    Crashed(String),
    /// It was killed because the request took longer than the [`Role::time_limit`].
    #[error("took longer than {} s", .0.as_secs())]
    TimedOut(Duration),
    /// It was killed because its answer was not a possible one.
    #[error("answered nonsense: {0}")]
    Nonsense(&'static str),
    /// It was ended because the request took more CPU time than the [`Role::cpu_limit`].
    #[error("used more than {} s of CPU time", .0.as_secs())]
    OutOfCpuTime(Duration),
    /// It could not be started again.
    #[error("could not be restarted: {0}")]
    NotStarted(String),
}
