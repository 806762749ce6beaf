//! Rows of aarch64 functions.

use super::*;

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
