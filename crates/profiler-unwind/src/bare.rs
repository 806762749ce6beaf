//! Code without CFI: what its bytes say about its frames.
//!
//! A frame-pointer step from a function that did not set up a frame of its own leaves out its caller.
//! So the frame pointer is followed only behind the instructions that set it up, until the function
//! ends; the rest is cut. Some code is the same everywhere and known by its bytes. Here is what both
//! architectures share, and x86_64.

use profiler_common::row::Rule;

use crate::bare_aarch64;
use crate::crt;
use crate::flow::{Analysis, BEGINS, BEGINS_FUNCTION, Known, MOVED, ODD_FRAME};
use crate::segment::Arch;

/// Bytes of code without CFI that are read in one file; what lies behind them goes by the frame
/// pointer. All of musl has 0.6 MiB; what is larger is made by a compiler with other tables (Go).
pub(crate) const BUDGET_BYTES: u64 = 4 << 20;

/// What reading a piece costs at least, so that the number of pieces has a bound, too.
pub(crate) const MIN_COST_BYTES: u64 = 512;

/// Where functions begin, as a rule.
const ALIGNMENT: u64 = 16;

/// After the call of a thread's function in musl's `__clone`: mov %eax, %edi; xor %eax, %eax; mov $60, %al; syscall.
pub(crate) const THREAD_END: &[u8] = &[0x89, 0xc7, 0x31, 0xc0, 0xb0, 0x3c, 0x0f, 0x05];

/// All of the new thread's part of `__clone`: xor %ebp, %ebp; pop %rdi; call *%r9; and [`THREAD_END`].
const THREAD: &[u8] = &[0x31, 0xed, 0x5f, 0x41, 0xff, 0xd1, 0x89, 0xc7, 0x31, 0xc0, 0xb0, 0x3c, 0x0f, 0x05];

/// Known code: its bytes and its rule.
const fn known(arch: Arch) -> &'static [(&'static [u8], Rule)] {
    match arch {
        Arch::X86_64 => &[
            // A signal's return trampoline (musl): mov $15, %rax; syscall
            (&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05], Rule::X86_64_SIGNAL),
            (THREAD, Rule::END),
            (THREAD_END, Rule::END),
        ],
        Arch::Aarch64 => &[
            // The same in the vDSO since 5.8 and in musl: mov x8, #139; svc #0
            (&[0x68, 0x11, 0x80, 0xd2, 0x01, 0, 0, 0xd4], Rule::AARCH64_SIGNAL),
            // mov x8, #93; svc #0
            (&[0xa8, 0x0b, 0x80, 0xd2, 0x01, 0, 0, 0xd4], Rule::END),
        ],
    }
}

/// push %rbp.
const PUSH_RBP: u8 = 0x55;
/// mov %rsp, %rbp, in both encodings.
const MOV_RSP_RBP: [&[u8]; 2] = [&[0x48, 0x89, 0xe5], &[0x48, 0x8b, 0xec]];
/// Bytes that a compiler's scheduler may put between the two, at most; seen: 16.
const BETWEEN_BYTES: usize = 48;
/// pop %rbp or leave, then ret or a jump to another function, and their lengths together.
const EPILOGUES: [(&[u8], usize); 4] = [(&[0x5d, 0xc3], 2), (&[0xc9, 0xc3], 2), (&[0x5d, 0xe9], 6), (&[0xc9, 0xe9], 6)];
/// How instructions begin that fill the space between functions: nop, its long forms, int3. Linkers
/// leave zeros between sections.
const PADDING: [&[u8]; 5] = [&[0x90], &[0x66], &[0x0f, 0x1f], &[0xcc], &[0, 0]];
/// The `main` that rustc makes for programs without unwind tables begins with push %rax and ends
/// with pop %rcx; ret.
const RUST_MAIN: (u8, [u8; 2]) = (0x50, [0x59, 0xc3]);
/// Bytes of that `main`, at most; seen: 39.
const RUST_MAIN_BYTES: usize = 64;

/// At a function's first instruction, and behind its last pop: the return address is at rsp.
const NO_FRAME: Rule = Rule::x86_64(0, 0, 1);

/// Says of `code`, which is at `start`, up to which address which rule holds, in ascending order.
/// Addresses may repeat; the last is the end of the code.
pub(crate) fn rules<E>(
    arch: Arch,
    start: u64,
    code: &[u8],
    analysis: &Analysis,
    mut cover: impl FnMut(u64, Rule) -> Result<(), E>,
) -> Result<(), E> {
    let mut known = analysis.known(start, start.saturating_add(code.len() as u64)).peekable();
    by_bytes(arch, start, code, analysis, |until, rule| {
        // What is known by its bytes for the end of a stack or a signal's return is that.
        let special = rule == Rule::END || rule == Rule::X86_64_SIGNAL;
        while let Some(&Known { start, end, rule: found }) = known.peek().filter(|known| known.start < until) {
            if !special {
                cover(start, rule)?;
                cover(end.min(until), found)?;
            }
            if end > until {
                break;
            }
            known.next();
        }
        cover(until, rule)
    })
}

/// What the bytes alone say, as [`rules`]. On x86_64 `analysis` says where instructions begin.
fn by_bytes<E>(
    arch: Arch,
    start: u64,
    code: &[u8],
    analysis: &Analysis,
    mut cover: impl FnMut(u64, Rule) -> Result<(), E>,
) -> Result<(), E> {
    let known_at = |code: &[u8]| {
        known(arch).iter().find_map(|(bytes, rule)| code.starts_with(bytes).then_some((bytes.len(), *rule)))
    };
    if arch == Arch::Aarch64 {
        return bare_aarch64::rules(start, code, known_at, cover);
    }
    let nothing = Rule::NO_FRAME_POINTER;
    let mut current = nothing;
    let mut at = 0;
    while let Some(rest) = code.get(at..).filter(|rest| !rest.is_empty()) {
        let address = start.saturating_add(at as u64);
        let marks = analysis.marks(address);
        if marks & BEGINS == 0 {
            at += 1;
            continue;
        }
        let special = known_at(rest);
        if marks & BEGINS_FUNCTION != 0 && special.is_none() {
            cover(address, current)?;
            current = nothing;
        }
        if let Some((length, rule)) = special {
            // What is called returns to its first byte, and the address that is looked up for a return
            // address is the one before.
            cover(address.saturating_sub(1), current)?;
            cover(address.saturating_add(length as u64), rule)?;
            at += length;
        } else if let Some(rows) = start_file_code(current, address, rest) {
            cover(address, current)?;
            at += rows.last().map_or(1, |(length, _rule)| *length);
            for (length, rule) in rows {
                cover(address.saturating_add(length as u64), rule)?;
            }
        } else if marks & ODD_FRAME != 0 {
            cover(address, current)?;
            current = nothing;
            at += 1;
        } else if let Some(distance) = prologue(code, at) {
            let pushed_at = address.saturating_sub(distance as u64);
            if analysis.marks(pushed_at) & MOVED != 0 && !pushes_return_address(code, at - distance) {
                // What is on top of the stack where rbp is pushed need not be the return address.
                cover(pushed_at, current)?;
                cover(address.saturating_add(3), nothing)?;
                current = nothing;
                at += 3;
                continue;
            }
            if distance == 1 {
                cover(address.saturating_sub(1), current)?;
                cover(address, NO_FRAME)?;
                cover(address.saturating_add(3), Rule::x86_64(0, 2, 2))?;
            }
            cover(address.saturating_add(3), current)?;
            current = Rule::X86_64_FRAME_POINTER;
            at += 3;
        } else if let Some(length) = epilogue(current, rest) {
            cover(address.saturating_add(1), current)?;
            cover(address.saturating_add(length as u64), NO_FRAME)?;
            at += length;
            if ends_function(start.saturating_add(at as u64), code.get(at..).unwrap_or_default()) {
                current = nothing;
            }
        } else if let Some(length) = rust_main(current, address, rest) {
            let end = address.saturating_add(length as u64);
            cover(address, current)?;
            cover(address.saturating_add(1), NO_FRAME)?;
            cover(end - 1, Rule::x86_64(0, 0, 2))?;
            cover(end, NO_FRAME)?;
            at += length;
        } else {
            at += 1;
        }
    }
    cover(start.saturating_add(code.len() as u64), current)
}

/// The rules of a function of the start files, by where they end, if one is at the start of `code`.
fn start_file_code(current: Rule, address: u64, code: &[u8]) -> Option<Vec<(usize, Rule)>> {
    if current == Rule::NO_FRAME_POINTER { crt::rules(address, code) } else { None }
}

/// Whether the return address is pushed again before `at`, as compilers do behind what aligns the stack:
/// `push -8(%r10)`.
fn pushes_return_address(code: &[u8], at: usize) -> bool {
    code.get(..at).is_some_and(|before| before.ends_with(&[0x41, 0xff, 0x72, 0xf8]))
}

/// When `mov %rsp, %rbp` is at `at`: how many bytes before it rbp was pushed.
fn prologue(code: &[u8], at: usize) -> Option<usize> {
    let rest = code.get(at..)?;
    if !MOV_RSP_RBP.iter().any(|bytes| rest.starts_with(bytes)) {
        return None;
    }
    let before = code.get(at.saturating_sub(BETWEEN_BYTES)..at)?;
    before.iter().rev().position(|byte| *byte == PUSH_RBP).map(|distance| distance + 1)
}

/// The length of the epilogue at the start of `code`, in an x86_64 function with a frame.
fn epilogue(current: Rule, code: &[u8]) -> Option<usize> {
    if current != Rule::X86_64_FRAME_POINTER {
        return None;
    }
    let (_bytes, length) = EPILOGUES.into_iter().find(|(bytes, _length)| code.starts_with(bytes))?;
    Some(length.min(code.len()))
}

/// Whether a function ends before `address`: another one can begin there, or filling leads to where
/// one can. A function that goes on behind such a return is cut.
fn ends_function(address: u64, code: &[u8]) -> bool {
    address.is_multiple_of(ALIGNMENT) || PADDING.iter().any(|padding| code.starts_with(padding))
}

/// The length of rustc's `main` without tables, if it is at the start of `code`.
fn rust_main(current: Rule, address: u64, code: &[u8]) -> Option<usize> {
    let (first, last) = RUST_MAIN;
    if current != Rule::NO_FRAME_POINTER || !address.is_multiple_of(ALIGNMENT) || code.first() != Some(&first) {
        return None;
    }
    let body = code.get(..RUST_MAIN_BYTES.min(code.len()))?;
    let end = body.windows(2).position(|bytes| bytes == last)? + 2;
    let behind = code.get(end..)?;
    (behind.is_empty() || ends_function(address.saturating_add(end as u64), behind)).then_some(end)
}
