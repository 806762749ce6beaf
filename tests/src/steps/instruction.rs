//! The few kinds of instructions that matter for who called whom (Intel SDM, volume 2).

/// What an instruction does to the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Pushes a return address.
    Call,
    /// Pops one.
    Return,
    /// Pops a register.
    Pop,
    Syscall,
    /// Adds to the stack pointer, or takes from it: no other stack.
    Relative,
    Other,
}

/// The kind of the instruction that `code` begins with.
pub(super) fn kind(code: &[u8]) -> Kind {
    // Operand and address size, segments, lock and repeat, then REX.
    let prefixes =
        |byte: &u8| matches!(byte, 0x66 | 0x67 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0xf0 | 0xf2 | 0xf3);
    let code = code.get(code.iter().take_while(|byte| prefixes(byte)).count()..).unwrap_or_default();
    let code = code.get(code.iter().take_while(|byte| matches!(byte, 0x40..=0x4f)).count()..).unwrap_or_default();
    match code {
        [0xe8, ..] => Kind::Call,
        [0xff, operand, ..] if operand >> 3 & 7 == 2 => Kind::Call,
        [0xc2 | 0xc3, ..] => Kind::Return,
        [0x58..=0x5b | 0x5d..=0x5f, ..] => Kind::Pop,
        [0x0f, 0x05, ..] => Kind::Syscall,
        // add, and, sub with a number; add, sub of a register; push; lea of its own.
        [0x81 | 0x83, 0xc4 | 0xe4 | 0xec, ..] => Kind::Relative,
        [0x01 | 0x29, operand, ..] if operand & 0xc7 == 0xc4 => Kind::Relative,
        [0x03 | 0x2b, operand, ..] if operand & 0xf8 == 0xe0 => Kind::Relative,
        [0x8d, 0x64 | 0xa4, 0x24, ..] => Kind::Relative,
        _ => Kind::Other,
    }
}

/// Whether `code` is a system call, of number `rax`, that may change what is mapped: mmap, mprotect,
/// munmap, mremap, shmat, shmdt, pkey_mprotect (linux/arch/x86/entry/syscalls/syscall_64.tbl).
pub(super) fn maps_memory(code: &[u8], rax: u64) -> bool {
    kind(code) == Kind::Syscall && matches!(rax, 9 | 10 | 11 | 25 | 30 | 67 | 329)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_with_and_without_prefixes() {
        let cases: &[(&[u8], Kind)] = &[
            (&[0xe8, 1, 2, 3, 4], Kind::Call),
            (&[0x66, 0x66, 0x48, 0xe8, 1, 2, 3, 4], Kind::Call),
            (&[0xff, 0x15, 1, 2, 3, 4], Kind::Call),
            (&[0x3e, 0x41, 0xff, 0xd4], Kind::Call),
            (&[0xff, 0xe0], Kind::Other),
            (&[0xff, 0x75, 0x08], Kind::Other),
            (&[0xf3, 0xc3], Kind::Return),
            (&[0xf2, 0xc3], Kind::Return),
            (&[0xc2, 8, 0], Kind::Return),
            (&[0x41, 0x5f], Kind::Pop),
            (&[0x5c], Kind::Other),
            (&[0x0f, 0x05], Kind::Syscall),
            (&[0x48, 0x83, 0xec, 0x08], Kind::Relative),
            (&[0x48, 0x81, 0xc4, 0, 1, 0, 0], Kind::Relative),
            (&[0x48, 0x29, 0xc4], Kind::Relative),
            (&[0x48, 0x8d, 0x64, 0x24, 0x08], Kind::Relative),
            (&[0x48, 0x89, 0xcc], Kind::Other),
            (&[], Kind::Other),
        ];
        for (code, expected) in cases {
            assert_eq!(kind(code), *expected, "{code:x?}");
        }
    }
}
