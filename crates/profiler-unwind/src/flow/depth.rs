//! How deep the stack is before each instruction: bytes below the return address.
//!
//! It is 0 where functions begin, where they return and where they jump to the beginning of another one. From
//! there it follows along all ways through the code in both directions, but not through changes of rsp that
//! are not known. What contradicts itself is not known.

use super::decode::{BOUNDARY, Code, ENTRY, FILLER, FRAME_LEFT, Flow, NEVER, NONE, PUSHED_BACK, REALIGNED, RETURNS};
use super::effect::{MOST_BYTES, Rsp};
use super::lost::lost;
use super::moved::{self, Moved};
use super::pointed;
use super::returns::{self, Proof};
use super::solve::{Rules, Solution, successors};

/// Calls keep the stack aligned to this many bytes, the return address included (System V ABI, x86-64
/// supplement, 3.2.2).
const CALL_ALIGNMENT: i32 = 16;

/// Rounds in which what is behind calls is learnt from what is before them and the other way round. Two are
/// enough for real code.
const MOST_ROUNDS: usize = 8;

/// The return address in bytes.
pub(super) const WORD: i32 = 8;

/// The depths of a piece of code.
pub(super) struct Depths {
    solution: Solution,
    /// Before these instructions rsp was set to something not known.
    lost: Vec<bool>,
    /// The first component that is known by a pointer to its beginning.
    first_by_pointer: u32,
    /// The first component that is known by nothing but calls that return.
    first_by_call: u32,
    /// By component: which group it belongs to, see [`Depths::group`].
    groups: Vec<u32>,
}

pub(super) struct DepthRules<'a> {
    pub(super) code: &'a Code,
    pub(super) lost: &'a [bool],
}

impl DepthRules<'_> {
    pub(super) fn is_lost(&self, index: u32) -> bool {
        self.lost.get(index as usize).copied().unwrap_or(true)
    }
}

impl Rules for DepthRules<'_> {
    fn forward(&self, index: u32, before: i32) -> Option<i32> {
        match self.code.effect(index).rsp {
            Rsp::PushAgain(above) if above == before => Some(0),
            // The return address: where it is kept meanwhile is not followed.
            Rsp::PopAway if before == 0 => None,
            rsp => before.checked_add(rsp.bytes()?),
        }
    }

    fn backward(&self, index: u32, after: i32) -> Option<i32> {
        match self.code.effect(index).rsp {
            Rsp::PushAgain(_) if after == 0 => None,
            _ if after == 0 && self.code.has(index, PUSHED_BACK) => None,
            // The return address was popped, and pushed again where something else was before.
            Rsp::PopAway if after < 0 => None,
            rsp => after.checked_sub(rsp.bytes()?),
        }
    }

    fn linked(&self, from: u32, to: u32) -> bool {
        let is_call = self.code.insn(from).is_some_and(|insn| insn.flow == Flow::Call);
        !is_call && !self.code.has(to, ENTRY) && !self.is_lost(from) && !self.is_lost(to)
    }

    fn impossible(&self, value: i32) -> bool {
        !(0..MOST_BYTES).contains(&value)
    }
}

impl Depths {
    pub(super) fn solve(code: &mut Code, moved: &[Moved]) -> Self {
        let (mut lost, mut solution) = from_outside(code);
        if moved::begin(code, moved, &solution) {
            (lost, solution) = from_outside(code);
        }
        returns::mark(code, |code, index| {
            if code.has(index + 1, BOUNDARY) {
                return Proof::Never;
            }
            // That both are the same proves nothing: what is behind a call that never returns may be another part
            // of the same function.
            match (solution.value(index), solution.value(index + 1)) {
                (Some(before), Some(behind)) if before != behind => Proof::Never,
                _ => Proof::Nothing,
            }
        });
        spoil_entered(code, &lost, &mut solution);
        let first_by_pointer = solution.components();
        let pointed = pointed::begin(code, &lost, &mut solution);
        let first_by_call = solution.components();
        let mut depths = Self { solution, lost, first_by_pointer, first_by_call, groups: Vec::new() };
        depths.go_through_calls(code);
        for index in pointed.into_iter().filter(|index| depths.at(*index).is_none()) {
            code.unmark(index, ENTRY | BOUNDARY);
        }
        depths
    }

    /// Lets the depth behind an instruction that sets rsp from the frame pointer be known.
    pub(super) fn pin_behind(&mut self, code: &Code, index: u32, depth: i32) {
        let rules = DepthRules { code, lost: &self.lost };
        for next in successors(code, index).into_iter().flatten() {
            if !code.has(next, ENTRY) && !rules.is_lost(next) {
                self.solution.pin(code, &rules, next, depth);
            }
        }
    }

    /// Goes on behind calls of which one side is known, then looks at what that says together.
    pub(super) fn go_through_calls(&mut self, code: &Code) {
        for _round in 0..MOST_ROUNDS {
            let forward = (0..code.len()).filter(|index| self.learn(code, *index)).count();
            let backward = (0..code.len()).rev().filter(|index| self.learn(code, *index)).count();
            if forward + backward == 0 {
                break;
            }
        }
        for index in calls(code) {
            let (Some(before), Some(behind)) = (self.solution.raw(index), self.solution.raw(index + 1)) else {
                continue;
            };
            if before != behind && goes_on(code, index) {
                for side in [index, index + 1] {
                    if self.solution.component(side).is_some_and(|component| component >= self.first_by_pointer) {
                        self.solution.spoil_at(side);
                    }
                }
            }
        }
        self.spoil_overwritten(code);
        self.group(code);
    }

    /// Learns one side of a call from the other. Returns whether something is new.
    fn learn(&mut self, code: &Code, index: u32) -> bool {
        if !goes_on(code, index) {
            return false;
        }
        let rules = DepthRules { code, lost: &self.lost };
        if rules.is_lost(index) || rules.is_lost(index + 1) {
            return false;
        }
        match (self.solution.raw(index), self.solution.raw(index + 1)) {
            (Some(before), None) => self.solution.pin(code, &rules, index + 1, before),
            (None, Some(behind)) if is_aligned(behind) => self.solution.pin(code, &rules, index, behind),
            _ => false,
        }
    }

    /// Where the return address is written over, it is none.
    fn spoil_overwritten(&mut self, code: &Code) {
        for index in 0..code.len() {
            let Some((place, bytes)) = code.effect(index).store else { continue };
            let Some(depth) = self.solution.raw(index).filter(|_| place.base == super::effect::Base::Rsp) else {
                continue;
            };
            let above = place.offset.saturating_sub(depth);
            if above < WORD && above.saturating_add_unsigned(bytes) > 0 {
                self.solution.spoil_at(index);
            }
        }
    }

    /// What calls lead on to is one group with what is before them: all of it is true or none.
    fn group(&mut self, code: &Code) {
        let count = self.solution.components();
        self.groups = (0..count).collect();
        let mut unproven = Vec::new();
        for index in calls(code) {
            if !self.agree(code, index) {
                continue;
            }
            if let (Some(one), Some(other)) = (self.solution.component(index), self.solution.component(index + 1)) {
                if code.has(index, RETURNS) {
                    self.join(one, other);
                } else {
                    unproven.push((one, other));
                }
            }
        }
        self.strip(unproven);
        self.spoil_misaligned(code);
        for component in (0..count).filter(|component| self.solution.is_bad(*component)).collect::<Vec<_>>() {
            let root = self.root(component);
            self.solution.spoil(root);
        }
        for component in 0..count {
            let root = self.root(component);
            if self.solution.is_bad(root) {
                self.solution.spoil(component);
            }
        }
    }

    /// What is known by nothing but one call that may well not return is not known. The rest is joined.
    fn strip(&mut self, mut unproven: Vec<(u32, u32)>) {
        for (one, other) in &mut unproven {
            (*one, *other) = (self.root(*one), self.root(*other));
        }
        unproven.retain(|(one, other)| one != other);
        let mut ends: Vec<(u32, usize)> =
            unproven.iter().enumerate().flat_map(|(call, (one, other))| [(*one, call), (*other, call)]).collect();
        ends.sort_unstable();
        let calls_of = |group: u32| {
            let first = ends.partition_point(|(of, _call)| *of < group);
            ends.get(first..).unwrap_or_default().iter().take_while(move |(of, _call)| *of == group)
        };
        let mut left = vec![0u32; self.groups.len()];
        for (group, _call) in &ends {
            left.get_mut(*group as usize).into_iter().for_each(|left| *left += 1);
        }
        let mut kept = vec![true; unproven.len()];
        // The smallest number of a group is its root, and those known without calls have the smallest.
        let loose = |left: &[u32], group: u32| group >= self.first_by_call && left.get(group as usize) == Some(&1);
        let mut stack: Vec<u32> = (0..left.len() as u32).filter(|group| loose(&left, *group)).collect();
        let mut spoilt = Vec::new();
        while let Some(group) = stack.pop() {
            spoilt.push(group);
            for (_group, call) in calls_of(group) {
                let (Some(kept), Some((one, other))) = (kept.get_mut(*call), unproven.get(*call)) else { continue };
                if !std::mem::replace(kept, false) {
                    continue;
                }
                let neighbour = if *one == group { *other } else { *one };
                left.get_mut(neighbour as usize).into_iter().for_each(|left| *left -= 1);
                stack.extend(loose(&left, neighbour).then_some(neighbour));
            }
        }
        spoilt.into_iter().for_each(|group| self.solution.spoil(group));
        for ((one, other), _kept) in unproven.into_iter().zip(kept).filter(|(_call, kept)| *kept) {
            self.join(one, other);
        }
    }

    fn join(&mut self, one: u32, other: u32) {
        let (one, other) = (self.root(one), self.root(other));
        if let Some(parent) = self.groups.get_mut(one.max(other) as usize) {
            *parent = one.min(other);
        }
    }

    /// A group that nowhere returns and calls with a stack that is not aligned need not begin where it seems
    /// to: nobody has called it (the beginning of a coroutine). One that is known by a pointer has to call something
    /// with an aligned stack that is elsewhere or not known ([`pointed`]). Where callees pop nobody aligns the stack.
    fn spoil_misaligned(&mut self, code: &Code) {
        if code.callees_pop {
            return;
        }
        let mut confirmed = vec![false; self.groups.len()];
        for index in (0..code.len()).filter(|index| is_outside(code, *index) && !begins_only(code, *index)) {
            if let Some(component) = self.solution.component(index) {
                let root = self.root(component) as usize;
                confirmed.get_mut(root).into_iter().for_each(|confirmed| *confirmed = true);
            }
        }
        let mut shown = confirmed.clone();
        for index in calls(code) {
            let Some((depth, component)) = self.solution.raw(index).zip(self.solution.component(index)) else {
                continue;
            };
            let root = self.root(component) as usize;
            if is_aligned(depth) {
                let leaves = code.insn(index).is_some_and(|insn| insn.target == NONE);
                shown.get_mut(root).into_iter().for_each(|shown| *shown |= leaves);
            } else if !confirmed.get(root).copied().unwrap_or(false) {
                self.solution.spoil(component);
            }
        }
        for component in self.first_by_pointer..self.first_by_call {
            let root = self.root(component) as usize;
            if !shown.get(root).copied().unwrap_or(false) {
                self.solution.spoil(component);
            }
        }
    }

    fn root(&mut self, mut component: u32) -> u32 {
        while let Some(parent) = self.parent(component) {
            // Halves the way for the next time.
            let above = self.parent(parent).unwrap_or(parent);
            self.groups.get_mut(component as usize).into_iter().for_each(|parent| *parent = above);
            component = above;
        }
        component
    }

    fn parent(&self, component: u32) -> Option<u32> {
        self.groups.get(component as usize).copied().filter(|parent| *parent != component)
    }

    /// Whether the depths on both sides of a call allow that it returns.
    fn agree(&self, code: &Code, index: u32) -> bool {
        let sides = self.solution.raw(index).zip(self.solution.raw(index + 1));
        goes_on(code, index) && sides.is_some_and(|(before, behind)| before == behind)
    }

    /// Whether both sides of a call are known and the same.
    fn returns(&self, code: &Code, index: u32) -> bool {
        self.agree(code, index) && self.at(index).is_some() && self.at(index + 1).is_some()
    }

    /// The depth before an instruction.
    pub(super) fn at(&self, index: u32) -> Option<i32> {
        self.solution.value(index).filter(|_| !self.is_lost(index))
    }

    /// The depth behind an instruction, as those that follow have it.
    pub(super) fn behind(&self, code: &Code, index: u32) -> Option<i32> {
        let next = successors(code, index).into_iter().flatten().next()?;
        if code.has(next, ENTRY) { Some(0) } else { self.at(next) }
    }

    pub(super) fn is_lost(&self, index: u32) -> bool {
        self.lost.get(index as usize).copied().unwrap_or(true)
    }

    pub(super) fn spoil_behind(&mut self, code: &Code, index: u32) {
        for next in successors(code, index).into_iter().flatten() {
            self.solution.spoil_at(next);
        }
    }

    /// Whether a way leads from an instruction to a next one within a frame.
    pub(super) fn linked(&self, code: &Code, from: u32, to: u32) -> bool {
        if code.has(from, REALIGNED) || code.has(to, REALIGNED) || pushes_return_address(code, from, self.at(from)) {
            return false;
        }
        let is_call = code.insn(from).is_some_and(|insn| insn.flow == Flow::Call);
        let both_lost = self.is_lost(from) && self.is_lost(to);
        let both_blank = self.is_blank(from) && self.is_blank(to) && code.has(from, RETURNS);
        let goes_on = || (both_lost || both_blank) && goes_on(code, from);
        !code.has(to, ENTRY) && (!is_call || self.returns(code, from) || goes_on())
    }

    /// The depths at instructions with the same number follow from one another.
    pub(super) fn component(&self, index: u32) -> Option<u32> {
        self.solution.component(index)
    }

    /// Whether nothing tells how deep the stack is, also nothing that was contradicted.
    pub(super) fn is_blank(&self, index: u32) -> bool {
        self.solution.raw(index).is_none()
    }
}

/// Where rsp is not known, and what follows from where it is as a caller has it.
fn from_outside(code: &Code) -> (Vec<bool>, Solution) {
    let lost = lost(code);
    let mut solution = Solution::new(code);
    let rules = DepthRules { code, lost: &lost };
    for index in (0..code.len()).filter(|index| is_outside(code, *index) && !rules.is_lost(*index)) {
        solution.pin(code, &rules, index, 0);
    }
    (lost, solution)
}

/// What seems to be called and is also gone on to with something on the stack is no beginning of a function, or
/// what is before it is no code.
fn spoil_entered(code: &Code, lost: &[bool], solution: &mut Solution) {
    let rules = DepthRules { code, lost };
    for index in (1..code.len()).filter(|index| code.has(*index, ENTRY)) {
        let before = index - 1;
        let goes_on = code.insn(before).is_some_and(|insn| matches!(insn.flow, Flow::Next | Flow::Branch));
        let depth = solution.raw(before).filter(|_| goes_on).and_then(|depth| rules.forward(before, depth));
        if depth.is_some_and(|depth| depth != 0) {
            solution.spoil_at(before);
            solution.spoil_at(index);
        }
    }
}

fn is_aligned(depth: i32) -> bool {
    depth.saturating_add(WORD) % CALL_ALIGNMENT == 0
}

fn calls(code: &Code) -> impl Iterator<Item = u32> {
    (0..code.len()).filter(|index| code.insn(*index).is_some_and(|insn| insn.flow == Flow::Call))
}

/// Whether there is something behind a call to which it may return.
pub(super) fn goes_on(code: &Code, index: u32) -> bool {
    code.insn(index).is_some_and(|insn| insn.flow == Flow::Call)
        && index + 1 < code.len()
        && !code.has(index, NEVER)
        && !code.has(index + 1, BOUNDARY)
        && (!code.has(index + 1, FILLER) || begins_loop(code, index + 1))
}

/// Whether filling ends where a loop begins: it is there to align the loop, and what is before it goes on.
fn begins_loop(code: &Code, filling: u32) -> bool {
    let Some(head) = (filling..code.len()).find(|index| !code.has(*index, FILLER)) else { return false };
    !code.has(head, ENTRY | BOUNDARY) && code.jumps_to(head).any(|from| from > head)
}

/// Where the stack is as a caller has it: at the beginning, behind what leaves a frame, before a return, and before a
/// jump to another function.
pub(super) fn is_outside(code: &Code, index: u32) -> bool {
    code.has(index, ENTRY | FRAME_LEFT) || !begins_only(code, index)
}

fn begins_only(code: &Code, index: u32) -> bool {
    let Some(insn) = code.insn(index) else { return true };
    let leaves = matches!(insn.flow, Flow::Jump | Flow::Branch) && code.has(insn.target, ENTRY);
    !leaves && !returns(code, index)
}

/// Whether the return address is pushed again. Behind that is another frame.
fn pushes_return_address(code: &Code, index: u32, depth: Option<i32>) -> bool {
    matches!(code.effect(index).rsp, Rsp::PushAgain(above) if depth == Some(above))
}

pub(super) fn returns(code: &Code, index: u32) -> bool {
    code.insn(index).is_some_and(|insn| matches!(insn.flow, Flow::Return | Flow::ReturnMore))
}
