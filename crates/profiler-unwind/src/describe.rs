//! What a file offers for unwinding and naming its code, for people who ask.

use profiler_common::row::{BY_FRAME_POINTER, UNSUPPORTED};

use crate::elf::{Elf, Sections};
use crate::error::BuildError;
use crate::go;
use crate::read::ReadAt;
use crate::table::UnwindTable;

/// How many bytes of a file's code are unwound in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// By call frame information or Go's table.
    pub by_table_bytes: u64,
    /// By its instructions, for want of a table.
    pub by_instructions_bytes: u64,
    /// By the frame pointer, for want of a table.
    pub by_frame_pointer_bytes: u64,
    /// Not at all: there is no table, and nothing shows that a frame pointer is kept.
    pub uncovered_bytes: u64,
    /// Not at all: the table says what a row can't express.
    pub refused_bytes: u64,
}

impl Coverage {
    /// Measures a table.
    #[must_use]
    pub fn of(table: &UnwindTable) -> Self {
        let mut coverage = Self::default();
        for part in &table.parts {
            let ends = part.rows.iter().skip(1).map(|row| u64::from(row.pc_offset()));
            let ends = ends.chain([part.end.0.saturating_sub(part.start.0)]);
            for (row, end) in part.rows.iter().zip(ends) {
                let flags = row.rule().flags();
                let bytes = match (flags & BY_FRAME_POINTER != 0, flags & UNSUPPORTED != 0) {
                    (true, false) => &mut coverage.by_frame_pointer_bytes,
                    (true, true) => &mut coverage.uncovered_bytes,
                    (false, true) => &mut coverage.refused_bytes,
                    (false, false) => &mut coverage.by_table_bytes,
                };
                *bytes = bytes.saturating_add(end.saturating_sub(u64::from(row.pc_offset())));
            }
        }
        let guessed_bytes = coverage.by_frame_pointer_bytes.saturating_add(coverage.uncovered_bytes);
        let told_bytes = table.problems.bare_bytes.saturating_sub(guessed_bytes).min(coverage.by_table_bytes);
        coverage.by_instructions_bytes = told_bytes;
        coverage.by_table_bytes -= told_bytes;
        coverage
    }
}

/// Which sections a file has. A table of Go's runtime is found without section headers, too.
///
/// # Errors
/// When it is no ELF file of a supported kind, or a header can't be read.
pub fn sections(file: &impl ReadAt) -> Result<Sections, BuildError> {
    let elf = Elf::read(file)?;
    let go_table = go::find(file, &elf)?.is_some();
    Ok(Sections { go_table, ..elf.sections })
}

#[cfg(test)]
mod tests {
    use profiler_common::address::Svma;
    use profiler_common::row::{Row, Rule};

    use super::*;
    use crate::segment::Arch;
    use crate::table::{Part, Problems};

    #[test]
    fn every_byte_counts_once() {
        let part = |start: u64, end: u64, rules: &[(u32, Rule)]| Part {
            start: Svma(start),
            end: Svma(end),
            rows: rules.iter().map(|(offset, rule)| Row::new(*offset, *rule)).collect(),
        };
        let first = [
            (0, Rule::x86_64(0, 0, 1)),
            (100, Rule::X86_64_FRAME_POINTER),
            (110, Rule::NO_FRAME_POINTER),
            (111, Rule::UNSUPPORTED),
            (113, Rule::END),
        ];
        let table = UnwindTable {
            arch: Arch::X86_64,
            build_id: None,
            segments: Vec::new(),
            parts: vec![part(0x1000, 0x1100, &first), part(0x2000, 0x2005, &[(0, Rule::NO_FRAME_POINTER)])],
            problems: Problems { bare_bytes: 100 + 10 + 1 + 5, ..Problems::default() },
        };
        let expected = Coverage {
            by_table_bytes: 0x100 - 113,
            by_instructions_bytes: 100,
            by_frame_pointer_bytes: 10,
            uncovered_bytes: 1 + 5,
            refused_bytes: 2,
        };
        assert_eq!(Coverage::of(&table), expected);
    }
}
