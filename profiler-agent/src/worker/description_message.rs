//! A [`Description`] as the payload of a reply.

use profiler_unwind::{Coverage, Sections};

use super::Description;
use super::message::{Reader, Writer};

/// The payload that [`decode`] reads.
pub(super) fn encode(description: &Description) -> Vec<u8> {
    let mut description = description.clone();
    let mut out = Writer::default();
    numbers(&mut description).into_iter().for_each(|number| out.u64(*number));
    flags(&mut description.sections).into_iter().for_each(|flag| out.u32(u32::from(*flag)));
    out.string(&description.debug_file);
    out.string(&description.frames_file);
    out.string(&description.missing_part);
    out.bytes
}

/// What [`encode`] made.
pub(super) fn decode(payload: &[u8]) -> Result<Description, &'static str> {
    let mut input = Reader(payload);
    let mut description = Description::default();
    for number in numbers(&mut description) {
        *number = input.u64()?;
    }
    for flag in flags(&mut description.sections) {
        *flag = input.u32()? != 0;
    }
    description.debug_file = input.string()?;
    description.frames_file = input.string()?;
    description.missing_part = input.string()?;
    input.end()?;
    Ok(description)
}

/// All numbers, in the order in which they are sent.
fn numbers(description: &mut Description) -> [&mut u64; 9] {
    let Description { rows, refused, unreadable, coverage, missing_parts, .. } = description;
    let Coverage { by_table_bytes, by_instructions_bytes, by_frame_pointer_bytes, uncovered_bytes, refused_bytes } =
        coverage;
    [
        rows,
        refused,
        unreadable,
        missing_parts,
        by_table_bytes,
        by_instructions_bytes,
        by_frame_pointer_bytes,
        uncovered_bytes,
        refused_bytes,
    ]
}

/// All sections, in the order in which they are sent.
fn flags(sections: &mut Sections) -> [&mut bool; 8] {
    let Sections { eh_frame, debug_frame, go_table, symtab, dynsym, gnu_debugdata, debug_info, debug_line } = sections;
    [eh_frame, debug_frame, go_table, symtab, dynsym, gnu_debugdata, debug_info, debug_line]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_survives_and_nonsense_is_refused() {
        let (debug_file, frames_file) = ("/usr/lib/debug/ü.debug".to_owned(), "/usr/lib/debug/a".to_owned());
        let missing_part = "a.dwo".to_owned();
        let mut description = Description { debug_file, frames_file, missing_part, ..Description::default() };
        numbers(&mut description).into_iter().zip(1 << 40..).for_each(|(number, value)| *number = value);
        for (index, flag) in flags(&mut description.sections).into_iter().enumerate() {
            *flag = index % 3 == 0;
        }
        let bytes = encode(&description);
        assert_eq!(decode(&bytes), Ok(description));
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
        }
        assert!(decode(&[bytes, vec![0]].concat()).is_err());
    }
}
