//! Golden rows of hand-made call frame information, one test for each kind of row.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails where one of its steps does")]

#[expect(dead_code, reason = "shared with other tests, which use more of it")]
#[path = "../synthetic_elf/mod.rs"]
mod synthetic_elf;

mod aarch64;
mod x86_64;

use profiler_common::address::{FileOffset, Svma};
use profiler_common::row::{
    BASE_FP, BASE_RBX, BY_FRAME_POINTER, FP_AT_FP, FP_SAVED, RA_FROM_BASE, RA_IN_LR, Rule, SLOT_UNKNOWN,
};
use profiler_unwind::{Arch, BuildError, MAX_SEGMENTS, Problems, ReadAt, ReadError, UnwindTable, build, lookup};
use std::cell::Cell;
use synthetic_elf::{AARCH64, AARCH64_INITIAL, CODE, Cfi, ElfFile, X86_64, X86_64_INITIAL, op};

/// Code that says nothing of its frames.
const GUESS: Rule = Rule::NO_FRAME_POINTER;

fn table(file: &ElfFile) -> UnwindTable {
    build(&file.bytes()).unwrap()
}

/// The rows of all parts, by offset from the start of the code.
fn rows(table: &UnwindTable) -> Vec<(u64, Rule)> {
    let part_rows = |part: &profiler_unwind::Part| {
        let start = part.start.0 - CODE;
        part.rows.iter().map(move |row| (start + u64::from(row.pc_offset()), row.rule())).collect::<Vec<_>>()
    };
    table.parts.iter().flat_map(part_rows).collect()
}

/// The rows of an x86_64 function of 64 bytes with these instructions, and what was counted.
fn x86_64_function(instructions: &[u8]) -> (Vec<(u64, Rule)>, Problems) {
    function(X86_64, &Cfi::eh_frame().cie("", 16, X86_64_INITIAL), instructions)
}

/// The same for aarch64.
fn aarch64_function(instructions: &[u8]) -> (Vec<(u64, Rule)>, Problems) {
    function(AARCH64, &Cfi::eh_frame().cie("", 30, AARCH64_INITIAL), instructions)
}

fn function(machine: u16, cie: &Cfi, instructions: &[u8]) -> (Vec<(u64, Rule)>, Problems) {
    let table = table(&ElfFile::new(machine, 64).cfi(&cie.clone().fde(0, 64, instructions)));
    (rows(&table), table.problems)
}

fn x86(flags: u8, slot: u8, cfa: i32) -> Rule {
    Rule::x86_64(flags, slot, cfa)
}

#[test]
fn signal_trampolines_without_cfi_are_known_by_their_code() {
    let mut file = ElfFile::new(X86_64, 64);
    file.code[32..41].copy_from_slice(&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05]);
    assert_eq!(rows(&table(&file)), [(0, GUESS), (31, Rule::X86_64_SIGNAL), (41, GUESS)]);
    let mut file = ElfFile::new(AARCH64, 64);
    file.code[32..40].copy_from_slice(&[0x68, 0x11, 0x80, 0xd2, 0x01, 0, 0, 0xd4]);
    assert_eq!(rows(&table(&file)), [(0, GUESS), (31, Rule::AARCH64_SIGNAL), (40, GUESS)]);
}

#[test]
fn code_without_cfi_is_unwound_by_what_it_does_to_the_stack_pointer() {
    let mut file = ElfFile::new(X86_64, 96);
    // push %rbp; mov %rsp, %rbp; ...; pop %rbp; ret.
    file.code[4..8].copy_from_slice(&[0x55, 0x48, 0x89, 0xe5]);
    file.code[20..22].copy_from_slice(&[0x5d, 0xc3]);
    let expected = [(0, x86(0, 0, 1)), (5, x86(0, 2, 2)), (21, x86(0, 0, 1))];
    assert_eq!(rows(&table(&file)), expected);
}

/// On one way the stack is deeper than on the other: then the frame pointer leads on behind the instructions
/// that set it up, until the function ends.
#[test]
fn unclear_code_without_cfi_is_followed_by_the_frame_pointer_behind_its_prologue_only() {
    let mut file = ElfFile::new(X86_64, 96);
    // push %rbp; mov %rsp, %rbp; test %rdi, %rdi; je over the next one; sub $16, %rsp.
    file.code[4..17].copy_from_slice(&[0x55, 0x48, 0x89, 0xe5, 0x48, 0x85, 0xff, 0x74, 4, 0x48, 0x83, 0xec, 16]);
    // mov %rbp, %rcx; mov %rcx, %rsp; pop %rbp; ret.
    file.code[17..25].copy_from_slice(&[0x48, 0x89, 0xe9, 0x48, 0x89, 0xcc, 0x5d, 0xc3]);
    let framed = Rule::X86_64_FRAME_POINTER;
    let expected = [(0, GUESS), (4, x86(0, 0, 1)), (5, x86(0, 2, 2)), (8, framed), (24, x86(0, 0, 1))];
    assert_eq!(rows(&table(&file)), expected);
    // Without the frame nothing leads on.
    file.code[4..8].fill(0x90);
    assert_eq!(rows(&table(&file)), [(0, GUESS), (24, x86(0, 0, 1))]);
}

#[test]
fn the_main_that_rustc_makes_without_tables() {
    let mut file = ElfFile::new(X86_64, 64);
    file.code[16] = 0x50;
    file.code[30..32].copy_from_slice(&[0x59, 0xc3]);
    let expected = [(0, x86(0, 0, 1)), (17, x86(0, 0, 2)), (31, x86(0, 0, 1))];
    assert_eq!(rows(&table(&file)), expected);
}

#[test]
fn the_beginnings_of_programs_and_threads_end_stacks() {
    let mut file = ElfFile::new(X86_64, 128);
    file.code[96..104].copy_from_slice(&[0x89, 0xc7, 0x31, 0xc0, 0xb0, 0x3c, 0x0f, 0x05]);
    let thread = [(95, Rule::END), (104, GUESS)];
    assert_eq!(rows(&table(&file)), [&[(0, GUESS)], &thread[..]].concat());
    // A call, and another function right behind it.
    file.entry = CODE + 16;
    file.code[33] = 0xe8;
    file.code[38..42].copy_from_slice(&[0x55, 0x48, 0x89, 0xe5]);
    let behind = [(38, x86(0, 0, 1)), (39, x86(0, 2, 2)), (42, Rule::X86_64_FRAME_POINTER)];
    file.program = true;
    let thread = [(95, Rule::END), (104, Rule::X86_64_FRAME_POINTER)];
    let expected = [&[(0, GUESS), (16, Rule::END)], &behind[..], &thread].concat();
    assert_eq!(rows(&table(&file)), expected);
    // A library whose linker stated the start of its code.
    file.program = false;
    assert_eq!(rows(&table(&file)), [&[(0, GUESS)], &behind[..], &thread].concat());
}

#[test]
fn plts_that_overlap_count_once_and_as_many_as_linkers_make() {
    let plain = x86(0, 0, 1);
    let mut file = ElfFile::new(X86_64, 0x2000).code_section(".plt", 16, 32).code_section(".plt.got", 32, 64);
    file = file.code_section(".plt.sec", 64, 16);
    assert_eq!(rows(&table(&file)), [(0, GUESS), (16, plain), (48, GUESS), (64, plain), (80, GUESS)]);
    let mut file = ElfFile::new(X86_64, 0x2000);
    for index in 0..70 {
        file = file.code_section(".plt.x", index * 32, 16);
    }
    assert_eq!(rows(&table(&file)).len(), 64 * 2);
}

/// Each `.plt.x` used to be read again for every hole in the call frame information.
#[test]
fn nested_plts_cost_no_more_than_one() {
    let mut cfi = Cfi::eh_frame().cie("", 16, X86_64_INITIAL);
    for start in 0..4000 {
        cfi = cfi.fde(start * 32, 1, &[]);
    }
    let mut file = ElfFile::new(X86_64, 4000 * 32).cfi(&cfi);
    for index in 0..10_000 {
        file = file.code_section(".plt.x", index % 16, 4000 * 32 - 16);
    }
    let bytes = Counted { bytes: file.bytes(), reads: Cell::new(0) };
    build(&bytes).unwrap();
    assert!(bytes.reads.get() < 1000, "{} reads", bytes.reads.get());
}

/// A file that counts how often it is read.
struct Counted {
    bytes: Vec<u8>,
    reads: Cell<u64>,
}

impl ReadAt for Counted {
    fn size_bytes(&self) -> u64 {
        self.bytes.size_bytes()
    }

    fn read_at(&self, offset: FileOffset, buffer: &mut [u8]) -> Result<(), ReadError> {
        self.reads.set(self.reads.get() + 1);
        self.bytes.read_at(offset, buffer)
    }
}

#[test]
fn holes_are_unwound_by_the_frame_pointer_and_padding_goes_on() {
    let frame = [op::DEF_CFA_OFFSET, 32];
    let cfi = Cfi::eh_frame().cie("", 16, X86_64_INITIAL).fde(16, 20, &frame).fde(48, 16, &[]).fde(80, 10, &frame);
    let table = table(&ElfFile::new(X86_64, 128).cfi(&cfi));
    let (big, small) = (x86(0, 0, 4), x86(0, 0, 1));
    // From 36 to 48 there is no room for an aligned function; after 64 and 90 there is.
    assert_eq!(rows(&table), [(0, GUESS), (16, big), (48, small), (64, GUESS), (80, big), (90, GUESS)]);
    for (at, rule) in [(0, Some(GUESS)), (47, Some(big)), (48, Some(small)), (127, Some(GUESS)), (128, None)] {
        assert_eq!(lookup(&table, Svma(CODE + at)), rule, "at {at}");
    }
    assert_eq!(lookup(&table, Svma(CODE - 1)), None);
}

#[test]
fn overlapping_fdes_lose_nothing() {
    let size = |bytes| [op::DEF_CFA_OFFSET, bytes];
    let cfi = Cfi::eh_frame().cie("", 16, X86_64_INITIAL);
    let cfi = cfi.fde(16, 16, &size(24)).fde(0, 64, &[op::advance(20), op::DEF_CFA_OFFSET, 16]);
    let rows = rows(&table(&ElfFile::new(X86_64, 64).cfi(&cfi)));
    assert_eq!(rows, [(0, x86(0, 0, 1)), (16, x86(0, 0, 3)), (32, x86(0, 0, 2))]);
}

#[test]
fn debug_frame_covers_what_eh_frame_does_not() {
    let eh_frame = Cfi::eh_frame().cie("", 16, X86_64_INITIAL).fde(16, 16, &[op::DEF_CFA_OFFSET, 24]);
    let debug_frame = Cfi::debug_frame().cie("", 16, X86_64_INITIAL).fde(0, 48, &[op::DEF_CFA_OFFSET, 16]);
    let both = table(&ElfFile::new(X86_64, 64).cfi(&eh_frame).cfi(&debug_frame));
    assert_eq!(rows(&both), [(0, x86(0, 0, 2)), (16, x86(0, 0, 3)), (32, x86(0, 0, 2)), (48, GUESS)]);
    let alone = table(&ElfFile::new(X86_64, 64).cfi(&debug_frame));
    assert_eq!(rows(&alone), [(0, x86(0, 0, 2)), (48, GUESS)]);
}

/// What a file leaves out is asked for only where it lacks most, and with its build id.
#[test]
fn debug_frame_of_another_file() {
    let debug_frame = Cfi::debug_frame().cie("", 16, X86_64_INITIAL).fde(0, 48, &[op::DEF_CFA_OFFSET, 16]);
    let with = |file: &ElfFile| {
        let mut asked = Vec::new();
        let mut elsewhere = |build_id: Option<&[u8]>| {
            asked.push(build_id.map(<[u8]>::to_vec));
            Some(debug_frame.bytes.clone())
        };
        let table = profiler_unwind::build_with(&file.bytes(), &mut elsewhere).unwrap();
        (rows(&table), asked)
    };
    let mut bare = ElfFile::new(X86_64, 64);
    assert_eq!(with(&bare), (vec![(0, x86(0, 0, 2)), (48, GUESS)], vec![None]));
    bare.notes = [4u32.to_le_bytes(), 3u32.to_le_bytes(), 3u32.to_le_bytes(), *b"GNU\0", [7, 8, 9, 0]].concat();
    assert_eq!(with(&bare).1, [Some(vec![7, 8, 9])]);
    let little = Cfi::eh_frame().cie("", 16, X86_64_INITIAL).fde(0, 31, &[op::DEF_CFA_OFFSET, 24]);
    let (found, asked) = with(&ElfFile::new(X86_64, 64).cfi(&little));
    assert_eq!((found, asked.len()), (vec![(0, x86(0, 0, 3)), (31, x86(0, 0, 2)), (48, GUESS)], 1));
    let enough = Cfi::eh_frame().cie("", 16, X86_64_INITIAL).fde(0, 32, &[op::DEF_CFA_OFFSET, 24]);
    assert_eq!(with(&ElfFile::new(X86_64, 64).cfi(&enough)), (vec![(0, x86(0, 0, 3)), (32, GUESS)], vec![]));
    assert_eq!(with(&ElfFile::new(X86_64, 64).cfi(&debug_frame)).1, vec![], "it has its own");
}

#[test]
fn a_corrupt_program_cuts_its_function_only() {
    let bad = [op::advance(8), op::DEF_CFA_OFFSET, 16, op::advance(8), op::RESTORE_STATE];
    let cfi = Cfi::eh_frame().cie("", 16, X86_64_INITIAL).fde(0, 32, &bad).fde(32, 32, &[]);
    let table = table(&ElfFile::new(X86_64, 64).cfi(&cfi));
    let expected = [(0, x86(0, 0, 1)), (8, x86(0, 0, 2)), (16, Rule::UNSUPPORTED), (32, x86(0, 0, 1))];
    assert_eq!(rows(&table), expected);
    assert_eq!(table.problems, Problems { cfi_rows: 3, fdes_cut: 1, ..Problems::default() });
}

#[test]
fn fdes_outside_the_code_are_left_out_and_unreadable_ones_counted() {
    let mut cfi = Cfi::eh_frame().cie("", 16, X86_64_INITIAL).fde(0, 65, &[]).fde(0u64.wrapping_sub(CODE), 16, &[]);
    assert_eq!(rows(&table(&ElfFile::new(X86_64, 64).cfi(&cfi))), [(0, GUESS)]);
    // A terminator in the middle, then an FDE whose CIE pointer leads nowhere, then a good one.
    cfi.bytes.extend([0; 4]);
    cfi.bytes.extend([20, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f].into_iter().chain([0; 16]));
    let cfi = cfi.fde(0, 64, &[]);
    let table = table(&ElfFile::new(X86_64, 64).cfi(&cfi));
    assert_eq!((rows(&table), table.problems.fdes_unreadable), (vec![(0, x86(0, 0, 1))], 1));
}

#[test]
fn a_function_of_many_rows_is_cut_into_parts() {
    let mut instructions = Vec::new();
    for row in 0..5000 {
        instructions.extend([op::DEF_CFA_OFFSET, if row % 2 == 0 { 16 } else { 24 }, op::advance(1)]);
    }
    let cfi = Cfi::eh_frame().cie("", 16, X86_64_INITIAL).fde(0, 5000, &instructions);
    let table = table(&ElfFile::new(X86_64, 5000).cfi(&cfi));
    assert_eq!(table.parts.iter().map(|part| part.rows.len()).collect::<Vec<_>>(), [4095, 905]);
    assert_eq!(lookup(&table, Svma(CODE + 4094)), Some(x86(0, 0, 2)));
    assert_eq!(lookup(&table, Svma(CODE + 4095)), Some(x86(0, 0, 3)));
}

#[test]
fn work_on_one_cie_for_many_fdes_is_bounded() {
    // 200 pieces of one FDE, each of which would run its long program again.
    let mut cfi = Cfi::eh_frame().cie("", 16, X86_64_INITIAL).fde(0, 4000, &vec![op::NOP; 200_000]);
    for start in 0..200 {
        cfi = cfi.fde(start * 16 + 8, 1, &[]);
    }
    let table = table(&ElfFile::new(X86_64, 4000).cfi(&cfi));
    assert!(table.problems.fdes_cut > 0, "{:?}", table.problems);
}

#[test]
fn compressed_sections_are_left_out_and_counted() {
    let cfi = Cfi::debug_frame().cie("", 16, X86_64_INITIAL).fde(0, 64, &[]);
    let mut bytes = ElfFile::new(X86_64, 64).cfi(&cfi).bytes();
    let headers_at = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    assert_eq!(rows(&build(&bytes).unwrap()), [(0, x86(0, 0, 1))]);
    // SHF_COMPRESSED in the flags of the section after the null section.
    bytes[headers_at + 64 + 9] |= 8;
    let table = build(&bytes).unwrap();
    assert_eq!((rows(&table), table.problems.sections_unusable), (vec![(0, GUESS)], 1));
    // Section headers beyond the end of the file: the loader does without them, too.
    bytes.truncate(headers_at);
    let table = build(&bytes).unwrap();
    assert_eq!((rows(&table), table.problems.sections_unusable), (vec![(0, GUESS)], 1));
}

#[test]
fn headers_are_read() {
    let mut file = ElfFile::new(AARCH64, 64);
    let other_note = [4u32.to_le_bytes(), 2u32.to_le_bytes(), 1u32.to_le_bytes(), *b"GNU\0", [1, 2, 0, 0]].concat();
    let id_note = [4u32.to_le_bytes(), 3u32.to_le_bytes(), 3u32.to_le_bytes(), *b"GNU\0", [7, 8, 9, 0]].concat();
    file.notes = [other_note, id_note].concat();
    let table = table(&file);
    assert_eq!(table.arch, Arch::Aarch64);
    assert_eq!(table.build_id.as_deref(), Some(&[7, 8, 9][..]));
    let segment = table.segments[0];
    assert_eq!((segment.svma, segment.file_offset, segment.executable), (Svma(CODE), FileOffset(0x1000), true));
}

#[test]
fn what_is_no_such_file_is_refused_with_its_reason() {
    let file = ElfFile::new(X86_64, 64).bytes();
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut file = file.clone();
        change(&mut file);
        build(&file).unwrap_err()
    };
    assert!(matches!(refused(&|file| file[4] = 1), BuildError::NotElf { .. }), "32 bits");
    assert!(matches!(refused(&|file| file[5] = 2), BuildError::NotElf { .. }), "big-endian");
    assert!(matches!(refused(&|file| file[18] = 40), BuildError::Machine { machine: 40 }));
    assert!(matches!(refused(&|file| file.truncate(60)), BuildError::Read { .. }));
    assert!(matches!(refused(&|file| file[54] = 32), BuildError::ProgramHeaderSize { size_bytes: 32 }));
    assert!(matches!(refused(&|file| file[56..58].fill(0xff)), BuildError::TooMany { .. }));
    assert!(matches!(refused(&|file| file[64 + 40..64 + 48].fill(0xff)), BuildError::Segments { .. }), "memory size");
    assert!(matches!(refused(&|file| file[64 + 45] = 1), BuildError::TooMany { .. }), "1 TiB of code");
    let with_segments = |count: usize| {
        let (mut bytes, headers_at) = (file.clone(), file.len() as u64);
        let empty = [&[1, 0, 0, 0][..], &[0; 12], &(CODE + 64).to_le_bytes(), &[0; 32]].concat();
        bytes.extend(&file[64..120]);
        bytes.extend(empty.repeat(count - 1));
        bytes[32..40].copy_from_slice(&headers_at.to_le_bytes());
        bytes[56..58].copy_from_slice(&(count as u16).to_le_bytes());
        build(&bytes)
    };
    assert_eq!(with_segments(MAX_SEGMENTS).unwrap().segments.len(), MAX_SEGMENTS);
    assert!(matches!(with_segments(MAX_SEGMENTS + 1), Err(BuildError::TooMany { .. })));
}
