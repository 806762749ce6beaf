//! An entry of the cache as bytes: little-endian, the checksum first.

use profiler_unwind::{ROW_BUILDER, UnwindTable};

use crate::worker::TableSource;
use crate::worker::table_message::{decode_answer, encode_answer};

/// What an entry begins with. The number is that of this format.
const MAGIC: [u8; 8] = *b"SFROWS\0\x01";
/// The magic number, the builder, the checksum.
const START_BYTES: usize = 8 + 8 + 4;

/// Why an entry gives no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// Another state of the sources made its rows.
    OtherBuilder,
    /// It is not what was written.
    Damaged,
}

/// What is kept.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) table: UnwindTable,
    pub(super) source: TableSource,
}

/// The start of an entry and what follows it.
pub(super) fn encode(table: &UnwindTable, source: &TableSource) -> (Vec<u8>, Vec<u8>) {
    let rest = encode_answer(table, Some(source));
    let start = [MAGIC.as_slice(), &ROW_BUILDER.to_le_bytes(), &crc32fast::hash(&rest).to_le_bytes()].concat();
    (start, rest)
}

/// The entry that these bytes are.
pub(super) fn decode(bytes: &[u8]) -> Result<Kept, Unusable> {
    let (start, rest) = bytes.split_first_chunk::<START_BYTES>().ok_or(Unusable::Damaged)?;
    if start[..16] != [MAGIC, ROW_BUILDER.to_le_bytes()].concat() {
        return Err(if start.starts_with(b"SFROWS") { Unusable::OtherBuilder } else { Unusable::Damaged });
    }
    if start[16..] != crc32fast::hash(rest).to_le_bytes() {
        return Err(Unusable::Damaged);
    }
    let (table, source) = decode_answer(Vec::new(), rest).or(Err(Unusable::Damaged))?;
    Ok(Kept { table, source: source.ok_or(Unusable::Damaged)? })
}
