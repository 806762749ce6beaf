//! Questions about generated code, and their answers, as they go over the socket.
//!
//! A request's words are the key of the file, then address and time of each question. The payload of a
//! reply: a count and as many frames as `message` writes them, then one `u32` for each
//! question, and one that is not 0 when code was left out.

use profiler_common::address::{MonotonicNs, VirtualAddress};

use super::message::{MAX_ADDRESSES, Reader, Writer, decode_frame, encode_frame};
use super::{GeneratedNames, MapKey, Meaning, Question};

/// Questions in one request, at most.
pub const MAX_QUESTIONS: usize = MAX_ADDRESSES;

const UNKNOWN: u32 = 0;
const REPLACED: u32 = 1;
/// What is added to the index of a frame.
const FUNCTION: u32 = 2;

/// The words of a request.
pub(super) fn encode_questions(key: MapKey, questions: &[Question]) -> Vec<u64> {
    let words = questions.iter().flat_map(|question| [question.address.0, question.time.0]);
    [u64::from(key.0)].into_iter().chain(words).collect()
}

/// What [`encode_questions`] made.
pub(super) fn decode_questions(words: &[u64]) -> (MapKey, Vec<Question>) {
    let (key, rest) = words.split_first().unwrap_or((&0, &[]));
    #[expect(clippy::cast_possible_truncation, reason = "it was 32 bits wide")]
    let key = MapKey(*key as u32);
    let (pairs, _) = rest.as_chunks();
    let question =
        |[address, time]: &[u64; 2]| Question { address: VirtualAddress(*address), time: MonotonicNs(*time) };
    (key, pairs.iter().map(question).collect())
}

/// The payload of a reply.
pub(super) fn encode_names(names: &GeneratedNames) -> Vec<u8> {
    let mut out = Writer::default();
    out.count(names.frames.len());
    names.frames.iter().for_each(|frame| encode_frame(&mut out, frame));
    for meaning in &names.meanings {
        out.u32(match meaning {
            Meaning::Unknown => UNKNOWN,
            Meaning::Replaced => REPLACED,
            Meaning::Function(at) => at.saturating_add(FUNCTION),
        });
    }
    out.u32(u32::from(names.left_out));
    out.bytes
}

/// What [`encode_names`] made of the answers to so many questions.
pub(super) fn decode_names(questions: usize, payload: &[u8]) -> Result<GeneratedNames, &'static str> {
    let mut input = Reader(payload);
    let count = input.count(MAX_QUESTIONS)?;
    let frames: Vec<_> = (0..count).map(|_| decode_frame(&mut input)).collect::<Result<_, _>>()?;
    let meaning = |_| match input.u32()? {
        UNKNOWN => Ok(Meaning::Unknown),
        REPLACED => Ok(Meaning::Replaced),
        at if ((at - FUNCTION) as usize) < count => Ok(Meaning::Function(at - FUNCTION)),
        _ => Err("a function that is not there"),
    };
    let meanings = (0..questions).map(meaning).collect::<Result<_, _>>()?;
    let left_out = input.u32()? != 0;
    input.end()?;
    Ok(GeneratedNames { frames, meanings, left_out })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Frame;
    use super::*;

    #[test]
    fn questions_and_answers_survive() {
        let question = |address, time| Question { address: VirtualAddress(address), time: MonotonicNs(time) };
        let questions = [question(1, 2), question(u64::MAX, 3)];
        let words = encode_questions(MapKey(7), &questions);
        assert_eq!(decode_questions(&words), (MapKey(7), questions.to_vec()));
        let frames = vec![Frame { name: "f".into(), system_name: "f".into(), line: 4, ..Frame::default() }];
        let meanings = vec![Meaning::Function(0), Meaning::Unknown, Meaning::Replaced];
        let names = GeneratedNames { frames, meanings, left_out: true };
        assert_eq!(decode_names(3, &encode_names(&names)), Ok(names.clone()));
        assert!(decode_names(2, &encode_names(&names)).is_err());
        let beyond = GeneratedNames { meanings: vec![Meaning::Function(1)], ..names };
        assert!(decode_names(1, &encode_names(&beyond)).is_err());
    }

    proptest! {
        #[test]
        fn any_payload_is_decoded_or_refused(payload in proptest::collection::vec(0u8..4, 0..100)) {
            if let Ok(names) = decode_names(3, &payload) {
                prop_assert_eq!(names.meanings.len(), 3);
            }
        }
    }
}
