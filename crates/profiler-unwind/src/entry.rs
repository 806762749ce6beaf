//! Where a program begins: nobody called that code, so it ends stacks, also without CFI that says so.
//!
//! `e_entry` alone says little: older linkers state the start of `.text` there for libraries, and what
//! follows a short beginning is another function. Ending a stack in a function that has callers would
//! hide them without a word, so what is not known for a beginning is none, and it ends early.

use crate::bytes::u32_at;
use crate::elf::Elf;
use crate::read::{ReadAt, read_bytes};
use crate::segment::Arch;

/// Bytes from the entry point on that are looked at. The longest beginning, that of glibc's loader,
/// has 61 on x86_64 and had 71 before 2.36.
pub(crate) const MOST_BYTES: u64 = 128;

/// Bytes of `endbr64`.
pub(crate) const LANDING_BYTES: u64 = ENDBR64.len() as u64;

/// Whether `endbr64` is at the entry point.
pub(crate) fn lands(file: &impl ReadAt, elf: &Elf) -> bool {
    let place = elf.in_file(elf.entry).filter(|(_offset, left)| elf.arch == Arch::X86_64 && *left >= LANDING_BYTES);
    let read = |(offset, _left)| read_bytes(file, "the entry point", offset, LANDING_BYTES, LANDING_BYTES).ok();
    place.and_then(read).is_some_and(|code| code == ENDBR64)
}

/// How many bytes of `code`, which is at the entry point, are the beginning of a program; 0 when it is
/// not known for one and not said to be one by the file's headers (`is_program`).
pub(crate) fn length(arch: Arch, is_program: bool, code: &[u8]) -> usize {
    match arch {
        Arch::X86_64 => x86_64(is_program, code),
        Arch::Aarch64 => aarch64(is_program, code),
    }
}

/// `endbr64`.
const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
/// glibc's loader, up to its first call's opcode: mov %rsp, %rdi; call.
const LOADER: &[u8] = &[0x48, 0x89, 0xe7, 0xe8];
/// How it goes over to the program: jmp *%r12.
const LOADER_END: &[u8] = &[0x41, 0xff, 0xe4];
/// musl, loader and programs: xor %rbp, %rbp; mov %rsp, %rdi; lea disp32(%rip), %rsi; and a call.
const MUSL: &[u8] = &[0x48, 0x31, 0xed, 0x48, 0x89, 0xe7];
/// and $-16, %rsp; call.
const MUSL_CALL: &[u8] = &[0x48, 0x83, 0xe4, 0xf0, 0xe8];
/// glibc's programs, also static ones: xor %ebp, %ebp; mov %rdx, %r9; pop %rsi.
const GLIBC: &[u8] = &[0x31, 0xed, 0x49, 0x89, 0xd1, 0x5e];

fn x86_64(is_program: bool, code: &[u8]) -> usize {
    let body = code.strip_prefix(ENDBR64).unwrap_or(code);
    let before = code.len() - body.len();
    let known = if body.starts_with(LOADER) {
        find(body, LOADER_END).map(|at| at + LOADER_END.len())
    } else if body.starts_with(MUSL) {
        find(body, MUSL_CALL).map(|at| at + MUSL_CALL.len() + 4)
    } else if body.starts_with(GLIBC) {
        // Its call, by rel32 or through the GOT, is followed by hlt.
        (0..body.len()).find_map(|at| match body.get(at..)? {
            [0xe8, _, _, _, _, 0xf4, ..] => Some(at + 6),
            [0xff, 0x15, _, _, _, _, 0xf4, ..] => Some(at + 7),
            _ => None,
        })
    } else {
        is_program.then(|| x86_64_transfer(body))
    };
    known.map_or(0, |length| (before + length).min(code.len()))
}

/// The end of the first byte sequence in `code` that may be a call, a jump, a return or the like. It
/// may be part of another instruction: then the beginning of the program is taken for shorter.
fn x86_64_transfer(code: &[u8]) -> usize {
    let end = (0..code.len()).find_map(|at| match code.get(at..)? {
        [0xc3 | 0xf4, ..] => Some(at + 1),
        [0xeb, ..] | [0x0f, 0x05 | 0x0b, ..] | [0xff, 0xd0..=0xd7 | 0xe0..=0xe7, ..] => Some(at + 2),
        [0xe8 | 0xe9, ..] => Some(at + 5),
        [0xff, 0x15 | 0x25, ..] => Some(at + 6),
        _ => None,
    });
    end.unwrap_or(code.len())
}

fn find(code: &[u8], bytes: &[u8]) -> Option<usize> {
    code.windows(bytes.len()).position(|window| window == bytes)
}

/// mov x29, #0; mov x30, #0: glibc and musl, loader and programs.
const NO_CALLER: [u32; 2] = [0xd280_001d, 0xd280_001e];
/// mov x0, sp.
const MOV_X0_SP: u32 = 0x9100_03e0;
/// nop, and `bti c`.
const LANDING: [u32; 2] = [0xd503_201f, 0xd503_245f];

fn aarch64(is_program: bool, code: &[u8]) -> usize {
    let words: Vec<u32> = (0..code.len() / 4).map_while(|index| u32_at(code, index * 4)).collect();
    let body = words.strip_prefix(&LANDING[..1]).or_else(|| words.strip_prefix(&LANDING[1..])).unwrap_or(&words);
    let zeroed = body.strip_prefix(&NO_CALLER);
    // glibc's loader calls twice before it goes over to the program.
    let loader = matches!(zeroed.unwrap_or(body), [MOV_X0_SP, call, ..] if is_call(*call));
    if !loader && zeroed.is_none() && !is_program {
        return 0;
    }
    let leaves = |word: &u32| is_jump(*word) || (!loader && is_call(*word));
    match words.iter().position(leaves) {
        Some(index) => (index + 1) * 4,
        None if loader => 0,
        None => words.len() * 4,
    }
}

/// `bl`, `blr` or `svc` (Arm Architecture Reference Manual, C6.2).
const fn is_call(word: u32) -> bool {
    word & 0xfc00_0000 == 0x9400_0000 || word & 0xffff_fc1f == 0xd63f_0000 || word & 0xffe0_001f == 0xd400_0001
}

/// `b`, `br`, `ret`, or 0, which is no instruction (`udf`).
const fn is_jump(word: u32) -> bool {
    word & 0xfc00_0000 == 0x1400_0000
        || word & 0xffdf_fc1f == 0xd61f_0000
        || word & 0xffff_fc1f == 0xd65f_0000
        || word == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code of a musl program and the function behind it.
    fn musl() -> Vec<u8> {
        let mut code = [MUSL, &[0x48, 0x8d, 0x35, 0xe8, 0xe9, 0xeb, 0xc3], MUSL_CALL, &[1, 2, 3, 4]].concat();
        code.extend([0x55, 0x48, 0x89, 0xe5, 0xe8, 0, 0, 0, 0]);
        code
    }

    #[test]
    fn known_beginnings_end_where_they_do() {
        for is_program in [false, true] {
            assert_eq!(length(Arch::X86_64, is_program, &musl()), 22);
            assert_eq!(length(Arch::X86_64, is_program, &[ENDBR64, &musl()].concat()), 26);
        }
        let loader = [LOADER, &[1, 2, 3, 4, 0xe8, 5, 6, 7, 8], LOADER_END, &[0x53, 0xe8]].concat();
        assert_eq!(length(Arch::X86_64, false, &loader), 16);
        let call = [0x48, 0xc7, 0xc7, 0xe8, 5, 0x40, 0, 0xff, 0x15, 1, 2, 3, 4, 0xf4];
        assert_eq!(length(Arch::X86_64, false, &[GLIBC, &call, &[0x90; 9]].concat()), 20);
    }

    #[test]
    fn other_code_is_one_only_in_a_program_and_up_to_where_it_leaves() {
        let mut code = vec![0x90; 100];
        assert_eq!(length(Arch::X86_64, true, &code), 100);
        code[20] = 0xe8;
        assert_eq!(length(Arch::X86_64, true, &code), 25);
        code[9] = 0xc3;
        assert_eq!(length(Arch::X86_64, true, &code), 10);
        assert_eq!(length(Arch::X86_64, false, &code), 0);
        assert_eq!(length(Arch::X86_64, true, &[0xe8]), 1, "no more than there is");
    }

    fn aarch64_length(is_program: bool, words: &[u32]) -> usize {
        let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        length(Arch::Aarch64, is_program, &code)
    }

    #[test]
    fn aarch64_beginnings() {
        let (call, jump, other) = (0x97ff_eeac, 0xd61f_0200, 0xaa00_03f5);
        let loader = [LANDING[0], NO_CALLER[0], NO_CALLER[1], MOV_X0_SP, call, other, call, jump, other, jump];
        assert_eq!(aarch64_length(false, &loader), 32);
        assert_eq!(aarch64_length(false, &loader[3..]), 20, "without the zeroes, as in older ones");
        assert_eq!(aarch64_length(false, &loader[..7]), 0, "its end is not there");
        let musl = [NO_CALLER[0], NO_CALLER[1], MOV_X0_SP, other, 0x1400_0010, other];
        assert_eq!(aarch64_length(false, &musl), 20);
        assert_eq!(aarch64_length(false, &[other, call, other]), 0);
        assert_eq!(aarch64_length(true, &[other, call, other]), 8);
    }
}
