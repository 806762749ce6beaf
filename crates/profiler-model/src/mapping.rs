//! The table of mappings: what lies where in the address space of a process or of the kernel.

use indexmap::IndexSet;
use profiler_common::address::{Bias, FileOffset, VirtualAddress};

use crate::handle::handle;
use crate::string::StringId;

handle!(
    /// A mapping of a profile.
    pub MappingId
);

/// Addresses `[start, end)` that show a part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// The first address.
    pub start: VirtualAddress,
    /// The address after the last one.
    pub end: VirtualAddress,
    /// Where in the file `start` is.
    pub file_offset: FileOffset,
    /// What is subtracted from an address to get the one that the ELF file states.
    pub bias: Bias,
    /// The file, or a name in brackets for what is none: `[kernel.kallsyms]`, `[vdso]`.
    pub path: StringId,
    /// The GNU build id as lower-case hex digits; empty when there is none.
    pub build_id: StringId,
    /// Tells apart what is different and equal in all the rest: the inode of a file without a build
    /// id, the process that anonymous memory belongs to. Of the caller's making, never exported; 0
    /// where it is not needed.
    pub discriminator: u64,
}

/// Mappings, each once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mappings(IndexSet<Mapping>);

impl Mappings {
    pub(crate) fn intern(&mut self, mapping: Mapping) -> MappingId {
        MappingId::at(self.0.insert_full(mapping).0)
    }

    pub(crate) fn get(&self, id: MappingId) -> &Mapping {
        &self.0[id.index()]
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (MappingId, &Mapping)> {
        self.0.iter().enumerate().map(|(index, mapping)| (MappingId::at(index), mapping))
    }
}
