//! What a worker is asked, how far the first request got, and what is made of the answer.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use profiler_common::address::Svma;
use profiler_unwind::{Part, UnwindTable};
use tokio::time::Instant;

use super::message::{self, Header, MAX_REPLY_BYTES, Status};
use super::{
    ContentsDigest, Description, FileError, FileKey, Frame, GeneratedNames, MapKey, Reply, Role, TableSource,
    debug_message, description_message, name_message, table_message,
};
use crate::debug_files::{self, DebugFile, Missing, Place};
use crate::debuginfod::DebugCache;

/// Files known by build id that are noted in a request, at most: an executable has one, and that one more.
const MOST_NOTED: usize = 8;

/// Files that are looked for in a request, at most: a split unit for each address is hundreds, and file systems
/// may be slow. What is asked for beyond that is not there.
const MOST_LOOKED_FOR: u32 = 1000;

/// What is known of debug files.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Those that servers sent.
    pub(super) downloaded: Option<Arc<DebugCache>>,
    pub(super) missing: Missing,
}

/// What was asked. It stays in the queue until it is answered, so that its file stays open for
/// another child.
#[derive(Debug)]
pub(super) struct Request {
    /// A [`FileKey`] or a [`MapKey`], as the role has it.
    pub(super) key: u32,
    pub(super) file: Arc<OwnedFd>,
    /// None in questions about generated code.
    pub(super) place: Option<Place>,
    /// Empty in requests for tables and descriptions.
    pub(super) words: Vec<u64>,
}

/// How far the first request of the queue got.
#[derive(Debug, Default)]
pub(super) struct Flight {
    pub(super) deadline: Option<Instant>,
    pub(super) sent_bytes: usize,
    /// The header and the payload, as far as they came, and before them pieces that were taken in.
    pub(super) received: Vec<u8>,
    /// Bytes of those pieces.
    pub(super) taken_bytes: usize,
    /// How many files the child asked for, and how many were looked for.
    pub(super) questions: u32,
    pub(super) looked_for: u32,
    /// The answer to the question in `received`, until it is sent.
    pub(super) answer: Option<Option<(String, OwnedFd)>>,
    /// Files known by build id that the child asked for in vain, and the build ids of others.
    pub(super) lacking: Vec<DebugFile>,
    pub(super) found: Vec<Vec<u8>>,
    /// What came before of a table that comes in pieces, and in how many bytes, with headers.
    pub(super) parts: Vec<Part>,
    pub(super) parts_bytes: usize,
}

impl Flight {
    /// What is not taken in yet.
    pub(super) fn waiting(&self) -> &[u8] {
        self.received.get(self.taken_bytes..).unwrap_or_default()
    }

    pub(super) fn payload(&self) -> &[u8] {
        self.waiting().get(Header::BYTES..).unwrap_or_default()
    }

    /// Looks for the file that the child asks for, unless that was done before the future was dropped.
    pub(super) fn look_for_wanted(&mut self, request: &Request, known: &mut Known) -> Result<(), &'static str> {
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
    pub(super) fn take_parts(&mut self, header: Header) -> Result<(), &'static str> {
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
pub(super) enum Answer {
    Table(UnwindTable, Option<TableSource>, Option<ContentsDigest>),
    Symbols(Vec<(Svma, Vec<Frame>)>),
    Generated(GeneratedNames),
    Description(Description),
    Failed(FileError),
}

impl Answer {
    pub(super) fn decode(
        role: Role,
        request: &Request,
        header: Header,
        flight: &mut Flight,
    ) -> Result<Self, &'static str> {
        let parts = std::mem::take(&mut flight.parts);
        let payload = flight.payload();
        Ok(match (header.status, role) {
            (Status::Done, Role::Tables) => {
                let (contents, payload) = table_message::split_contents(payload)?;
                let (table, source) = table_message::decode_answer(parts, payload)?;
                Self::Table(table, source, contents)
            }
            (Status::Done, Role::Symbols) => Self::Symbols(message::decode_symbols(&request.words, payload)?),
            (Status::Done, Role::Generated) => {
                Self::Generated(name_message::decode_names(request.words.len() / 2, payload)?)
            }
            (Status::Done, Role::Describe) => Self::Description(description_message::decode(payload)?),
            (failed, _) => Self::Failed(message::decode_error(failed, payload)?),
        })
    }

    pub(super) fn into_reply(self, role: Role, request: &Request, lacking: Vec<DebugFile>) -> Reply {
        let (key, file) = (request.key, Arc::clone(&request.file));
        match (self, role) {
            (Self::Table(table, source, contents), _) => {
                Reply::Table { key: FileKey(key), file, result: Ok(table), source, contents }
            }
            (Self::Symbols(symbols), _) => Reply::Symbols { key: FileKey(key), file, result: Ok(symbols), lacking },
            (Self::Generated(names), _) => Reply::Generated { key: MapKey(key), result: Ok(names) },
            (Self::Description(description), _) => Reply::Description { key: FileKey(key), result: Ok(description) },
            (Self::Failed(error), Role::Tables) => {
                Reply::Table { key: FileKey(key), file, result: Err(error), source: None, contents: None }
            }
            (Self::Failed(error), Role::Symbols) => {
                Reply::Symbols { key: FileKey(key), file, result: Err(error), lacking }
            }
            (Self::Failed(error), Role::Generated) => Reply::Generated { key: MapKey(key), result: Err(error) },
            (Self::Failed(error), Role::Describe) => Reply::Description { key: FileKey(key), result: Err(error) },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

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
