//! Which calls never return.

use super::decode::{Code, Flow, NEVER, NONE, RETURNS};
use super::solve::falls;

/// What one call shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    Never,
    Nothing,
}

/// Marks the calls that do not return: those of functions from whose beginning no way leads to a return, and
/// those of which another call shows that nothing returns to it. Marks those that do: they reach a return.
pub(super) fn mark(code: &mut Code, proof: impl Fn(&Code, u32) -> Proof) {
    let calls = std::mem::take(&mut code.calls);
    for calls in calls.chunk_by(|one, other| one.0 == other.0) {
        if calls.iter().any(|(_callee, from)| proof(code, *from) == Proof::Never) {
            calls.iter().for_each(|(_callee, from)| code.mark(*from, NEVER));
        }
    }
    let mut named: Vec<u32> = calls.iter().map(|(_callee, from)| *from).collect();
    named.sort_unstable();
    code.calls = calls;
    let may_return = reaching(code, None, |index| leaves(code, index));
    let is_return = |index: u32| code.insn(index).is_some_and(|insn| insn.flow == Flow::Return);
    let returns = reaching(code, Some(&may_return), is_return);
    let returns: Vec<_> = may_return.into_iter().zip(returns).collect();
    for index in 0..code.len() {
        let Some(insn) = code.insn(index).filter(|insn| insn.flow == Flow::Call) else { continue };
        let flag = match returns.get(insn.target as usize) {
            Some((_, true)) => RETURNS,
            Some((false, _)) => NEVER,
            Some((true, false)) => 0,
            // Pointers to functions that do not return are rare.
            None if named.binary_search(&index).is_err() => RETURNS,
            None => 0,
        };
        code.mark(index, flag);
    }
}

/// By instruction: whether a way leads from there to one of the `ends`. It goes over calls of what is not here,
/// and of what `returning` says that it may return; without that, of what reaches an end itself.
fn reaching(code: &Code, returning: Option<&[bool]>, ends: impl Fn(u32) -> bool) -> Vec<bool> {
    let mut callers: Vec<(u32, u32)> = (0..code.len())
        .filter_map(|index| {
            let insn = code.insn(index)?;
            (insn.flow == Flow::Call && insn.target != NONE).then_some((insn.target, index))
        })
        .collect();
    callers.sort_unstable();
    let mut reaching = vec![false; code.len() as usize];
    let mut stack: Vec<u32> = (0..code.len()).filter(|index| ends(*index)).collect();
    while let Some(index) = stack.pop() {
        let Some(flag) = reaching.get_mut(index as usize).filter(|flag| !**flag) else { continue };
        *flag = true;
        stack.extend(code.jumps_to(index));
        let known = |at: u32| reaching.get(at as usize).copied().unwrap_or(true);
        let returns = |at: u32| returning.map_or_else(|| known(at), |of| of.get(at as usize).copied().unwrap_or(true));
        let comes_back = |call: u32| {
            let Some(insn) = code.insn(call).filter(|insn| insn.flow == Flow::Call) else { return true };
            !code.has(call, NEVER) && (insn.target == NONE || returns(insn.target))
        };
        stack.extend(index.checked_sub(1).filter(|before| falls(code, *before) && comes_back(*before)));
        let first = callers.partition_point(|(target, _from)| *target < index);
        let called_by = callers.get(first..).unwrap_or_default().iter().take_while(|(target, _from)| *target == index);
        stack.extend(called_by.map(|(_target, from)| *from).filter(|from| known(from + 1) && !code.has(*from, NEVER)));
    }
    reaching
}

/// Whether execution may go on where nothing is known.
fn leaves(code: &Code, index: u32) -> bool {
    let Some(insn) = code.insn(index) else { return false };
    let past_the_end = insn.length == 0;
    match insn.flow {
        Flow::Return | Flow::Away => true,
        Flow::Jump | Flow::Branch => insn.target == NONE,
        Flow::Next | Flow::Call | Flow::ReturnMore => false,
        Flow::Stop => past_the_end,
    }
}
