//! The table of stacks.

use indexmap::IndexSet;

use crate::handle::handle;
use crate::location::LocationId;

handle!(
    /// A stack of a profile.
    StackId
);

/// Stacks, leaf first, each once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stacks(IndexSet<Box<[LocationId]>>);

impl Stacks {
    pub(crate) fn intern(&mut self, stack: &[LocationId]) -> StackId {
        let index = match self.0.get_index_of(stack) {
            Some(index) => index,
            None => self.0.insert_full(stack.into()).0,
        };
        StackId::at(index)
    }

    pub(crate) fn get(&self, id: StackId) -> &[LocationId] {
        &self.0[id.index()]
    }
}
