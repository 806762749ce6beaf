//! Typed handles: the index of an entry in its table, which cannot be taken for one of another table.

macro_rules! handle {
    ($(#[$doc:meta])* $visibility:vis $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $visibility struct $name(u32);

        impl $name {
            /// The handle of the entry at `index`.
            ///
            /// # Panics
            /// Beyond 2^32 - 1. The smallest entry takes 32 bytes, so memory ends long before.
            pub(crate) fn at(index: usize) -> Self {
                assert!(index < u32::MAX as usize, "more than 2^32 entries in a table");
                #[expect(clippy::cast_possible_truncation, reason = "checked above")]
                Self(index as u32)
            }

            /// The position of the entry in its table: 0 for the first that came.
            #[must_use]
            $visibility const fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

pub(crate) use handle;
