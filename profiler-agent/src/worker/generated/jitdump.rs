//! jitdump: records of code that was made, moved, and of its source lines, with time stamps
//! (linux/tools/perf/Documentation/jitdump-specification.txt).

use profiler_common::address::MonotonicNs;

use super::cursor::Cursor;
use super::index::{Function, Index, Piece, Span};
use super::{FileError, Frame, hash, text};

/// `JiTD` as a number of the writer's byte order, which has to be ours.
const MAGIC: u32 = 0x4a69_5444;
const VERSION: u32 = 1;
/// Of the file: magic, version, size, machine, padding, pid, time stamp, flags.
const HEADER_BYTES: usize = 40;
/// Time stamps are the CPU's own, not `CLOCK_MONOTONIC`.
const FLAG_ARCH_TIMESTAMP: u64 = 1;
/// Of a record: kind, size, time stamp.
const PREFIX_BYTES: usize = 16;
const CODE_LOAD: u32 = 0;
/// Behind the prefix: pid, tid, vma, code address, code size, index; then the name and the code.
const LOAD_BYTES: usize = 40;
const CODE_MOVE: u32 = 1;
/// Behind the prefix: pid, tid, vma, old address, new address, code size, index.
const MOVE_BYTES: usize = 48;
const DEBUG_INFO: u32 = 2;
/// Behind the prefix: code address, number of entries.
const DEBUG_BYTES: usize = 16;
/// Of an entry: address, line, discriminator; then the file's name.
const ENTRY_BYTES: usize = 16;
/// V8 writes its addresses of lines for the ELF file that `perf inject` makes of the code: behind a
/// header. It can be told by what it puts into the padding (v8/src/diagnostics/perf-jit.h).
const V8_PADDING: u32 = 0xdead_beef;
const V8_LINES_OFFSET: u64 = 0x40;
/// In place of a file's name: that of the entry before.
const SAME_FILE: &[u8] = b"\xff";

/// Bytes of a name that are looked at.
const NAME_BYTES: usize = 4096;

/// Bytes of one function's lines that are looked at.
const LINES_BYTES: usize = 64 << 10;

/// Records that are read at one time, at most: the rest the next time.
const MOST_RECORDS: usize = 2_000_000;

/// How far a dump was read.
#[derive(Default)]
pub(super) struct JitDump {
    /// The start of the first record that was not read; 0 before the header was.
    position: u64,
    header_hash: u64,
    times_are_ours: bool,
    /// What is added to the addresses of lines.
    lines_offset: u64,
    /// The lines of the function that the next record loads.
    lines: u64,
}

/// Whether a file that begins so is a jitdump, of whatever byte order.
pub(super) fn is_magic(bytes: &[u8]) -> bool {
    bytes == MAGIC.to_ne_bytes() || bytes == MAGIC.swap_bytes().to_ne_bytes()
}

/// The start of a record.
#[derive(Clone, Copy)]
struct Prefix {
    kind: u32,
    size_bytes: u32,
    time_ns: u64,
}

impl JitDump {
    /// Takes in the records that are complete. `earliest`: they were not there at that time; none for
    /// the first reading.
    ///
    /// # Errors
    /// When the header is not one, or a record has an impossible size.
    pub(super) fn read_on(
        &mut self,
        cursor: &mut Cursor<'_>,
        index: &mut Index,
        earliest: Option<MonotonicNs>,
    ) -> Result<(), FileError> {
        let shrunk = self.position > cursor.size_bytes;
        let Some(header) = cursor.bytes(0, HEADER_BYTES) else { return Ok(()) };
        if self.position == 0 || shrunk || self.header_hash != hash(header) {
            *self = Self::after(header)?;
            index.clear();
        }
        for _ in 0..MOST_RECORDS {
            let Some(prefix) = prefix(cursor, self.position) else { break };
            let next = self.position + u64::from(prefix.size_bytes);
            if (prefix.size_bytes as usize) < PREFIX_BYTES {
                return Err(FileError::Corrupt(format!("a jitdump record of {} bytes", prefix.size_bytes)));
            }
            if next > cursor.size_bytes {
                break;
            }
            self.take(prefix, cursor, index, earliest);
            self.position = next;
        }
        Ok(())
    }

    fn after(header: &[u8]) -> Result<Self, FileError> {
        let corrupt = |what: String| FileError::Corrupt(format!("a jitdump header with {what}"));
        let (magic, version, size_bytes) = (half(header, 0), half(header, 4), half(header, 8));
        if magic != MAGIC {
            return Err(corrupt("another byte order".to_owned()));
        }
        if version != VERSION || (size_bytes as usize) < HEADER_BYTES {
            return Err(corrupt(format!("version {version} and {size_bytes} bytes")));
        }
        let times_are_ours = whole(header, 32) & FLAG_ARCH_TIMESTAMP == 0;
        let lines_offset = if half(header, 16) == V8_PADDING { V8_LINES_OFFSET } else { 0 };
        Ok(Self { position: u64::from(size_bytes), header_hash: hash(header), times_are_ours, lines_offset, lines: 0 })
    }

    fn take(&mut self, prefix: Prefix, cursor: &mut Cursor<'_>, index: &mut Index, earliest: Option<MonotonicNs>) {
        let read_at = cursor.filled_at;
        // The clock of samples, unless it says what can't be.
        let exact = self.times_are_ours && 0 < prefix.time_ns && prefix.time_ns <= read_at.0;
        let came = if exact {
            Span::exactly(MonotonicNs(prefix.time_ns))
        } else {
            Span { earliest: earliest.unwrap_or(MonotonicNs(0)), latest: read_at }
        };
        let remember = exact || earliest.is_some();
        match prefix.kind {
            CODE_LOAD => {
                let lines = std::mem::take(&mut self.lines);
                if let Some((function, _name)) = load(cursor, self.position, prefix) {
                    let lines = if described_code(cursor, lines) == Some(function.start) { lines } else { 0 };
                    let (start, end) = (function.start, function.start + function.size_bytes);
                    let function = Function { lines, ..function };
                    index.insert(Piece { start, end, moved_by: 0, function, came }, remember);
                }
            }
            CODE_MOVE => {
                if let Some(body) = body(cursor, self.position, prefix, MOVE_BYTES) {
                    index.relocate(whole(body, 16), whole(body, 24), whole(body, 32), came, remember);
                }
            }
            DEBUG_INFO => self.lines = self.position,
            // Unwinding information, the end, and what is not defined yet.
            _ => {}
        }
    }

    /// What the record of a piece says of an address in it, if it is there still.
    pub(super) fn frame(&self, cursor: &mut Cursor<'_>, piece: &Piece, address: u64) -> Option<Frame> {
        let record = piece.function.record;
        let prefix = prefix(cursor, record).filter(|prefix| prefix.kind == CODE_LOAD)?;
        let (function, name) = load(cursor, record, prefix)?;
        if !function.is(&piece.function) {
            return None;
        }
        let name = text(name);
        let stated = address.wrapping_sub(piece.moved_by).wrapping_add(self.lines_offset);
        let (file, line) = line(cursor, piece, stated).unwrap_or_default();
        Some(Frame { system_name: name.clone(), name, file, line, ..Frame::default() })
    }
}

/// Which code the lines at `record` are of.
fn described_code(cursor: &mut Cursor<'_>, record: u64) -> Option<u64> {
    if record == 0 {
        return None;
    }
    let prefix = prefix(cursor, record)?;
    body(cursor, record, prefix, DEBUG_BYTES).map(|body| whole(body, 0))
}

fn prefix(cursor: &mut Cursor<'_>, record: u64) -> Option<Prefix> {
    let bytes = cursor.bytes(record, PREFIX_BYTES)?;
    Some(Prefix { kind: half(bytes, 0), size_bytes: half(bytes, 4), time_ns: whole(bytes, 8) })
}

/// The first `length` bytes behind a record's prefix.
fn body<'a>(cursor: &'a mut Cursor<'_>, record: u64, prefix: Prefix, length: usize) -> Option<&'a [u8]> {
    if (prefix.size_bytes as usize) < PREFIX_BYTES + length {
        return None;
    }
    cursor.bytes(record + PREFIX_BYTES as u64, length)
}

/// The function that a record loads, and its name.
fn load<'a>(cursor: &'a mut Cursor<'_>, record: u64, prefix: Prefix) -> Option<(Function, &'a [u8])> {
    let length = (prefix.size_bytes as usize).checked_sub(PREFIX_BYTES)?.min(LOAD_BYTES + NAME_BYTES);
    let bytes = body(cursor, record, prefix, length.max(LOAD_BYTES))?;
    let (start, size_bytes) = (whole(bytes, 16), whole(bytes, 24));
    let name = bytes[LOAD_BYTES..].split(|byte| *byte == 0).next().filter(|name| !name.is_empty())?;
    start.checked_add(size_bytes)?;
    Some((Function { start, size_bytes, record, lines: 0, name_hash: hash(name) }, name))
}

/// File and line of an address, as the file states it.
fn line(cursor: &mut Cursor<'_>, piece: &Piece, address: u64) -> Option<(String, u32)> {
    let record = piece.function.lines;
    let prefix = prefix(cursor, record).filter(|prefix| record != 0 && prefix.kind == DEBUG_INFO)?;
    let length = (prefix.size_bytes as usize).checked_sub(PREFIX_BYTES)?.min(LINES_BYTES);
    let bytes = body(cursor, record, prefix, length.max(DEBUG_BYTES))?;
    let count = whole(bytes, 8);
    let mut rest = &bytes[DEBUG_BYTES..];
    let (mut file, mut found) = (&b""[..], None);
    for _ in 0..count {
        let Some((entry, tail)) = rest.split_at_checked(ENTRY_BYTES) else { break };
        let Some(end) = tail.iter().position(|byte| *byte == 0) else { break };
        let name = &tail[..end];
        rest = &tail[end + 1..];
        if name != SAME_FILE {
            file = name;
        }
        let entry_address = whole(entry, 0);
        // In the order of addresses as a rule; the last one that begins before holds.
        if entry_address <= address && found.is_none_or(|(best, _, _)| best <= entry_address) {
            found = Some((entry_address, file, half(entry, 8)));
        }
    }
    found.map(|(_address, file, line)| (text(file), line))
}

/// Both of bytes that are there: 0 otherwise.
fn half(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

fn whole(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::OwnedFd;

    use profiler_common::address::VirtualAddress;
    use proptest::prelude::*;

    use super::super::{Generated, MapKey, Meaning, Question};
    use super::*;

    fn header(flags: u64) -> Vec<u8> {
        let halves = [MAGIC, VERSION, HEADER_BYTES as u32, 62, 0, 77];
        let mut bytes: Vec<u8> = halves.iter().flat_map(|half| half.to_ne_bytes()).collect();
        bytes.extend([5u64, flags].iter().flat_map(|word| word.to_ne_bytes()));
        bytes
    }

    fn record(kind: u32, time_ns: u64, words: &[u64], tail: &[u8]) -> Vec<u8> {
        let size_bytes = (PREFIX_BYTES + words.len() * 8 + tail.len()) as u32;
        let mut bytes: Vec<u8> = [kind, size_bytes].iter().flat_map(|half| half.to_ne_bytes()).collect();
        bytes.extend([&[time_ns], words].concat().iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(tail);
        bytes
    }

    fn loaded(time_ns: u64, start: u64, size: u64, name: &str) -> Vec<u8> {
        let tail = [name.as_bytes(), b"\0", &vec![0x90; size as usize]].concat();
        record(CODE_LOAD, time_ns, &[77 | 78 << 32, start, start, size, 1], &tail)
    }

    fn lines(start: u64, entries: &[(u64, u32, &str)]) -> Vec<u8> {
        let mut tail = Vec::new();
        for (address, line, file) in entries {
            tail.extend(address.to_ne_bytes());
            tail.extend(line.to_ne_bytes());
            tail.extend(0u32.to_ne_bytes());
            tail.extend(if file.is_empty() { b"\xff" } else { file.as_bytes() });
            tail.push(0);
        }
        record(DEBUG_INFO, 1, &[start, entries.len() as u64], &tail)
    }

    fn file(bytes: &[u8]) -> (std::fs::File, OwnedFd) {
        let fd = rustix::fs::memfd_create("dump", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = std::fs::File::from(fd.try_clone().unwrap());
        file.write_all(bytes).unwrap();
        (file, fd)
    }

    fn ask(reader: &mut Generated, fd: &OwnedFd, address: u64, time: u64) -> Result<String, FileError> {
        let question = Question { address: VirtualAddress(address), time: MonotonicNs(time) };
        let names = reader.answer(MapKey(1), fd, &[question])?;
        Ok(match names.meanings[..] {
            [Meaning::Function(at)] => {
                let frame = &names.frames[at as usize];
                format!("{} {}:{}", frame.name, frame.file, frame.line)
            }
            [Meaning::Unknown] => "?".to_owned(),
            _ => "replaced".to_owned(),
        })
    }

    #[test]
    fn functions_lines_moves_and_replacements() {
        let bytes = [
            header(0),
            lines(0x1000, &[(0x1000, 3, "/a.js"), (0x1010, 5, ""), (0x1020, 9, "/b.js")]),
            loaded(100, 0x1000, 0x40, "first"),
            loaded(200, 0x1000, 0x40, "second"),
            record(CODE_MOVE, 300, &[77, 0x5000, 0x1000, 0x5000, 0x40, 1], b""),
            record(4, 300, &[1, 2, 3], b"unwinding"),
        ]
        .concat();
        let (mut writer, fd) = file(&bytes);
        let mut reader = Generated::default();
        let mut at = |address, time| ask(&mut reader, &fd, address, time).unwrap();
        assert_eq!(at(0x1000, 150), "first /a.js:3");
        assert_eq!(at(0x101f, 199), "first /a.js:5");
        assert_eq!(at(0x103f, 199), "first /b.js:9");
        assert_eq!(at(0x1000, 250), "second :0");
        assert_eq!((at(0x1000, 301), at(0x5001, 301)), ("?".into(), "second :0".into()));
        let third = loaded(400, 0x1000, 0x10, "third");
        writer.write_all(&third[..30]).unwrap();
        assert_eq!(at(0x1000, 500), "?", "half a record waits");
        writer.write_all(&third[30..]).unwrap();
        assert_eq!(at(0x1000, 500), "third :0");
    }

    #[test]
    fn lines_of_v8_are_behind_an_elf_header() {
        let mut bytes = header(0);
        bytes[16..20].copy_from_slice(&V8_PADDING.to_ne_bytes());
        bytes.extend(lines(0x1000, &[(0x1040, 3, "/a.js"), (0x1050, 5, "")]));
        bytes.extend(loaded(100, 0x1000, 0x40, "f"));
        let (_writer, fd) = file(&bytes);
        let at = |address| ask(&mut Generated::default(), &fd, address, 400).unwrap();
        assert_eq!((at(0x1000), at(0x100f), at(0x1010)), ("f /a.js:3".into(), "f /a.js:3".into(), "f /a.js:5".into()));
    }

    #[test]
    fn lines_move_along() {
        let bytes = [
            header(0),
            lines(0x1000, &[(0x1000, 3, "/a.js"), (0x1010, 5, "")]),
            loaded(100, 0x1000, 0x40, "f"),
            record(CODE_MOVE, 300, &[77, 0x800, 0x1000, 0x800, 0x40, 1], b""),
        ]
        .concat();
        let (_writer, fd) = file(&bytes);
        assert_eq!(ask(&mut Generated::default(), &fd, 0x810, 400).unwrap(), "f /a.js:5");
    }

    #[test]
    fn damaged_ones_are_errors_or_end_early() {
        let corrupt = |bytes: &[u8]| ask(&mut Generated::default(), &file(bytes).1, 0x1000, 9);
        let mut foreign = header(0);
        foreign[..4].reverse();
        assert!(matches!(corrupt(&foreign), Err(FileError::Corrupt(_))));
        let short = [header(0), vec![0; PREFIX_BYTES]].concat();
        assert!(matches!(corrupt(&short), Err(FileError::Corrupt(_))));
        let no_name = [header(0), loaded(1, 0x1000, 4, "")].concat();
        assert_eq!(corrupt(&no_name).unwrap(), "?");
        let wraps = [header(0), record(CODE_LOAD, 1, &[0, 8, u64::MAX, 9, 1], b"f\0")].concat();
        assert_eq!(corrupt(&wraps).unwrap(), "?");
        let moves = [header(0), record(CODE_MOVE, 1, &[0, 8, u64::MAX, 9, u64::MAX, 1], b"")].concat();
        assert_eq!(corrupt(&moves).unwrap(), "?");
        assert_eq!(corrupt(&header(0)[..20]).unwrap(), "?");
    }

    proptest! {
        /// No panic, whatever is behind the header.
        #[test]
        fn any_records_are_read(
            words in proptest::collection::vec((0u32..6, 0u32..80, proptest::collection::vec(0u64..0x40, 0..9)), 0..9),
            flags in 0u64..2,
        ) {
            let mut bytes = header(flags);
            for (kind, size, body) in &words {
                bytes.extend(kind.to_ne_bytes());
                bytes.extend(size.to_ne_bytes());
                bytes.extend(body.iter().flat_map(|word| word.to_ne_bytes()));
            }
            let (_writer, fd) = file(&bytes);
            for address in [0, 8, 0x20] {
                let _answer = ask(&mut Generated::default(), &fd, address, 7);
            }
        }
    }
}
