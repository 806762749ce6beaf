//! Where the stack pointer is not known.

use super::decode::{Code, ENTRY, Flow};
use super::depth::{goes_on, returns};
use super::effect::Rsp;
use super::solve::{falls, successors};

/// Where rsp may be something that is not known: behind what sets it, along all ways, until it is set from
/// the frame pointer.
pub(super) fn lost(code: &Code) -> Vec<bool> {
    let mut lost = vec![false; code.len() as usize];
    let mut stack: Vec<u32> = (0..code.len()).filter(|index| code.effect(*index).rsp == Rsp::Lost).collect();
    while let Some(index) = stack.pop() {
        let is_call = code.insn(index).is_some_and(|insn| insn.flow == Flow::Call);
        for next in successors(code, index).into_iter().flatten() {
            let ends = code.has(next, ENTRY) || is_call && falls(code, index) && !goes_on(code, index);
            // What returns has the return address on top of the stack.
            let ends = ends || returns(code, next);
            if let Some(flag) = lost.get_mut(next as usize).filter(|flag| !**flag && !ends) {
                *flag = true;
                if !matches!(code.effect(next).rsp, Rsp::FromFrame(_)) {
                    stack.push(next);
                }
            }
        }
    }
    lost
}
