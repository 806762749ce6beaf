//! x86_64.

use super::Barrier as _;
use super::goroutine::goroutine_cfa;
use super::{
    Machine, Registers, STOP_RETURN_ADDRESS_LOST, STOP_UNREADABLE, flag, is_zero, less, select, stop_at_zero,
    stop_before,
};
use crate::row::{
    AT_SAVED_PC, BASE_FP, BASE_OTHER, BASE_RBX, DEREF, FP_AT_FP, INDEXED, MAX_ADDED_BY_8, MAX_SLOT, OTHER_STACK,
    RA_IN_OTHER, SIGNAL, STORED_AT_BITS,
};

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
            let indexed = flag(rule, INDEXED);
            stop |= (indexed & (regs.interrupted | 1 ^ regs.exact)) * STOP_RETURN_ADDRESS_LOST;
            let at = (rule << (64 - STORED_AT_BITS)).cast_signed() >> (61 - STORED_AT_BITS);
            let at = base.wrapping_add(at.cast_unsigned()).wrapping_add((other << 3) * indexed);
            failed |= machine.read(at, 1);
            let added = (rule >> STORED_AT_BITS & u64::from(MAX_ADDED_BY_8)) * 8;
            cfa = machine.word(0).wrapping_add(added);
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
    stop |= stop_at_zero::<M>(rule, pc | stop, regs.exact);
    if stop != 0 {
        return stop;
    }
    let fp = select::<M>(fp_elsewhere, fp_found, fp);
    *regs = Registers { pc, sp, fp, lr: rbx, interrupted: regs.interrupted | signal, exact: signal };
    0
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::memory::{STACK, Stack, at};
    use super::super::stop_reason;
    use super::*;
    use crate::record::StopReason;
    use crate::row::{Rule, SLOT_UNKNOWN};

    pub(in crate::step) fn x86(rule: Rule, regs: Registers, stack: &[(u64, u64)]) -> Result<Registers, StopReason> {
        let mut regs = regs;
        match step_x86_64(rule.0, &mut regs, &mut Stack::with(stack)) {
            0 => Ok(regs),
            stop => Err(stop_reason(stop)),
        }
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
        let rule = Rule::x86_64_stored(BASE_FP | FP_AT_FP, 0, -1, 0);
        let values = [(STACK + 24, STACK + 80), (STACK + 32, 55), (STACK + 72, 0x4000)];
        let caller = x86(rule, at(STACK, STACK + 32), &values).unwrap();
        assert_eq!(caller, Registers { pc: 0x4000, sp: STACK + 80, fp: 55, lr: 0x2222, interrupted: 0, exact: 0 });
    }

    #[test]
    fn x86_64_cfa_stored_on_the_stack() {
        // CFA = *(rsp + 16) + 8, rbp at CFA - 24.
        let rule = Rule::x86_64_stored(0, 3, 2, 1);
        let values = [(STACK + 16, STACK + 88), (STACK + 88, 0x4000), (STACK + 72, 55)];
        let caller = x86(rule, at(STACK, 9), &values).unwrap();
        assert_eq!(caller, Registers { pc: 0x4000, sp: STACK + 96, fp: 55, lr: 0x2222, interrupted: 0, exact: 0 });
    }

    #[test]
    fn x86_64_cfa_stored_below_what_was_pushed() {
        // CFA = *(rsp + 16) + 56: the return address and six registers; rbp at CFA - 24.
        let values = [(STACK + 16, STACK + 88), (STACK + 136, 0x4000), (STACK + 120, 55)];
        let caller = x86(Rule::x86_64_stored(0, 3, 2, 7), at(STACK, 9), &values).unwrap();
        assert_eq!(caller, Registers { pc: 0x4000, sp: STACK + 144, fp: 55, lr: 0x2222, interrupted: 0, exact: 0 });
        // Any frame may be so.
        let regs = Registers { interrupted: 1, exact: 0, ..at(STACK, 9) };
        let caller = x86(Rule::x86_64_stored(0, 3, 2, 7), regs, &values).unwrap();
        assert_eq!(caller.pc, 0x4000);
    }

    #[test]
    fn x86_64_cfa_stored_behind_a_number_of_words() {
        // CFA = *(rbp + 8 + 8 x register) + 8, rbp at CFA - 24. The register with number 2 holds STACK + 32.
        let values = [(STACK + 16, STACK + 88), (STACK + 88, 0x4000), (STACK + 72, 55)];
        let rule = Rule::x86_64_stored(BASE_FP, 3, 1, 1).indexed_by(2);
        let first = at(STACK, (STACK + 8).wrapping_sub((STACK + 32) * 8));
        let caller = x86(rule, first, &values).unwrap();
        assert_eq!(caller, Registers { pc: 0x4000, sp: STACK + 96, fp: 55, lr: 0x2222, interrupted: 0, exact: 0 });
        let (called, after_signal) = (Registers { exact: 0, ..first }, Registers { interrupted: 1, exact: 1, ..first });
        for regs in [called, after_signal] {
            assert_eq!(x86(rule, regs, &values), Err(StopReason::ReturnAddressLost));
        }
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
        for rule in [Rule::x86_64_stored(0, 0, 0, 0).indexed_by(15), Rule::x86_64_ra_in_other(3, false, -1)] {
            let regs = Registers { exact: 1, ..at(STACK + 400, STACK + 8) };
            assert_eq!(x86(rule, regs, &[(STACK + 400, STACK)]), Err(StopReason::UnreadableStack));
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
        let called = Registers { exact: 0, ..at(STACK, 9) };
        assert_eq!(x86(Rule::x86_64(0, 0, 1), called, &[(STACK, 0)]), Err(StopReason::Complete));
        let interrupted = Registers { exact: 1, ..called };
        assert_eq!(x86(Rule::x86_64(0, 0, 1), interrupted, &[(STACK, 0)]), Err(StopReason::NotCode));
        assert_eq!(x86(Rule::END, interrupted, &[]), Err(StopReason::Complete));
        assert_eq!(x86(Rule::x86_64(0, 0, 1), at(STACK - 64, 9), &[]), Err(StopReason::UnreadableStack));
        assert_eq!(
            x86(Rule::x86_64(0, 0, -1), at(STACK + 64, 9), &[]),
            Err(StopReason::UnreadableStack),
            "CFA below sp"
        );
    }
}
