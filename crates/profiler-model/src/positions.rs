//! Where the entries of a table are, by what they hold.

use std::hash::{BuildHasher as _, Hash, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::handle::handle;

handle!(
    /// An entry of a table.
    pub(crate) Position
);

/// The index of a table that only grows: 5 bytes for each place, of which at least 7 in 16 are taken. An `IndexMap`
/// takes 9 for a place and 8 more for each entry, which counts where every short process brings entries of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Positions {
    places: HashTable<Position>,
    hasher: RandomState,
}

impl Positions {
    /// The position of the entry that holds `key`, where `get` says what an entry holds. If there is none yet, it is
    /// noted that the entry at `next` will.
    pub(crate) fn find_or_note<'a, K>(&mut self, key: &K, get: impl Fn(usize) -> &'a K, next: usize) -> Option<usize>
    where
        K: Hash + Eq + ?Sized + 'a,
    {
        let get = |position: &Position| get(position.index());
        let hash = |key: &K| self.hasher.hash_one(key);
        match self.places.entry(hash(key), |at| get(at) == key, |at| hash(get(at))) {
            Entry::Occupied(found) => Some(found.get().index()),
            Entry::Vacant(place) => {
                place.insert(Position::at(next));
                None
            }
        }
    }
}
