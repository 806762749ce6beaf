//! Unwind rows: where the caller's registers are, for every address of an executable.
//!
//! A row is one `u64`: the offset of its first instruction from the start of its part in the upper
//! 26 bits, its [`Rule`] in the lower 38. So sorted rows are sorted numbers, and the row of an offset
//! is the last one that is at most the offset with all bits of a rule set.

use core::ops::Range;

/// One row: `pc_offset << 38 | rule`. `pc_offset` is below 2^25, so a row is a positive `i64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Row(pub u64);

impl Row {
    /// The largest offset from the start of a part: 32 MiB of code, of which the 4,095 rows of a part
    /// cover some 100 KiB as a rule.
    pub const MAX_PC_OFFSET: u32 = (1 << 25) - 1;

    /// The row that holds from `pc_offset` (at most [`Self::MAX_PC_OFFSET`]) up to the next row.
    #[must_use]
    pub const fn new(pc_offset: u32, rule: Rule) -> Self {
        Self(((pc_offset & Self::MAX_PC_OFFSET) as u64) << Rule::BITS | rule.0 & Rule::MASK)
    }

    /// Bytes from the start of the part to the first instruction of this row.
    #[must_use]
    pub const fn pc_offset(self) -> u32 {
        (self.0 >> Rule::BITS) as u32
    }

    /// How to step over a frame whose pc is in this row.
    #[must_use]
    pub const fn rule(self) -> Rule {
        Rule(self.0 & Rule::MASK)
    }

    /// What the row search compares with: not below any row that starts at `pc_offset` or before. Beyond
    /// [`Self::MAX_PC_OFFSET`] it is that only of a row at offset 0.
    #[must_use]
    pub const fn search_key(pc_offset: u64) -> u64 {
        (pc_offset << Rule::BITS | Rule::MASK) & (u64::MAX >> 1)
    }
}

/// How to step over one frame: a field in the upper 6 of 38 bits, then 8 flags, then two fields.
///
/// | field | x86_64 | aarch64 |
/// |---|---|---|
/// | CFA offset | the lowest 18 bits, signed: CFA = base + 8 x this (up to 1 MiB); other things with some flags | the lowest 16 bits, signed: the same (up to 256 KiB) |
/// | slot | 6 bits: the caller's rbp is at CFA - 8 x slot; 0: unchanged; 1: unknown | 8 bits, signed: the return address is at origin + 8 x slot |
/// | rbx slot | the upper 6 bits: the same of the caller's rbx | none |
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Rule(pub u64);

/// The base register is the frame pointer (rbp, x29), otherwise the stack pointer.
pub const BASE_FP: u8 = 1 << 0;
/// x86_64: the CFA is a word that is stored near the base, plus some words: [`Rule::x86_64_stored`]
/// (realigned frames of gcc, CFA expressions of OpenSSL and OCaml).
pub const DEREF: u8 = 1 << 1;
/// x86_64, with [`DEREF`]: the word is as many words further as one of the [`OTHER_REGISTERS`] says. Valid in the first
/// frame (OpenSSL's Montgomery multiplication keeps the caller's rsp behind a number of r9 words).
pub const INDEXED: u8 = 1 << 2;
/// A signal frame: registers come from the `ucontext` that the kernel wrote, and the pc found there
/// is where the interrupted code was, not a return address.
pub const SIGNAL: u8 = 1 << 3;
/// x86_64, with [`DEREF`]: the caller's rbp is the word at rbp (realigned frames of gcc).
pub const FP_AT_FP: u8 = 1 << 4;
/// x86_64, without [`DEREF`]: the CFA counts from one of the [`OTHER_REGISTERS`]: the field of the CFA
/// offset then has its number in the upper 4 bits and the offset in the lower 14
/// (OpenSSL's assembly keeps the caller's rsp in rax, r9 or r11; gcc's realigning prologue in r10).
pub const BASE_OTHER: u8 = FP_AT_FP;
/// x86_64, with [`BASE_OTHER`]: it is the return address that is in the register with that number; the
/// CFA counts from rsp, and the caller's rbp is unchanged or not known. Valid in the first frame
/// (glibc's `vfork` keeps it in rdi).
pub const RA_IN_OTHER: u8 = INDEXED;
/// x86_64, with neither [`DEREF`] nor [`BASE_OTHER`]: the CFA may lie on another stack, also below rsp
/// (Go's runtime and C called from Go run on the thread's stack, goroutines on theirs).
pub const OTHER_STACK: u8 = INDEXED;
/// x86_64, both: the frame is on a thread's own stack, to which a goroutine went over, and the caller is on the
/// goroutine's. The field of the CFA offset says how to find that ([`Rule::x86_64_goroutine`]); the caller's rbp is
/// not known.
pub const GOROUTINE: u8 = DEREF | SIGNAL;
/// x86_64, with [`GOROUTINE`]: the caller is where the goroutine's saved pc and sp say (`morestack`), which was not
/// called; without: its return address is at the saved sp (`systemstack`).
pub const AT_SAVED_PC: u8 = FP_AT_FP;
/// x86_64, with [`GOROUTINE`]: the goroutine stands on the stack, at rsp plus the CFA offset + 8, and at the CFA
/// offset how far its caller's return address is below the end of the goroutine's stack (`asmcgocall`).
pub const KEPT_ON_STACK: u8 = INDEXED;
/// aarch64: the return address is in x30. Valid in the first frame and after a signal frame.
pub const RA_IN_LR: u8 = 1 << 1;
/// aarch64: the caller's x29 is 8 bytes below the return address; otherwise x29 is unchanged.
pub const FP_SAVED: u8 = 1 << 2;
/// aarch64: the return address's slot counts from the base register, otherwise from the CFA.
pub const RA_FROM_BASE: u8 = 1 << 4;
/// No CFI covers this code: the step is the frame-pointer convention, and the frame says so.
pub const BY_FRAME_POINTER: u8 = 1 << 5;
/// The outermost frame (`DW_CFA_undefined` of the return address).
pub const END: u8 = 1 << 6;
/// There is CFI here that a row can't express.
pub const UNSUPPORTED: u8 = 1 << 7;

/// x86_64: the value of a slot for "the caller's rbp (rbx) is not known".
pub const SLOT_UNKNOWN: u8 = 1;
/// x86_64: the largest `slot`: as many words are read in one piece.
pub const MAX_SLOT: u8 = 63;
/// x86_64: the least CFA offset of a rule, in units of 8 bytes.
pub const MIN_CFA_OFFSET_BY_8: i32 = -(1 << 17);
/// x86_64: the greatest CFA offset of a rule, in units of 8 bytes: frames of up to 1 MiB. rustc has
/// one of 540,080 bytes.
pub const MAX_CFA_OFFSET_BY_8: i32 = (1 << 17) - 1;

/// x86_64: the registers besides rsp and rbp that a CFA can count from: those that a call may change,
/// by DWARF number (System V ABI, x86-64 supplement, figure 3.36), in the order of `struct pt_regs`:
/// r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi.
pub const OTHER_REGISTERS: [u16; 9] = [11, 10, 9, 8, 0, 2, 1, 4, 5];

/// x86_64: the number of rbx among the registers that a CFA can count from. Calls keep it, so it is
/// restored on the way up (glibc's trampoline for lazy binding aligns its stack and keeps the old rsp there).
pub const BASE_RBX: u8 = 9;
/// x86_64: rbx by DWARF number.
pub const RBX: u16 = 3;

/// x86_64, in a [`DEREF`] rule: the bits of the place of the stored word, the lowest ones of the field.
pub const STORED_AT_BITS: u32 = 10;
/// x86_64, in a [`DEREF`] rule: the places that a stored word can have, in units of 8 bytes from the base.
pub const STORED_AT_BY_8: Range<i32> = -(1 << (STORED_AT_BITS - 1))..1 << (STORED_AT_BITS - 1);
/// x86_64, in a [`DEREF`] rule: the most that can be added to the stored word, in units of 8 bytes: all registers
/// that a function saves for its caller are 6, and the return address.
pub const MAX_ADDED_BY_8: u8 = 15;

/// x86_64, in a [`GOROUTINE`] rule: the bits of the distance from the thread pointer to the goroutine, which are the
/// lower ones of the field.
pub const THREAD_OFFSET_BITS: u32 = 11;
/// x86_64, in a [`GOROUTINE`] rule: the largest place of `curg` in Go's `m`, in units of 8 bytes.
pub const MAX_CURG_BY_8: u32 = (1 << (18 - THREAD_OFFSET_BITS)) - 1;

impl Rule {
    /// The bits of a rule.
    pub const BITS: u32 = 38;
    /// All of them.
    pub const MASK: u64 = (1 << Self::BITS) - 1;

    /// Packs a rule for x86_64: `slot` at most [`MAX_SLOT`], `cfa_offset_by_8` from
    /// [`MIN_CFA_OFFSET_BY_8`] to [`MAX_CFA_OFFSET_BY_8`]. Bits beyond are cut off. rbx is
    /// unchanged, unless [`Self::with_rbx`] says other.
    #[must_use]
    pub const fn x86_64(flags: u8, slot: u8, cfa_offset_by_8: i32) -> Self {
        Self(
            (flags as u64) << 24
                | ((slot & MAX_SLOT) as u64) << 18
                | (cfa_offset_by_8.cast_unsigned() & 0x3_ffff) as u64,
        )
    }

    /// The same rule with this slot of rbx, at most [`MAX_SLOT`].
    #[must_use]
    pub const fn with_rbx(self, slot: u8) -> Self {
        Self(self.0 & 0xffff_ffff | ((slot & MAX_SLOT) as u64) << 32)
    }

    /// Packs a rule for x86_64 whose CFA counts from the register `OTHER_REGISTERS[other]`, or from rbx
    /// ([`BASE_RBX`]).
    /// `cfa_offset_by_8` has 14 bits.
    #[must_use]
    pub const fn x86_64_other(other: u8, slot: u8, cfa_offset_by_8: i32) -> Self {
        Self::x86_64(BASE_OTHER, slot, (other as i32) << 14 | cfa_offset_by_8 & 0x3fff)
    }

    /// Packs a rule for x86_64 whose return address is in the register `OTHER_REGISTERS[other]`.
    /// `cfa_offset_by_8` has 14 bits and counts from rsp.
    #[must_use]
    pub const fn x86_64_ra_in_other(other: u8, fp_unknown: bool, cfa_offset_by_8: i32) -> Self {
        let slot = if fp_unknown { SLOT_UNKNOWN } else { 0 };
        Self::x86_64(BASE_OTHER | RA_IN_OTHER, slot, (other as i32) << 14 | cfa_offset_by_8 & 0x3fff)
    }

    /// Packs a rule for x86_64 whose CFA is the word stored at base + 8 x `at_by_8` ([`STORED_AT_BY_8`]), plus 8 x
    /// `added_by_8`, at most [`MAX_ADDED_BY_8`]. `flags` are [`BASE_FP`] and [`FP_AT_FP`].
    #[must_use]
    pub const fn x86_64_stored(flags: u8, slot: u8, at_by_8: i32, added_by_8: u8) -> Self {
        let at = at_by_8 & ((1 << STORED_AT_BITS) - 1);
        Self::x86_64(DEREF | flags, slot, ((added_by_8 & MAX_ADDED_BY_8) as i32) << STORED_AT_BITS | at)
    }

    /// The same rule with the stored word 8 x `OTHER_REGISTERS[other]` bytes further.
    #[must_use]
    pub const fn indexed_by(self, other: u8) -> Self {
        Self(self.0 | (INDEXED as u64) << 24 | ((other & 15) as u64) << 14)
    }

    /// Packs a rule for x86_64 that leads to the goroutine which the thread runs. Its own `g`, or that of the
    /// thread, is in the word at the thread pointer (fs base) + 8 x `thread_offset_by_8`, of
    /// [`THREAD_OFFSET_BITS`] bits; what that says is the `m` has the goroutine at 8 x `curg_by_8`, at most
    /// [`MAX_CURG_BY_8`]. `flags` is 0 or [`AT_SAVED_PC`]. rbp and rbx are not known.
    #[must_use]
    pub const fn x86_64_goroutine(flags: u8, thread_offset_by_8: i32, curg_by_8: u32) -> Self {
        let offset = thread_offset_by_8 & ((1 << THREAD_OFFSET_BITS) - 1);
        let field = (curg_by_8 << THREAD_OFFSET_BITS).cast_signed() | offset;
        // The saved sp and pc are two words.
        let words = if flags & AT_SAVED_PC == 0 { SLOT_UNKNOWN } else { 2 };
        Self::x86_64(GOROUTINE | flags, SLOT_UNKNOWN, field).with_rbx(words)
    }

    /// Packs a rule for aarch64.
    #[must_use]
    pub const fn aarch64(flags: u8, slot: i8, cfa_offset_by_8: i16) -> Self {
        Self((flags as u64) << 24 | (slot.cast_unsigned() as u64) << 16 | cfa_offset_by_8.cast_unsigned() as u64)
    }

    /// The outermost frame: nothing called it.
    pub const END: Self = Self((END as u64) << 24);
    /// CFI that a row can't express: the stack is cut here.
    pub const UNSUPPORTED: Self = Self((UNSUPPORTED as u64) << 24);
    /// Code without CFI in which nothing shows that it keeps a frame pointer: the stack is cut here.
    pub const NO_FRAME_POINTER: Self = Self(((BY_FRAME_POINTER | UNSUPPORTED) as u64) << 24);
    /// x86_64 by the frame pointer: `push rbp; mov rbp, rsp`.
    pub const X86_64_FRAME_POINTER: Self = Self::x86_64(BASE_FP | BY_FRAME_POINTER, 2, 2).with_rbx(SLOT_UNKNOWN);
    /// x86_64 signal frame. At its return trampoline rsp is at the `ucontext`; rbp is at +120, rsp
    /// at +160, rip at +168 (`struct sigcontext_64`, linux/arch/x86/include/uapi/asm/sigcontext.h):
    /// seven words that end at "CFA" = rsp + 176, the second of which is rbx.
    pub const X86_64_SIGNAL: Self = Self::x86_64(SIGNAL, 7, 22).with_rbx(6);
    /// aarch64 by the frame record: x29 points at {caller's x29, return address} (AAPCS64 6.4.6).
    pub const AARCH64_FRAME_POINTER: Self = Self::aarch64(BASE_FP | FP_SAVED | RA_FROM_BASE | BY_FRAME_POINTER, 1, 2);
    /// aarch64 signal frame. At its return trampoline sp is at `struct rt_sigframe`: 128 bytes of
    /// siginfo, then the `ucontext`, whose `regs` begin at 184: x29 at sp + 544, x30, sp, pc follow
    /// (linux/arch/arm64/kernel/signal.c).
    pub const AARCH64_SIGNAL: Self = Self::aarch64(SIGNAL, 0, 72);

    /// The flags.
    #[must_use]
    pub const fn flags(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// x86_64: where the caller's rbp is.
    #[must_use]
    pub const fn x86_64_slot(self) -> u8 {
        (self.0 >> 18) as u8 & MAX_SLOT
    }

    /// x86_64: where the caller's rbx is.
    #[must_use]
    pub const fn x86_64_rbx_slot(self) -> u8 {
        (self.0 >> 32) as u8 & MAX_SLOT
    }

    /// x86_64: the CFA's distance from its base, in units of 8 bytes.
    #[must_use]
    pub const fn x86_64_cfa_offset_by_8(self) -> i32 {
        ((self.0 as u32) << 14).cast_signed() >> 14
    }

    /// aarch64: where the return address is.
    #[must_use]
    pub const fn aarch64_slot(self) -> i8 {
        ((self.0 >> 16) as u8).cast_signed()
    }

    /// aarch64: the CFA's distance from its base, in units of 8 bytes.
    #[must_use]
    pub const fn aarch64_cfa_offset_by_8(self) -> i16 {
        (self.0 as u16).cast_signed()
    }

    /// Whether the step over this frame rests on CFI.
    #[must_use]
    pub const fn by_frame_pointer(self) -> bool {
        self.flags() & BY_FRAME_POINTER != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_survive_packing() {
        let extremes =
            [(0, 0, 1), (0xff, MAX_SLOT, -1), (BASE_FP, 7, MIN_CFA_OFFSET_BY_8), (END, 63, MAX_CFA_OFFSET_BY_8)];
        for (flags, slot, offset) in extremes {
            let row = Row::new(Row::MAX_PC_OFFSET, Rule::x86_64(flags, slot, offset).with_rbx(slot));
            assert_eq!(row.pc_offset(), Row::MAX_PC_OFFSET);
            let rule = row.rule();
            assert_eq!((rule.flags(), rule.x86_64_slot(), rule.x86_64_cfa_offset_by_8()), (flags, slot, offset));
            assert_eq!(rule.x86_64_rbx_slot(), slot);
            assert!(row.0.cast_signed() >= 0);
        }
        for (flags, slot, offset) in [(0, 0, 1), (0xff, -1, -1), (BASE_FP, i8::MIN, i16::MIN), (END, i8::MAX, i16::MAX)]
        {
            let rule = Rule::aarch64(flags, slot, offset);
            assert_eq!((rule.flags(), rule.aarch64_slot(), rule.aarch64_cfa_offset_by_8()), (flags, slot, offset));
        }
    }

    #[test]
    fn goroutines_fields_do_not_overlap() {
        for (offset, curg) in [(-1024, 0), (1023, MAX_CURG_BY_8), (-1, 24)] {
            let rule = Rule::x86_64_goroutine(AT_SAVED_PC, offset, curg);
            assert_eq!((rule.flags(), rule.x86_64_slot()), (GOROUTINE | AT_SAVED_PC, SLOT_UNKNOWN));
            let field = rule.x86_64_cfa_offset_by_8().cast_unsigned() & 0x3_ffff;
            assert_eq!(field >> THREAD_OFFSET_BITS, curg);
            assert_eq!((field << (32 - THREAD_OFFSET_BITS)).cast_signed() >> (32 - THREAD_OFFSET_BITS), offset);
        }
    }

    #[test]
    fn fields_of_stored_words_do_not_overlap() {
        for (at, added, other) in [(-512, 0, 8), (511, MAX_ADDED_BY_8, 0), (-1, 7, 2), (0, 1, 15)] {
            assert!(STORED_AT_BY_8.contains(&at));
            let rule = Rule::x86_64_stored(BASE_FP, 63, at, added);
            assert_eq!((rule.flags(), rule.x86_64_slot()), (DEREF | BASE_FP, 63));
            let indexed = rule.indexed_by(other);
            assert_eq!((indexed.flags(), indexed.x86_64_slot()), (DEREF | BASE_FP | INDEXED, 63));
            for (rule, other) in [(rule, 0), (indexed, other)] {
                let field = rule.x86_64_cfa_offset_by_8() & 0x3_ffff;
                assert_eq!((field >> 14, field >> STORED_AT_BITS & 15), (i32::from(other), i32::from(added)));
                assert_eq!(field << (32 - STORED_AT_BITS) >> (32 - STORED_AT_BITS), at);
            }
        }
    }

    #[test]
    fn search_key_is_at_or_above_its_row_and_below_the_next() {
        let worst = Rule(Rule::MASK);
        assert!(Row::search_key(5) >= Row::new(5, worst).0);
        assert!(Row::search_key(5) < Row::new(6, Rule(0)).0);
    }
}
