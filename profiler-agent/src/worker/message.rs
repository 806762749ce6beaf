//! What goes over the socket between the agent and a worker: little-endian, every length bounded.
//!
//! A request is a `u32` count and as many `u64` words, with one file descriptor attached to its first
//! byte: the addresses to symbolize, none in requests for tables, what `name_message` says in those
//! for names of generated code. A reply is [`Header`] and its payload; a long table comes in several of
//! them. Before it the worker for symbols may ask for files, one after the other (`debug_message`).
//! Neither side trusts the other's lengths: the worker may have been taken over by a file.

use profiler_common::address::Svma;

use super::{FileError, Frame};

/// Addresses in one request, at most; bigger ones are split.
pub const MAX_ADDRESSES: usize = 4096;
/// Words of one request, at most: a key, and as many questions of two words as addresses elsewhere.
pub(super) const MAX_WORDS: usize = 2 * MAX_ADDRESSES + 1;
/// Functions at one address, at most: more levels of inlining are cut off at the outermost.
pub const MAX_FRAMES_PER_ADDRESS: usize = 128;
/// Bytes of one name or message, at most: the rest is cut off.
pub const MAX_STRING_BYTES: usize = 4096;
/// Bytes of one answer's payloads, at most: 8 million rows, five times libLLVM's.
pub const MAX_REPLY_BYTES: usize = 64 << 20;

/// The start of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) status: Status,
    /// The worker exits after this reply, to give its memory back.
    pub(super) last: bool,
    /// More of this answer follows, with a header of its own.
    pub(super) more: bool,
    /// The payload's length in bytes, at most [`MAX_REPLY_BYTES`].
    pub(super) payload_bytes: usize,
}

/// How a request ended; the discriminant is what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Done = 0,
    Unreadable = 1,
    NotElf = 2,
    Unsupported = 3,
    Corrupt = 4,
    Panicked = 5,
    /// No answer yet, but a question of the worker (`debug_message`).
    Wanted = 6,
}

impl Status {
    const ALL: [Self; 7] =
        [Self::Done, Self::Unreadable, Self::NotElf, Self::Unsupported, Self::Corrupt, Self::Panicked, Self::Wanted];
}

impl Header {
    /// Bytes of a header.
    pub(super) const BYTES: usize = 8;

    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_REPLY_BYTES")]
        let length = (self.payload_bytes as u32).to_le_bytes();
        let [a, b, c, d] = length;
        [self.status as u8, u8::from(self.last), u8::from(self.more), 0, a, b, c, d]
    }

    pub(super) fn decode(bytes: [u8; Self::BYTES]) -> Result<Self, &'static str> {
        let [status, last, more, _, a, b, c, d] = bytes;
        let payload_bytes = u32::from_le_bytes([a, b, c, d]) as usize;
        if payload_bytes > MAX_REPLY_BYTES {
            return Err("a payload that is too long");
        }
        let status = Status::ALL.into_iter().find(|&known| known as u8 == status).ok_or("an unknown status")?;
        Ok(Self { status, last: last != 0, more: more != 0, payload_bytes })
    }
}

/// A request of at most [`MAX_WORDS`] words.
pub(super) fn encode_request(words: &[u64]) -> Vec<u8> {
    let mut out = Writer::default();
    out.count(words.len());
    words.iter().for_each(|word| out.u64(*word));
    out.bytes
}

/// Status and payload that stand for `error`.
pub(super) fn encode_error(error: &FileError) -> (Status, Vec<u8>) {
    let (status, text) = match error {
        FileError::Unreadable(text) => (Status::Unreadable, text.clone()),
        FileError::NotElf => (Status::NotElf, String::new()),
        FileError::Unsupported(text) => (Status::Unsupported, text.clone()),
        FileError::Corrupt(text) => (Status::Corrupt, text.clone()),
        FileError::Panicked(text) => (Status::Panicked, text.clone()),
        // The parent's own words: a worker has no such error.
        FileError::Worker(failure) => (Status::Panicked, failure.to_string()),
    };
    let mut out = Writer::default();
    out.string(&text);
    (status, out.bytes)
}

/// The error that `status` and `payload` stand for.
pub(super) fn decode_error(status: Status, payload: &[u8]) -> Result<FileError, &'static str> {
    let mut input = Reader(payload);
    let text = input.string()?;
    input.end()?;
    Ok(match status {
        Status::Done | Status::Wanted => return Err("no error"),
        Status::Unreadable => FileError::Unreadable(text),
        Status::NotElf => FileError::NotElf,
        Status::Unsupported => FileError::Unsupported(text),
        Status::Corrupt => FileError::Corrupt(text),
        Status::Panicked => FileError::Panicked(text),
    })
}

/// The payload of a reply with symbols: the frames of each address asked for, in that order.
pub(super) fn encode_symbols(symbols: &[Vec<Frame>]) -> Vec<u8> {
    let mut out = Writer::default();
    for frames in symbols {
        let frames = &frames[..frames.len().min(MAX_FRAMES_PER_ADDRESS)];
        out.count(frames.len());
        for frame in frames {
            encode_frame(&mut out, frame);
        }
    }
    out.bytes
}

pub(super) fn encode_frame(out: &mut Writer, frame: &Frame) {
    out.string(&frame.name);
    // Most names are the same in both forms.
    out.string(if frame.system_name == frame.name { "" } else { &frame.system_name });
    out.string(&frame.file);
    out.u32(frame.line);
    out.u32(frame.column);
    out.u32(u32::from(frame.inlined));
    out.u32(frame.nameless_start.0 as u32);
    out.u32((frame.nameless_start.0 >> 32) as u32);
}

/// What [`encode_symbols`] made for a request with these addresses.
pub(super) fn decode_symbols(addresses: &[u64], payload: &[u8]) -> Result<Vec<(Svma, Vec<Frame>)>, &'static str> {
    let mut input = Reader(payload);
    let mut symbols = Vec::with_capacity(addresses.len());
    for &address in addresses {
        let count = input.count(MAX_FRAMES_PER_ADDRESS)?;
        let frames = (0..count).map(|_| decode_frame(&mut input)).collect::<Result<_, _>>()?;
        symbols.push((Svma(address), frames));
    }
    input.end()?;
    Ok(symbols)
}

pub(super) fn decode_frame(input: &mut Reader<'_>) -> Result<Frame, &'static str> {
    let name = input.string()?;
    let system_name = match input.string()? {
        same if same.is_empty() => name.clone(),
        other => other,
    };
    Ok(Frame {
        name,
        system_name,
        file: input.string()?,
        line: input.u32()?,
        column: input.u32()?,
        inlined: input.u32()? != 0,
        nameless_start: Svma(u64::from(input.u32()?) | u64::from(input.u32()?) << 32),
    })
}

/// The start of `text` that fits [`MAX_STRING_BYTES`].
pub(super) fn truncate(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_STRING_BYTES)]
}

/// Builds a payload.
#[derive(Default)]
pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn u32(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// A number of things, or `u32::MAX`, which every reader refuses.
    pub(super) fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }

    pub(super) fn string(&mut self, text: &str) {
        let text = truncate(text);
        self.count(text.len());
        self.bytes.extend(text.as_bytes());
    }
}

/// Takes a payload apart. Its errors say what was found instead of what had to be there.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or("a payload that ends early")?;
        self.0 = tail;
        Ok(*head)
    }

    pub(super) fn u32(&mut self) -> Result<u32, &'static str> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, &'static str> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of things, at most `limit`.
    pub(super) fn count(&mut self, limit: usize) -> Result<usize, &'static str> {
        let count = self.u32()? as usize;
        if count <= limit { Ok(count) } else { Err("a count beyond its limit") }
    }

    pub(super) fn slice(&mut self, length: usize) -> Result<&'a [u8], &'static str> {
        let (head, tail) = self.0.split_at_checked(length).ok_or("a payload that ends early")?;
        self.0 = tail;
        Ok(head)
    }

    pub(super) fn string(&mut self) -> Result<String, &'static str> {
        let length = self.count(MAX_STRING_BYTES)?;
        let text = std::str::from_utf8(self.slice(length)?);
        text.map(str::to_owned).or(Err("text that is not UTF-8"))
    }

    pub(super) fn end(&self) -> Result<(), &'static str> {
        if self.0.is_empty() { Ok(()) } else { Err("a payload that goes on") }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(name: &str) -> Frame {
        Frame {
            name: name.to_owned(),
            system_name: "_Z1f".to_owned(),
            file: "a.c".to_owned(),
            line: 3,
            column: 7,
            inlined: true,
            nameless_start: Svma(0x1234_5678_9abc),
        }
    }

    #[test]
    fn symbols_survive_and_long_ones_are_cut() {
        let addresses = [1, 2, 3];
        let long = frame(&"ü".repeat(MAX_STRING_BYTES));
        let symbols = [vec![frame("f"), frame("_Z1f")], vec![], vec![long; MAX_FRAMES_PER_ADDRESS + 1]];
        let decoded = decode_symbols(&addresses, &encode_symbols(&symbols)).unwrap();
        assert_eq!(decoded[..2], [(Svma(1), symbols[0].clone()), (Svma(2), vec![])]);
        assert_eq!(decoded[2].1.len(), MAX_FRAMES_PER_ADDRESS);
        assert_eq!(decoded[2].1[0].name, "ü".repeat(MAX_STRING_BYTES / 2));
    }

    #[test]
    fn errors_survive() {
        let text = || "why".to_owned();
        for error in [
            FileError::Unreadable(text()),
            FileError::NotElf,
            FileError::Unsupported(text()),
            FileError::Corrupt(text()),
            FileError::Panicked(text()),
        ] {
            let (status, payload) = encode_error(&error);
            assert_eq!(decode_error(status, &payload), Ok(error));
        }
    }

    #[test]
    fn headers_survive_and_long_payloads_are_refused() {
        let header = Header { status: Status::Corrupt, last: true, more: true, payload_bytes: MAX_REPLY_BYTES };
        assert_eq!(Header::decode(header.encode()), Ok(header));
        assert!(Header::decode(Header { payload_bytes: MAX_REPLY_BYTES + 1, ..header }.encode()).is_err());
        assert!(Header::decode([9, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }

    proptest! {
        /// Whatever the bytes: no panic, and never more frames than the limits allow.
        #[test]
        fn any_payload_is_decoded_or_refused(payload in proptest::collection::vec(0u8..4, 0..200)) {
            let addresses = [0; 4];
            if let Ok(symbols) = decode_symbols(&addresses, &payload) {
                let frames: usize = symbols.iter().map(|(_, frames)| frames.len()).sum();
                prop_assert!(frames * 24 + 16 <= payload.len());
            }
            let _ = decode_error(Status::Corrupt, &payload);
        }
    }
}
