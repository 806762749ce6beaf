//! Rows of x86_64 functions.

use super::*;

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
    assert_eq!(x86_64_function(&instructions).0, [(0, Rule::x86_64_stored(0, 0, 5, 0)), (4, x86(0, 0, 7))]);
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
    assert_eq!(rows, [(0, Rule::x86_64_stored(BASE_FP | FP_AT_FP, 0, -1, 0))]);
    assert_eq!(problems.unsupported_rows(), 0);
}

#[test]
fn x86_64_cfa_stored_on_the_stack() {
    let [rbp, rbp_at] = op::offset(6, 3);
    let instructions = [op::DEF_CFA_EXPRESSION, 5, op::BREG7, 40, op::DEREF, op::PLUS_UCONST, 8, rbp, rbp_at];
    assert_eq!(x86_64_function(&instructions).0, [(0, Rule::x86_64_stored(0, 3, 5, 1))]);
    let instructions = [op::DEF_CFA_EXPRESSION, 3, op::BREG7, 40, op::DEREF];
    assert_eq!(x86_64_function(&instructions).0, [(0, Rule::x86_64_stored(0, 0, 5, 0))]);
    for (added, rule) in [
        (56, Rule::x86_64_stored(0, 0, 5, 7)),
        (120, Rule::x86_64_stored(0, 0, 5, 15)),
        (12, Rule::UNSUPPORTED),
        (127, Rule::UNSUPPORTED),
    ] {
        let instructions = [op::DEF_CFA_EXPRESSION, 5, op::BREG7, 40, op::DEREF, op::PLUS_UCONST, added];
        assert_eq!(x86_64_function(&instructions).0, [(0, rule)], "{added}");
    }
    let instructions = [op::DEF_CFA_EXPRESSION, 6, op::BREG7, 40, op::DEREF, op::PLUS_UCONST, 0x80, 1];
    assert_eq!(x86_64_function(&instructions).0, [(0, Rule::UNSUPPORTED)], "16 words");
}

#[test]
fn x86_64_cfa_stored_within_reach_of_the_base() {
    // SLEB128: -4096, 4088, -4104, 4096.
    for (offset, at) in
        [([0x80, 0x60], Some(-512)), ([0xf8, 0x1f], Some(511)), ([0xf8, 0x5f], None), ([0x80, 0x20], None)]
    {
        let (rows, problems) =
            x86_64_function(&[op::DEF_CFA_EXPRESSION, 4, op::BREG7, offset[0], offset[1], op::DEREF]);
        assert_eq!(rows, [(0, at.map_or(Rule::UNSUPPORTED, |at| Rule::x86_64_stored(0, 0, at, 0)))]);
        assert_eq!(problems.cfa_offset, u64::from(at.is_none()));
    }
}

/// As in OpenSSL's Montgomery multiplication: *(rsp + 8 + r9 x 8) + 8.
#[test]
fn x86_64_cfa_stored_behind_a_number_of_words() {
    const LIT8: u8 = 0x38;
    const MUL: u8 = 0x1e;
    const PLUS: u8 = 0x22;
    let [rbp, rbp_at] = op::offset(6, 3);
    let function = |index, offset, factor, tail: &[u8]| {
        let address = [op::BREG7, 8, index, offset, factor, MUL, PLUS];
        let length = u8::try_from(address.len() + tail.len()).unwrap();
        x86_64_function(&[&[op::DEF_CFA_EXPRESSION, length], &address[..], tail, &[rbp, rbp_at]].concat())
    };
    let add_8 = [op::DEREF, op::PLUS_UCONST, 8];
    let rule = Rule::x86_64_stored(0, 3, 1, 1);
    for (breg, other) in [(0x79, 2), (0x7b, 0), (0x75, 8)] {
        let (rows, problems) = function(breg, 0, LIT8, &add_8);
        assert_eq!((rows, problems.unsupported_rows()), (vec![(0, rule.indexed_by(other))], 0));
    }
    let plain = Rule::x86_64_stored(0, 3, 1, 0).indexed_by(2);
    assert_eq!(function(0x79, 0, LIT8, &[op::DEREF]).0, [(0, plain)]);
    // Another factor, something added to the register, one that calls keep, nothing read.
    for (breg, offset, factor, tail) in
        [(0x79, 0, LIT8 - 4, &add_8[..]), (0x79, 8, LIT8, &add_8), (0x7c, 0, LIT8, &add_8), (0x79, 0, LIT8, &[])]
    {
        let (rows, problems) = function(breg, offset, factor, tail);
        assert_eq!((rows, problems.cfa_expression), (vec![(0, Rule::UNSUPPORTED)], 1), "{breg} {offset} {factor}");
    }
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
