//! Merging profiles: of successive windows, or of several hosts.

use std::num::NonZeroU32;

use thiserror::Error;

use crate::function::{Function, FunctionId};
use crate::location::{Line, LocationId, LocationKey};
use crate::mapping::{Mapping, MappingId};
use crate::profile::Profile;
use crate::sample::Labels;
use crate::string::StringId;

/// Why two profiles cannot be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MergeError {
    /// A sample of one stands for another time than a sample of the other.
    #[error("merging a profile of {theirs} Hz into one of {ours} Hz: a sample means another time")]
    RatesDiffer {
        /// The rate of the profile that should grow.
        ours: NonZeroU32,
        /// The rate of the profile that should be added.
        theirs: NonZeroU32,
    },
}

impl Profile {
    /// Adds all that `other` holds. Equal samples add up, different ones stay apart. Title, host,
    /// kernel and main mapping stay as they are; the time becomes the span that covers both.
    ///
    /// # Errors
    /// When the rates differ; this profile is then unchanged.
    pub fn merge(&mut self, other: &Self) -> Result<(), MergeError> {
        let (ours, theirs) = (self.about.sample_rate_hz, other.about.sample_rate_hz);
        if ours != theirs {
            return Err(MergeError::RatesDiffer { ours, theirs });
        }
        self.merge_time(other);
        self.quality.merge(&other.quality);
        for note in &other.notes {
            self.add_note(note);
        }
        let handles = Handles::bring(self, other);
        if self.main_mapping.is_none() {
            self.main_mapping = other.main_mapping.map(|id| handles.mappings[id.index()]);
        }
        let mut stack = Vec::new();
        for sample in other.samples() {
            stack.clear();
            stack.extend(sample.stack.iter().map(|id| handles.locations[id.index()]));
            let labels = Labels {
                thread: handles.string(sample.labels.thread),
                process: handles.string(sample.labels.process),
                ..*sample.labels
            };
            self.add_sample(&stack, labels, sample.count);
        }
        Ok(())
    }

    fn merge_time(&mut self, other: &Self) {
        let end = |profile: &Self| profile.about.start_unix_ns.saturating_add(profile.about.duration_ns);
        let end_unix_ns = end(self).max(end(other));
        self.about.start_unix_ns = self.about.start_unix_ns.min(other.about.start_unix_ns);
        self.about.duration_ns = end_unix_ns - self.about.start_unix_ns;
    }
}

/// The handles that the entries of another profile got here, by their index there.
struct Handles {
    strings: Vec<StringId>,
    mappings: Vec<MappingId>,
    functions: Vec<FunctionId>,
    locations: Vec<LocationId>,
}

impl Handles {
    fn bring(into: &mut Profile, other: &Profile) -> Self {
        let strings = other.strings.iter().map(|text| into.strings.intern(text)).collect();
        let mut handles = Self { strings, mappings: Vec::new(), functions: Vec::new(), locations: Vec::new() };
        for (_, mapping) in other.mappings.iter() {
            let (path, build_id) = (handles.string(mapping.path), handles.string(mapping.build_id));
            handles.mappings.push(into.mappings.intern(Mapping { path, build_id, ..*mapping }));
        }
        for (_, function) in other.functions.iter() {
            let (name, system_name) = (handles.string(function.name), handles.string(function.system_name));
            let file = handles.string(function.file);
            handles.functions.push(into.functions.intern(Function { name, system_name, file, ..*function }));
        }
        for (id, key, lines) in other.locations.iter() {
            let key = LocationKey { mapping: key.mapping.map(|id| handles.mappings[id.index()]), ..*key };
            let lines = lines.map(|lines| lines.iter().map(|line| handles.line(line)).collect());
            let location = into.locations.intern_with_lines(key, lines);
            if let Some(start) = other.function_start(id) {
                into.function_starts.insert(location, start);
            }
            handles.locations.push(location);
        }
        handles
    }

    fn string(&self, id: StringId) -> StringId {
        self.strings[id.index()]
    }

    fn line(&self, line: &Line) -> Line {
        Line { function: self.functions[line.function.index()], ..*line }
    }
}
