//! What the worker for symbols asks the agent for while it has a request: files that belong to an executable.
//!
//! The question is the payload of a reply with [`super::message::Status::Wanted`]. The agent answers with the
//! path of what it found, of whose length (`u32`) the first byte has the file descriptor attached; with the
//! length 0 and none when there is nothing.

use super::message::{MAX_STRING_BYTES, Reader, Writer};
use crate::debug_files::DebugFile;

/// Questions in one request, at most: a file for each address, and some.
pub(super) const MAX_QUESTIONS: u32 = 10_000;

/// The payload of a question.
pub(super) fn encode(wanted: &DebugFile, candidate: usize) -> Vec<u8> {
    let mut out = Writer::default();
    out.count(candidate);
    let (kind, texts): (u32, &[&[u8]]) = match wanted {
        DebugFile::BuildId(id) => (0, &[id]),
        DebugFile::Link(name) => (1, &[name]),
        DebugFile::Supplement { path, build_id } => (2, &[path, build_id]),
        DebugFile::Package => (3, &[]),
        DebugFile::SplitUnit { folder, name } => (4, &[folder, name]),
    };
    out.u32(kind);
    for text in texts {
        out.count(text.len());
        out.bytes.extend(*text);
    }
    out.bytes
}

/// The bytes of an answer.
pub(super) fn answer(path: &str) -> Vec<u8> {
    let mut out = Writer::default();
    out.string(path);
    out.bytes
}

/// What [`encode`] made.
pub(super) fn decode(payload: &[u8]) -> Result<(DebugFile, usize), &'static str> {
    let mut input = Reader(payload);
    let candidate = input.u32()? as usize;
    let kind = input.u32()?;
    let mut text = || {
        let length = input.count(MAX_STRING_BYTES)?;
        input.slice(length).map(<[u8]>::to_vec)
    };
    let wanted = match kind {
        0 => DebugFile::BuildId(text()?),
        1 => DebugFile::Link(text()?),
        2 => DebugFile::Supplement { path: text()?, build_id: text()? },
        3 => DebugFile::Package,
        4 => DebugFile::SplitUnit { folder: text()?, name: text()? },
        _ => return Err("an unknown kind of file"),
    };
    input.end()?;
    Ok((wanted, candidate))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn questions_survive() {
        let text = || b"a/b".to_vec();
        for wanted in [
            DebugFile::BuildId(text()),
            DebugFile::Link(text()),
            DebugFile::Supplement { path: text(), build_id: vec![1, 2] },
            DebugFile::Package,
            DebugFile::SplitUnit { folder: vec![], name: text() },
        ] {
            assert_eq!(decode(&encode(&wanted, 3)), Ok((wanted, 3)));
        }
        assert!(decode(&encode(&DebugFile::Link(vec![b'a'; MAX_STRING_BYTES + 1]), 0)).is_err());
    }

    proptest! {
        #[test]
        fn any_payload_is_decoded_or_refused(payload in proptest::collection::vec(0u8..5, 0..40)) {
            if let Ok((wanted, candidate)) = decode(&payload) {
                prop_assert_eq!(encode(&wanted, candidate), payload);
            }
        }
    }
}
