//! Where rbp points to the frame: how far below the CFA it is.

use super::decode::{Code, ENTRY};
use super::depth::{Depths, WORD};
use super::effect::{Rsp, Use};
use super::solve::{Rules, Solution, successors};

/// rbp is the caller's.
const NO_FRAME: i32 = 0;

struct FrameRules<'a> {
    code: &'a Code,
    depths: &'a Depths,
}

impl FrameRules<'_> {
    fn kept(&self, index: u32, value: i32) -> Option<i32> {
        let effect = self.code.effect(index);
        let [rbp, _rbx] = effect.uses;
        // `enter` saves it and sets it.
        effect.frame.is_none().then_some(())?;
        matches!(rbp, Use::Nothing | Use::Save(_)).then_some(value)
    }
}

impl Rules for FrameRules<'_> {
    fn forward(&self, index: u32, before: i32) -> Option<i32> {
        self.kept(index, before)
    }

    fn backward(&self, index: u32, after: i32) -> Option<i32> {
        self.kept(index, after)
    }

    fn linked(&self, from: u32, to: u32) -> bool {
        self.depths.linked(self.code, from, to)
    }

    fn impossible(&self, _value: i32) -> bool {
        false
    }
}

/// The frames of a piece of code.
pub(super) struct Frames(Solution);

impl Frames {
    /// Learns where rbp points to, and from that depths that were not known. What contradicts them is spoilt.
    pub(super) fn solve(code: &Code, depths: &mut Depths) -> Self {
        let mut frames = Self::from_depths(code, depths);
        let mut contradicted = Vec::new();
        let mut learnt = false;
        for index in 0..code.len() {
            let Rsp::FromFrame(bytes) = code.effect(index).rsp else { continue };
            match (frames.at(index), frames.0.raw(index)) {
                (Some(below), _) if depths.behind(code, index).is_none() => {
                    depths.pin_behind(code, index, below - WORD - bytes);
                    learnt = true;
                }
                (None, Some(_)) => contradicted.push(index),
                _ => {}
            }
        }
        for index in &contradicted {
            depths.spoil_behind(code, *index);
        }
        if learnt || !contradicted.is_empty() {
            depths.go_through_calls(code);
            frames = Self::from_depths(code, depths);
        }
        frames
    }

    fn from_depths(code: &Code, depths: &Depths) -> Self {
        let rules = FrameRules { code, depths };
        let mut solution = Solution::new(code);
        for index in 0..code.len() {
            let effect = code.effect(index);
            if code.has(index, ENTRY) {
                solution.pin(code, &rules, index, NO_FRAME);
            }
            if let Rsp::FromFrame(bytes) = effect.rsp
                && let Some(depth) = depths.behind(code, index)
            {
                solution.pin(code, &rules, index, depth + WORD + bytes);
            }
            if let Some(bytes) = effect.frame
                && let Some(depth) = depths.at(index)
            {
                for next in successors(code, index).into_iter().flatten() {
                    if rules.linked(index, next) {
                        solution.pin(code, &rules, next, depth + WORD - bytes);
                    }
                }
            }
        }
        Self(solution)
    }

    /// How many bytes rbp is below the CFA before an instruction, if it points to the frame.
    pub(super) fn at(&self, index: u32) -> Option<i32> {
        self.0.value(index).filter(|below| *below > NO_FRAME)
    }
}
