//! The profile: all tables, and what they are about.

use std::collections::HashMap;
use std::num::NonZeroU32;

use profiler_common::address::Svma;
use std::ops::Index;

use crate::function::{Function, FunctionId, Functions};
use crate::location::{FoundBy, Line, LocationId, LocationKey, Locations};
use crate::mapping::{Mapping, MappingId, Mappings};
use crate::quality::Quality;
use crate::sample::{Labels, Sample, Samples};
use crate::stack::Stacks;
use crate::string::{StringId, Strings, clean};

/// What was profiled, where and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The command line that was profiled, or another title.
    pub title: String,
    /// The host's name.
    pub host: String,
    /// The kernel's release (`uname -r`).
    pub kernel_release: String,
    /// Samples per second on a busy CPU, in Hz.
    pub sample_rate_hz: NonZeroU32,
    /// When sampling began, in ns since 1970-01-01 UTC.
    pub start_unix_ns: u64,
    /// How long it went on, in ns.
    pub duration_ns: u64,
}

impl About {
    /// The time that one sample stands for, in ns. Truncated, as the kernel does for a cpu-clock
    /// event (`perf_swevent_init_hrtimer` in kernel/events/core.c).
    #[must_use]
    pub const fn period_ns(&self) -> u64 {
        1_000_000_000 / self.sample_rate_hz.get() as u64
    }
}

/// Samples and all that is known about them.
#[derive(Clone, Debug)]
pub struct Profile {
    pub(crate) about: About,
    pub(crate) notes: Vec<String>,
    /// Counts that the samples don't show.
    pub quality: Quality,
    pub(crate) main_mapping: Option<MappingId>,
    pub(crate) strings: Strings,
    pub(crate) mappings: Mappings,
    pub(crate) functions: Functions,
    pub(crate) locations: Locations,
    /// Where the function of a location without symbols starts, as its file states it.
    pub(crate) function_starts: HashMap<LocationId, Svma>,
    stacks: Stacks,
    samples: Samples,
}

/// Building.
impl Profile {
    /// A profile without samples.
    #[must_use]
    pub fn new(about: About) -> Self {
        let about = About {
            title: clean(&about.title).into(),
            host: clean(&about.host).into(),
            kernel_release: clean(&about.kernel_release).into(),
            ..about
        };
        Self {
            about,
            notes: Vec::new(),
            quality: Quality::default(),
            main_mapping: None,
            strings: Strings::new(),
            mappings: Mappings::default(),
            functions: Functions::default(),
            locations: Locations::default(),
            function_starts: HashMap::new(),
            stacks: Stacks::default(),
            samples: Samples::default(),
        }
    }

    /// Says how long sampling went on, in ns.
    pub fn set_duration_ns(&mut self, duration_ns: u64) {
        self.about.duration_ns = duration_ns;
    }

    /// Adds a sentence for the reader of the profile, once.
    pub fn add_note(&mut self, note: &str) {
        let note = clean(note);
        if !self.notes.iter().any(|known| *known == note) {
            self.notes.push(note.into());
        }
    }

    /// The handle of a string. What [`clean`] does is done to it.
    pub fn string(&mut self, text: &str) -> StringId {
        self.strings.intern(text)
    }

    /// The handle of a mapping.
    pub fn mapping(&mut self, mapping: Mapping) -> MappingId {
        self.mappings.intern(mapping)
    }

    /// Says which mapping is the executable that this profile is about.
    pub fn set_main_mapping(&mut self, id: MappingId) {
        self.main_mapping = Some(id);
    }

    /// The handle of a function.
    pub fn function(&mut self, function: Function) -> FunctionId {
        self.functions.intern(function)
    }

    /// The handle of a location. Its lines can be set later.
    pub fn location(&mut self, key: LocationKey) -> LocationId {
        self.locations.intern(key)
    }

    /// The handle of a location that has these lines: another one for each meaning that code at the same
    /// address had in the course of time.
    pub fn location_with_lines(&mut self, key: LocationKey, lines: Vec<Line>) -> LocationId {
        self.locations.intern_with_lines(key, Some(lines.into()))
    }

    /// Says which source lines are at a location, the innermost inlined function first; none when
    /// there are no symbols. Of more than [`crate::MAX_LINES`] the last but one are left out.
    pub fn set_lines(&mut self, id: LocationId, lines: Vec<Line>) {
        self.locations.set_lines(id, lines);
    }

    /// Says where a location lies, when that turns out after its sample was taken.
    pub fn set_mapping(&mut self, id: LocationId, mapping: MappingId) {
        self.locations.set_mapping(id, mapping);
    }

    /// Says where the function starts that a location without symbols is in, as the file states it.
    pub fn set_function_start(&mut self, id: LocationId, start: Svma) {
        self.function_starts.insert(id, start);
    }

    /// Adds `count` samples with this stack (leaf first) and these labels; to those that are equal,
    /// if there are any. The count saturates. A count of 0 adds nothing.
    pub fn add_sample(&mut self, stack: &[LocationId], labels: Labels, count: u64) {
        if count > 0 {
            let stack = self.stacks.intern(stack);
            self.samples.add(stack, labels, count);
        }
    }
}

/// Reading.
impl Profile {
    /// What was profiled, where and when.
    #[must_use]
    pub const fn about(&self) -> &About {
        &self.about
    }

    /// Sentences for the reader, in the order in which they came.
    pub fn notes(&self) -> impl Iterator<Item = &str> {
        self.notes.iter().map(String::as_str)
    }

    /// The executable that this profile is about, if somebody said so.
    #[must_use]
    pub const fn main_mapping(&self) -> Option<MappingId> {
        self.main_mapping
    }

    /// All mappings.
    pub fn mappings(&self) -> impl ExactSizeIterator<Item = (MappingId, &Mapping)> {
        self.mappings.iter()
    }

    /// All functions.
    pub fn functions(&self) -> impl ExactSizeIterator<Item = (FunctionId, &Function)> {
        self.functions.iter()
    }

    /// All locations. Their lines are in [`Self::lines`].
    pub fn locations(&self) -> impl ExactSizeIterator<Item = (LocationId, &LocationKey)> {
        self.locations.iter().map(|(id, key, _)| (id, key))
    }

    /// Locations whose lines nobody set yet.
    pub fn unsymbolized(&self) -> impl Iterator<Item = (LocationId, &LocationKey)> {
        self.locations.iter().filter(|(_, _, lines)| lines.is_none()).map(|(id, key, _)| (id, key))
    }

    /// What makes a location.
    #[must_use]
    pub fn location_key(&self, id: LocationId) -> &LocationKey {
        self.locations.key(id)
    }

    /// The source lines at a location, the innermost inlined function first: empty when there are no
    /// symbols, `None` when nobody looked.
    #[must_use]
    pub fn lines(&self, id: LocationId) -> Option<&[Line]> {
        self.locations.lines(id)
    }

    /// Where the function starts that a location without symbols is in, if that is known.
    #[must_use]
    pub fn function_start(&self, id: LocationId) -> Option<Svma> {
        self.function_starts.get(&id).copied()
    }

    /// The places in a stack (leaf first) of the frames between which and their caller one may be missing.
    pub fn callers_perhaps_missing(&self, stack: &[LocationId]) -> impl Iterator<Item = usize> {
        let found_by = |id: &LocationId| self.location_key(*id).found_by;
        let callers = stack.iter().skip(1).enumerate();
        callers.filter(move |(_place, id)| found_by(id) == FoundBy::FramePointerOfInterrupted).map(|(place, _id)| place)
    }

    /// All samples, in the order in which they first came.
    pub fn samples(&self) -> impl ExactSizeIterator<Item = Sample<'_>> {
        self.samples.iter().map(|(stack, labels, count)| Sample { stack: self.stacks.get(stack), labels, count })
    }
}

impl Index<StringId> for Profile {
    type Output = str;

    fn index(&self, id: StringId) -> &str {
        self.strings.get(id)
    }
}

impl Index<MappingId> for Profile {
    type Output = Mapping;

    fn index(&self, id: MappingId) -> &Mapping {
        self.mappings.get(id)
    }
}

impl Index<FunctionId> for Profile {
    type Output = Function;

    fn index(&self, id: FunctionId) -> &Function {
        self.functions.get(id)
    }
}
