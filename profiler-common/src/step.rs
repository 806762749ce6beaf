//! One step of unwinding: a rule and the registers of a frame give the registers of its caller.
//!
//! The same code runs in the kernel program, in user space and in tests. It is written without
//! branches where it can be: each one would double the paths that the kernel's verifier follows.
//! A [`Machine`] brings the memory and, in the kernel, the barrier that keeps LLVM from turning the
//! arithmetic back into branches.

use crate::record::StopReason;
use crate::row::{
    AT_SAVED_PC, BASE_FP, BASE_OTHER, BASE_RBX, BY_FRAME_POINTER, DEREF, DEREF_ADD_8, END, FP_AT_FP, FP_SAVED,
    KEPT_ON_STACK, MAX_SLOT, OTHER_STACK, RA_FROM_BASE, RA_IN_LR, RA_IN_OTHER, Rule, SIGNAL, THREAD_OFFSET_BITS,
    UNSUPPORTED,
};

/// The registers of a frame that unwinding needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// The program counter.
    pub pc: u64,
    /// The stack pointer.
    pub sp: u64,
    /// The frame pointer: rbp, x29.
    pub fp: u64,
    /// aarch64: the link register x30, valid only where `exact` is 1. x86_64: rbx; 0 where it is not
    /// known.
    pub lr: u64,
    /// 1: an unwound signal frame lies below, so registers that are not in here are not known.
    pub interrupted: u64,
    /// 1: the pc is where the code was. 0: it is a return address, so the call is at `pc - 1`.
    pub exact: u64,
}

impl Registers {
    /// The address to look up: inside the call instruction for a return address.
    #[inline(always)]
    #[must_use]
    pub const fn lookup_pc(&self) -> u64 {
        self.pc.wrapping_sub(1).wrapping_add(self.exact)
    }
}

/// What keeps the optimizer from turning arithmetic back into branches.
pub trait Barrier {
    /// `value`, of which the optimizer then knows nothing.
    fn opaque(value: u64) -> u64;
}

/// No barrier: for all but the kernel programs.
#[derive(Clone, Copy, Debug)]
pub struct NoBarrier;

impl Barrier for NoBarrier {
    #[inline(always)]
    fn opaque(value: u64) -> u64 {
        value
    }
}

/// The memory of the thread that is unwound.
pub trait Machine {
    /// [`NoBarrier`], except in the kernel programs.
    type Barrier: Barrier;

    /// Reads `words` words (1 to [`MAX_SLOT`]) at `address` into the buffer behind [`Self::word`].
    /// Returns 0, or 1 when they could not be read; the buffer's contents are then of no use.
    fn read(&mut self, address: u64, words: u64) -> u64;

    /// x86_64: one of the [`crate::row::OTHER_REGISTERS`], as it was when the sample was taken. Any
    /// index is allowed.
    fn other_register(&self, index: u64) -> u64;

    /// x86_64: the base of fs, from which thread-local variables count; 0 where it is not known.
    fn thread_pointer(&self) -> u64;

    /// A word that the last [`Self::read`] brought. Any index is allowed; one beyond what was read
    /// gives a value of no use.
    fn word(&self, index: u64) -> u64;
}

/// In the result of a step: the frame was the outermost one.
pub const STOP_END: u64 = 1 << 0;
/// In the result of a step: the rule can't be followed.
pub const STOP_UNSUPPORTED: u64 = 1 << 1;
/// In the result of a step: the return address is in a register that is gone.
pub const STOP_RETURN_ADDRESS_LOST: u64 = 1 << 2;
/// In the result of a step: the frame pointer does not point up the stack.
pub const STOP_NO_FRAME_POINTER: u64 = 1 << 3;
/// In the result of a step: the stack could not be read, or the CFA does not lie above sp.
pub const STOP_UNREADABLE: u64 = 1 << 4;

/// What a result other than 0 means; the first of the reasons that apply.
#[inline(always)]
#[must_use]
pub const fn stop_reason(stop: u64) -> StopReason {
    if stop & STOP_END != 0 {
        StopReason::Complete
    } else if stop & STOP_UNSUPPORTED != 0 {
        StopReason::UnsupportedCfi
    } else if stop & STOP_RETURN_ADDRESS_LOST != 0 {
        StopReason::ReturnAddressLost
    } else if stop & STOP_NO_FRAME_POINTER != 0 {
        StopReason::NoFramePointer
    } else {
        StopReason::UnreadableStack
    }
}

/// 1 when the flag is set in the rule, else 0.
#[inline(always)]
fn flag(rule: u64, flag: u8) -> u64 {
    rule >> (24 + flag.trailing_zeros()) & 1
}

/// `a` when `condition` is 1, `b` when it is 0.
#[inline(always)]
fn select<M: Machine>(condition: u64, a: u64, b: u64) -> u64 {
    b ^ ((a ^ b) & M::Barrier::opaque(0u64.wrapping_sub(condition)))
}

/// 1 when `a < b`, for numbers below 2^63.
#[inline(always)]
fn less<M: Machine>(a: u64, b: u64) -> u64 {
    M::Barrier::opaque(M::Barrier::opaque(a.wrapping_sub(b)) >> 63)
}

/// 1 when `a` is 0.
#[inline(always)]
fn is_zero<M: Machine>(a: u64) -> u64 {
    1 ^ M::Barrier::opaque(M::Barrier::opaque(a | 0u64.wrapping_sub(a)) >> 63)
}

/// What is common to all architectures: where the rule says to stop, before anything is read.
///
/// A frame-pointer step needs a frame pointer at or above sp. A frame pointer of 0 is the mark of the
/// outermost frame by the ABIs, but proves nothing in code that does not keep frame pointers.
#[inline(always)]
fn stop_before<M: Machine>(rule: u64, regs: &Registers) -> u64 {
    let guess = flag(rule, BY_FRAME_POINTER);
    let unsupported = flag(rule, UNSUPPORTED);
    let none = guess & (unsupported | less::<M>(regs.fp, regs.sp));
    (flag(rule, END) * STOP_END) | ((unsupported & (1 ^ guess)) * STOP_UNSUPPORTED) | (none * STOP_NO_FRAME_POINTER)
}

/// A return address of 0 ends the stack, but found by a frame pointer it proves that this was none.
#[inline(always)]
fn stop_at_zero<M: Machine>(rule: u64, pc: u64) -> u64 {
    let (zero, guess) = (is_zero::<M>(pc), flag(rule, BY_FRAME_POINTER));
    ((zero & (1 ^ guess)) * STOP_END) | ((zero & guess) * STOP_NO_FRAME_POINTER)
}

/// What a rule with one of the other registers makes of it.
struct X86_64Base {
    base: u64,
    offset: u64,
    /// The register's value.
    other: u64,
    /// 1: that is the return address.
    holds_return_address: u64,
    /// 1: the CFA may be on another stack.
    elsewhere: u64,
    /// 1: it is not known any more.
    lost: u64,
}

/// The base of the CFA and the offset from it, for rules that may name another register.
///
/// But for rbx, such a register is not restored on the way up. Where the CFA of a caller counts from it, whoever
/// was called has kept it: otherwise the caller's CFI would be wrong. A return address is in one only
/// as long as nothing else was called.
#[inline(always)]
fn x86_64_base<M: Machine>(rule: u64, regs: &Registers, machine: &M) -> X86_64Base {
    let direct = 1 ^ flag(rule, DEREF);
    let named = flag(rule, BASE_OTHER) & direct;
    let holds_return_address = named & flag(rule, RA_IN_OTHER);
    let elsewhere = (named ^ direct) & flag(rule, OTHER_STACK);
    let field = rule << 46;
    let offset = field.cast_signed() >> 43;
    let short_offset = (field << 4).cast_signed() >> 47;
    let index = rule >> 14 & 15;
    let in_rbx = is_zero::<M>(index ^ u64::from(BASE_RBX));
    let other = select::<M>(in_rbx, regs.lr, machine.other_register(index));
    let gone = regs.interrupted | holds_return_address & (1 ^ regs.exact);
    let base = select::<M>(flag(rule, BASE_FP), regs.fp, regs.sp);
    X86_64Base {
        base: select::<M>(named ^ holds_return_address, other, base),
        offset: select::<M>(named, short_offset.cast_unsigned(), offset.cast_unsigned()),
        other,
        holds_return_address,
        elsewhere,
        lost: named & select::<M>(in_rbx, is_zero::<M>(regs.lr), gone),
    }
}

/// One step on x86_64. `regs` become the caller's unless the result, a set of `STOP_` bits, is not 0.
#[inline(always)]
#[must_use]
pub fn step_x86_64<M: Machine>(rule: u64, regs: &mut Registers, machine: &mut M) -> u64 {
    let mut stop = stop_before::<M>(rule, regs);
    let X86_64Base { base, offset, other, holds_return_address, mut elsewhere, lost } =
        x86_64_base(rule, regs, machine);
    stop |= lost * STOP_RETURN_ADDRESS_LOST;
    let mut cfa = base.wrapping_add(offset);
    let mut fp_elsewhere = 0;
    let mut fp_found = 0;
    let mut failed = 0;
    // The rules that read twice. Rare, and a call costs more than the branch.
    if rule & (DEREF as u64) << 24 != 0 {
        if rule & (SIGNAL as u64) << 24 != 0 {
            (cfa, failed) = goroutine_cfa(rule, offset, regs.sp, machine);
            elsewhere = 1;
        } else {
            failed |= machine.read(cfa, 1);
            cfa = machine.word(0).wrapping_add(flag(rule, DEREF_ADD_8) * 8);
            fp_elsewhere = flag(rule, FP_AT_FP);
            failed |= machine.read(select::<M>(fp_elsewhere, regs.fp, cfa.wrapping_sub(8)), 1);
            fp_found = machine.word(0);
        }
    }
    let slot = rule >> 18 & u64::from(MAX_SLOT);
    let unchanged = is_zero::<M>(slot);
    let unknown = is_zero::<M>(slot ^ 1);
    let goroutine = flag(rule, DEREF);
    let sp_saved = flag(rule, SIGNAL) & (1 ^ goroutine | flag(rule, AT_SAVED_PC));
    let signal = sp_saved & (1 ^ goroutine);
    let rbx_slot = rule >> 32 & u64::from(MAX_SLOT);
    let words = slot | unchanged;
    let words = M::Barrier::opaque(select::<M>(less::<M>(words, rbx_slot), rbx_slot, words));
    // The word that is read in vain when a register holds the return address is one that is there.
    failed |= machine.read(cfa.wrapping_sub((words ^ holds_return_address) * 8), words);
    failed |= less::<M>(cfa, regs.sp.wrapping_add(1 ^ holds_return_address)) & (1 ^ elsewhere);
    stop |= failed * STOP_UNREADABLE;
    let pc = select::<M>(holds_return_address, other, machine.word(words.wrapping_sub(1)));
    // `struct sigcontext_64` holds rsp just before rip, Go's `gobuf` sp before pc.
    let sp = select::<M>(sp_saved, machine.word(words.wrapping_sub(2)), cfa);
    let fp = select::<M>(unchanged, regs.fp, machine.word(words.wrapping_sub(slot)));
    let fp = select::<M>(unknown, 0, fp);
    let rbx = select::<M>(is_zero::<M>(rbx_slot), regs.lr, machine.word(words.wrapping_sub(rbx_slot)));
    let rbx = select::<M>(is_zero::<M>(rbx_slot ^ 1), 0, rbx);
    stop |= stop_at_zero::<M>(rule, pc | stop);
    if stop != 0 {
        return stop;
    }
    let fp = select::<M>(fp_elsewhere, fp_found, fp);
    *regs = Registers { pc, sp, fp, lr: rbx, interrupted: regs.interrupted | signal, exact: signal };
    0
}

/// What of Go's `g` is needed, as indices of words: `stack.lo` and `stack.hi` are the first two, then comes `m`, with
/// `sched.sp` and `sched.pc` behind it (go/src/runtime/runtime2.go; the same in Go 1.18 to 1.27).
pub mod g {
    /// The end of the stack.
    pub const STACK_HI: u64 = 1;
    /// The thread.
    pub const M: u64 = 6;
    /// The stack pointer when the goroutine went over to the thread's stack.
    pub const SCHED_SP: u64 = 7;
    /// The program counter then, or one made up.
    pub const SCHED_PC: u64 = 8;
}

/// The CFA on the stack of the goroutine that went over to the thread's, and 1 when it can't be told. With
/// [`AT_SAVED_PC`] it is where the saved sp and pc end.
#[inline(always)]
fn goroutine_cfa<M: Machine>(rule: u64, offset: u64, sp: u64, machine: &mut M) -> (u64, u64) {
    let mut failed;
    let goroutine;
    let saved_sp;
    if rule & (KEPT_ON_STACK as u64) << 24 != 0 {
        failed = machine.read(sp.wrapping_add(offset), 2);
        goroutine = machine.word(1);
        let depth = machine.word(0);
        failed |= machine.read(goroutine, g::STACK_HI + 1);
        saved_sp = machine.word(g::STACK_HI).wrapping_sub(depth);
    } else {
        let thread_offset = (rule << (64 - THREAD_OFFSET_BITS)).cast_signed() >> (61 - THREAD_OFFSET_BITS);
        let curg_offset = (rule >> THREAD_OFFSET_BITS & ((1 << (18 - THREAD_OFFSET_BITS)) - 1)) * 8;
        failed = machine.read(machine.thread_pointer().wrapping_add(thread_offset.cast_unsigned()), 1);
        failed |= machine.read(machine.word(0).wrapping_add(g::M * 8), 1);
        let m = machine.word(0);
        failed |= machine.read(m.wrapping_add(curg_offset), 1);
        goroutine = machine.word(0);
        failed |= machine.read(goroutine, g::SCHED_SP + 1);
        // Else it is not what this thread runs.
        failed |= 1 ^ is_zero::<M>(machine.word(g::M) ^ m);
        saved_sp = machine.word(g::SCHED_SP);
    }
    failed |= less::<M>(saved_sp, machine.word(0)) | 1 ^ less::<M>(saved_sp, machine.word(g::STACK_HI));
    let saved_end = goroutine.wrapping_add((g::SCHED_PC + 1) * 8);
    (select::<M>(flag(rule, AT_SAVED_PC), saved_end, saved_sp.wrapping_add(8)), failed)
}

/// One step on aarch64. `regs` become the caller's unless the result, a set of `STOP_` bits, is not
/// 0. `pointer_auth_mask` holds the bits of a return address that are no address.
#[inline(always)]
#[must_use]
pub fn step_aarch64<M: Machine>(rule: u64, regs: &mut Registers, machine: &mut M, pointer_auth_mask: u64) -> u64 {
    let cfa_offset = (i64::from(Rule(rule).aarch64_cfa_offset_by_8()) << 3).cast_unsigned();
    let slot_offset = (i64::from(Rule(rule).aarch64_slot()) << 3).cast_unsigned();
    let mut stop = stop_before::<M>(rule, regs);
    let base = select::<M>(flag(rule, BASE_FP), regs.fp, regs.sp);
    let cfa = base.wrapping_add(cfa_offset);
    let signal = flag(rule, SIGNAL);
    let in_lr = flag(rule, RA_IN_LR);
    let fp_saved = flag(rule, FP_SAVED) | signal;
    let origin = select::<M>(flag(rule, RA_FROM_BASE), base, cfa);
    // A signal frame holds x29, x30, sp and pc in four words that end at the CFA.
    let end = select::<M>(signal, cfa, origin.wrapping_add(slot_offset).wrapping_add(8));
    let words = M::Barrier::opaque(1 + fp_saved + signal * 2);
    let failed = machine.read(select::<M>(in_lr, regs.sp, end.wrapping_sub(words * 8)), words) & (1 ^ in_lr);
    let sinks = less::<M>(cfa, regs.sp.wrapping_add(1 ^ in_lr));
    stop |= (failed | sinks) * STOP_UNREADABLE;
    stop |= (in_lr & (1 ^ regs.exact)) * STOP_RETURN_ADDRESS_LOST;
    let pc = select::<M>(in_lr, regs.lr, machine.word(words.wrapping_sub(1))) & !pointer_auth_mask;
    let sp = select::<M>(signal, machine.word(2), cfa);
    let fp = select::<M>(fp_saved, machine.word(0), regs.fp);
    stop |= stop_at_zero::<M>(rule, pc | stop);
    if stop != 0 {
        return stop;
    }
    let interrupted = regs.interrupted | signal;
    *regs = Registers { pc, sp, fp, lr: machine.word(1), interrupted, exact: signal };
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{GOROUTINE, SLOT_UNKNOWN};

    const STACK: u64 = 0x7000;

    /// A stack of 64 words from [`STACK`] on, each holding its own index + 100 unless set.
    struct Stack {
        words: [u64; 64],
        read: [u64; 64],
    }

    impl Stack {
        fn with(values: &[(u64, u64)]) -> Self {
            let mut words = core::array::from_fn(|index| index as u64 + 100);
            for &(address, value) in values {
                words[((address - STACK) / 8) as usize] = value;
            }
            Self { words, read: [0; 64] }
        }
    }

    impl Machine for Stack {
        type Barrier = NoBarrier;

        fn read(&mut self, address: u64, words: u64) -> u64 {
            assert!((1..=u64::from(MAX_SLOT)).contains(&words));
            let Some(index) = address.checked_sub(STACK).map(|distance| distance / 8) else { return 1 };
            if index + words > 64 || !address.is_multiple_of(8) {
                return 1;
            }
            for word in 0..words {
                self.read[word as usize] = self.words[(index + word) as usize];
            }
            0
        }

        fn other_register(&self, index: u64) -> u64 {
            STACK + index * 16
        }

        fn thread_pointer(&self) -> u64 {
            STACK + 16
        }

        fn word(&self, index: u64) -> u64 {
            self.read[(index & 63) as usize]
        }
    }

    fn x86(rule: Rule, regs: Registers, stack: &[(u64, u64)]) -> Result<Registers, StopReason> {
        let mut regs = regs;
        match step_x86_64(rule.0, &mut regs, &mut Stack::with(stack)) {
            0 => Ok(regs),
            stop => Err(stop_reason(stop)),
        }
    }

    fn arm(rule: Rule, regs: Registers, stack: &[(u64, u64)]) -> Result<Registers, StopReason> {
        let mut regs = regs;
        match step_aarch64(rule.0, &mut regs, &mut Stack::with(stack), 0x7f << 48) {
            0 => Ok(regs),
            stop => Err(stop_reason(stop)),
        }
    }

    fn at(sp: u64, fp: u64) -> Registers {
        Registers { pc: 0x1000, sp, fp, lr: 0x2222, interrupted: 0, exact: 1 }
    }

    #[test]
    fn x86_64_leaf_without_frame() {
        let caller = x86(Rule::x86_64(0, 0, 1), at(STACK, 9), &[(STACK, 0x4000)]).unwrap();
        assert_eq!(caller, Registers { pc: 0x4000, sp: STACK + 8, fp: 9, lr: 0x2222, interrupted: 0, exact: 0 });
        assert_eq!(caller.lookup_pc(), 0x3fff);
    }

    #[test]
    fn x86_64_saved_rbp_is_found_below_the_return_address() {
        // sp + 64 is the CFA, rbp at CFA - 24.
        let caller = x86(Rule::x86_64(0, 3, 8), at(STACK, 9), &[(STACK + 56, 0x4000), (STACK + 40, 77)]).unwrap();
        assert_eq!(caller, Registers { pc: 0x4000, sp: STACK + 64, fp: 77, lr: 0x2222, interrupted: 0, exact: 0 });
        let caller = x86(Rule::x86_64(0, 1, 8), at(STACK, 9), &[(STACK + 56, 0x4000)]).unwrap();
        assert_eq!(caller.fp, 0, "an rbp that is not known is not kept");
    }

    #[test]
    fn x86_64_frame_pointer_must_rise() {
        let rule = Rule::X86_64_FRAME_POINTER;
        let caller = x86(rule, at(STACK, STACK + 32), &[(STACK + 32, STACK + 64), (STACK + 40, 0x4000)]).unwrap();
        assert_eq!(caller, Registers { pc: 0x4000, sp: STACK + 48, fp: STACK + 64, lr: 0, interrupted: 0, exact: 0 });
        assert_eq!(x86(rule, at(STACK + 40, STACK + 32), &[]), Err(StopReason::NoFramePointer));
        assert_eq!(x86(rule, at(STACK, 0), &[]), Err(StopReason::NoFramePointer), "0 proves nothing");
        assert_eq!(x86(rule, at(STACK, STACK + 8000), &[]), Err(StopReason::UnreadableStack));
    }

    #[test]
    fn x86_64_signal_frame_restores_what_was_interrupted() {
        let values = [(STACK + 120, 0xb), (STACK + 128, 0xbb), (STACK + 160, 0x9000), (STACK + 168, 0x4444)];
        let caller = x86(Rule::X86_64_SIGNAL, at(STACK, 9), &values).unwrap();
        assert_eq!(caller, Registers { pc: 0x4444, sp: 0x9000, fp: 0xb, lr: 0xbb, interrupted: 1, exact: 1 });
        assert_eq!(caller.lookup_pc(), 0x4444);
    }

    #[test]
    fn x86_64_realigned_frame() {
        // CFA = *(rbp - 8), caller's rbp at *rbp.
        let rule = Rule::x86_64(BASE_FP | DEREF | FP_AT_FP, 0, -1);
        let values = [(STACK + 24, STACK + 80), (STACK + 32, 55), (STACK + 72, 0x4000)];
        let caller = x86(rule, at(STACK, STACK + 32), &values).unwrap();
        assert_eq!(caller, Registers { pc: 0x4000, sp: STACK + 80, fp: 55, lr: 0x2222, interrupted: 0, exact: 0 });
    }

    #[test]
    fn x86_64_cfa_stored_on_the_stack() {
        // CFA = *(rsp + 16) + 8, rbp at CFA - 24.
        let rule = Rule::x86_64(DEREF | DEREF_ADD_8, 3, 2);
        let values = [(STACK + 16, STACK + 88), (STACK + 88, 0x4000), (STACK + 72, 55)];
        let caller = x86(rule, at(STACK, 9), &values).unwrap();
        assert_eq!(caller, Registers { pc: 0x4000, sp: STACK + 96, fp: 55, lr: 0x2222, interrupted: 0, exact: 0 });
    }

    #[test]
    fn x86_64_cfa_from_another_register() {
        // The register with number 3 holds STACK + 48; rbp is at CFA - 16.
        for (offset, return_address_at) in [(1, STACK + 48), (-1, STACK + 32), (3, STACK + 64)] {
            let rule = Rule::x86_64_other(3, 2, offset);
            let values = [(return_address_at, 0x4000), (return_address_at - 8, 55)];
            let caller = x86(rule, at(STACK, 9), &values).unwrap();
            let sp = return_address_at + 8;
            assert_eq!(caller, Registers { pc: 0x4000, sp, fp: 55, lr: 0x2222, interrupted: 0, exact: 0 });
        }
        let interrupted = Registers { interrupted: 1, ..at(STACK, 9) };
        assert_eq!(x86(Rule::x86_64_other(3, 2, 1), interrupted, &[]), Err(StopReason::ReturnAddressLost));
    }

    #[test]
    fn x86_64_other_stack_may_lie_below() {
        let values = [(STACK + 8, 55), (STACK + 16, 0x4000)];
        let regs = at(STACK + 400, STACK + 8);
        assert_eq!(x86(Rule::x86_64(BASE_FP, 2, 2), regs, &values), Err(StopReason::UnreadableStack));
        let caller = x86(Rule::x86_64(BASE_FP | OTHER_STACK, 2, 2), regs, &values).unwrap();
        assert_eq!(caller, Registers { pc: 0x4000, sp: STACK + 24, fp: 55, lr: 0x2222, interrupted: 0, exact: 0 });
        // The same bit says something else beside the others.
        for rule in [Rule::x86_64(DEREF | DEREF_ADD_8, 0, 0), Rule::x86_64_ra_in_other(3, false, -1)] {
            let regs = Registers { exact: 1, ..at(STACK + 400, STACK + 8) };
            assert_eq!(x86(rule, regs, &[(STACK + 400, STACK)]), Err(StopReason::UnreadableStack));
        }
    }

    /// Words by index: `g` of the thread at 8, `m` at 17 with `curg` at 20, the goroutine at 24, its stack from 48 on.
    fn with_goroutine(changed: (u64, u64)) -> [(u64, u64); 13] {
        let (own, m, goroutine) = (8, 17, 24);
        let words = [
            (1, STACK + own * 8),
            (own + g::M, STACK + m * 8),
            (m + 3, STACK + goroutine * 8),
            (goroutine, STACK + 48 * 8),
            (goroutine + g::STACK_HI, STACK + 60 * 8),
            (goroutine + g::M, STACK + m * 8),
            (goroutine + g::SCHED_SP, STACK + 50 * 8),
            (goroutine + g::SCHED_PC, 0x5000),
            (50, 0x4000),
            (55, 0x6000),
            (40, 5 * 8),
            (41, STACK + goroutine * 8),
            changed,
        ];
        words.map(|(index, value)| (STACK + index * 8, value))
    }

    #[test]
    fn x86_64_goroutine_that_left_for_the_threads_stack() {
        const NOTHING: (u64, u64) = (0, 0);
        // The thread pointer is at word 2.
        let called = Rule::x86_64_goroutine(0, -1, 3);
        let expected = Registers { pc: 0x4000, sp: STACK + 51 * 8, fp: 0, lr: 0, interrupted: 0, exact: 0 };
        let regs = at(STACK + 38 * 8, 9);
        assert_eq!(x86(called, regs, &with_goroutine(NOTHING)), Ok(expected));
        let at_saved_pc = Rule::x86_64_goroutine(AT_SAVED_PC, -1, 3);
        // What stands in the place of rbx is of no use.
        let expected = Registers { pc: 0x5000, sp: STACK + 50 * 8, lr: STACK + 50 * 8, ..expected };
        assert_eq!(x86(at_saved_pc, regs, &with_goroutine(NOTHING)), Ok(expected));
        let kept = Rule::x86_64(GOROUTINE | KEPT_ON_STACK, SLOT_UNKNOWN, 2).with_rbx(SLOT_UNKNOWN);
        let expected = Registers { pc: 0x6000, sp: STACK + 56 * 8, lr: 0, ..expected };
        assert_eq!(x86(kept, regs, &with_goroutine(NOTHING)), Ok(expected));
    }

    #[test]
    fn x86_64_goroutine_that_is_not_this_threads_is_none() {
        let regs = at(STACK + 38 * 8, 9);
        let no_goroutine = (20, 0);
        let of_another = (24 + g::M, STACK + 16 * 8);
        let (below, above) = ((24 + g::SCHED_SP, STACK + 47 * 8), (24 + g::SCHED_SP, STACK + 60 * 8));
        for changed in [no_goroutine, of_another, below, above, (1, 0), (8 + g::M, 1)] {
            let caller = x86(Rule::x86_64_goroutine(0, -1, 3), regs, &with_goroutine(changed));
            assert_eq!(caller, Err(StopReason::UnreadableStack), "{changed:x?}");
        }
        let kept = Rule::x86_64(GOROUTINE | KEPT_ON_STACK, SLOT_UNKNOWN, 2).with_rbx(SLOT_UNKNOWN);
        for changed in [(40, 0), (40, 13 * 8), (41, 0)] {
            let caller = x86(kept, regs, &with_goroutine(changed));
            assert_eq!(caller, Err(StopReason::UnreadableStack), "{changed:x?}");
        }
    }

    #[test]
    fn x86_64_return_address_in_another_register() {
        // The register with number 3 holds STACK + 48, which is as good an address as any.
        let rule = Rule::x86_64_ra_in_other(3, false, 0);
        let first = at(STACK, 9);
        let caller = x86(rule, first, &[]).unwrap();
        assert_eq!(caller, Registers { pc: STACK + 48, sp: STACK, fp: 9, lr: 0x2222, interrupted: 0, exact: 0 });
        let caller = x86(Rule::x86_64_ra_in_other(3, true, 1), first, &[]).unwrap();
        assert_eq!(caller, Registers { pc: STACK + 48, sp: STACK + 8, fp: 0, lr: 0x2222, interrupted: 0, exact: 0 });
        for regs in [Registers { interrupted: 1, ..first }, Registers { exact: 0, ..first }] {
            assert_eq!(x86(rule, regs, &[]), Err(StopReason::ReturnAddressLost));
        }
    }

    #[test]
    fn x86_64_rbx_is_restored_on_the_way_up() {
        let values = [(STACK + 8, 0x600), (STACK + 16, 0x700), (STACK + 24, 0x4000)];
        let rule = Rule::x86_64(0, 2, 4);
        let caller = |rule| x86(rule, at(STACK, 9), &values).unwrap();
        assert_eq!((caller(rule).fp, caller(rule).lr), (0x700, at(0, 0).lr));
        assert_eq!(caller(rule.with_rbx(SLOT_UNKNOWN)).lr, 0);
        assert_eq!((caller(rule.with_rbx(3)).fp, caller(rule.with_rbx(3)).lr), (0x700, 0x600));
        let (rbp_lower, rbp_kept) = (Rule::x86_64(0, 3, 4).with_rbx(2), Rule::x86_64(0, 0, 4).with_rbx(3));
        assert_eq!((caller(rbp_lower).fp, caller(rbp_lower).lr), (0x600, 0x700));
        assert_eq!((caller(rbp_kept).fp, caller(rbp_kept).lr), (9, 0x600));
    }

    #[test]
    fn x86_64_cfa_counts_from_rbx_in_any_frame() {
        let rule = Rule::x86_64_other(BASE_RBX, 0, 4).with_rbx(4);
        let regs = Registers { lr: STACK + 64, interrupted: 1, exact: 0, ..at(STACK, 9) };
        let caller = x86(rule, regs, &[(STACK + 64, 0xbb), (STACK + 88, 0x4000)]).unwrap();
        assert_eq!(caller, Registers { pc: 0x4000, sp: STACK + 96, fp: 9, lr: 0xbb, interrupted: 1, exact: 0 });
        assert_eq!(x86(rule, Registers { lr: 0, ..regs }, &[]), Err(StopReason::ReturnAddressLost));
    }

    #[test]
    fn x86_64_stops() {
        assert_eq!(x86(Rule::END, at(STACK, 9), &[]), Err(StopReason::Complete));
        assert_eq!(x86(Rule::UNSUPPORTED, at(STACK, 9), &[]), Err(StopReason::UnsupportedCfi));
        assert_eq!(x86(Rule::NO_FRAME_POINTER, at(STACK, STACK), &[]), Err(StopReason::NoFramePointer));
        assert_eq!(x86(Rule::x86_64(0, 0, 1), at(STACK, 9), &[(STACK, 0)]), Err(StopReason::Complete));
        assert_eq!(x86(Rule::x86_64(0, 0, 1), at(STACK - 64, 9), &[]), Err(StopReason::UnreadableStack));
        assert_eq!(
            x86(Rule::x86_64(0, 0, -1), at(STACK + 64, 9), &[]),
            Err(StopReason::UnreadableStack),
            "CFA below sp"
        );
    }

    #[test]
    fn aarch64_return_address_in_the_link_register() {
        let rule = Rule::aarch64(RA_IN_LR, 0, 0);
        let caller = arm(rule, at(STACK, 9), &[]).unwrap();
        assert_eq!((caller.pc, caller.sp, caller.fp, caller.exact), (0x2222, STACK, 9, 0));
        let caller = arm(Rule::aarch64(RA_IN_LR, 0, 4), at(STACK, 9), &[]).unwrap();
        assert_eq!((caller.pc, caller.sp), (0x2222, STACK + 32));
        let not_leaf = Registers { exact: 0, ..at(STACK, 9) };
        assert_eq!(arm(rule, not_leaf, &[]), Err(StopReason::ReturnAddressLost));
    }

    #[test]
    fn aarch64_frame_record_counted_from_the_cfa_and_from_the_base() {
        let signed = 0x4000 | 0x55 << 48;
        let values = [(STACK + 16, 77), (STACK + 24, signed)];
        for rule in [Rule::aarch64(FP_SAVED, -5, 8), Rule::aarch64(FP_SAVED | RA_FROM_BASE, 3, 8)] {
            let caller = arm(rule, at(STACK, 9), &values).unwrap();
            assert_eq!((caller.pc, caller.sp, caller.fp), (0x4000, STACK + 64, 77));
        }
    }

    #[test]
    fn aarch64_frame_pointer_and_signal() {
        let rule = Rule::AARCH64_FRAME_POINTER;
        let caller = arm(rule, at(STACK, STACK + 32), &[(STACK + 32, STACK + 64), (STACK + 40, 0x4000)]).unwrap();
        assert_eq!((caller.pc, caller.sp, caller.fp), (0x4000, STACK + 48, STACK + 64));
        assert_eq!(arm(rule, at(STACK, 0), &[]), Err(StopReason::NoFramePointer));
        // The four words end at sp + 576; the test stack has 512 bytes, so sp lies below it.
        let values = [(STACK + 32, 0xb), (STACK + 40, 0x3333), (STACK + 48, 0x9000), (STACK + 56, 0x4444)];
        let caller = arm(Rule::AARCH64_SIGNAL, at(STACK + 64 - 576, 9), &values).unwrap();
        assert_eq!(caller, Registers { pc: 0x4444, sp: 0x9000, fp: 0xb, lr: 0x3333, interrupted: 1, exact: 1 });
    }
}
