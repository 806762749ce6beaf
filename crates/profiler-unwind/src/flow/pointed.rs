//! Functions that are known by pointers to them: what a program hands to others (`pthread_create`) is neither called by
//! itself nor need it return.
//!
//! A pointer may as well lead to a part of a function (`&&label`), or to data, so the code has to show that it is one:
//! it calls with a stack that is aligned if it begins there, and calls what is elsewhere, or by a pointer. In the middle
//! of functions that do so compilers have the stack aligned, so there these calls would not be. For functions of the
//! same file gcc may leave the stack as it is (`-fipa-stack-alignment`): such calls show nothing.

use super::decode::{BOUNDARY, Code, ENTRY, FILLER, Flow};
use super::depth::{DepthRules, goes_on};
use super::solve::{Solution, falls};

/// Lets functions begin where pointers lead, where nothing goes on and nothing is known. Returns where. Where callees
/// pop nobody aligns the stack.
pub(super) fn begin(code: &mut Code, lost: &[bool], solution: &mut Solution) -> Vec<u32> {
    let mut begun = Vec::new();
    for at in std::mem::take(&mut code.pointed) {
        let Some(index) = code.index(at).filter(|index| !code.callees_pop && may_begin(code, *index)) else { continue };
        let is_lost = lost.get(index as usize).copied().unwrap_or(true);
        if is_lost || solution.raw(index).is_some() {
            continue;
        }
        code.mark(index, ENTRY | BOUNDARY);
        solution.pin(code, &DepthRules { code, lost }, index, 0);
        begun.push(index);
    }
    begun
}

/// Whether a function that nobody calls may begin at an instruction.
fn may_begin(code: &Code, index: u32) -> bool {
    !code.has(index, ENTRY | FILLER) && code.jumps_to(index).next().is_none() && !is_gone_on_to(code, index)
}

/// Whether what is before an instruction, and before the filling there, may go on with it.
fn is_gone_on_to(code: &Code, index: u32) -> bool {
    let before = (0..index).rev().find(|before| !code.has(*before, FILLER));
    before.is_some_and(|before| match code.insn(before).map(|insn| insn.flow) {
        Some(Flow::Call) => goes_on(code, before),
        _ => falls(code, before),
    })
}
