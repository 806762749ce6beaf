//! The table of stacks.

use crate::handle::handle;
use crate::location::LocationId;
use crate::positions::Positions;

handle!(
    /// A stack of a profile.
    pub StackId
);

/// Stacks, leaf first, each once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stacks {
    /// The frames of all stacks, one stack after the other.
    frames: Vec<LocationId>,
    /// Where each stack ends in `frames`.
    ends: Vec<usize>,
    positions: Positions,
}

impl Stacks {
    pub(crate) fn intern(&mut self, stack: &[LocationId]) -> StackId {
        let (frames, ends) = (&self.frames, &self.ends);
        let found = self.positions.find_or_note(stack, |index| at(frames, ends, index), ends.len());
        StackId::at(found.unwrap_or_else(|| {
            self.frames.extend_from_slice(stack);
            self.ends.push(self.frames.len());
            self.ends.len() - 1
        }))
    }

    pub(crate) fn get(&self, id: StackId) -> &[LocationId] {
        at(&self.frames, &self.ends, id.index())
    }
}

fn at<'a>(frames: &'a [LocationId], ends: &[usize], index: usize) -> &'a [LocationId] {
    let start = index.checked_sub(1).map_or(0, |before| ends[before]);
    &frames[start..ends[index]]
}
