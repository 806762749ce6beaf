//! An unwind table as the payload of a reply.

use profiler_common::address::{FileOffset, Svma};
use profiler_common::limits::MAX_SEARCHED;
use profiler_common::row::Row;
use profiler_unwind::{Arch, MAX_SEGMENTS, Part, Problems, Segment, UnwindTable};

use super::message::{MAX_REPLY_BYTES, Reader, Writer};
use super::{ContentsDigest, Piece, TableSource};

/// Bytes of a build id, at most: the longest hash in use, SHA-512, has 64.
const MAX_BUILD_ID_BYTES: usize = 64;
/// Parts, at most: each takes 28 bytes.
const MAX_PARTS: usize = MAX_REPLY_BYTES / 28;

/// The payload that [`decode`] reads.
pub(super) fn encode(table: &UnwindTable) -> Vec<u8> {
    let mut out = Writer::default();
    out.u32(match table.arch {
        Arch::X86_64 => 0,
        Arch::Aarch64 => 1,
    });
    let build_id = table.build_id.as_deref().filter(|id| id.len() <= MAX_BUILD_ID_BYTES).unwrap_or_default();
    out.count(build_id.len());
    out.bytes.extend(build_id);
    out.count(table.segments.len());
    for segment in &table.segments {
        out.u64(segment.file_offset.0);
        out.u64(segment.file_size_bytes);
        out.u64(segment.svma.0);
        out.u64(segment.memory_size_bytes);
        out.u32(u32::from(segment.executable));
    }
    parts_into(&mut out, &table.parts);
    let mut problems = table.problems;
    numbers(&mut problems).into_iter().for_each(|number| out.u64(*number));
    out.bytes
}

/// The payload that [`decode_answer`] reads.
pub(crate) fn encode_answer(table: &UnwindTable, source: Option<&TableSource>) -> Vec<u8> {
    let mut out = Writer::default();
    out.count(source.map_or(0, |source| source.pieces.len()));
    if let Some(source) = source {
        for piece in &source.pieces {
            out.u64(piece.offset);
            out.u64(piece.length);
        }
        out.u64(source.size_bytes);
        out.bytes.extend(source.digest);
    }
    out.bytes.extend(encode(table));
    out.bytes
}

/// The table in `payload` behind the parts that came `before`, and what it was made from.
pub(crate) fn decode_answer(
    before: Vec<Part>,
    payload: &[u8],
) -> Result<(UnwindTable, Option<TableSource>), &'static str> {
    let mut input = Reader(payload);
    let count = input.count(TableSource::MAX_PIECES)?;
    let piece = |input: &mut Reader<'_>| Ok(Piece { offset: input.u64()?, length: input.u64()? });
    let pieces: Vec<Piece> = (0..count).map(|_| piece(&mut input)).collect::<Result<_, &'static str>>()?;
    let source = if pieces.is_empty() {
        None
    } else {
        let size_bytes = input.u64()?;
        let digest = input.slice(32)?.try_into().or(Err("no digest"))?;
        Some(TableSource { size_bytes, pieces, digest })
    };
    Ok((decode(before, input.0)?, source))
}

/// What goes before an answer: what [`split_contents`] reads.
pub(super) fn encode_contents(contents: Option<ContentsDigest>) -> Vec<u8> {
    let mut out = Writer::default();
    let digest = contents.as_ref().map_or(&[][..], |digest| &digest[..]);
    out.count(digest.len());
    out.bytes.extend(digest);
    out.bytes
}

/// The digest of the file, if there is one, and the answer behind it.
pub(super) fn split_contents(payload: &[u8]) -> Result<(Option<ContentsDigest>, &[u8]), &'static str> {
    let mut input = Reader(payload);
    let count = input.count(size_of::<ContentsDigest>())?;
    let digest = input.slice(count)?;
    let contents = if digest.is_empty() { None } else { Some(digest.try_into().or(Err("no digest of the file"))?) };
    Ok((contents, input.0))
}

/// The payload that [`decode_parts`] reads: parts that go before those of the table that follows.
pub(super) fn encode_parts(parts: &[Part]) -> Vec<u8> {
    let mut out = Writer::default();
    parts_into(&mut out, parts);
    out.bytes
}

fn parts_into(out: &mut Writer, parts: &[Part]) {
    out.count(parts.len());
    for part in parts {
        out.u64(part.start.0);
        out.u64(part.end.0);
        out.count(part.rows.len());
        part.rows.iter().for_each(|row| out.u64(row.0));
    }
}

/// All fields of a [`Problems`], in the order in which they are sent.
fn numbers(problems: &mut Problems) -> [&mut u64; 11] {
    let Problems { sections_unusable, fdes_unreadable, fdes_cut, cfi_rows, .. } = problems;
    let Problems { cfa_register, cfa_offset, cfa_expression, return_address, .. } = problems;
    let Problems { frame_pointer, signal_frame, bare_bytes, .. } = problems;
    [
        sections_unusable,
        fdes_unreadable,
        fdes_cut,
        cfi_rows,
        cfa_register,
        cfa_offset,
        cfa_expression,
        return_address,
        frame_pointer,
        signal_frame,
        bare_bytes,
    ]
}

/// The table in `payload`. What [`UnwindTable`] and its parts promise about order, length and range
/// holds for it, as kernel maps and searches rely on that; whether its rules are right does not.
/// `before` are the parts that came before.
pub(super) fn decode(before: Vec<Part>, payload: &[u8]) -> Result<UnwindTable, &'static str> {
    let mut input = Reader(payload);
    let arch = match input.u32()? {
        0 => Arch::X86_64,
        1 => Arch::Aarch64,
        _ => return Err("an unknown architecture"),
    };
    let build_id = input.count(MAX_BUILD_ID_BYTES)?;
    let build_id = Some(input.slice(build_id)?.to_vec()).filter(|id| !id.is_empty());
    let segments = input.count(MAX_SEGMENTS)?;
    let segments: Vec<Segment> = (0..segments).map(|_| segment(&mut input)).collect::<Result<_, _>>()?;
    let mut parts = before;
    parts_from(&mut input, &mut parts)?;
    let mut problems = Problems::default();
    for number in numbers(&mut problems) {
        // Sums of them must not overflow.
        *number =
            Some(input.u64()?).filter(|&number| number <= u64::from(u32::MAX)).ok_or("a count beyond its limit")?;
    }
    input.end()?;
    let apart = segments.is_sorted_by(|a, b| a.end() <= b.svma) && parts.is_sorted_by(|a, b| a.end <= b.start);
    if apart { Ok(UnwindTable { arch, build_id, segments, parts, problems }) } else { Err("overlapping ranges") }
}

/// Adds the parts in `payload` to those that came before.
pub(super) fn decode_parts(payload: &[u8], parts: &mut Vec<Part>) -> Result<(), &'static str> {
    let mut input = Reader(payload);
    parts_from(&mut input, parts)?;
    input.end()
}

fn parts_from(input: &mut Reader<'_>, parts: &mut Vec<Part>) -> Result<(), &'static str> {
    let count = input.count(MAX_PARTS)?;
    for _ in 0..count {
        parts.push(part(input)?);
    }
    Ok(())
}

fn segment(input: &mut Reader<'_>) -> Result<Segment, &'static str> {
    let segment = Segment {
        file_offset: FileOffset(input.u64()?),
        file_size_bytes: input.u64()?,
        svma: Svma(input.u64()?),
        memory_size_bytes: input.u64()?,
        executable: input.u32()? != 0,
    };
    let wraps = segment.svma.0.checked_add(segment.memory_size_bytes).is_none();
    if wraps { Err("a segment that wraps around") } else { Ok(segment) }
}

fn part(input: &mut Reader<'_>) -> Result<Part, &'static str> {
    let (start, end) = (Svma(input.u64()?), Svma(input.u64()?));
    let count = input.count(MAX_SEARCHED)?;
    let (rows, _) = input.slice(count * size_of::<Row>())?.as_chunks();
    let rows: Vec<Row> = rows.iter().map(|&row| Row(u64::from_le_bytes(row))).collect();
    let length = end.0.checked_sub(start.0).filter(|&length| length <= u64::from(Row::MAX_PC_OFFSET));
    let fits = rows.first().is_some_and(|first| first.pc_offset() == 0)
        && rows.last().zip(length).is_some_and(|(last, length)| u64::from(last.pc_offset()) < length)
        && rows.is_sorted_by(|a, b| a.pc_offset() < b.pc_offset());
    if fits { Ok(Part { start, end, rows }) } else { Err("a part with impossible rows") }
}

#[cfg(test)]
mod tests {
    use profiler_common::row::Rule;

    use super::*;

    fn table() -> UnwindTable {
        let segment = Segment {
            file_offset: FileOffset(0x1000),
            file_size_bytes: 0x2000,
            svma: Svma(0x40_1000),
            memory_size_bytes: 0x3000,
            executable: true,
        };
        let rows = vec![Row::new(0, Rule::x86_64(0, 0, 1)), Row::new(1, Rule::END), Row::new(0xfff, Rule::UNSUPPORTED)];
        let part = |start| Part { start: Svma(start), end: Svma(start + 0x1000), rows: rows.clone() };
        let mut problems = Problems::default();
        numbers(&mut problems).into_iter().zip(1..).for_each(|(number, value)| *number = value);
        UnwindTable {
            arch: Arch::Aarch64,
            build_id: Some(vec![7; 20]),
            segments: vec![segment],
            parts: vec![part(0x40_1000), part(0x40_3000)],
            problems,
        }
    }

    #[test]
    fn a_table_survives() {
        assert_eq!(decode(vec![], &encode(&table())), Ok(table()));
        let bare = UnwindTable { build_id: None, segments: vec![], parts: vec![], arch: Arch::X86_64, ..table() };
        assert_eq!(decode(vec![], &encode(&bare)), Ok(bare));
    }

    #[test]
    fn an_answer_survives() {
        let piece = Piece { offset: 7, length: 9 };
        let source = TableSource { size_bytes: 99, pieces: vec![piece, piece], digest: [5; 32] };
        for source in [None, Some(source)] {
            let bytes = encode_answer(&table(), source.as_ref());
            assert_eq!(decode_answer(vec![], &bytes), Ok((table(), source)));
            for length in 0..bytes.len() {
                assert!(decode_answer(vec![], &bytes[..length]).is_err());
            }
        }
    }

    #[test]
    fn a_table_in_pieces_survives() {
        let mut rest = table();
        let first = rest.parts.remove(0);
        let mut before = Vec::new();
        assert_eq!(decode_parts(&encode_parts(std::slice::from_ref(&first)), &mut before), Ok(()));
        assert_eq!(decode(before, &encode(&rest)), Ok(table()));
        assert!(decode(vec![first.clone(), first.clone()], &encode(&rest)).is_err(), "twice the same");
        assert!(
            decode_parts(&[encode_parts(std::slice::from_ref(&first)), vec![0]].concat(), &mut Vec::new()).is_err()
        );
    }

    #[test]
    fn nonsense_is_refused() {
        let bytes = encode(&table());
        for length in 0..bytes.len() {
            assert!(decode(vec![], &bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
        }
        assert!(decode(vec![], &[bytes, vec![0]].concat()).is_err());
        let spoilt: [fn(&mut UnwindTable); 10] = [
            |table| {
                let empty =
                    |index| Segment { svma: Svma(0x50_0000 + index), memory_size_bytes: 0, ..table.segments[0] };
                table.segments = (0..=MAX_SEGMENTS as u64).map(empty).collect();
            },
            |table| table.parts.swap(0, 1),
            |table| table.parts[1].start = Svma(0x40_1fff),
            |table| table.parts[0].rows.clear(),
            |table| table.parts[0].rows.swap(0, 1),
            |table| table.parts[0].rows[1] = table.parts[0].rows[2],
            |table| table.parts[0].end = Svma(0x40_1fff),
            |table| table.parts[0].end = Svma(0),
            |table| table.segments[0].memory_size_bytes = u64::MAX,
            |table| table.problems.cfi_rows = u64::MAX,
        ];
        for (index, spoil) in spoilt.into_iter().enumerate() {
            let mut table = table();
            spoil(&mut table);
            assert!(decode(vec![], &encode(&table)).is_err(), "{index}");
        }
    }
}
