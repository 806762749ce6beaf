//! From the model's tables to pprof's.

use indexmap::IndexSet;
use profiler_model::{Function, Labels, LocationId, LocationKey, MappingId, Profile};

use super::proto;
use crate::frame::{frames, function_name};
use crate::quality;

/// The profile as pprof's message.
#[must_use]
pub fn message(profile: &Profile) -> proto::Profile {
    let mut tables = Tables::new(profile);
    let cpu = tables.value_type("cpu", "nanoseconds");
    let sample_type = vec![tables.value_type("samples", "count"), cpu];
    let default_sample_type = cpu.r#type;
    let mut mapping = tables.mappings();
    let function = tables.functions();
    let location = tables.locations(&mut mapping);
    let sample = tables.samples();
    let comment = tables.comments();
    let about = profile.about();
    proto::Profile {
        sample_type,
        sample,
        mapping,
        location,
        function: tables.with_nameless(function),
        string_table: tables.strings.into_iter().map(Into::into).collect(),
        time_nanos: signed(about.start_unix_ns),
        duration_nanos: signed(about.duration_ns),
        period_type: Some(cpu),
        period: signed(about.period_ns()),
        comment,
        default_sample_type,
    }
}

/// pprof's numbers are signed; what does not fit becomes the largest.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The id of the entry at an index: pprof counts from 1.
const fn id_at(index: usize) -> u64 {
    index as u64 + 1
}

/// What is interned on the way.
struct Tables<'p> {
    profile: &'p Profile,
    /// The first is empty.
    strings: IndexSet<Box<str>>,
    /// Model mappings in pprof's order.
    mappings: IndexSet<MappingId>,
    /// `file+0x1234` and the file, for locations without symbols: functions after those of the model.
    nameless: IndexSet<(i64, i64)>,
}

impl<'p> Tables<'p> {
    /// The main mapping comes first; without one the order is the model's.
    fn new(profile: &'p Profile) -> Self {
        let main = profile.main_mapping();
        let mappings = main.into_iter().chain(profile.mappings().map(|(id, _)| id)).collect();
        Self { profile, strings: IndexSet::from([Box::default()]), mappings, nameless: IndexSet::new() }
    }

    fn string(&mut self, text: &str) -> i64 {
        let index = match self.strings.get_index_of(text) {
            Some(index) => index,
            None => self.strings.insert_full(text.into()).0,
        };
        signed(index as u64)
    }

    fn value_type(&mut self, kind: &str, unit: &str) -> proto::ValueType {
        proto::ValueType { r#type: self.string(kind), unit: self.string(unit) }
    }

    fn mapping_id(&self, id: MappingId) -> u64 {
        self.mappings.get_index_of(&id).map_or(0, id_at)
    }

    fn mappings(&mut self) -> Vec<proto::Mapping> {
        let profile = self.profile;
        let mut messages = Vec::with_capacity(self.mappings.len());
        for index in 0..self.mappings.len() {
            let mapping = &profile[self.mappings[index]];
            messages.push(proto::Mapping {
                id: id_at(index),
                memory_start: mapping.start.0,
                memory_limit: mapping.end.0,
                file_offset: mapping.file_offset.0,
                filename: self.string(&profile[mapping.path]),
                build_id: self.string(&profile[mapping.build_id]),
                ..Default::default()
            });
        }
        messages
    }

    fn functions(&mut self) -> Vec<proto::Function> {
        let profile = self.profile;
        let message = |(id, function): (profiler_model::FunctionId, &Function)| proto::Function {
            id: id_at(id.index()),
            name: self.string(function_name(profile, id)),
            system_name: self.system_name(function),
            filename: self.string(&profile[function.file]),
            start_line: function.start_line.into(),
        };
        profile.functions().map(message).collect()
    }

    /// The mangled name. Where it equals the name, pprof takes both for mangled and cuts what stands
    /// in `<>`, `[]` and `()`; then it is left out.
    fn system_name(&mut self, function: &Function) -> i64 {
        let system_name = &self.profile[function.system_name];
        if function.system_name == function.name && system_name.contains(['<', '[', '(', ':']) {
            return 0;
        }
        self.string(system_name)
    }

    /// The locations; notes in each mapping what its locations have.
    fn locations(&mut self, mappings: &mut [proto::Mapping]) -> Vec<proto::Location> {
        let profile = self.profile;
        let mut messages = Vec::new();
        for (id, key) in profile.locations() {
            let line = self.lines(id, key);
            let mapping_id = key.mapping.map_or(0, |mapping| self.mapping_id(mapping));
            if let Some(index) = key.mapping.and_then(|mapping| self.mappings.get_index_of(&mapping)) {
                let known = profile.lines(id).unwrap_or_default();
                let mapping = &mut mappings[index];
                mapping.has_functions |= !known.is_empty();
                mapping.has_filenames |= known.iter().any(|line| !profile[profile[line.function].file].is_empty());
                mapping.has_line_numbers |= known.iter().any(|line| line.line > 0);
                mapping.has_inline_frames |= known.len() > 1;
            }
            messages.push(proto::Location { id: id_at(id.index()), mapping_id, address: key.address.0, line });
        }
        messages
    }

    fn lines(&mut self, id: LocationId, key: &LocationKey) -> Vec<proto::Line> {
        let profile = self.profile;
        let mut messages = Vec::new();
        for frame in frames(profile, id) {
            messages.push(match frame.line {
                Some(line) => proto::Line {
                    function_id: id_at(line.function.index()),
                    line: line.line.into(),
                    column: line.column.into(),
                },
                None => {
                    let path = key.mapping.map_or("", |mapping| &profile[profile[mapping].path]);
                    proto::Line { function_id: self.nameless_function(&frame.name, path), ..Default::default() }
                }
            });
        }
        messages
    }

    fn nameless_function(&mut self, text: &str, path: &str) -> u64 {
        let entry = (self.string(text), self.string(path));
        id_at(self.profile.functions().len() + self.nameless.insert_full(entry).0)
    }

    fn with_nameless(&self, mut functions: Vec<proto::Function>) -> Vec<proto::Function> {
        for (name, filename) in &self.nameless {
            let id = id_at(functions.len());
            functions.push(proto::Function { id, name: *name, system_name: *name, filename: *filename, start_line: 0 });
        }
        functions
    }

    fn samples(&mut self) -> Vec<proto::Sample> {
        let profile = self.profile;
        let period_ns = profile.about().period_ns();
        let message = |sample: profiler_model::Sample<'_>| proto::Sample {
            location_id: sample.stack.iter().map(|id| id_at(id.index())).collect(),
            value: vec![signed(sample.count), signed(sample.count.saturating_mul(period_ns))],
            label: self.labels(sample.labels).into_iter().chain(self.guesses(sample.stack)).collect(),
        };
        profile.samples().map(message).collect()
    }

    fn labels(&mut self, labels: &Labels) -> Vec<proto::Label> {
        let profile = self.profile;
        let numbers = [("pid", Some(labels.pid.0)), ("tid", Some(labels.tid.0)), ("cpu", labels.cpu.map(|cpu| cpu.0))];
        let incomplete = if labels.incomplete() { labels.stop.name() } else { "" };
        let texts =
            [("thread", &profile[labels.thread]), ("comm", &profile[labels.process]), ("incomplete", incomplete)];
        let mut messages = Vec::new();
        for (key, number) in numbers {
            let Some(number) = number else { continue };
            // The key as the unit is what pprof assumes for a number without one.
            let key = self.string(key);
            messages.push(proto::Label { key, num: number.into(), num_unit: key, ..Default::default() });
        }
        for (key, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            messages.push(proto::Label { key: self.string(key), str: self.string(text), ..Default::default() });
        }
        messages
    }

    /// Which frames were found by the frame pointer, for want of call frame information, and which one's
    /// caller may be missing: their places in the stack, counted from 0 at the leaf.
    fn guesses(&mut self, stack: &[LocationId]) -> Vec<proto::Label> {
        let profile = self.profile;
        let guessed = |id: &LocationId| profile.location_key(*id).found_by.frame_pointer();
        let places = stack.iter().zip(0..).filter(|(id, _place)| guessed(id));
        let places = places.map(|(_id, place)| ("by_frame_pointer", place));
        let doubtful = profile.callers_perhaps_missing(stack).filter_map(|place| i64::try_from(place).ok());
        let doubtful = doubtful.map(|place| ("caller_may_be_missing", place));
        let places: Vec<(&str, i64)> = places.chain(doubtful).collect();
        let mut label = |(key, num)| proto::Label {
            key: self.string(key),
            num,
            num_unit: self.string("frame"),
            ..Default::default()
        };
        places.into_iter().map(&mut label).collect()
    }

    fn comments(&mut self) -> Vec<i64> {
        let profile = self.profile;
        let about = profile.about();
        let mut comments = vec![
            format!("command={}", about.title),
            format!("host={}", about.host),
            format!("kernel={}", about.kernel_release),
            format!("sample_rate_hz={}", about.sample_rate_hz),
        ];
        comments.extend(quality::lines(profile));
        comments.extend(profile.notes().map(|note| format!("note={note}")));
        comments.iter().map(|comment| self.string(comment)).collect()
    }
}
