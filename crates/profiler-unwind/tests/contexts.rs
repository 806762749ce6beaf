//! Code that goes over to another stack, as glibc has it for contexts and libgcc for exceptions.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails where one of its steps does")]

#[expect(dead_code, reason = "shared with the tests of golden rows, which use more of it")]
mod synthetic_elf;

use profiler_common::address::Svma;
use profiler_common::row::{BASE_FP, FP_SAVED, RA_IN_LR, Rule};
use profiler_unwind::{UnwindTable, build, lookup};
use synthetic_elf::{AARCH64, AARCH64_INITIAL, CODE, Cfi, ElfFile, X86_64, X86_64_INITIAL, op};

const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
const CALL: &[u8] = &[0xe8, 0, 0, 0, 0];
/// mov 0xa0(%rdx), %rsp.
const SWITCH: &[u8] = &[0x48, 0x8b, 0xa2, 0xa0, 0, 0, 0];
/// xor %eax, %eax; ret.
const RETURN: &[u8] = &[0x31, 0xc0, 0xc3];
const CALLED: Rule = Rule::x86_64(0, 0, 1);
/// aarch64: at the first instruction of any function.
const LEAF: Rule = Rule::aarch64(RA_IN_LR, 0, 0);
const NOP: u32 = 0xd503_201f;

/// What makecontext makes functions return to: mov %rbx, %rsp; mov (%rsp), %rdi; test %rdi, %rdi; je; call;
/// mov %rax, %rdi; call; hlt.
fn start_context() -> Vec<u8> {
    let next = [0x48, 0x89, 0xdc, 0x48, 0x8b, 0x3c, 0x24, 0x48, 0x85, 0xff, 0x74, 0x08];
    [&next, CALL, &[0x48, 0x89, 0xc7], CALL, &[0xf4]].concat()
}

/// nops, with another stack from 100 to 10 bytes before the end.
fn swap_context(bytes: usize) -> Vec<u8> {
    let mut code = vec![0x90; bytes];
    code[100 - SWITCH.len()..100].copy_from_slice(SWITCH);
    code[bytes - 10 - RETURN.len()..bytes - 10].copy_from_slice(RETURN);
    code
}

/// A function of 26 bytes, `code` at `start`, and another function at `next`, each with the CFI given.
fn between(start: u64, code: &[u8], cfi: [&[u8]; 2]) -> UnwindTable {
    let next = (start + code.len() as u64).next_multiple_of(16);
    let frames = Cfi::eh_frame().cie("", 16, X86_64_INITIAL).fde(0, 26, cfi[0]);
    let frames = frames.fde(start, code.len() as u64, cfi[1]).fde(next, 32, &[]);
    let mut file = ElfFile::new(X86_64, next as usize + 64).cfi(&frames);
    file.code[start as usize..][..code.len()].copy_from_slice(code);
    build(&file.bytes()).unwrap()
}

fn rule(table: &UnwindTable, at: u64) -> Rule {
    lookup(table, Svma(CODE + at)).unwrap()
}

#[test]
fn the_start_of_a_context_ends_stacks_with_and_without_endbr64() {
    for code in [start_context(), [ENDBR64, &start_context()].concat()] {
        let table = between(32, &code, [&[op::DEF_CFA_OFFSET, 32], &[]]);
        assert_eq!([rule(&table, 30), rule(&table, 31)], [Rule::x86_64(0, 0, 4), Rule::END], "{} bytes", code.len());
        let end = 32 + code.len() as u64;
        assert_eq!([rule(&table, 32), rule(&table, end - 1)], [Rule::END; 2]);
        assert_eq!(rule(&table, end.next_multiple_of(16)), CALLED);
    }
    let table = between(26, &start_context(), [&[op::DEF_CFA_OFFSET, 32], &[]]);
    assert_eq!([24, 25, 26].map(|at| rule(&table, at)), [Rule::x86_64(0, 0, 4), Rule::END, Rule::END], "no padding");
    let long = [start_context(), vec![0x90; 100], vec![0xf4]].concat();
    assert_eq!(rule(&between(32, &long, [&[], &[]]), 32), CALLED);
}

/// aarch64: `words` 16 bytes behind the start of the code, and functions before and behind, each with the CFI
/// given.
fn aarch64(words: &[u32], [before, own]: [&[u8]; 2]) -> UnwindTable {
    let length = 4 * words.len() as u64;
    let frames = Cfi::eh_frame().cie("", 30, AARCH64_INITIAL).fde(0, 12, before).fde(16, length, own);
    let frames = frames.fde((16 + length).next_multiple_of(16), 16, &[]);
    let mut file = ElfFile::new(AARCH64, 64 + length as usize).cfi(&frames);
    file.code[16..][..length as usize]
        .copy_from_slice(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>());
    build(&file.bytes()).unwrap()
}

#[test]
fn on_aarch64_too_the_start_of_a_context_ends_stacks() {
    let framed = [op::DEF_CFA_OFFSET, 32];
    // bti c; blr x20. mov x0, x19; cbnz x0; b.
    let (bti, call, rest) = (0xd503_245f, 0xd63f_0280, [0xaa13_03e0, 0xb5ff_f9c0, 0x17ff_f579]);
    for first in [&[][..], &[NOP], &[bti], &[bti, call]] {
        let words = [first, &rest].concat();
        let table = aarch64(&words, [&framed, &[]]);
        let end = 16 + 4 * words.len() as u64;
        assert_eq!([15, 16, end - 1].map(|at| rule(&table, at)), [Rule::END; 3], "{} words", words.len());
        assert_ne!(rule(&table, 14), Rule::END);
        assert_eq!(rule(&table, end.next_multiple_of(16)), LEAF);
    }
    for other in [[rest[0], rest[1], 0x9400_0001], [rest[0], NOP, rest[2]], [NOP, rest[1], rest[2]]] {
        assert_eq!(rule(&aarch64(&other, [&[], &[]]), 16), LEAF, "{other:x?}");
    }
}

#[test]
fn on_aarch64_stacks_are_cut_where_swapcontext_has_no_return_address() {
    // adr x30, 0xb0 later; mov x30, x1; ret.
    let (adr, back) = (0x1000_059e, [0xaa01_03fe, 0xd65f_03c0]);
    let code = [&[NOP, adr][..], &[NOP; 46], &back, &[NOP; 2]].concat();
    let rules = |table: &UnwindTable| [16 + 7, 16 + 8, 16 + 195, 16 + 196, 16 + 207].map(|at| rule(table, at));
    let cut = Rule::UNSUPPORTED;
    assert_eq!(rules(&aarch64(&code, [&[], &[]])), [LEAF, cut, cut, LEAF, LEAF]);
    let without = [&[NOP; 48][..], &back, &[NOP; 2]].concat();
    assert_eq!(rules(&aarch64(&without, [&[], &[]])), [LEAF; 5]);
    let framed = Rule::aarch64(RA_IN_LR, 0, 2);
    assert_eq!(rules(&aarch64(&code, [&[], &[op::DEF_CFA_OFFSET, 16]])), [framed; 5], "a function with a frame");
}

/// libgcc's functions, shortened: x0 is kept from 12 to the epilogue's end (`leave`), or all along.
#[test]
fn on_aarch64_too_stacks_are_cut_where_saved_registers_are_overwritten() {
    let ([fp, fp_at], [lr, lr_at], [x0, x0_at]) = (op::offset(29, 8), op::offset(30, 7), op::offset(0, 6));
    // cmp w0, #7; b.ne; two calls; str x1, [x29, #8]; ldp x29, x30, [sp]; add sp, sp, #64; add sp, sp, x4; ret.
    let go = [0x7100_1c1f, 0x5400_0101, 0x9400_0010, 0x9400_0011, 0xf900_07a1];
    let leave = [0xa940_7bfd, 0x9101_03ff, 0x8b24_63ff, 0xd65f_03c0];
    let code = [&[NOP; 4][..], &go, &leave, &[0x9400_0012]].concat();
    let kept = [op::advance(4), op::DEF_CFA_OFFSET, 64, fp, fp_at, lr, lr_at];
    let ends = [op::REMEMBER_STATE, op::advance(40), op::restore(29), op::restore(30), op::restore(0)];
    let ends = [&ends[..], &[op::DEF_CFA_OFFSET, 0, op::advance(8), op::RESTORE_STATE]].concat();
    let cfi = [&kept[..], &[x0, x0_at], &ends].concat();
    let (framed, cut) = (Rule::aarch64(FP_SAVED, -7, 8), Rule::UNSUPPORTED);
    let rules = |cfi: &[u8], code: &[u32]| {
        let table = aarch64(code, [&[], cfi]);
        [0, 4, 23, 24, 35, 36, 44, 51, 52].map(|at| rule(&table, 16 + at))
    };
    assert_eq!(rules(&cfi, &code), [LEAF, framed, framed, cut, cut, cut, cut, cut, framed]);
    let without_x0 = [&kept[..], &ends].concat();
    let as_told = [LEAF, framed, framed, framed, framed, framed, LEAF, LEAF, framed];
    assert_eq!(rules(&without_x0, &code), as_told, "of other functions nothing is looked at");
    let plain = [&code[..11], &[NOP], &code[12..]].concat();
    assert_eq!(rules(&cfi, &plain), as_told, "sp stays");
    let unseen = [&[NOP; 6], &code[6..]].concat();
    assert_eq!(rules(&cfi, &unseen), [LEAF, cut, cut, cut, cut, cut, cut, cut, cut], "where it begins is not seen");
}

#[test]
fn between_two_stacks_stacks_are_cut() {
    for bytes in [260, 543] {
        let table = between(32, &swap_context(bytes), [&[], &[]]);
        let end = 32 + bytes as u64;
        let rules = [131, 132, end - 11, end - 10, end - 1].map(|at| rule(&table, at));
        assert_eq!(rules, [CALLED, Rule::UNSUPPORTED, Rule::UNSUPPORTED, CALLED, CALLED], "{bytes} bytes");
    }
}

#[test]
fn code_that_has_a_frame_is_no_swapcontext() {
    let table = between(32, &swap_context(260), [&[], &[op::DEF_CFA_OFFSET, 24]]);
    assert_eq!([131, 132, 281, 282, 291].map(|at| rule(&table, at)), [Rule::x86_64(0, 0, 3); 5]);
}

/// A function with a frame pointer from 4 on, with one row of another rule from 240 to 250, that goes over to
/// the frame that catches an exception at 300.
fn catching(calls: &[usize]) -> UnwindTable {
    let [saved, at] = op::offset(6, 2);
    let frame = [op::advance(1), op::DEF_CFA_OFFSET, 16, saved, at, op::advance(3), op::DEF_CFA_REGISTER, 6];
    let advance = [op::advance(59); 4];
    let other = [op::DEF_CFA, 7, 64, op::advance(10), op::DEF_CFA, 6, 16, op::advance(50)];
    let leave = [op::DEF_CFA, 2, 8, op::restore(6), op::advance(3), op::DEF_CFA, 7, 8];
    let cfi = [&frame[..], &advance, &other, &leave].concat();
    let frames = Cfi::eh_frame().cie("", 16, X86_64_INITIAL).fde(0, 304, &cfi);
    let mut file = ElfFile::new(X86_64, 320).cfi(&frames);
    for at in calls {
        file.code[*at..at + CALL.len()].copy_from_slice(CALL);
    }
    build(&file.bytes()).unwrap()
}

#[test]
fn stacks_are_cut_from_where_saved_registers_are_overwritten() {
    let framed = Rule::x86_64(BASE_FP, 2, 2);
    for (calls, from) in [(&[260, 280][..], 260), (&[200, 230], 200), (&[236, 252], 236), (&[200], 44), (&[], 44)] {
        let table = catching(calls);
        let rules = [from - 1, from, 245, 299, 303].map(|at| rule(&table, at));
        let other = if from < 245 { Rule::UNSUPPORTED } else { Rule::x86_64(0, 2, 8) };
        let cut = Rule::UNSUPPORTED;
        assert_eq!(rules, [framed, cut, other, cut, cut], "{calls:?}");
    }
}

/// musl's `.debug_frame` has the return address of a new thread below its stack pointer.
#[test]
fn threads_begin_where_musl_calls_their_function() {
    let mut file = ElfFile::new(X86_64, 64);
    // pop %rdi; call *%r9; mov %eax, %edi; xor %eax, %eax; mov $60, %al; syscall; hlt; ret.
    let code = [0x5f, 0x41, 0xff, 0xd1, 0x89, 0xc7, 0x31, 0xc0, 0xb0, 0x3c, 0x0f, 0x05, 0xf4, 0xc3];
    file.code[16..30].copy_from_slice(&code);
    let initial = Cfi::eh_frame().cie("", 16, X86_64_INITIAL);
    let cfi = initial.fde(8, 22, &[op::advance(9), op::DEF_CFA_OFFSET, 0]);
    let rule = |file: &ElfFile, at: u64| lookup(&build(&file.clone().cfi(&cfi).bytes()).unwrap(), Svma(CODE + at));
    let found = [16, 17, 19, 20, 27, 29].map(|at| rule(&file, at).unwrap());
    let [top, below] = [1, 0].map(|words| Rule::x86_64(0, 0, words));
    assert_eq!(found, [top, below, Rule::END, Rule::END, Rule::END, top]);
    file.code[20] = 0x90;
    assert_eq!(rule(&file, 20), Some(below), "other code");
}
