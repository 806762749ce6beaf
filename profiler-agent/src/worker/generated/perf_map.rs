//! `/tmp/perf-PID.map`: lines `START SIZE name`, both numbers in hex without or with `0x`
//! (linux/tools/perf/Documentation/jit-interface.txt). Later lines win over those that they overlap.

use profiler_common::address::MonotonicNs;

use super::cursor::{Cursor, WINDOW_BYTES};
use super::index::{Function, Index, Piece, Span};
use super::{Frame, hash, text};

/// What is read at one time, at most. Of more only the end: later lines win anyway.
const MOST_BYTES: u64 = 256 << 20;

/// Bytes of a line that are looked at: longer names are cut off.
const LINE_BYTES: usize = 4096 + 64;

/// Bytes before the end of what was read that tell whether the map was written anew.
const TAIL_BYTES: u64 = 256;

/// How far a map was read.
#[derive(Default)]
pub(super) struct PerfMap {
    /// The start of the first line that was not read.
    position: u64,
    /// Within a line that is too long for one window.
    in_long_line: bool,
    /// Of the bytes before `position`.
    tail_hash: u64,
}

impl PerfMap {
    /// Takes in the lines that are complete. `earliest`: they were not there at that time; none for the
    /// first reading.
    pub(super) fn read_on(&mut self, cursor: &mut Cursor<'_>, index: &mut Index, earliest: Option<MonotonicNs>) {
        let mut remember = earliest.is_some();
        if self.tail_hash != tail_hash(cursor, self.position) {
            *self = Self::default();
        }
        if cursor.size_bytes.saturating_sub(self.position) > MOST_BYTES {
            index.clear();
            remember = false;
            (self.position, self.in_long_line) = (cursor.size_bytes - MOST_BYTES, true);
        }
        while let Some(bytes) = cursor.at_most(self.position, WINDOW_BYTES) {
            let length = bytes.len();
            let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else {
                if length < WINDOW_BYTES {
                    break;
                }
                self.in_long_line = true;
                self.position += length as u64;
                continue;
            };
            let lines = bytes[..end].to_vec();
            let came = Span { earliest: earliest.unwrap_or(MonotonicNs(0)), latest: cursor.filled_at };
            let mut at = self.position;
            for line in lines.split(|byte| *byte == b'\n') {
                if !std::mem::take(&mut self.in_long_line)
                    && let Some(function) = function(line, at)
                {
                    let (start, end) = (function.start, function.start + function.size_bytes);
                    index.insert(Piece { start, end, moved_by: 0, function, came }, remember);
                }
                at += line.len() as u64 + 1;
            }
            self.position = at;
        }
        self.tail_hash = tail_hash(cursor, self.position);
    }
}

fn tail_hash(cursor: &mut Cursor<'_>, position: u64) -> u64 {
    let length = position.min(TAIL_BYTES);
    cursor.bytes(position - length, length as usize).map_or(0, hash)
}

/// The function of a line that begins at `record`.
fn function(line: &[u8], record: u64) -> Option<Function> {
    let (start, size_bytes, name) = parse(line)?;
    Some(Function { start, size_bytes, record, lines: 0, name_hash: hash(name) })
}

/// Start, size and name of a line. The end of the code is an address too.
fn parse(line: &[u8]) -> Option<(u64, u64, &[u8])> {
    let line = &line[..line.len().min(LINE_BYTES)];
    let (start, rest) = number(line)?;
    let (size_bytes, name) = number(rest)?;
    let name = name.trim_ascii();
    start.checked_add(size_bytes)?;
    (size_bytes > 0 && !name.is_empty()).then_some((start, size_bytes, name))
}

/// A number and what follows it.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let text = text.trim_ascii_start();
    let length = text.iter().position(|byte| *byte == b' ')?;
    let (digits, rest) = text.split_at(length);
    let digits = digits.strip_prefix(b"0x").unwrap_or(digits);
    // `from_str_radix` takes a sign.
    let is_number = digits.iter().all(u8::is_ascii_hexdigit);
    let digits = std::str::from_utf8(digits).ok().filter(|_| is_number)?;
    Some((u64::from_str_radix(digits, 16).ok()?, rest))
}

/// What the line of a piece says, if it is there still.
pub(super) fn frame(cursor: &mut Cursor<'_>, piece: &Piece) -> Option<Frame> {
    let bytes = cursor.at_most(piece.function.record, LINE_BYTES)?;
    let line = bytes.split(|byte| *byte == b'\n').next()?;
    let (start, size_bytes, name) = parse(line)?;
    let function = Function { start, size_bytes, name_hash: hash(name), ..piece.function };
    let name = function.is(&piece.function).then(|| text(name))?;
    Some(Frame { system_name: name.clone(), name, ..Frame::default() })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::OwnedFd;

    use profiler_common::address::VirtualAddress;
    use proptest::prelude::*;

    use super::super::{Generated, MapKey, Meaning, Question, monotonic};
    use super::*;

    /// A file in memory and who reads it.
    struct Map {
        file: std::fs::File,
        fd: OwnedFd,
        reader: Generated,
    }

    impl Map {
        fn new(bytes: &[u8]) -> Self {
            let fd = rustix::fs::memfd_create("map", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            let mut file = std::fs::File::from(fd.try_clone().unwrap());
            file.write_all(bytes).unwrap();
            Self { file, fd, reader: Generated::default() }
        }

        fn append(&mut self, bytes: &[u8]) {
            self.file.write_all(bytes).unwrap();
        }

        /// What is at the address now, or was at a time.
        fn name_at(&mut self, address: u64, time: Option<MonotonicNs>) -> String {
            let time = time.unwrap_or(MonotonicNs(u64::MAX));
            let question = Question { address: VirtualAddress(address), time };
            let names = self.reader.answer(MapKey(1), &self.fd, &[question]).unwrap();
            match names.meanings[..] {
                [Meaning::Function(at)] => names.frames[at as usize].name.clone(),
                [Meaning::Unknown] => "?".to_owned(),
                [Meaning::Replaced] => "replaced".to_owned(),
                _ => panic!("{names:?}"),
            }
        }

        fn now(&mut self, address: u64) -> String {
            self.name_at(address, None)
        }
    }

    #[test]
    fn lines() {
        for (line, expected) in [
            ("3ef414c0 398 RegExp:[{(]", Some((0x3ef4_14c0, 0x398, "RegExp:[{(]"))),
            ("0x10 0x20 Lazy Compile:*f /a b.js:3", Some((0x10, 0x20, "Lazy Compile:*f /a b.js:3"))),
            ("ffffffffffffffff 1 beyond the end", None),
            ("10 0 empty", None),
            ("10 20 ", None),
            ("10 20", None),
            ("+10 20 sign", None),
            ("-10 20 sign", None),
            ("0x 20 no digits", None),
            ("11112222333344445 1 too big", None),
            ("", None),
        ] {
            let found = parse(line.as_bytes()).map(|(start, size, name)| (start, size, text(name)));
            assert_eq!(found, expected.map(|(start, size, name)| (start, size, name.to_owned())), "{line}");
        }
    }

    #[test]
    fn what_is_appended_is_read_and_half_a_line_waits() {
        let mut map = Map::new(b"1000 100 first\n2000 100 sec");
        assert_eq!((map.now(0x10ff), map.now(0x1100), map.now(0x2000)), ("first".into(), "?".into(), "?".into()));
        map.append(b"ond one\n");
        assert_eq!(map.now(0x2000), "second one");
        let seen = monotonic();
        assert_eq!(map.now(0x2000), "second one");
        let before = monotonic();
        map.append(b"2080 80 third\n");
        assert_eq!((map.now(0x207f), map.now(0x2080)), ("second one".into(), "third".into()));
        assert_eq!(map.name_at(0x2080, Some(seen)), "second one");
        assert_eq!(map.name_at(0x2080, Some(before)), "replaced", "written about then");
    }

    #[test]
    fn a_map_that_is_written_anew_is_read_anew() {
        let mut map = Map::new(b"1000 100 same\n2000 100 other\n");
        assert_eq!(map.now(0x2000), "other");
        for text in ["1000 100 same\n2000 100 new\n", "1000 100 same\n2000 100 another name, longer\n3000 1 x\n"] {
            map.file.set_len(0).unwrap();
            std::io::Seek::rewind(&mut map.file).unwrap();
            map.append(text.as_bytes());
            let name = text.split("100 ").nth(2).unwrap().lines().next().unwrap();
            assert_eq!((map.now(0x1000), map.now(0x2000)), ("same".to_owned(), name.to_owned()));
            assert_eq!(map.name_at(0x1000, Some(MonotonicNs(1))), "same");
        }
    }

    #[test]
    fn endless_lines_and_garbage_cost_only_themselves() {
        let mut map = Map::new(b"1000 100 before\n2000 100 long ");
        assert_eq!(map.now(0x2000), "?");
        map.append(&vec![b'x'; 3 * WINDOW_BYTES]);
        assert_eq!((map.now(0x1000), map.now(0x2000)), ("before".into(), "?".into()));
        map.append(b"\n\xff\xfe\0\n4000 10 \xff\x1b[2J\n3000 100 after\n");
        assert_eq!((map.now(0x3000), map.now(0x4000)), ("after".into(), "\u{fffd}\u{1b}[2J".into()));
        assert_eq!(map.now(0x2000), "?", "a line without an end in sight is none");
        let mut cut = Map::new(format!("1000 100 {}\n", "n".repeat(20_000)).as_bytes());
        assert!(cut.now(0x1000).len() <= 4096 && cut.now(0x1000).starts_with("nnnn"));
    }

    #[test]
    fn pipes_are_not_read() {
        let (reading, _writing) = rustix::pipe::pipe().unwrap();
        assert!(Generated::default().answer(MapKey(1), &reading, &[]).is_err());
    }

    proptest! {
        /// Whatever the bytes and however they come: no panic, and the last line that holds an address
        /// names it.
        #[test]
        fn the_last_line_wins(
            lines in proptest::collection::vec((0u64..64, 1u64..32, "[a-z]{1,9}", "[ -~]{0,12}"), 1..30),
            cuts in proptest::collection::vec(0usize..600, 0..4),
        ) {
            let mut text = String::new();
            let mut expected = vec!["?"; 128];
            for (start, size, name, garbage) in &lines {
                text += &format!("g{garbage}\n{start:x} {size:x} {name}\n");
                expected[*start as usize..(start + size) as usize].fill(name);
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % text.len()).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let mut map = Map::new(b"");
            for part in cuts.windows(2) {
                map.append(&text.as_bytes()[part[0]..part[1]]);
                map.now(0);
            }
            for (address, name) in expected.iter().enumerate() {
                prop_assert_eq!(&map.now(address as u64), name);
            }
        }

        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut map = Map::new(&bytes);
            map.now(0x10);
        }
    }
}
