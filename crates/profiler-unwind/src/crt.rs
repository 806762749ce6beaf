//! x86_64: the code that gcc's and glibc's start files put into every program and library, without CFI,
//! and musl's caller of `main`. Short-lived programs are often sampled there: its first instructions
//! bring in pages.
//!
//! Known by its bytes, as gcc 8 and later and glibc 2.25 and later have it, with and without `-fPIC` and
//! `-fcf-protection`, and as gcc makes it of musl 1.1.20 and later. Other code stays unknown.

use profiler_common::row::Rule;

/// The return address is at rsp.
const NO_FRAME: Rule = Rule::x86_64(0, 0, 1);
/// After `sub $8, %rsp`.
const ONE_WORD: Rule = Rule::x86_64(0, 0, 2);
/// After `push %rbp`.
const RBP_PUSHED: Rule = Rule::x86_64(0, 2, 2);

/// `endbr64`, which may be in front.
const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
/// What sections of code are aligned to at least; functions of C to [`ALIGNMENT`].
const SECTION_ALIGNMENT: u64 = 4;
const ALIGNMENT: u64 = 16;

/// `deregister_tm_clones` and `register_tm_clones` (gcc/libgcc/crtstuff.c), which use no stack. Bytes in
/// hexadecimal; `..` is any byte. Linkers turn a load of an address into one of a constant.
const LEAVES: [&str; 4] = [
    "48 8d 3d .. .. .. .. 48 8d 05 .. .. .. .. 48 39 f8 74 15 48 .. .. .. .. .. .. 48 85 c0 74 09 ff e0 \
     0f 1f 80 00 00 00 00 c3",
    "48 8d 3d .. .. .. .. 48 8d 35 .. .. .. .. 48 29 fe 48 89 f0 48 c1 ee 3f 48 c1 f8 03 48 01 c6 48 d1 fe \
     74 14 48 .. .. .. .. .. .. 48 85 c0 74 08 ff e0 66 0f 1f 44 00 00 c3",
    "b8 .. .. .. .. 48 3d .. .. .. .. 74 13 b8 .. .. .. .. 48 85 c0 74 09 bf .. .. .. .. ff e0 66 90 c3",
    "be .. .. .. .. 48 81 ee .. .. .. .. 48 89 f0 48 c1 ee 3f 48 c1 f8 03 48 01 c6 48 d1 fe \
     74 11 b8 .. .. .. .. 48 85 c0 74 07 bf .. .. .. .. ff e0 c3",
];

/// `_init` and `_fini` (glibc/sysdeps/x86_64/crti.S, crtn.S): sub $8, %rsp; ...; add $8, %rsp; ret.
const ONE_WORD_USED: [&str; 2] =
    ["48 83 ec 08 48 .. .. .. .. .. .. 48 85 c0 74 02 ff d0 48 83 c4 08 c3", "48 83 ec 08 48 83 c4 08 c3"];

/// `__do_global_dtors_aux` (gcc/libgcc/crtstuff.c) up to its first ret: cmpb; jne to its other ret; push
/// %rbp; ...; pop %rbp; ret.
const DTORS: [&str; 3] = [
    "80 3d .. .. .. .. 00 75 .. 55 48 83 3d .. .. .. .. 00 48 89 e5 74 0c 48 8b 3d .. .. .. .. \
     e8 .. .. .. .. e8 .. .. .. .. c6 05 .. .. .. .. 01 5d c3",
    "80 3d .. .. .. .. 00 75 .. 55 48 89 e5 e8 .. .. .. .. c6 05 .. .. .. .. 01 5d c3",
    // In static programs it also gives up what unwinders were told.
    "80 3d .. .. .. .. 00 75 .. 55 48 89 e5 e8 .. .. .. .. b8 .. .. .. .. 48 85 c0 74 0a bf .. .. .. .. \
     e8 .. .. .. .. c6 05 .. .. .. .. 01 5d c3",
];
/// `frame_dummy` (gcc/libgcc/crtstuff.c) of static programs, up to its first jump: mov; test; je to its
/// other jump; push %rbp; ...; pop %rbp; jmp.
const FRAME_DUMMY: &str =
    "b8 .. .. .. .. 48 85 c0 74 .. 55 be .. .. .. .. bf .. .. .. .. 48 89 e5 e8 .. .. .. .. 5d e9 .. .. .. ..";
/// Where it pushes rbp, behind the je, and where it has popped it, in bytes.
const FRAME_DUMMY_PUSH_AT: usize = 10;
const FRAME_DUMMY_POPPED_AT: usize = 30;

/// `libc_start_main_stage2` (musl/src/env/__libc_start_main.c), which jumps and calls lead to: push %r13;
/// ...; push %r12; ...; push %rbp; ...; push %rbx; ...; sub $8, %rsp; call; ...; call *%rbx, which is
/// `main`; mov %eax, %edi; call, which is `exit`. Anywhere: gcc -Os aligns no functions.
const MUSL_STAGE2: &str = "41 55 48 63 c6 41 54 4c 8d 6c c2 08 49 89 d4 55 48 89 c5 53 48 89 fb 48 83 ec 08 \
     e8 .. .. .. .. 89 ef 4c 89 ea 4c 89 e6 ff d3 89 c7 e8 .. .. .. ..";
/// How it begins.
const MUSL_STAGE2_BEGINNING: &[u8] = &[0x41, 0x55, 0x48, 0x63, 0xc6, 0x41, 0x54];
/// Up to where it keeps how many words on the stack, and the slot of rbp.
const MUSL_STAGE2_ROWS: [(usize, Rule); 6] = [
    (2, NO_FRAME),
    (7, ONE_WORD),
    (16, Rule::x86_64(0, 0, 3)),
    (20, Rule::x86_64(0, 4, 4)),
    (27, Rule::x86_64(0, 4, 5)),
    (49, Rule::x86_64(0, 4, 6)),
];

/// Where it pushes rbp, behind the jne, in bytes.
const DTORS_PUSH_AT: usize = 9;

/// Up to which byte of `code`, which is at `address`, which rule holds, in ascending order, when a
/// function of the start files begins there.
pub(crate) fn rules(address: u64, code: &[u8]) -> Option<Vec<(usize, Rule)>> {
    if code.starts_with(MUSL_STAGE2_BEGINNING) && matched(MUSL_STAGE2, code).is_some() {
        return Some(MUSL_STAGE2_ROWS.to_vec());
    }
    if !address.is_multiple_of(SECTION_ALIGNMENT) {
        return None;
    }
    let body = code.strip_prefix(ENDBR64).unwrap_or(code);
    let before = code.len() - body.len();
    let one_of = |templates: &[&str]| templates.iter().find_map(|template| matched(template, body));
    if let Some(length) = one_of(&ONE_WORD_USED) {
        let end = before + length;
        return Some(vec![(before + 4, NO_FRAME), (end - 1, ONE_WORD), (end, NO_FRAME)]);
    }
    if !address.is_multiple_of(ALIGNMENT) {
        return None;
    }
    if let Some(length) = one_of(&LEAVES) {
        return Some(vec![(before + length, NO_FRAME)]);
    }
    if let Some(length) = matched(FRAME_DUMMY, body) {
        let other_jump = FRAME_DUMMY_PUSH_AT + usize::from(*body.get(FRAME_DUMMY_PUSH_AT - 1)?);
        let end = jump_end(body, other_jump).filter(|_| other_jump >= length)?;
        return Some(vec![
            (before + FRAME_DUMMY_PUSH_AT + 1, NO_FRAME),
            (before + FRAME_DUMMY_POPPED_AT, RBP_PUSHED),
            (before + end, NO_FRAME),
        ]);
    }
    let length = one_of(&DTORS)?;
    let other_ret = DTORS_PUSH_AT + usize::from(*body.get(DTORS_PUSH_AT - 1)?);
    if other_ret < length || body.get(other_ret) != Some(&0xc3) {
        return None;
    }
    let popped = before + length - 1;
    let end = before + other_ret + 1;
    Some(vec![
        (before + DTORS_PUSH_AT + 1, NO_FRAME),
        (popped, RBP_PUSHED),
        (frame_dummy(address, code, end), NO_FRAME),
    ])
}

/// The end of `frame_dummy`, which is one jump, when it follows the function that ends at `end`;
/// otherwise `end`.
fn frame_dummy(address: u64, code: &[u8], end: usize) -> usize {
    let padding = address.saturating_add(end as u64).wrapping_neg() % ALIGNMENT;
    let at = end + usize::try_from(padding).unwrap_or(0);
    let endbr64 = if code.get(at..).is_some_and(|code| code.starts_with(ENDBR64)) { ENDBR64.len() } else { 0 };
    jump_end(code, at + endbr64).unwrap_or(end)
}

/// The end of the jump that begins at `at`, if one does.
fn jump_end(code: &[u8], at: usize) -> Option<usize> {
    match code.get(at..)? {
        [0xe9, _, _, _, _, ..] => Some(at + 5),
        [0xeb, _, ..] => Some(at + 2),
        _ => None,
    }
}

/// The length of `template` when `code` begins with it.
fn matched(template: &str, code: &[u8]) -> Option<usize> {
    let mut length = 0;
    for token in template.split_ascii_whitespace() {
        let byte = code.get(length)?;
        if token != ".." && u8::from_str_radix(token, 16) != Ok(*byte) {
            return None;
        }
        length += 1;
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of a template, with 0x11 for any.
    fn bytes(template: &str) -> Vec<u8> {
        template.split_ascii_whitespace().map(|token| u8::from_str_radix(token, 16).unwrap_or(0x11)).collect()
    }

    #[test]
    fn init_and_fini_at_every_instruction() {
        let fini = bytes(ONE_WORD_USED[1]);
        assert_eq!(rules(0x1004, &fini).unwrap(), [(4, NO_FRAME), (8, ONE_WORD), (9, NO_FRAME)]);
        let init = [ENDBR64, &bytes(ONE_WORD_USED[0])].concat();
        assert_eq!(rules(0x1000, &init).unwrap(), [(8, NO_FRAME), (26, ONE_WORD), (27, NO_FRAME)]);
        assert_eq!(rules(0x1002, &init), None, "no place for a section");
        assert_eq!(rules(0x1000, &init[..26]), None, "its end is missing");
    }

    #[test]
    fn destructors_push_rbp_and_return_in_two_places() {
        // jne leads to the second ret, three bytes behind the first.
        let mut code = bytes(DTORS[1]);
        code[8] = 27 + 3 - 9;
        code.extend([0x0f, 0x1f, 0, 0xc3]);
        let expected = [(10, NO_FRAME), (26, RBP_PUSHED), (31, NO_FRAME)];
        assert_eq!(rules(0x1000, &code).unwrap(), expected);
        // Then frame_dummy, at the next place for a function.
        code.extend([0x90, 0xf3, 0x0f, 0x1e, 0xfa, 0xeb, 0x11, 0x55]);
        assert_eq!(rules(0x1000, &code).unwrap()[2], (38, NO_FRAME));
        code[8] += 1;
        assert_eq!(rules(0x1000, &code), None, "jne leads elsewhere");
    }

    #[test]
    fn frame_dummy_of_static_programs() {
        let mut code = [ENDBR64, &bytes(FRAME_DUMMY)].concat();
        code[13] = 34;
        code.resize(48, 0x90);
        code.extend([0xe9, 1, 2, 3, 4]);
        assert_eq!(rules(0x1000, &code).unwrap(), [(15, NO_FRAME), (34, RBP_PUSHED), (53, NO_FRAME)]);
        code[48] = 0xc3;
        assert_eq!(rules(0x1000, &code), None, "je leads to no jump");
    }

    #[test]
    fn caller_of_main_in_musl() {
        let code = bytes(MUSL_STAGE2);
        let rows = rules(0x1003, &code).unwrap();
        assert_eq!(rows.last(), Some(&(code.len(), Rule::x86_64(0, 4, 6))));
        // Each row begins behind a push, and behind sub $8, %rsp.
        let pushes = [(0, 0x55), (5, 0x54), (15, 0x55), (19, 0x53), (26, 0x08)];
        for ((end, _rule), (before, last)) in rows.iter().zip(pushes) {
            assert!(code[*end - 1] == last && *end > before, "{end}");
        }
        assert_eq!(rules(0x1003, &code[..code.len() - 1]), None);
    }

    #[test]
    fn leaves_have_no_frame_and_other_code_is_unknown() {
        for template in LEAVES {
            let mut code = bytes(template);
            assert_eq!(rules(0x1000, &code).unwrap(), [(code.len(), NO_FRAME)]);
            *code.last_mut().unwrap() = 0x90;
            assert_eq!(rules(0x1000, &code), None);
        }
        assert_eq!(rules(0x1000, &[]), None);
    }
}
