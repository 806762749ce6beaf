//! The table of locations: addresses of code, and the source lines that they turn out to be.

use indexmap::IndexMap;
use indexmap::map::Entry;
use profiler_common::address::VirtualAddress;

use crate::function::FunctionId;
use crate::handle::handle;
use crate::mapping::MappingId;

handle!(
    /// A location of a profile.
    pub LocationId
);

/// Functions inlined into each other at one address, at most; real code stays below 50. Of more,
/// the innermost and the outermost one are kept.
pub const MAX_LINES: usize = 128;

/// Whose code it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// The kernel's.
    Kernel,
    /// The process's.
    User,
}

/// How a frame was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FoundBy {
    /// By the sampled registers, by call frame information, or by the kernel's own walk.
    Cfi,
    /// By the frame pointer, for want of call frame information.
    FramePointer,
    /// So from where a thread was interrupted, by the sample or by a signal: a function that keeps no frame
    /// leaves the register to its caller, so that this caller may be missing in between.
    FramePointerOfInterrupted,
}

impl FoundBy {
    /// Whether the frame pointer led here.
    #[must_use]
    pub const fn frame_pointer(self) -> bool {
        matches!(self, Self::FramePointer | Self::FramePointerOfInterrupted)
    }
}

/// What makes a location: known when the sample is taken, but for the mapping of kernel modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocationKey {
    /// Where it lies; `None` when the address is in no known mapping.
    pub mapping: Option<MappingId>,
    /// The address to look up: the pc, or the return address minus 1.
    pub address: VirtualAddress,
    /// Whose code it is.
    pub kind: FrameKind,
    /// How the frame was found.
    pub found_by: FoundBy,
}

/// A place in the source code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    /// The function.
    pub function: FunctionId,
    /// The line in the function's file, counted from 1; 0 when not known.
    pub line: u32,
    /// The column, counted from 1; 0 when not known.
    pub column: u32,
}

/// `None` as long as nobody looked; empty when there are no symbols.
type Lines = Option<Box<[Line]>>;

/// Locations and their lines. Merged profiles may have other lines for an equal key (code that was
/// replaced at run time): such locations have different variant numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Locations(IndexMap<(LocationKey, u32), Lines>);

impl Locations {
    pub(crate) fn intern(&mut self, key: LocationKey) -> LocationId {
        let entry = self.0.entry((key, 0));
        let index = entry.index();
        entry.or_default();
        LocationId::at(index)
    }

    /// The location with this key and these lines, whichever of two equal keys knows them.
    pub(crate) fn intern_with_lines(&mut self, key: LocationKey, lines: Lines) -> LocationId {
        let mut variant = 0;
        loop {
            match self.0.entry((key, variant)) {
                Entry::Vacant(entry) => {
                    let index = entry.index();
                    entry.insert(lines);
                    return LocationId::at(index);
                }
                Entry::Occupied(mut entry) => {
                    if lines.is_none() || *entry.get() == lines {
                        return LocationId::at(entry.index());
                    }
                    if entry.get().is_none() {
                        entry.insert(lines);
                        return LocationId::at(entry.index());
                    }
                }
            }
            variant += 1;
        }
    }

    pub(crate) fn set_lines(&mut self, id: LocationId, mut lines: Vec<Line>) {
        if lines.len() > MAX_LINES {
            lines.drain(MAX_LINES - 1..lines.len() - 1);
        }
        self.0[id.index()] = Some(lines.into());
    }

    pub(crate) fn set_mapping(&mut self, id: LocationId, mapping: MappingId) {
        let mut changed = LocationKey { mapping: Some(mapping), ..*self.key(id) };
        let mut variant = 0;
        while let Err((_index, (key, taken))) = self.0.replace_index(id.index(), (changed, variant)) {
            (changed, variant) = (key, taken + 1);
        }
    }

    pub(crate) fn key(&self, id: LocationId) -> &LocationKey {
        match self.0.get_index(id.index()) {
            Some(((key, _), _)) => key,
            None => panic!("{id:?} is of another profile"),
        }
    }

    pub(crate) fn lines(&self, id: LocationId) -> Option<&[Line]> {
        self.0[id.index()].as_deref()
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (LocationId, &LocationKey, Option<&[Line]>)> {
        self.0.iter().enumerate().map(|(index, ((key, _), lines))| (LocationId::at(index), key, lines.as_deref()))
    }
}
