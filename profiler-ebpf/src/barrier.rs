//! A value that LLVM knows nothing about.

use profiler_common::step::Barrier;

/// The barrier of the kernel programs.
pub(crate) struct Asm;

impl Barrier for Asm {
    #[inline(always)]
    fn opaque(value: u64) -> u64 {
        opaque(value)
    }
}

/// Returns `value` through an empty `asm!`, so that LLVM can neither rebuild a branch from shifted
/// sign bits, nor drop a mask that the verifier needs, nor unroll a loop.
#[inline(always)]
pub(crate) fn opaque(value: u64) -> u64 {
    let mut value = value;
    // SAFETY: the template is empty: no instruction, no memory, no clobber.
    unsafe { core::arch::asm!("/* {0} */", inout(reg) value, options(pure, nomem, nostack, preserves_flags)) };
    value
}
