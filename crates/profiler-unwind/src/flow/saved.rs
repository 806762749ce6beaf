//! Where the caller's rbp and rbx are.

use super::decode::Code;
use super::depth::{Depths, WORD, is_outside};
use super::effect::{Base, Place, Rsp, Use};
use super::frame::Frames;
use super::solve::{Rules, Solution};
use profiler_common::row::{MAX_SLOT, SLOT_UNKNOWN};

/// It is in the register.
const IN_REGISTER: i32 = 0;
/// It is gone.
const GONE: i32 = -1;

struct SavedRules<'a> {
    code: &'a Code,
    depths: &'a Depths,
    frames: &'a Frames,
    /// Its index in [`super::effect::Effect::uses`].
    register: usize,
}

impl SavedRules<'_> {
    fn use_at(&self, index: u32) -> Use {
        self.code.effect(index).uses.get(self.register).copied().unwrap_or(Use::Nothing)
    }

    /// How many bytes below the CFA a place is.
    fn below(&self, index: u32, place: Place) -> Option<i32> {
        let base = match place.base {
            Base::Rsp => self.depths.at(index)? + WORD,
            Base::Rbp => self.frames.at(index)?,
        };
        base.checked_sub(place.offset)
    }

    /// Whether the word `slot` bytes below the CFA is given up, or something else is stored there.
    fn overwritten(&self, index: u32, slot: i32) -> bool {
        let effect = self.code.effect(index);
        let stored = effect.store.is_some_and(|(place, bytes)| {
            self.below(index, place)
                .is_some_and(|below| slot < below.saturating_add(WORD) && below < slot.saturating_add_unsigned(bytes))
        });
        let kept_bytes = match effect.rsp {
            Rsp::FromFrame(bytes) => self.frames.at(index).map(|below| below - WORD - bytes),
            rsp => {
                let freed = rsp.bytes().filter(|bytes| *bytes < 0);
                self.depths.at(index).zip(freed).and_then(|(depth, freed)| depth.checked_add(freed))
            }
        };
        stored || kept_bytes.is_some_and(|depth| slot > depth.saturating_add(WORD))
    }
}

impl Rules for SavedRules<'_> {
    fn forward(&self, index: u32, before: i32) -> Option<i32> {
        Some(match (self.use_at(index), before) {
            (_, GONE) => GONE,
            // What is stored above the return address is an argument.
            (Use::Save(place), IN_REGISTER) => {
                self.below(index, place).filter(|below| *below > WORD).unwrap_or(IN_REGISTER)
            }
            (Use::Nothing, IN_REGISTER) => IN_REGISTER,
            (Use::Load(_) | Use::Write, IN_REGISTER) => GONE,
            (Use::Load(place), slot) if self.below(index, place) == Some(slot) => IN_REGISTER,
            (_, slot) if self.overwritten(index, slot) => GONE,
            (_, slot) => slot,
        })
    }

    fn backward(&self, index: u32, after: i32) -> Option<i32> {
        match (self.use_at(index), after) {
            (_, GONE) => None,
            (Use::Save(place), slot) if self.below(index, place) == Some(slot) => Some(IN_REGISTER),
            (Use::Load(place), IN_REGISTER) => self.below(index, place),
            (_, value) => Some(value),
        }
    }

    fn linked(&self, from: u32, to: u32) -> bool {
        self.depths.linked(self.code, from, to)
    }

    fn impossible(&self, _value: i32) -> bool {
        false
    }
}

/// Where the caller's value of one register is.
pub(super) struct SavedRegister(Solution);

impl SavedRegister {
    /// `register` is the index in [`super::effect::Effect::uses`].
    pub(super) fn solve(code: &Code, depths: &Depths, frames: &Frames, register: usize) -> Self {
        let rules = SavedRules { code, depths, frames, register };
        let mut solution = Solution::new(code);
        for index in (0..code.len()).filter(|index| is_outside(code, *index)) {
            solution.pin(code, &rules, index, IN_REGISTER);
        }
        Self(solution)
    }

    /// The slot of a rule.
    pub(super) fn slot(&self, index: u32) -> u8 {
        match self.0.value(index) {
            Some(IN_REGISTER) => 0,
            Some(below) if below > WORD && below % WORD == 0 => {
                u8::try_from(below / WORD).ok().filter(|slot| *slot <= MAX_SLOT).unwrap_or(SLOT_UNKNOWN)
            }
            _ => SLOT_UNKNOWN,
        }
    }
}
