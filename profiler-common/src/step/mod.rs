//! One step of unwinding: a rule and the registers of a frame give the registers of its caller.
//!
//! The same code runs in the kernel program, in user space and in tests. It is written without
//! branches where it can be: each one would double the paths that the kernel's verifier follows.
//! A [`Machine`] brings the memory and, in the kernel, the barrier that keeps LLVM from turning the
//! arithmetic back into branches.

mod aarch64;
mod goroutine;
#[cfg(test)]
mod memory;
mod x86_64;

pub use aarch64::step_aarch64;
pub use goroutine::g;
pub use x86_64::step_x86_64;

use crate::record::StopReason;
use crate::row::{BY_FRAME_POINTER, END, UNSUPPORTED};

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

    /// Reads `words` words (1 to [`crate::row::MAX_SLOT`]) at `address` into the buffer behind [`Self::word`].
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

/// In the result of a step: the return address is 0, where that ends no stack.
pub const STOP_NOT_CODE: u64 = 1 << 5;

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
    } else if stop & STOP_NOT_CODE != 0 {
        StopReason::NotCode
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

/// A return address of 0 ends the stack, as those of coroutines that push it above their first function; but found by a
/// frame pointer it proves that this was none.
///
/// Nor does it end the stack where the frame was interrupted. CFI of hand-written assembly is true at its calls, since
/// exceptions go through them, and often nowhere else (in LuaJIT's interpreter it does not know the inner subroutines),
/// and any word may be 0. Threads and programs begin in code whose CFI says so.
#[inline(always)]
fn stop_at_zero<M: Machine>(rule: u64, pc: u64, exact: u64) -> u64 {
    let (zero, guess) = (is_zero::<M>(pc), flag(rule, BY_FRAME_POINTER));
    let by_cfi = zero & (1 ^ guess);
    ((by_cfi & (1 ^ exact)) * STOP_END) | ((by_cfi & exact) * STOP_NOT_CODE) | ((zero & guess) * STOP_NO_FRAME_POINTER)
}
