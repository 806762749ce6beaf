//! x86_64: from a thread's own stack back to that of the goroutine which went over to it.

use super::{Machine, flag, is_zero, less, select};
use crate::row::{AT_SAVED_PC, KEPT_ON_STACK, THREAD_OFFSET_BITS};

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
pub(super) fn goroutine_cfa<M: Machine>(rule: u64, offset: u64, sp: u64, machine: &mut M) -> (u64, u64) {
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

#[cfg(test)]
mod tests {
    use super::super::Registers;
    use super::super::memory::{STACK, at};
    use super::super::x86_64::tests::x86;
    use super::*;
    use crate::record::StopReason;
    use crate::row::{GOROUTINE, Rule, SLOT_UNKNOWN};

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
}
