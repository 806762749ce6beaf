//! aarch64.

use super::Barrier as _;
use super::{
    Machine, Registers, STOP_RETURN_ADDRESS_LOST, STOP_UNREADABLE, flag, less, select, stop_at_zero, stop_before,
};
use crate::row::{BASE_FP, FP_SAVED, RA_FROM_BASE, RA_IN_LR, Rule, SIGNAL};

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
    stop |= stop_at_zero::<M>(rule, pc | stop, regs.exact);
    if stop != 0 {
        return stop;
    }
    let interrupted = regs.interrupted | signal;
    *regs = Registers { pc, sp, fp, lr: machine.word(1), interrupted, exact: signal };
    0
}

#[cfg(test)]
mod tests {
    use super::super::memory::{STACK, Stack, at};
    use super::super::stop_reason;
    use super::*;
    use crate::record::StopReason;

    fn arm(rule: Rule, regs: Registers, stack: &[(u64, u64)]) -> Result<Registers, StopReason> {
        let mut regs = regs;
        match step_aarch64(rule.0, &mut regs, &mut Stack::with(stack), 0x7f << 48) {
            0 => Ok(regs),
            stop => Err(stop_reason(stop)),
        }
    }

    #[test]
    fn aarch64_return_address_in_the_link_register() {
        let rule = Rule::aarch64(RA_IN_LR, 0, 0);
        let caller = arm(rule, at(STACK, 9), &[]).unwrap();
        assert_eq!((caller.pc, caller.sp, caller.fp, caller.exact), (0x2222, STACK, 9, 0));
        let caller = arm(Rule::aarch64(RA_IN_LR, 0, 4), at(STACK, 9), &[]).unwrap();
        assert_eq!((caller.pc, caller.sp), (0x2222, STACK + 32));
        let first = Registers { lr: 0, ..at(STACK, 9) };
        assert_eq!(arm(rule, first, &[]), Err(StopReason::NotCode), "0 ends a stack above a call only");
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
