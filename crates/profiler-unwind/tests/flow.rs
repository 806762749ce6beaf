//! Code without CFI that does more to the stack than compilers of C do: what V8 puts into programs.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails where one of its steps does")]

#[expect(dead_code, reason = "shared with the tests of golden rows, which use more of it")]
mod synthetic_elf;

use profiler_common::address::Svma;
use profiler_common::row::{BASE_FP, BY_FRAME_POINTER, FP_AT_FP, Rule, SLOT_UNKNOWN};
use profiler_unwind::{build, lookup};
use synthetic_elf::{CODE, Cfi, ElfFile, X86_64, X86_64_INITIAL, op};

/// Where nothing is known.
const CUT: Rule = Rule::NO_FRAME_POINTER;
/// Where a stack ends.
const END: Rule = Rule::END;
/// The return address is on top of the stack.
const TOP: Rule = Rule::x86_64(0, 0, 1);
/// rbp points to the frame.
const FRAMED: Rule = Rule::x86_64(BASE_FP, 2, 2);

/// A file with this code at these offsets and these functions.
fn file(code: &[(usize, &[u8])], functions: &[(&str, bool, u64)]) -> ElfFile {
    let mut file = ElfFile::new(X86_64, 96).functions(functions);
    for (at, bytes) in code {
        file.code[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    file
}

/// The file with returns behind its code that take a word off the stack, as where callees pop.
fn popping(mut file: ElfFile) -> ElfFile {
    file.code.extend([0xc2, 8, 0].repeat(16));
    file
}

/// The rules at some offsets.
fn rules<const N: usize>(file: &ElfFile, at: [u64; N]) -> [Rule; N] {
    let table = build(&file.bytes()).unwrap();
    at.map(|at| lookup(&table, Svma(CODE + at)).unwrap())
}

/// One byte of alignment before `.fini` is no instruction of it.
#[test]
fn what_the_loader_calls_begins_there() {
    // sub $8, %rsp; call the ret before; add $8, %rsp; ret.
    let code = [0xc3, 0, 0x48, 0x83, 0xec, 8, 0xe8, 0xf5, 0xff, 0xff, 0xff, 0x48, 0x83, 0xc4, 8, 0xc3];
    let mut file = file(&[(2, &code)], &[("f", true, 0)]);
    assert_eq!(rules(&file, [4, 8, 13, 17]), [CUT; 4]);
    let one_word = Rule::x86_64(0, 0, 2);
    for tag in [12, 13] {
        file.dynamic = vec![[tag, CODE + 4]];
        assert_eq!(rules(&file, [4, 8, 13, 17]), [TOP, one_word, one_word, TOP], "{tag}");
    }
}

#[test]
fn a_loop_that_pushes_is_unwound_by_rbp() {
    // push %rbp; mov %rsp, %rbp; push (%rbx); dec %rcx; jne to the push; leave; ret.
    let code = [0x55, 0x48, 0x89, 0xe5, 0xff, 0x33, 0x48, 0xff, 0xc9, 0x75, 0xf9, 0xc9, 0xc3];
    let file = file(&[(0, &code)], &[("f", true, 0)]);
    assert_eq!(rules(&file, [0, 1]), [TOP, Rule::x86_64(0, 2, 2)]);
    assert_eq!(rules(&file, [4, 6, 9, 11, 12]), [FRAMED, FRAMED, FRAMED, FRAMED, TOP]);
}

#[test]
fn a_call_goes_on_over_the_filling_in_front_of_a_loop() {
    // gcc -O2 of `for (j = 0; j < k; j++) { g(30); for (i = 0; i < 16; i++) g(i); h(); }`.
    let mut code = vec![0x41, 0x89, 0xf8, 0x85, 0xff, 0x7e, 0x35, 0x31, 0xf6, 0x0f, 0x1f, 0x80, 0, 0, 0, 0];
    code.extend([0xbf, 30, 0, 0, 0, 0x31, 0xc9, 0xe8, 36, 0, 0, 0, 0x0f, 0x1f, 0x40, 0]);
    code.extend([0x89, 0xcf, 0x83, 0xc1, 1, 0xe8, 22, 0, 0, 0, 0x83, 0xf9, 16, 0x75, 0xf1]);
    code.extend([0xe8, 28, 0, 0, 0, 0x83, 0xc6, 1, 0x41, 0x39, 0xf0, 0x75, 0xd4, 0xc3]);
    let functions = [("f", true, 0), ("g", true, 64), ("h", true, 80)];
    let file = file(&[(0, &code), (64, &[0xc3]), (80, &[0xc3])], &functions);
    assert_eq!(rules(&file, [0, 16, 23, 28, 32, 37, 47]), [TOP; 7]);
}

/// Code is looked at in pieces of a MiB; the last functions of V8's have few such returns.
#[test]
fn code_behind_code_whose_callees_pop_is_the_same_compilers() {
    const AT: usize = 3 << 19;
    // push %rbp; mov %rsp, %rbp; sub $16, %rsp; leave; ret.
    let code = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 16, 0xc9, 0xc3];
    let of = |before: &[u8]| {
        let mut file = file(&[], &[("f", true, AT as u64)]);
        file.code = before.iter().copied().cycle().take(1 << 20).collect();
        file.code.resize(AT, 0xc3);
        file.code.extend(code);
        rules(&file, [AT, AT + 4, AT + 8].map(|at| at as u64))
    };
    assert_eq!(of(&[0xc2, 8, 0]), [TOP, FRAMED, FRAMED]);
    assert_eq!(of(&[0xc3]), [TOP, Rule::x86_64(0, 2, 2), Rule::x86_64(0, 2, 4)]);
}

#[test]
fn what_ends_in_leave_has_a_frame() {
    // push %rbp; mov %rsp, %rbp; sub $16, %rsp; jmp *%rdx.
    let before = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 16, 0xff, 0xe2];
    // mov $1, %eax; call g; xor %eax, %eax; leave; ret. g: ret.
    let case = [0xb8, 1, 0, 0, 0, 0xe8, 12, 0, 0, 0, 0x31, 0xc0, 0xc9, 0xc3];
    let functions = [("f", true, 0), ("g", true, 32)];
    let of = |g: &[u8]| rules(&file(&[(0, &before), (10, &case), (32, g)], &functions), [10, 15, 20, 22]);
    assert_eq!(of(&[0xc3]), [FRAMED; 4]);
    // g does not return: what is in front of its call may be anything.
    assert!(of(&[0xeb, 0xfe])[..2].iter().all(|rule| *rule == CUT || rule.by_frame_pointer()));
}

#[test]
fn a_return_address_that_is_pushed_again_counts() {
    // sub $8, %rsp; push 8(%rsp); mov %rax, 8(%rsp); mov %rbx, 16(%rsp); jmp to the other function: ret.
    let code = [0x48, 0x83, 0xec, 8, 0xff, 0x74, 0x24, 8, 0x48, 0x89, 0x44, 0x24, 8, 0x48, 0x89, 0x5c, 0x24, 16];
    let jump = [0xe9, 9, 0, 0, 0];
    let mut file = file(&[(0, &code), (18, &jump), (32, &[0xc3])], &[("f", true, 0), ("g", true, 32)]);
    let saved = Rule::x86_64(0, 0, 2);
    assert_eq!(rules(&popping(file.clone()), [0, 4, 8, 13, 18, 32]), [TOP, saved, TOP, TOP, TOP, TOP]);
    // Where callees pop nothing it is an argument like any other, and g is not called so.
    assert_eq!(rules(&file, [0, 4, 8, 32]), [CUT, CUT, CUT, TOP]);
    // push (%rsp) in its place pushes something else, over which nothing may be stored.
    file.code[4..8].copy_from_slice(&[0xff, 0x34, 0x24, 0x90]);
    assert_eq!(rules(&popping(file), [0, 4, 8]), [CUT; 3]);
}

#[test]
fn arguments_are_taken_off_the_stack_by_who_is_called() {
    // push %rbx; pop %rbx; ret $8.
    let file = file(&[(0, &[0x53, 0x5b, 0xc2, 8, 0])], &[]);
    assert_eq!(rules(&file, [0, 1, 2]), [TOP, Rule::x86_64(0, 0, 2).with_rbx(2), TOP]);
    // pop %rcx; lea (%rsp, %rbx, 8), %rsp; push %rcx; ret.
    let code = [0x59, 0x48, 0x8d, 0x24, 0xdc, 0x51, 0xc3];
    let file = self::file(&[(0, &code)], &[("f", true, 0)]);
    assert_eq!(rules(&file, [0, 1, 5, 6]), [TOP, CUT, CUT, TOP]);
}

/// What calls without aligning the stack and never returns may be the beginning of a coroutine, but not where callees
/// pop.
#[test]
fn calls_without_alignment_show_something_where_others_align() {
    // push %rbx; push %rbx; call the ret; pop %rbx; pop %rbx; jmp *%rcx.
    let odd = [0x53, 0x53, 0xe8, 9, 0, 0, 0, 0x5b, 0x5b, 0xff, 0xe1];
    let file = file(&[(0, &odd), (16, &[0xc3])], &[("f", true, 0), ("g", true, 16)]);
    assert_eq!(rules(&file, [0, 2]), [CUT; 2]);
    assert_eq!(rules(&popping(file), [0, 2]), [TOP, Rule::x86_64(0, 0, 3).with_rbx(2)]);
}

/// Compilers keep the address of a variable in rbp, and count it up: it points to the frame once.
#[test]
fn where_rsp_is_known_rbp_is_not_asked() {
    // push %rbp; sub $16, %rsp; mov %rsp, %rbp; add $8, %rbp; dec %rcx; jne to the add; add $16, %rsp; pop %rbp; ret.
    let code = [
        0x55, 0x48, 0x83, 0xec, 0x10, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xc5, 0x08, 0x48, 0xff, 0xc9, 0x75, 0xf7, 0x48,
        0x83, 0xc4, 0x10, 0x5d, 0xc3,
    ];
    let file = file(&[(0, &code)], &[("f", true, 0)]);
    let [one, all] = [2, 4].map(|words| Rule::x86_64(0, 2, words));
    assert_eq!(rules(&file, [0, 1, 5, 8, 12, 15, 17, 21, 22]), [TOP, one, all, all, all, all, all, one, TOP]);
}

#[test]
fn what_moves_rsp_before_it_pushes_rbp_need_not_have_the_return_address_on_top() {
    // pop %r15; push %rbp; mov %rsp, %rbp; push %r15; ret: a frame is made for the caller.
    let code = [0x41, 0x5f, 0x55, 0x48, 0x89, 0xe5, 0x41, 0x57, 0xc3];
    let file = file(&[(0, &code)], &[("f", true, 0)]);
    assert_eq!(rules(&file, [2, 3, 6]), [CUT; 3]);
    // pop %r11; push %rbp; mov %rsp, %rbp; nop, ...; pop %rbp; jmp *%r11.
    let code = [0x41, 0x5b, 0x55, 0x48, 0x89, 0xe5, 0x90, 0x90, 0x5d, 0x41, 0xff, 0xe3];
    let file = self::file(&[(0, &code)], &[("f", true, 0)]);
    assert_eq!(rules(&file, [2, 3, 6, 7, 8, 9]), [CUT; 6]);
}

/// Nobody calls a thread's function here, and it never returns.
#[test]
fn functions_that_pointers_lead_to_call_with_an_aligned_stack() {
    let by_lea: &[u8] = &[0x48, 0x8d, 0x3d, 25, 0, 0, 0, 0xc3];
    let [_, low, high, _] = (CODE as u32 + 32).to_le_bytes();
    let by_mov: &[u8] = &[0xbf, 32, low, high, 0, 0xc3];
    let not_at_all: &[u8] = &[0x48, 0x8d, 0x3d, 24, 0, 0, 0, 0xc3];
    // push %rbx; call *(%rdi); jmp to itself.
    let calls: &[u8] = &[0x53, 0xff, 0x17, 0xeb, 0xfe];
    let of = |before: &[u8], function: &[u8], at: [u64; 3]| {
        rules(&file(&[(0, before), (32, function)], &[("f", true, 0)]), at)
    };
    let saved = Rule::x86_64(0, 0, 2).with_rbx(2);
    assert_eq!(of(by_lea, calls, [32, 33, 35]), [TOP, saved, saved]);
    assert_eq!(of(by_mov, calls, [32, 33, 35]), [TOP, saved, saved]);
    assert_eq!(of(not_at_all, calls, [32, 33, 35]), [CUT; 3]);
    // Two pushes, as for arguments of what is called from the middle of a function; none; no call.
    assert_eq!(of(by_lea, &[0x53, 0x53, 0xff, 0x17, 0xeb, 0xfe], [32, 33, 34]), [CUT; 3]);
    assert_eq!(of(by_lea, &[0xff, 0x17, 0xeb, 0xfe], [32, 34, 35]), [CUT; 3]);
    assert_eq!(of(by_lea, &[0x53, 0xeb, 0xfe], [32, 33, 34]), [CUT; 3]);
    // A call of something in the same file, with one word more or not: gcc need not align the stack for that.
    assert_eq!(of(by_lea, &[0x53, 0xe8, 1, 0, 0, 0, 0x90, 0xc3, 0xeb, 0xfe], [32, 33, 34]), [CUT; 3]);
    // jmp *%rdx: a function that only calls another one, or a part of one that goes on with another part.
    assert_eq!(of(by_lea, &[0xff, 0xe2, 0x53], [32, 33, 34]), [CUT; 3]);
    let [one, two] = [Rule::x86_64(0, 0, 3), Rule::x86_64(0, 0, 4).with_rbx(4)];
    // sub $16, %rsp in front, and a way from there to it.
    let inside = [&[0x48, 0x83, 0xec, 16][..], &by_lea[..3], &[21, 0, 0, 0, 0xeb, 19]].concat();
    assert_eq!(of(&inside, calls, [4, 32, 33]), [one, one, two]);
}

/// lea 8(%rsp), %r10; and $-64, %rsp; push -8(%r10); push %rbp; mov %rsp, %rbp; push %r10; call *%rcx;
/// mov -8(%rbp), %r10; leave; lea -8(%r10), %rsp; ret.
const ALIGNED: [u8; 31] = [
    0x4c, 0x8d, 0x54, 0x24, 8, 0x48, 0x83, 0xe4, 0xc0, 0x41, 0xff, 0x72, 0xf8, 0x55, 0x48, 0x89, 0xe5, 0x41, 0x52,
    0xff, 0xd1, 0x4c, 0x8b, 0x55, 0xf8, 0xc9, 0x49, 0x8d, 0x62, 0xf8, 0xc3,
];

#[test]
fn an_aligned_frame_keeps_its_cfa_and_rbp() {
    let of = |code: &[u8]| rules(&file(&[(0, code)], &[("f", true, 0)]), [0, 5, 9, 13, 14, 17, 19, 21, 25, 26, 30]);
    let by_r10 = Rule::x86_64_other(1, 0, 0);
    let body = Rule::x86_64_stored(BASE_FP | FP_AT_FP, 0, -1, 0).with_rbx(SLOT_UNKNOWN);
    let [restored, back] = [by_r10, TOP].map(|rule| rule.with_rbx(SLOT_UNKNOWN));
    let whole = [TOP, by_r10, by_r10, by_r10, by_r10, CUT, body, body, body, restored, back];
    assert_eq!(of(&ALIGNED), whole);
    // Another place is loaded; r10 is written over (mov %rcx, %r10) in its place; something else is pushed again; the
    // return address is written over (mov %rcx, 8(%rbp)).
    for (at, bytes) in [
        (21, &[0x4c, 0x8b, 0x55, 0xf0][..]),
        (21, &[0x49, 0x89, 0xca, 0x90]),
        (9, &[0x41, 0xff, 0x72, 0xf0]),
        (21, &[0x48, 0x89, 0x4d, 8]),
    ] {
        let mut code = ALIGNED;
        code[at..at + bytes.len()].copy_from_slice(bytes);
        assert!(
            of(&code)[1..10].iter().all(|rule| *rule == CUT || rule.by_frame_pointer()),
            "{bytes:x?}: {:?}",
            of(&code)
        );
    }
}

#[test]
fn enter_makes_a_frame() {
    // enter $32, $0; nop; leave; ret.
    let mut code = [0xc8, 32, 0, 0, 0x90, 0xc9, 0xc3];
    assert_eq!(
        rules(&file(&[(0, &code)], &[("f", true, 0)]), [0, 4, 5, 6]),
        [TOP, Rule::x86_64(0, 2, 6), Rule::x86_64(0, 2, 6), TOP]
    );
    // With pointers to outer frames.
    code[3] = 1;
    assert_eq!(rules(&file(&[(0, &code)], &[("f", true, 0)]), [4, 5]), [CUT; 2]);
}

#[test]
fn a_barrier_leaves_the_return_address_alone() {
    // lock orl $0, (%rsp); ret.
    let mut code = [0xf0, 0x83, 0x0c, 0x24, 0, 0xc3];
    assert_eq!(rules(&file(&[(0, &code)], &[("f", true, 0)]), [0, 5]), [TOP; 2]);
    code[4] = 1;
    assert_eq!(rules(&file(&[(0, &code)], &[("f", true, 0)]), [0, 5]), [CUT; 2]);
}

#[test]
fn a_thread_begins_where_its_registers_are_cleared() {
    // test %eax, %eax; jne to the ret; xor %ebp, %ebp; pop %rdi; call *%r9; mov %eax, %edi; xor %eax, %eax;
    // mov $60, %al; syscall; hlt; ret.
    let thread = [0x31, 0xed, 0x5f, 0x41, 0xff, 0xd1, 0x89, 0xc7, 0x31, 0xc0, 0xb0, 0x3c, 0x0f, 0x05, 0xf4, 0xc3];
    let code = [&[0x85, 0xc0, 0x75, 15][..], &thread].concat();
    let file = file(&[(0, &code)], &[("__clone", true, 0)]);
    assert_eq!(rules(&file, [0, 2, 4, 6, 7, 9, 10, 16, 19]), [TOP, TOP, END, END, END, END, END, END, TOP]);
}

#[test]
fn cfi_that_forgets_what_is_pushed_is_not_believed() {
    let initial = Cfi::eh_frame().cie("", 16, X86_64_INITIAL);
    let mut file = ElfFile::new(X86_64, 96);
    // push %rbx; push %rbp; ...; test %rdi, %rdi; je to the end; ...; pop %rbp; pop %rbx; ret.
    file.code[16..18].copy_from_slice(&[0x53, 0x55]);
    file.code[40..45].copy_from_slice(&[0x48, 0x85, 0xff, 0x74, 32]);
    file.code[77..80].copy_from_slice(&[0x5d, 0x5b, 0xc3]);
    let forgets = file.clone().cfi(&initial.clone().fde(16, 64, &[]));
    let [one, both] = [Rule::x86_64(0, 0, 2), Rule::x86_64(0, 3, 3)].map(|rule| rule.with_rbx(2));
    assert_eq!(rules(&forgets, [16, 17, 18, 40, 60, 77, 78, 79]), [TOP, one, both, both, both, both, one, TOP]);
    // It says something, so it is believed.
    let says = file.clone().cfi(&initial.clone().fde(16, 64, &[op::advance(50), op::DEF_CFA_OFFSET, 16]));
    assert_eq!(rules(&says, [16, 18, 40]), [TOP; 3]);
    // Not by code that contradicts itself, that sets rsp to something not known (mov %rcx, %rsp), or that is short.
    let believed = initial.clone().fde(16, 64, &[]);
    file.code[60] = 0x50;
    assert_eq!(rules(&file.clone().cfi(&believed), [16, 18, 79]), [TOP; 3]);
    file.code[60..63].copy_from_slice(&[0x48, 0x89, 0xcc]);
    assert_eq!(rules(&file.clone().cfi(&believed), [16, 18, 79]), [TOP; 3]);
    file.code[60..63].fill(0x90);
    let short = initial.fde(17, 63, &[]);
    assert_eq!(rules(&file.cfi(&short), [17, 18, 79]), [TOP; 3]);
}

#[test]
fn a_program_begins_where_its_cfi_does_not_say_so_yet() {
    let mut file = ElfFile::new(X86_64, 96);
    // endbr64; xor %ebp, %ebp; mov %rdx, %r9; pop %rsi; ...; call; hlt.
    file.code[16..26].copy_from_slice(&[0xf3, 0x0f, 0x1e, 0xfa, 0x31, 0xed, 0x49, 0x89, 0xd1, 0x5e]);
    file.code[40..46].copy_from_slice(&[0xe8, 0, 0, 0, 0, 0xf4]);
    let initial = Cfi::eh_frame().cie("", 16, X86_64_INITIAL);
    let file = file.cfi(&initial.fde(16, 40, &[op::advance(4), op::UNDEFINED, 16]));
    assert_eq!(rules(&file, [16, 20]), [TOP, Rule::END]);
    let program = ElfFile { entry: CODE + 16, program: true, ..file.clone() };
    assert_eq!(rules(&program, [16, 19, 20, 46]), [Rule::END; 4]);
    // endbr64; push %rbp: a function that a library names as its entry.
    let mut library = ElfFile { entry: CODE + 16, ..file };
    library.code[20] = 0x55;
    assert_eq!(rules(&library, [16, 19]), [TOP; 2]);
}

#[test]
fn local_functions_begin_where_no_part_of_another_one_does() {
    // jmp to the other one: test %rdi, %rdi; je over the next one; push %rax; ret.
    let code: [(usize, &[u8]); 2] = [(0, &[0xe9, 27, 0, 0, 0]), (32, &[0x48, 0x85, 0xff, 0x74, 1, 0x50, 0xc3])];
    for (name, expected) in [("g", TOP), ("f.cold", CUT)] {
        let file = file(&code, &[("f", true, 0), (name, false, 32)]);
        assert_eq!(rules(&file, [0, 32]), [expected, CUT], "{name}");
    }
    // sub $8, %rsp; jmp to a part: add $8, %rsp; ret.
    let code: [(usize, &[u8]); 2] =
        [(0, &[0x48, 0x83, 0xec, 8, 0xe9, 23, 0, 0, 0]), (32, &[0x48, 0x83, 0xc4, 8, 0xc3])];
    let file = file(&code, &[("f", true, 0), ("f.cold", false, 32)]);
    assert_eq!(rules(&file, [0, 4, 32, 36]), [TOP, Rule::x86_64(0, 0, 2), Rule::x86_64(0, 0, 2), TOP]);
}

/// What V8's builtins do to put arguments on the stack below those that are there.
#[test]
fn a_return_address_that_is_popped_is_in_its_register_until_it_is_pushed() {
    // pop %rax; push %rbx; mov %rsp, %rbx; push %rax; push %rbp; mov %rsp, %rbp; leave; ret.
    let mut code = [0x58, 0x53, 0x48, 0x89, 0xe3, 0x50, 0x55, 0x48, 0x89, 0xe5, 0xc9, 0xc3];
    let of = |code: &[u8]| file(&[(0, code)], &[("f", true, 0)]);
    let kept = |other| Rule::x86_64_ra_in_other(other, false, 0).with_rbx(SLOT_UNKNOWN);
    let at = [0, 1, 2, 5, 6, 7, 10, 11];
    let pushed = Rule::x86_64(0, 2, 2);
    let rax = kept(4);
    assert_eq!(rules(&popping(of(&code)), at), [TOP, rax, rax, rax, TOP, pushed, FRAMED, TOP]);
    // Where callees pop nothing.
    assert_eq!(rules(&of(&code), [1, 2, 5]), [CUT; 3]);
    // mov %rcx, %rax in between: something else is pushed.
    code[2..5].copy_from_slice(&[0x48, 0x89, 0xc8]);
    assert_eq!(rules(&popping(of(&code)), [1, 2, 5]), [CUT; 3]);
    // A loop in between: pop %rax; dec %rcx; jl over the push (%rdx) and the jump back; push %rax; jmp *%rdx.
    let around = [0x58, 0x48, 0xff, 0xc9, 0x7c, 4, 0xff, 0x32, 0xeb, 0xf7, 0x50, 0xff, 0xe2];
    assert_eq!(rules(&popping(of(&around)), [0, 1, 4, 6, 8, 10, 11]), [TOP, rax, rax, rax, rax, rax, TOP]);
    // The same to rbx.
    let by_rbx = [0x5b, 0x41, 0x5a, 0x53, 0xc3];
    assert_eq!(rules(&popping(of(&by_rbx)), [0, 1, 3, 4]), [TOP, kept(9), kept(9), TOP]);
    // Where something is on the stack that is no return address it is a pop like any other.
    let deeper = [0x50, 0x58, 0x50, 0x58, 0xc3];
    let one = Rule::x86_64(0, 0, 2);
    assert_eq!(rules(&popping(of(&deeper)), [0, 1, 2, 3, 4]), [TOP, one, TOP, one, TOP]);
}

#[test]
fn a_return_address_that_is_copied_down_is_on_top_behind_the_loop() {
    // mov %rsp, %r8; lea (, %rcx, 8), %r10; sub %r10, %rsp; xor %r12d, %r12d; jmp to the cmp; mov (%r8, %r12, 8), %r10;
    // mov %r10, (%rsp, %r12, 8); inc %r12; cmp %rax, %r12; jle to the first mov; add %ecx, %eax; jmp to the other one.
    let mut code = vec![0x4c, 0x8b, 0xc4, 0x4c, 0x8d, 0x14, 0xcd, 0, 0, 0, 0, 0x49, 0x2b, 0xe2, 0x45, 0x33, 0xe4];
    code.extend([0xe9, 11, 0, 0, 0, 0x4f, 0x8b, 0x14, 0xe0, 0x4e, 0x89, 0x14, 0xe4, 0x49, 0xff, 0xc4]);
    code.extend([0x4c, 0x3b, 0xe0, 0x7e, 0xf0, 0x03, 0xc1, 0xe9, 19, 0, 0, 0]);
    let of = |code: &[u8]| popping(file(&[(0, code), (64, &[0xc3])], &[("f", true, 0), ("g", true, 64)]));
    assert_eq!(rules(&of(&code), [0, 3, 11, 38, 40]), [TOP; 5]);
    assert_eq!(rules(&of(&code), [14, 17, 22, 26, 30, 33, 36]), [CUT; 7]);
    // From rdx, which is something else; to another place; from the second word on.
    for (at, bytes) in [(24, &[0x14, 0xe2][..]), (29, &[0xe0]), (14, &[0x45, 0x31, 0xed])] {
        let mut other = code.clone();
        other[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(rules(&of(&other), [22, 36, 38, 40]), [CUT; 4], "{bytes:x?}");
    }
    // lea 1(%rax), %r9 behind the sub; no jump, and jl for a cmp with r9.
    let mut code = [&code[..14], &[0x4c, 0x8d, 0x48, 1], &code[14..17], &code[22..]].concat();
    code[32..36].copy_from_slice(&[0x4d, 0x39, 0xcc, 0x7c]);
    code[40] = 23;
    assert_eq!(rules(&of(&code), [0, 11, 18, 21, 25, 29, 34, 37, 39]), [TOP, TOP, CUT, CUT, CUT, CUT, CUT, TOP, TOP]);
}

/// V8's `BaselineLeaveFrame`: its baseline code jumps to it.
#[test]
fn what_leaves_a_frame_that_it_has_not_made_is_in_that() {
    // mov -8(%rbp), %rax; mov %rbp, %rsp; pop %rbp; pop %r8; lea (%rsp, %rbx, 8), %rsp; push %r8; ret.
    let code = [0x48, 0x8b, 0x45, 0xf8, 0x48, 0x89, 0xec, 0x5d, 0x41, 0x58, 0x48, 0x8d, 0x24, 0xdc, 0x41, 0x50, 0xc3];
    let file = file(&[(0, &code)], &[("f", true, 0)]);
    let r8 = Rule::x86_64_ra_in_other(3, false, 0).with_rbx(SLOT_UNKNOWN);
    let all = [FRAMED, FRAMED, FRAMED, TOP, r8, r8, TOP];
    assert_eq!(rules(&popping(file.clone()), [0, 4, 7, 8, 10, 14, 16]), all);
    assert!(rules(&file, [0, 4]).iter().all(|rule| *rule == CUT || rule.by_frame_pointer()));
}

/// V8's `BaselineOutOfLinePrologue`: it is called by who has no frame yet, so that one is left out, and that is marked.
#[test]
fn what_makes_a_frame_for_its_caller_leads_to_the_caller_of_that() {
    // mov 8(%rdi), %rcx; pop %r15; push %rbp; mov %rsp, %rbp; push %rdi; push %r15; ret.
    let code = [0x48, 0x8b, 0x4f, 8, 0x41, 0x5f, 0x55, 0x48, 0x89, 0xe5, 0x57, 0x41, 0x57, 0xc3];
    let file = file(&[(0, &code)], &[("f", true, 0)]);
    let over = Rule::x86_64(BY_FRAME_POINTER, 0, 2).with_rbx(SLOT_UNKNOWN);
    let by_rbp = Rule::X86_64_FRAME_POINTER;
    assert_eq!(rules(&popping(file), [0, 4, 6, 7, 10, 11, 13]), [over, over, CUT, CUT, by_rbp, by_rbp, TOP]);
}

/// Each one has rules for its own code only.
#[test]
fn what_makes_frames_for_callers_may_be_there_more_than_once() {
    // pop %r15; push %rbp; mov %rsp, %rbp; push %r15; ret 8.
    let makes = [0x41, 0x5f, 0x55, 0x48, 0x89, 0xe5, 0x41, 0x57, 0xc2, 8, 0];
    // push %rbx; pop %rbx; ret 8.
    let other = [0x53, 0x5b, 0xc2, 8, 0];
    let functions = [("f", true, 0), ("g", true, 16), ("h", true, 32)];
    let file = popping(file(&[(0, &makes), (16, &other), (32, &makes)], &functions));
    let over = Rule::x86_64(BY_FRAME_POINTER, 0, 2).with_rbx(SLOT_UNKNOWN);
    for first in [0, 32] {
        assert_eq!(rules(&file, [0, 2, 6, 8].map(|at| first + at)), [over, CUT, Rule::X86_64_FRAME_POINTER, TOP]);
    }
    assert_eq!(rules(&file, [16, 18]), [TOP; 2]);
}

/// V8's deoptimizer lets functions return to the beginning of `InterpreterEnterAtBytecode`.
#[test]
fn a_return_to_where_something_goes_on_in_a_frame_is_in_that_frame() {
    // ret; int3, ...; mov -16(%rbp), %rbx; jmp *%rbx.
    let goes_on = [0x48, 0x8b, 0x5d, 0xf0, 0xff, 0xe3];
    let of = |code: &[u8]| file(&[(0, &[0xc3]), (1, &[0xcc; 31]), (32, code)], &[("f", true, 0), ("g", true, 32)]);
    assert_eq!(rules(&popping(of(&goes_on)), [30, 31]), [TOP, Rule::X86_64_FRAME_POINTER]);
    assert_eq!(rules(&of(&goes_on), [30, 31]), [TOP; 2]);
    // mov 16(%rbx), %rbx: a function like any other.
    assert_eq!(rules(&popping(of(&[0x48, 0x8b, 0x5b, 0x10, 0xff, 0xe3])), [30, 31]), [TOP; 2]);
}

/// How V8's builtins end that go on in another function.
#[test]
fn a_frame_that_is_taken_off_the_stack_before_a_jump_is_the_callers_behind() {
    // push %rbp; mov %rsp, %rbp; sub $16, %rsp; call the ret; mov (%rbp), %rbp; mov %rcx, %rax; add $24, %rsp; jmp *%rdx.
    let mut code = vec![0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x10, 0xe8, 51, 0, 0, 0];
    code.extend([0x48, 0x8b, 0x6d, 0, 0x48, 0x89, 0xc8, 0x48, 0x83, 0xc4, 0x18, 0xff, 0xe2]);
    let of = |code: &[u8]| popping(file(&[(0, code), (64, &[0xc3])], &[("f", true, 0), ("g", true, 64)]));
    let [top, below] = [1, 4].map(|words| Rule::x86_64(0, 0, words).with_rbx(SLOT_UNKNOWN));
    assert_eq!(rules(&of(&code), [13, 17, 20, 24]), [FRAMED, below, below, top]);
    // mov %rax, (%rsp) in between may be another return address.
    let mut stores = code.clone();
    stores.splice(17..20, [0x48, 0x89, 0x04, 0x24]);
    assert!(rules(&of(&stores), [17, 21, 25]).iter().all(|rule| *rule != below && *rule != top));
}
