//! glibc's functions for contexts, whose CFI does not say that nobody called them, that they leave their
//! caller's stack, or that the return address is gone (glibc/sysdeps/unix/sysv/linux/x86_64: __start_context.S,
//! swapcontext.S; .../aarch64: setcontext.S, swapcontext.S). That of `setcontext` says so: its CFA counts from
//! the other context.

use crate::bare::THREAD_END;
use crate::bytes::u32_at;
use crate::elf::Elf;
use crate::read::{ReadAt, read_bytes};
use crate::segment::Arch;
use crate::spans::Span;
use profiler_common::address::Svma;
use profiler_common::row::{RA_IN_LR, Rule};
use std::ops::RangeInclusive;

/// endbr64, with which functions begin in a glibc for indirect branch tracking (`--enable-cet`).
const LANDING: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];

/// `__start_context`, to which the function of a context returns: mov %rbx, %rsp; mov (%rsp), %rdi; test
/// %rdi, %rdi. Nobody has called it.
const START: &[u8] = &[0x48, 0x89, 0xdc, 0x48, 0x8b, 0x3c, 0x24, 0x48, 0x85, 0xff];
/// How it ends: hlt.
const START_END: u8 = 0xf4;
/// Its bytes; seen: 26 and, with endbr64, 30.
const START_BYTES: RangeInclusive<u32> = 26..=40;

/// mov 0xa0(%rdx), %rsp: the stack pointer of the other context.
const SWITCH: &[u8] = &[0x48, 0x8b, 0xa2, 0xa0, 0, 0, 0];
/// How it returns there: xor %eax, %eax; ret.
const RETURN: &[u8] = &[0x31, 0xc0, 0xc3];
/// Bytes of `swapcontext`; seen: 260 and, with endbr64 and shadow stacks, 543.
const SWITCH_BYTES: RangeInclusive<u32> = 128..=1024;

/// Bytes of musl's `__clone`, at most; seen: 57.
const CLONE_BYTES: u64 = 128;

/// aarch64's `__startcontext`, in instructions: one of these two, or neither,
const NOP: u32 = 0xd503_201f;
const BTI_C: u32 = 0xd503_245f;
/// since 2.41 blr x20, which calls the context's function,
const CALL_X20: u32 = 0xd63f_0280;
/// mov x0, x19; cbnz x0, `setcontext`; b `exit`.
const MOV_X0_X19: u32 = 0xaa13_03e0;
const CBNZ_X0: (u32, u32) = (0xff00_001f, 0xb500_0000);
const B: (u32, u32) = (0xfc00_0000, 0x1400_0000);
/// Its bytes: 12 (2.31), 16 (2.36), 20 (2.41).
const AARCH64_START_BYTES: RangeInclusive<u32> = 12..=20;

/// aarch64's `swapcontext`, since 2.32 or so: adr x30, to where it goes on later.
const ADR_X30: (u32, u32) = (0x9f00_001f, 0x1000_001e);
/// There: mov x30, x1; ret.
const BACK: [u32; 2] = [0xaa01_03fe, 0xd65f_03c0];
/// Its bytes; seen: 200 and 240.
const AARCH64_SWITCH_BYTES: RangeInclusive<u32> = 128..=320;

/// The rule of all of `swapcontext`, by its CFI: it has no frame.
pub(crate) const fn called(arch: Arch) -> Rule {
    match arch {
        Arch::X86_64 => Rule::x86_64(0, 0, 1),
        Arch::Aarch64 => Rule::aarch64(RA_IN_LR, 0, 0),
    }
}

/// Whether an x86_64 row has the return address below the stack pointer: so musl's `.debug_frame` has it where the new
/// thread of `__clone` has taken the last word from its stack.
pub(crate) fn is_of_new_thread(rule: Rule) -> bool {
    rule.flags() == 0 && rule.x86_64_cfa_offset_by_8() == 0
}

/// Where in musl's `__clone` a thread's stack ends: at the call of its function and behind it.
pub(crate) fn thread_start(file: &impl ReadAt, elf: &Elf, span: &Span) -> Option<[u64; 2]> {
    let length = u64::from(span.length);
    let (offset, _left) = elf.in_file(Svma(span.start)).filter(|_| length <= CLONE_BYTES)?;
    let code = read_bytes(file, "a function that starts threads", offset, length, length).ok()?;
    let at = code.windows(THREAD_END.len()).position(|bytes| bytes == THREAD_END)? as u64;
    // The byte before is the call's.
    Some([span.start + at.checked_sub(1)?, span.start + at + THREAD_END.len() as u64])
}

/// Whether a function is `__start_context`, `__startcontext` on aarch64.
pub(crate) fn is_start(file: &impl ReadAt, elf: &Elf, span: &Span) -> bool {
    let bytes = match elf.arch {
        Arch::X86_64 => START_BYTES,
        Arch::Aarch64 => AARCH64_START_BYTES,
    };
    let is_it = |code: Vec<u8>| match elf.arch {
        Arch::X86_64 => is_start_x86_64(&code),
        Arch::Aarch64 => is_start_aarch64(&code),
    };
    bytes.contains(&span.length) && code(file, elf, span).is_some_and(is_it)
}

fn is_start_x86_64(code: &[u8]) -> bool {
    code.strip_prefix(LANDING).unwrap_or(code).starts_with(START) && code.last() == Some(&START_END)
}

fn is_start_aarch64(code: &[u8]) -> bool {
    let words = words(code);
    let rest = words.strip_prefix(&[NOP]).or(words.strip_prefix(&[BTI_C])).unwrap_or(&words);
    let rest = rest.strip_prefix(&[CALL_X20]).unwrap_or(rest);
    matches!(rest, [MOV_X0_X19, cbnz, b] if is(*cbnz, CBNZ_X0) && is(*b, B))
}

/// From where to where in a function the caller is not where [`called`] says.
pub(crate) fn on_other_stack(file: &impl ReadAt, elf: &Elf, span: &Span) -> Option<[u64; 2]> {
    let bytes = match elf.arch {
        Arch::X86_64 => SWITCH_BYTES,
        Arch::Aarch64 => AARCH64_SWITCH_BYTES,
    };
    let code = bytes.contains(&span.length).then(|| code(file, elf, span))??;
    let places = match elf.arch {
        Arch::X86_64 => switch_x86_64(&code)?,
        Arch::Aarch64 => switch_aarch64(&code)?,
    };
    Some(places.map(|at| span.start + at as u64))
}

fn switch_x86_64(code: &[u8]) -> Option<[usize; 2]> {
    let find = |bytes: &[u8], from: usize| {
        let at = code.get(from..)?.windows(bytes.len()).position(|window| window == bytes)?;
        Some(from + at + bytes.len())
    };
    let from = find(SWITCH, 0)?;
    Some([from, find(RETURN, from)?])
}

fn switch_aarch64(code: &[u8]) -> Option<[usize; 2]> {
    let words = words(code);
    let from = words.iter().position(|word| is(*word, ADR_X30))? + 1;
    let to = from + words.get(from..)?.windows(BACK.len()).position(|window| window == BACK)? + 1;
    Some([4 * from, 4 * to])
}

fn is(word: u32, (mask, rest): (u32, u32)) -> bool {
    word & mask == rest
}

fn words(code: &[u8]) -> Vec<u32> {
    (0..code.len()).step_by(4).filter_map(|at| u32_at(code, at)).collect()
}

fn code(file: &impl ReadAt, elf: &Elf, span: &Span) -> Option<Vec<u8>> {
    let (offset, left) = elf.in_file(Svma(span.start))?;
    let length = u64::from(span.length);
    let limit = u64::from(*SWITCH_BYTES.end());
    read_bytes(file, "code that goes over to another stack", offset, length.min(left), limit).ok()
}
