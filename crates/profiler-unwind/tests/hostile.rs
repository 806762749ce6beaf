//! Damaged files: never a panic, never a table that breaks its promises.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails where one of its steps does")]

#[expect(dead_code, reason = "shared with the tests of golden rows, which use more of it")]
mod synthetic_elf;

use object::{Object, ObjectSection};
use profiler_common::address::Svma;
use profiler_common::limits::MAX_SEARCHED;
use profiler_common::row::Row;
use profiler_unwind::{UnwindTable, build, go_functions};
use proptest::prelude::*;
use std::sync::LazyLock;
use synthetic_elf::{Cfi, ElfFile, X86_64, X86_64_INITIAL, op};

/// The bytes of a file, and starts and lengths of what is worth damaging in it.
type Target = (Vec<u8>, Vec<(usize, usize)>);

/// Files to damage, with the extents of headers and CFI: damage elsewhere would show nothing.
static FILES: LazyLock<Vec<Target>> = LazyLock::new(|| {
    let cfi = Cfi::eh_frame().cie("", 16, X86_64_INITIAL).fde(0, 40, &[op::DEF_CFA_OFFSET, 16, op::advance(4)]);
    let cfi = cfi.fde(20, 100, &[op::REMEMBER_STATE, op::advance(9), op::DEF_CFA, 6, 16, op::RESTORE_STATE]);
    let both = ElfFile::new(X86_64, 256).cfi(&cfi).cfi(&Cfi::debug_frame().cie("", 16, &[]).fde(100, 90, &[]));
    let mut files = vec![both.code_section(".plt", 200, 40).bytes()];
    for path in ["/usr/bin/true", "/usr/bin/env", "/usr/aarch64-linux-gnu/lib/libdl.so.2", "/usr/lib/go/bin/gofmt"] {
        match std::fs::read(path) {
            Ok(bytes) => files.push(bytes),
            Err(error) => println!("skipped {path}: {error}"),
        }
    }
    files.into_iter().map(|bytes| (extents(&bytes), bytes)).map(|(extents, bytes)| (bytes, extents)).collect()
});

/// Where Go's table, and what leads to it, is.
const GO: [&str; 4] = [".gopclntab", ".go.module", ".noptrdata", ".go.buildinfo"];

fn extents(bytes: &[u8]) -> Vec<(usize, usize)> {
    let elf = object::File::parse(bytes).unwrap();
    let wanted =
        |name: &str| name.contains("_frame") || name.contains(".plt") || name.contains(".note") || GO.contains(&name);
    let sections = elf.sections().filter(|section| section.name().is_ok_and(wanted));
    let ranges = sections.filter_map(|section| section.file_range());
    let as_usize = |(start, length): (u64, u64)| (start as usize, length as usize);
    let section_headers = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    let mut extents = vec![(0, 64), (64, 56 * 12), (section_headers, bytes.len() - section_headers)];
    // The header of Go's table, and the words that are looked for in the data.
    let table = elf.sections().find(|section| section.name() == Ok(".gopclntab"));
    if let Some((table, (start, _length))) = table.and_then(|table| Some((table.address(), table.file_range()?))) {
        let pointer = table.to_le_bytes();
        let words = bytes.windows(8).enumerate().filter(|(at, word)| at % 8 == 0 && *word == pointer);
        extents.push((start as usize, 72));
        extents.extend(words.map(|(at, _word)| (at, (44 * 8).min(bytes.len() - at))));
    }
    extents.extend(ranges.map(as_usize).filter(|(_, length)| *length > 0));
    extents
}

/// One change: which extent, where in it, how many bytes, which value.
type Damage = (usize, usize, usize, u64);

fn damage() -> impl Strategy<Value = Damage> {
    let value = prop_oneof![
        Just(0u64),
        Just(u64::MAX),
        Just(i64::MAX as u64),
        Just(0xffff_fff0),
        (0u32..64).prop_map(|bit| 1 << bit),
        any::<u64>(),
    ];
    (any::<usize>(), any::<usize>(), prop_oneof![Just(1usize), Just(2), Just(4), Just(8)], value)
}

fn damaged(file: usize, changes: &[Damage], keep: Option<u16>) -> Vec<u8> {
    let (bytes, extents) = &FILES[file % FILES.len()];
    let mut bytes = bytes.clone();
    for &(extent, place, width, value) in changes {
        let (start, length) = extents[extent % extents.len()];
        let at = start + place % length;
        let end = (at + width).min(bytes.len());
        bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
    }
    if let Some(keep) = keep {
        bytes.truncate(bytes.len() * usize::from(keep) / 65_536);
    }
    bytes
}

fn check(table: &UnwindTable) -> Result<(), TestCaseError> {
    let mut parts = table.parts.iter().peekable();
    for segment in table.segments.iter().filter(|segment| segment.executable) {
        let mut covered_to = segment.svma;
        while let Some(part) = parts.next_if(|part| part.start < segment.end()) {
            prop_assert_eq!(part.start, covered_to);
            prop_assert!((1..=u64::from(Row::MAX_PC_OFFSET)).contains(&(part.end.0 - part.start.0)));
            prop_assert!((1..=MAX_SEARCHED).contains(&part.rows.len()));
            prop_assert_eq!(part.rows[0].pc_offset(), 0);
            prop_assert!(part.rows.is_sorted_by(|a, b| a.pc_offset() < b.pc_offset() && a.rule() != b.rule()));
            let last = part.rows[part.rows.len() - 1].pc_offset();
            prop_assert!(u64::from(last) < part.end.0 - part.start.0);
            covered_to = part.end;
        }
        prop_assert_eq!(covered_to, segment.end());
    }
    prop_assert_eq!(parts.next(), None);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_damage_breaks_the_table(
        file in any::<usize>(),
        changes in prop::collection::vec(damage(), 1..12),
        keep in prop::option::weighted(0.1, any::<u16>()),
    ) {
        let bytes = damaged(file, &changes, keep);
        if let Ok(table) = build(&bytes) {
            check(&table)?;
        }
        if let Ok(Some(functions)) = go_functions(&bytes, &[Svma(0x40_1000), Svma(0x45_1234), Svma(u64::MAX)]) {
            prop_assert_eq!(functions.len(), 3);
        }
    }

    #[test]
    fn arbitrary_programs_break_nothing(
        initial in prop::collection::vec(any::<u8>(), 0..12),
        functions in prop::collection::vec(
            (0u64..300, 0u64..200, prop::collection::vec(any::<u8>(), 0..60)), 1..6),
        machine in prop_oneof![Just(62u16), Just(183)],
    ) {
        let return_address = if machine == X86_64 { 16 } else { 30 };
        let mut cfi = Cfi::eh_frame().cie("", return_address, &initial);
        for (start, length, program) in &functions {
            cfi = cfi.fde(*start, *length, program);
        }
        check(&build(&ElfFile::new(machine, 400).cfi(&cfi).bytes()).unwrap())?;
    }
}

#[test]
fn undamaged_files_have_tables() {
    for (bytes, _) in FILES.iter() {
        check(&build(bytes).unwrap()).unwrap();
    }
}
