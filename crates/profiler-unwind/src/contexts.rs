//! x86_64: glibc's functions for contexts, whose CFI does not say that they leave their caller's stack
//! (glibc/sysdeps/unix/sysv/linux/x86_64: __start_context.S, swapcontext.S). That of `setcontext` says so: its
//! CFA counts from the other context.

use crate::elf::Elf;
use crate::read::{ReadAt, read_bytes};
use crate::spans::Span;
use profiler_common::address::Svma;
use profiler_common::row::Rule;

/// endbr64, with which functions begin in a glibc for indirect branch tracking (`--enable-cet`).
const LANDING: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];

/// `__start_context`, to which the function of a context returns: mov %rbx, %rsp; mov (%rsp), %rdi; test
/// %rdi, %rdi. Nobody has called it.
const START: &[u8] = &[0x48, 0x89, 0xdc, 0x48, 0x8b, 0x3c, 0x24, 0x48, 0x85, 0xff];
/// How it ends: hlt.
const START_END: u8 = 0xf4;
/// Its bytes; seen: 26 and, with endbr64, 30.
const START_BYTES: std::ops::RangeInclusive<u32> = 26..=40;

/// mov 0xa0(%rdx), %rsp: the stack pointer of the other context.
const SWITCH: &[u8] = &[0x48, 0x8b, 0xa2, 0xa0, 0, 0, 0];
/// How it returns there: xor %eax, %eax; ret.
const RETURN: &[u8] = &[0x31, 0xc0, 0xc3];
/// The rule of all of `swapcontext`, by its CFI: it has no frame.
pub(crate) const CALLED: Rule = Rule::x86_64(0, 0, 1);
/// Bytes of `swapcontext`; seen: 260 and, with endbr64 and shadow stacks, 543.
const SWITCH_BYTES: std::ops::RangeInclusive<u32> = 128..=1024;

/// Whether a function is `__start_context`.
pub(crate) fn is_start(file: &impl ReadAt, elf: &Elf, span: &Span) -> bool {
    let is_it =
        |code: &[u8]| code.strip_prefix(LANDING).unwrap_or(code).starts_with(START) && code.last() == Some(&START_END);
    START_BYTES.contains(&span.length) && code(file, elf, span).is_some_and(|code| is_it(&code))
}

/// From where to where a function is on another stack than that of its caller.
pub(crate) fn on_other_stack(file: &impl ReadAt, elf: &Elf, span: &Span) -> Option<[u64; 2]> {
    if !SWITCH_BYTES.contains(&span.length) {
        return None;
    }
    let code = code(file, elf, span)?;
    let find = |bytes: &[u8], from: usize| {
        let at = code.get(from..)?.windows(bytes.len()).position(|window| window == bytes)?;
        Some(from + at + bytes.len())
    };
    let from = find(SWITCH, 0)?;
    let to = find(RETURN, from)?;
    Some([from, to].map(|at| span.start + at as u64))
}

fn code(file: &impl ReadAt, elf: &Elf, span: &Span) -> Option<Vec<u8>> {
    let (offset, left) = elf.in_file(Svma(span.start))?;
    let length = u64::from(span.length);
    let limit = u64::from(*SWITCH_BYTES.end());
    read_bytes(file, "code that goes over to another stack", offset, length.min(left), limit).ok()
}
