//! Golden rows of hand-made call frame information, one test for each kind of row.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails where one of its steps does")]

#[expect(dead_code, reason = "shared with other tests, which use more of it")]
mod synthetic_elf;

use profiler_common::address::{FileOffset, Svma};
use profiler_common::row::{
    BASE_FP, BASE_RBX, BY_FRAME_POINTER, DEREF, DEREF_ADD_8, FP_AT_FP, FP_SAVED, RA_FROM_BASE, RA_IN_LR, Rule,
    SLOT_UNKNOWN,
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
fn x86_64_frame_with_a_frame_pointer() {
    let [offset_rbp, rbp_at] = op::offset(6, 2);
    let (rows, problems) = x86_64_function(&[
        op::advance(1),
        op::DEF_CFA_OFFSET,
        16,
        offset_rbp,
        rbp_at,
        op::advance(3),
        op::DEF_CFA_REGISTER,
        6,
        op::advance(40),
        op::REMEMBER_STATE,
        op::DEF_CFA,
        7,
        8,
        op::restore(6),
        op::advance(1),
        op::RESTORE_STATE,
    ]);
    let expected = [(0, x86(0, 0, 1)), (1, x86(0, 2, 2)), (4, x86(BASE_FP, 2, 2)), (44, x86(0, 0, 1))];
    assert_eq!(rows[..4], expected);
    assert_eq!(rows[4..], [(45, x86(BASE_FP, 2, 2))]);
    assert_eq!(problems, Problems { cfi_rows: 5, ..Problems::default() });
}

#[test]
fn x86_64_saved_rbp_within_63_words_of_the_cfa() {
    for (words, slot) in [(2, 2), (63, 63), (64, SLOT_UNKNOWN), (1, SLOT_UNKNOWN)] {
        let (rows, _) = x86_64_function(&op::offset(6, words));
        assert_eq!(rows, [(0, x86(0, slot, 1))], "rbp at CFA - {words} words");
    }
    for elsewhere in [&[op::UNDEFINED, 6][..], &[op::REGISTER, 6, 3], &[op::EXPRESSION, 6, 2, op::BREG7, 8]] {
        assert_eq!(x86_64_function(elsewhere).0, [(0, x86(0, SLOT_UNKNOWN, 1))], "{elsewhere:?}");
    }
    assert_eq!(x86_64_function(&[op::SAME_VALUE, 6]).0, [(0, x86(0, 0, 1))]);
}

#[test]
fn x86_64_cfa_offset_is_words_of_18_bits() {
    let (rows, problems) = x86_64_function(&[op::DEF_CFA_OFFSET, 0xf8, 0xff, 0x3f]);
    assert_eq!((rows, problems.cfa_offset), (vec![(0, x86(0, 0, (1 << 17) - 1))], 0), "1 MiB less a word");
    let (rows, problems) = x86_64_function(&[op::DEF_CFA_OFFSET, 0x80, 0x80, 0x40]);
    assert_eq!((rows, problems.cfa_offset), (vec![(0, Rule::UNSUPPORTED)], 1), "one word more");
    let (rows, problems) = x86_64_function(&[op::DEF_CFA_OFFSET, 12]);
    assert_eq!((rows, problems.cfa_offset), (vec![(0, Rule::UNSUPPORTED)], 1), "half a word");
    // -16 in units of the data alignment of -8: CFA = rsp - 16.
    assert_eq!(x86_64_function(&[op::DEF_CFA_OFFSET_SF, 2]).0, [(0, x86(0, 0, -2))]);
}

#[test]
fn x86_64_cfa_from_a_register_that_a_call_may_change() {
    // rax is the fifth of them, r10 the second; 2^16 bytes are the first words that do not fit.
    assert_eq!(x86_64_function(&[op::DEF_CFA, 0, 8]).0, [(0, Rule::x86_64_other(4, 0, 1))]);
    assert_eq!(x86_64_function(&[op::DEF_CFA, 10, 0]).0, [(0, Rule::x86_64_other(1, 0, 0))]);
    let (rows, problems) = x86_64_function(&[op::DEF_CFA, 10, 0x80, 0x80, 0x04]);
    assert_eq!((rows, problems.cfa_offset), (vec![(0, Rule::UNSUPPORTED)], 1));
}

#[test]
fn x86_64_rbx_is_followed_and_a_cfa_may_count_from_it() {
    // As in glibc's trampoline for lazy binding: push %rbx; mov %rsp, %rbx; and rsp is aligned.
    let pushed = [&[op::DEF_CFA_OFFSET, 32], op::offset(3, 4).as_slice()].concat();
    assert_eq!(x86_64_function(&pushed).0, [(0, x86(0, 0, 4).with_rbx(4))]);
    let moved = [pushed.as_slice(), &[op::DEF_CFA_REGISTER, 3]].concat();
    assert_eq!(x86_64_function(&moved).0, [(0, Rule::x86_64_other(BASE_RBX, 0, 4).with_rbx(4))]);
    let both = [op::offset(6, 2), op::offset(3, 64)].concat();
    assert_eq!(x86_64_function(&both).0, [(0, x86(0, 2, 1).with_rbx(SLOT_UNKNOWN))], "too far away");
}

#[test]
fn x86_64_return_address_in_a_register() {
    // rdi is the last of the nine. As in glibc's vfork: the return address was popped, the CFA is rsp.
    let (rows, problems) = x86_64_function(&[op::DEF_CFA_OFFSET, 0, op::REGISTER, 16, 5]);
    assert_eq!((rows, problems.return_address), (vec![(0, Rule::x86_64_ra_in_other(8, false, 0))], 0));
    let (rows, problems) = x86_64_function(&[op::REGISTER, 16, 3]);
    assert_eq!((rows, problems.return_address), (vec![(0, Rule::UNSUPPORTED)], 1), "rbx");
}

/// Hand-written assembly goes back from an expression by naming the register alone (libgcrypt).
#[test]
fn x86_64_offset_from_before_an_expression() {
    let expression = [op::DEF_CFA_EXPRESSION, 3, op::BREG7, 40, op::DEREF];
    let instructions =
        [&[op::DEF_CFA_OFFSET, 56], &expression[..], &[op::advance(4), op::DEF_CFA_REGISTER, 7]].concat();
    assert_eq!(x86_64_function(&instructions).0, [(0, x86(DEREF, 0, 5)), (4, x86(0, 0, 7))]);
}

#[test]
fn x86_64_outermost_frame_and_rows_that_cannot_be_expressed() {
    assert_eq!(x86_64_function(&[op::UNDEFINED, 16]).0, [(0, Rule::END)]);
    let (rows, problems) = x86_64_function(&op::offset(16, 3));
    assert_eq!((rows, problems.return_address), (vec![(0, Rule::UNSUPPORTED)], 1));
    let (rows, problems) = x86_64_function(&[op::DEF_CFA, 12, 8]);
    assert_eq!((rows, problems.cfa_register), (vec![(0, Rule::UNSUPPORTED)], 1));
    let (rows, problems) = x86_64_function(&[op::DEF_CFA_EXPRESSION, 3, 0x73, 0, op::DEREF]);
    assert_eq!((rows, problems.cfa_register), (vec![(0, Rule::UNSUPPORTED)], 1));
    let (rows, problems) = x86_64_function(&[op::DEF_CFA_EXPRESSION, 1, 0x30]);
    assert_eq!((rows, problems.cfa_expression), (vec![(0, Rule::UNSUPPORTED)], 1));
    assert_eq!(problems.unsupported_rows(), 1);
}

#[test]
fn x86_64_realigned_frame_of_gcc() {
    let (rows, problems) = x86_64_function(&[
        op::DEF_CFA_EXPRESSION,
        3,
        op::BREG6,
        0x78,
        op::DEREF, // *(rbp - 8)
        op::EXPRESSION,
        6,
        2,
        op::BREG6,
        0, // rbp at *(rbp)
    ]);
    assert_eq!(rows, [(0, x86(BASE_FP | DEREF | FP_AT_FP, 0, -1))]);
    assert_eq!(problems.unsupported_rows(), 0);
}

#[test]
fn x86_64_cfa_stored_on_the_stack() {
    let [rbp, rbp_at] = op::offset(6, 3);
    let instructions = [op::DEF_CFA_EXPRESSION, 5, op::BREG7, 40, op::DEREF, op::PLUS_UCONST, 8, rbp, rbp_at];
    assert_eq!(x86_64_function(&instructions).0, [(0, x86(DEREF | DEREF_ADD_8, 3, 5))]);
    let instructions = [op::DEF_CFA_EXPRESSION, 3, op::BREG7, 40, op::DEREF];
    assert_eq!(x86_64_function(&instructions).0, [(0, x86(DEREF, 0, 5))]);
    // Only nothing or 8 can be added to what is read.
    let instructions = [op::DEF_CFA_EXPRESSION, 5, op::BREG7, 40, op::DEREF, op::PLUS_UCONST, 16];
    assert_eq!(x86_64_function(&instructions).0, [(0, Rule::UNSUPPORTED)]);
}

/// What glibc states for `__restore_rt`, with the return address at rsp + `rip`.
fn signal_frame(augmentation: &str, rip: u8) -> (Vec<(u64, Rule)>, Problems) {
    let instructions = [
        op::DEF_CFA_EXPRESSION,
        4,
        op::BREG7,
        0xa0,
        0x01,
        op::DEREF,
        op::EXPRESSION,
        6,
        3,
        op::BREG7,
        0xf8,
        0x00,
        op::EXPRESSION,
        16,
        3,
        op::BREG7,
        rip,
        0x01,
    ];
    function(X86_64, &Cfi::eh_frame().cie(augmentation, 16, X86_64_INITIAL), &instructions)
}

#[test]
fn x86_64_signal_frame_only_where_the_kernel_writes_it() {
    assert_eq!(signal_frame("S", 0xa8).0, [(0, Rule::X86_64_SIGNAL)]);
    let (rows, problems) = signal_frame("S", 0xb0);
    assert_eq!((rows, problems.signal_frame), (vec![(0, Rule::UNSUPPORTED)], 1));
    let (rows, problems) = signal_frame("", 0xa8);
    assert_eq!((rows, problems.return_address), (vec![(0, Rule::UNSUPPORTED)], 1), "no signal frame");
}

/// rsp + 8 + ((rip & 15) >= 11) * 8.
const PLT_EXPRESSION: &[u8] =
    &[op::DEF_CFA_EXPRESSION, 11, op::BREG7, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22];

#[test]
fn x86_64_plt_expression_becomes_two_rows_for_each_entry() {
    let header = [op::DEF_CFA_OFFSET, 16, op::advance(6), op::DEF_CFA_OFFSET, 24, op::advance(10)];
    let (rows, problems) = x86_64_function(&[&header, PLT_EXPRESSION].concat());
    let expected = [(0, 2), (6, 3), (16, 1), (27, 2), (32, 1), (43, 2), (48, 1), (59, 2)];
    assert_eq!(rows, expected.map(|(at, words)| (at, x86(0, 0, words))));
    assert_eq!(problems, Problems { cfi_rows: 3, ..Problems::default() });
}

#[test]
fn x86_64_plt_without_cfi_is_unwound_by_its_code() {
    let mut file = ElfFile::new(X86_64, 112).code_section(".plt", 16, 48).code_section(".plt.got", 64, 16);
    file.code[16..18].copy_from_slice(&[0xff, 0x35]);
    for (start, push) in [(32, 6), (48, 6)] {
        file.code[start..start + 2].copy_from_slice(&[0xff, 0x25]);
        file.code[start + push] = 0x68;
    }
    let plain = |words| x86(0, 0, words);
    let start = [(0, GUESS), (16, plain(2)), (22, plain(3)), (32, plain(1))];
    let entries = [(43, plain(2)), (48, plain(1)), (59, plain(2)), (64, plain(1)), (80, GUESS)];
    assert_eq!(rows(&table(&file)), [&start[..], &entries[..]].concat());
    // Entries that push nothing: the return address stays on top.
    file.code[38] = 0x90;
    assert_eq!(rows(&table(&file)), [&start[..], &[(80, GUESS)]].concat());
}

#[test]
fn aarch64_plt_without_cfi_is_unwound_by_its_code() {
    let mut file = ElfFile::new(AARCH64, 96).code_section(".plt", 0, 80);
    let in_lr = |words| Rule::aarch64(RA_IN_LR, 0, words);
    let after = (80, GUESS);
    file.code[..4].copy_from_slice(&[0xf0, 0x7b, 0xbf, 0xa9]);
    assert_eq!(rows(&table(&file)), [(0, in_lr(0)), (4, in_lr(2)), (32, in_lr(0)), after]);
    file.code[..8].copy_from_slice(&[0x5f, 0x24, 0x03, 0xd5, 0xf0, 0x7b, 0xbf, 0xa9]);
    assert_eq!(rows(&table(&file)), [(0, in_lr(0)), (8, in_lr(2)), (32, in_lr(0)), after]);
}

#[test]
fn aarch64_frame_record() {
    let ([x29, x29_at], [x30, x30_at]) = (op::offset(29, 12), op::offset(30, 11));
    let (rows, problems) = aarch64_function(&[
        op::NEGATE_RA_STATE,
        op::advance(4),
        op::DEF_CFA_OFFSET,
        96,
        x29,
        x29_at,
        x30,
        x30_at,
        op::advance(4),
        op::DEF_CFA_REGISTER,
        29,
        op::advance(40),
        op::restore(30),
        op::restore(29),
        op::DEF_CFA,
        31,
        0,
    ]);
    let (saved, by_x29) = (-11, BASE_FP | FP_SAVED);
    let expected = [(0, Rule::aarch64(RA_IN_LR, 0, 0)), (4, Rule::aarch64(FP_SAVED, saved, 12))];
    assert_eq!(rows[..2], expected);
    assert_eq!(rows[2..], [(8, Rule::aarch64(by_x29, saved, 12)), (48, Rule::aarch64(RA_IN_LR, 0, 0))]);
    assert_eq!(problems, Problems { cfi_rows: 4, ..Problems::default() });
}

#[test]
fn aarch64_return_address_far_from_the_cfa_counts_from_the_base() {
    // CFA = sp + 2048; the return address at CFA - 127 words fits, 2048 bytes below the CFA only
    // from sp.
    let far = |words: [u8; 2]| [&[op::DEF_CFA_OFFSET, 0x80, 0x10, 0x80 | 30][..], &words].concat();
    let ([near_low, near_high], [far_low, far_high]) = ([0x80, 0x01], [0x80, 0x02]);
    let (rows, _) = aarch64_function(&far([near_low, near_high]));
    assert_eq!(rows, [(0, Rule::aarch64(0, -128, 256))]);
    let (rows, _) = aarch64_function(&far([far_low, far_high]));
    assert_eq!(rows, [(0, Rule::aarch64(RA_FROM_BASE, 0, 256))]);
}

#[test]
fn aarch64_rows_that_cannot_be_expressed() {
    let save = |registers: &[(u8, u8)]| {
        registers.iter().flat_map(|&(register, words)| op::offset(register, words)).collect::<Vec<u8>>()
    };
    let (rows, problems) = aarch64_function(&save(&[(29, 4), (30, 2)]));
    assert_eq!((rows, problems.frame_pointer), (vec![(0, Rule::UNSUPPORTED)], 1), "x29 not below x30");
    let (rows, problems) = aarch64_function(&save(&[(29, 4)]));
    assert_eq!((rows, problems.frame_pointer), (vec![(0, Rule::UNSUPPORTED)], 1), "x29 alone");
    assert_eq!(aarch64_function(&save(&[(30, 2)])).0, [(0, Rule::aarch64(0, -2, 0))]);
    let (rows, problems) = aarch64_function(&[op::REGISTER, 30, 3]);
    assert_eq!((rows, problems.return_address), (vec![(0, Rule::UNSUPPORTED)], 1));
    let (rows, problems) = aarch64_function(&[op::DEF_CFA, 0, 0]);
    assert_eq!((rows, problems.cfa_register), (vec![(0, Rule::UNSUPPORTED)], 1));
    let other_column = Cfi::eh_frame().cie("", 15, AARCH64_INITIAL);
    let (rows, problems) = function(AARCH64, &other_column, &[]);
    assert_eq!((rows, problems.return_address), (vec![(0, Rule::UNSUPPORTED)], 1));
}

#[test]
fn aarch64_outermost_and_signal_frames() {
    assert_eq!(aarch64_function(&[op::UNDEFINED, 30]).0, [(0, Rule::END)]);
    let signal = Cfi::eh_frame().cie("S", 30, AARCH64_INITIAL);
    assert_eq!(function(AARCH64, &signal, &[]).0, [(0, Rule::AARCH64_SIGNAL)]);
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
fn on_aarch64_the_frame_pointer_of_code_without_cfi_says_how_far_the_cfa_is() {
    let mut file = ElfFile::new(AARCH64, 96);
    // stp x29, x30, [sp, #-48]!; mov x29, sp; bl; ldp x29, x30, [sp], #48; ret.
    let words = [0xa9bd_7bfd_u32, 0x9100_03fd, 0x9400_0001, 0xa8c3_7bfd, 0xd65f_03c0];
    let code: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    file.code[12..32].copy_from_slice(&code);
    let saved = FP_SAVED | RA_FROM_BASE;
    let (leaf, stored) = (Rule::aarch64(RA_IN_LR, 0, 0), Rule::aarch64(saved, 1, 6));
    let framed = Rule::aarch64(saved | BASE_FP | BY_FRAME_POINTER, 1, 6);
    let expected = [(0, leaf), (16, stored), (20, framed), (28, leaf), (32, GUESS)];
    assert_eq!(rows(&table(&file)), expected);
}

#[test]
fn code_without_cfi_is_unwound_by_what_it_does_to_the_stack_pointer() {
    let mut file = ElfFile::new(X86_64, 96);
    // push %rbp; mov %rsp, %rbp; ...; pop %rbp; ret.
    file.code[4..8].copy_from_slice(&[0x55, 0x48, 0x89, 0xe5]);
    file.code[20..22].copy_from_slice(&[0x5d, 0xc3]);
    let expected = [(0, x86(0, 0, 1)), (5, x86(0, 2, 2)), (8, x86(BASE_FP, 2, 2)), (21, x86(0, 0, 1))];
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
