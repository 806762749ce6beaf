//! Addresses of code that was made at run time to functions, by what the process itself wrote: a perf
//! map (text) or a jitdump.
//!
//! Both grow while the process runs, and code is replaced. So each file is read on from where it ended,
//! and of each function it is known when it came and went: exactly by the time stamps of a jitdump,
//! between two readings for a perf map. Only where things are is kept in memory; names are read when
//! they are asked for, and must be at their place still.

mod cursor;
mod index;
mod jitdump;
mod perf_map;

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;

use profiler_common::address::MonotonicNs;
use rustix::fs::FileType;
use rustix::time::{ClockId, clock_gettime};

use self::cursor::Cursor;
use self::index::{At, Index, Piece};
use self::jitdump::JitDump;
use self::perf_map::PerfMap;
use super::{FileError, Frame, GeneratedNames, MapKey, Meaning, Question};

/// Files of which it is known what was read, at most: the least recently used one goes.
const MOST_FILES: usize = 64;

/// Pieces of code that all files together may have (about 100 bytes each).
const MOST_PIECES: usize = 600_000;

/// The files that were asked about.
#[derive(Default)]
pub(super) struct Generated {
    /// The most recently used one last.
    known: VecDeque<(MapKey, Known)>,
}

/// What one file said so far.
struct Known {
    format: Format,
    index: Index,
    /// When the last reading began; none before the first one.
    read_from: Option<MonotonicNs>,
}

enum Format {
    /// Too short to tell.
    Unknown,
    PerfMap(PerfMap),
    JitDump(JitDump),
}

impl Generated {
    /// What is at those addresses at those times.
    pub(super) fn answer(
        &mut self,
        key: MapKey,
        file: &OwnedFd,
        questions: &[Question],
    ) -> Result<GeneratedNames, FileError> {
        let unreadable = |error: rustix::io::Errno| FileError::Unreadable(error.to_string());
        let status = rustix::fs::fstat(file).map_err(unreadable)?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(FileError::Unreadable("not a regular file".to_owned()));
        }
        let at = self.known.iter().position(|(known, _)| *known == key);
        let known = at.and_then(|at| self.known.remove(at)).map(|(_key, known)| known);
        let mut known = known.unwrap_or_else(Known::new);
        let mut cursor = Cursor::new(file, status.st_size.unsigned_abs());
        known.read_on(&mut cursor)?;
        let names = known.names(&mut cursor, questions);
        self.make_room(known.index.len());
        self.known.push_back((key, known));
        Ok(names)
    }

    fn make_room(&mut self, pieces: usize) {
        let mut all = pieces + self.known.iter().map(|(_key, known)| known.index.len()).sum::<usize>();
        while (all > MOST_PIECES || self.known.len() >= MOST_FILES)
            && let Some((_key, oldest)) = self.known.pop_front()
        {
            all -= oldest.index.len();
        }
    }
}

impl Known {
    fn new() -> Self {
        Self { format: Format::Unknown, index: Index::default(), read_from: None }
    }

    /// Takes in what was written since the last time.
    fn read_on(&mut self, cursor: &mut Cursor<'_>) -> Result<(), FileError> {
        let now = monotonic();
        if matches!(self.format, Format::Unknown) {
            self.format = match cursor.bytes(0, 4) {
                Some(magic) if jitdump::is_magic(magic) => Format::JitDump(JitDump::default()),
                Some(_) => Format::PerfMap(PerfMap::default()),
                None => return Ok(()),
            };
        }
        // What the first reading finds was there all the time, for all that is known.
        let earliest = self.read_from;
        match &mut self.format {
            Format::Unknown => {}
            Format::PerfMap(map) => map.read_on(cursor, &mut self.index, earliest),
            Format::JitDump(dump) => dump.read_on(cursor, &mut self.index, earliest)?,
        }
        self.read_from = Some(now);
        Ok(())
    }

    fn names(&self, cursor: &mut Cursor<'_>, questions: &[Question]) -> GeneratedNames {
        let mut names = GeneratedNames::default();
        let mut numbers: HashMap<Frame, u32> = HashMap::new();
        // By record, and by address where that has lines.
        let mut known: HashMap<(u64, u64), Meaning> = HashMap::new();
        cursor.glance();
        for question in questions {
            let address = question.address.0;
            let meaning = match self.index.at(address, question.time) {
                At::Nothing => Meaning::Unknown,
                At::Replaced => Meaning::Replaced,
                At::Piece(piece) => {
                    let place = (piece.function.record, if piece.function.lines == 0 { 0 } else { address });
                    *known.entry(place).or_insert_with(|| {
                        // What is no longer written there can't be known.
                        let frame = self.frame(cursor, piece, address);
                        frame.map_or(Meaning::Replaced, |frame| number(frame, &mut numbers, &mut names.frames))
                    })
                }
            };
            names.meanings.push(meaning);
        }
        names.left_out = self.index.left_out;
        names
    }

    fn frame(&self, cursor: &mut Cursor<'_>, piece: &Piece, address: u64) -> Option<Frame> {
        match &self.format {
            Format::Unknown => None,
            Format::PerfMap(_) => perf_map::frame(cursor, piece),
            Format::JitDump(dump) => dump.frame(cursor, piece, address),
        }
    }
}

fn number(frame: Frame, numbers: &mut HashMap<Frame, u32>, frames: &mut Vec<Frame>) -> Meaning {
    #[expect(clippy::cast_possible_truncation, reason = "as many as there are questions")]
    let next = frames.len() as u32;
    Meaning::Function(*numbers.entry(frame).or_insert_with_key(|frame| {
        frames.push(frame.clone());
        next
    }))
}

fn monotonic() -> MonotonicNs {
    let now = clock_gettime(ClockId::Monotonic);
    MonotonicNs(now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs())
}

/// What tells names apart where they are not kept.
fn hash(name: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher as _};
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    hasher.finish()
}

/// A name as it is told: its start, what is no UTF-8 replaced.
fn text(name: &[u8]) -> String {
    super::message::truncate(&String::from_utf8_lossy(name)).to_owned()
}
