//! Values that follow from one another along the ways through the code, forwards and backwards.

use super::decode::{Code, Flow};

/// No value is known.
pub(super) const UNKNOWN: i32 = i32::MIN;

/// No component.
const NO_COMPONENT: u32 = u32::MAX;

/// What instructions make of a value, and along which ways it goes.
pub(super) trait Rules {
    /// The value behind an instruction, from the one before it.
    fn forward(&self, index: u32, before: i32) -> Option<i32>;
    /// The value before an instruction, from the one behind it.
    fn backward(&self, index: u32, after: i32) -> Option<i32>;
    /// Whether the value goes from one instruction to a next one.
    fn linked(&self, from: u32, to: u32) -> bool;
    /// Whether a value can't be.
    fn impossible(&self, value: i32) -> bool;
}

/// The values before each instruction. What hangs together is a component: it is all true or all wrong.
pub(super) struct Solution {
    values: Vec<i32>,
    component: Vec<u32>,
    /// By component: it contradicts itself.
    bad: Vec<bool>,
    stack: Vec<u32>,
}

impl Solution {
    pub(super) fn new(code: &Code) -> Self {
        let count = code.len() as usize;
        Self { values: vec![UNKNOWN; count], component: vec![NO_COMPONENT; count], bad: Vec::new(), stack: Vec::new() }
    }

    /// The value before an instruction, be it contradicted or not.
    pub(super) fn raw(&self, index: u32) -> Option<i32> {
        self.values.get(index as usize).copied().filter(|value| *value != UNKNOWN)
    }

    /// The value before an instruction.
    pub(super) fn value(&self, index: u32) -> Option<i32> {
        self.raw(index).filter(|_| !self.component(index).is_some_and(|component| self.is_bad(component)))
    }

    pub(super) fn component(&self, index: u32) -> Option<u32> {
        self.component.get(index as usize).copied().filter(|component| *component != NO_COMPONENT)
    }

    pub(super) fn components(&self) -> u32 {
        self.bad.len() as u32
    }

    pub(super) fn is_bad(&self, component: u32) -> bool {
        self.bad.get(component as usize).copied().unwrap_or(true)
    }

    pub(super) fn spoil(&mut self, component: u32) {
        if let Some(bad) = self.bad.get_mut(component as usize) {
            *bad = true;
        }
    }

    /// What holds `index` is not true.
    pub(super) fn spoil_at(&mut self, index: u32) {
        if let Some(component) = self.component(index) {
            self.spoil(component);
        }
    }

    /// Lets a value be known before an instruction, and all that follows from it. Returns whether it is new.
    pub(super) fn pin(&mut self, code: &Code, rules: &impl Rules, index: u32, value: i32) -> bool {
        let component = self.components();
        if self.raw(index).is_some() {
            self.set(rules, index, value, component);
            return false;
        }
        self.bad.push(false);
        self.set(rules, index, value, component);
        while let Some(index) = self.stack.pop() {
            let Some(value) = self.raw(index) else { continue };
            self.step(code, rules, index, value, component);
        }
        true
    }

    fn step(&mut self, code: &Code, rules: &impl Rules, index: u32, value: i32, component: u32) {
        if let Some(after) = rules.forward(index, value) {
            for next in successors(code, index).into_iter().flatten() {
                if rules.linked(index, next) {
                    self.set(rules, next, after, component);
                }
            }
        }
        let falls = index.checked_sub(1).filter(|before| falls(code, *before));
        for before in falls.into_iter().chain(code.jumps_to(index)) {
            if !rules.linked(before, index) {
                continue;
            }
            let Some(came_from) = rules.backward(before, value) else { continue };
            if rules.forward(before, came_from) != Some(value) {
                self.spoil(component);
            }
            self.set(rules, before, came_from, component);
        }
    }

    fn set(&mut self, rules: &impl Rules, index: u32, value: i32, component: u32) {
        let Some(slot) = self.values.get_mut(index as usize) else { return };
        if *slot == UNKNOWN {
            *slot = value;
            if let Some(of) = self.component.get_mut(index as usize) {
                *of = component;
            }
            self.stack.push(index);
            if rules.impossible(value) {
                self.spoil(component);
            }
        } else if *slot != value {
            self.spoil(component);
            self.spoil_at(index);
        }
    }
}

/// Whether execution may go on with the next instruction.
pub(super) fn falls(code: &Code, index: u32) -> bool {
    code.insn(index).is_some_and(|insn| matches!(insn.flow, Flow::Next | Flow::Call | Flow::Branch))
}

/// The instructions with which execution may go on, as far as they are known.
pub(super) fn successors(code: &Code, index: u32) -> [Option<u32>; 2] {
    let next = falls(code, index).then(|| index + 1).filter(|next| *next < code.len());
    let jumps = |insn: &&super::decode::Insn| matches!(insn.flow, Flow::Branch | Flow::Jump);
    let target = code.insn(index).filter(jumps).map(|insn| insn.target).filter(|target| *target < code.len());
    [next, target]
}
