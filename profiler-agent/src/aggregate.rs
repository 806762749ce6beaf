//! From located samples to the profile. Every location is interned once; its symbols come later.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use profiler_common::address::{Bias, FileOffset, MonotonicNs, Pid, Svma, VirtualAddress};
use profiler_model::{
    FoundBy, FrameKind, Function, Labels, Line, LocationId, LocationKey, Mapping, MappingId, Profile, StringId,
};

use crate::kernel_symbols::KernelSymbol;
use crate::locate::{LocatedFrame, LocatedSample};
use crate::source_map::SourceMap;
use crate::symbols::Wanted;
use crate::tracker::{ALWAYS, Code, Executable, Tracker};
use crate::worker::{ContentsDigest, FileKey, Frame, Meaning};

/// The kernel's half of the address space, on x86_64 and aarch64.
const KERNEL_START: VirtualAddress = VirtualAddress(1 << 63);

/// What makes a mapping another one for the profile: not who has it, nor where, nor from when to when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    file: FileKey,
    start: Svma,
    end: Svma,
    file_offset: FileOffset,
    /// Whose it is, for generated code: what process, and since when it is what it is.
    owner: Option<(Pid, MonotonicNs)>,
}

/// What makes files the same program: copies of it are one for the profile, or each new copy would bring all its
/// mappings and locations anew. A build id says too little: it can be forged, and ld's does not tell names apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Program {
    path: StringId,
    contents: ContentsDigest,
}

/// A mapping as the profile has it. Processes have the same file at different addresses; the profile shows
/// all of them as in the first one, so that what is the same code is the same location.
#[derive(Clone, Copy)]
struct Shown {
    mapping: MappingId,
    /// Of the first process.
    bias: Bias,
    /// The file that stands for the mapping's.
    file: FileKey,
}

/// The profile in the making, and which of its locations still need symbols.
pub(crate) struct Aggregator {
    pub(crate) profile: Profile,
    sources: SourceMap,
    /// The first file of each program, which stands for all.
    programs: HashMap<Program, FileKey>,
    /// By each file, once its contents are known.
    first_of_program: HashMap<FileKey, FileKey>,
    mappings: HashMap<Place, Shown>,
    kernel_mapping: MappingId,
    known: HashSet<LocationId>,
    /// Addresses that could not be asked for, or in vain: another copy of the file may tell.
    failed: HashSet<(FileKey, Svma)>,
    /// By file and address: one location for each way to find it.
    locations: HashMap<FileKey, HashMap<Svma, Vec<LocationId>>>,
    pub(crate) wanted: Wanted,
    kernel_wanted: Vec<(LocationId, VirtualAddress)>,
    stack: Vec<LocationId>,
    /// Locations of generated code that have no name yet, since this was last emptied.
    pub(crate) unnamed: Vec<(VirtualAddress, LocationId)>,
}

/// What is known of the generated code in a stack; of what is left out nothing is known yet.
#[derive(Clone, Copy, Default)]
pub(crate) struct Names<'a> {
    /// Places in the user stack, rising.
    pub(crate) positions: &'a [usize],
    /// What is at each of these places.
    pub(crate) meanings: &'a [Meaning],
    pub(crate) frames: &'a [Frame],
}

impl<'a> Names<'a> {
    /// What is at a place; `Err` says whether it may be told later.
    fn at(&self, position: usize) -> Result<&'a Frame, MayCome> {
        let index = self.positions.binary_search(&position).ok();
        match index.and_then(|index| self.meanings.get(index)) {
            Some(Meaning::Function(at)) => self.frames.get(*at as usize).ok_or(MayCome(false)),
            Some(Meaning::Replaced) => Err(MayCome(false)),
            Some(Meaning::Unknown) | None => Err(MayCome(true)),
        }
    }
}

#[derive(Clone, Copy)]
struct MayCome(bool);

impl Aggregator {
    pub(crate) fn new(mut profile: Profile, sources: SourceMap) -> Self {
        let path = profile.string("[kernel.kallsyms]");
        let build_id = profile.string("");
        let kernel = kernel_mapping(path, build_id, KERNEL_START, VirtualAddress(u64::MAX));
        let kernel_mapping = profile.mapping(kernel);
        Self {
            profile,
            sources,
            programs: HashMap::new(),
            first_of_program: HashMap::new(),
            mappings: HashMap::new(),
            kernel_mapping,
            known: HashSet::new(),
            failed: HashSet::new(),
            locations: HashMap::new(),
            wanted: Wanted::default(),
            kernel_wanted: Vec::new(),
            stack: Vec::new(),
            unnamed: Vec::new(),
        }
    }

    /// Adds one sample.
    pub(crate) fn add(&mut self, sample: &LocatedSample, tracker: &Tracker, names: Names<'_>) {
        let header = &sample.header;
        let mut stack = std::mem::take(&mut self.stack);
        stack.clear();
        stack.extend(sample.kernel_frames.iter().map(|address| self.kernel_location(*address)));
        let image = tracker.process(header.pid).map_or(ALWAYS, |process| process.image_at(header.time));
        for (position, frame) in sample.user_frames.iter().enumerate() {
            stack.push(match frame.code.filter(|code| is_generated(tracker, code)) {
                Some(code) => {
                    let Shown { mapping, .. } = self.mapping(Some((header.pid, image)), code, tracker);
                    self.generated_location(mapping, frame, names.at(position))
                }
                None => self.user_location(frame, tracker),
            });
        }
        let thread = comm(&header.comm);
        let process = tracker.process(header.pid).map(|process| process.name_at(header.time));
        let process = process.filter(|name| !name.is_empty());
        let labels = Labels {
            pid: header.pid,
            tid: header.tid,
            cpu: Some(header.cpu),
            thread: self.profile.string(&thread),
            process: self.profile.string(process.as_deref().unwrap_or(&thread)),
            stop: sample.stop,
        };
        self.profile.add_sample(&stack, labels, 1);
        self.stack = stack;
    }

    fn kernel_location(&mut self, address: VirtualAddress) -> LocationId {
        let mapping = Some(self.kernel_mapping);
        let key = LocationKey { mapping, address, kind: FrameKind::Kernel, found_by: FoundBy::Cfi };
        let location = self.profile.location(key);
        if self.known.insert(location) {
            self.kernel_wanted.push((location, address));
        }
        location
    }

    /// Code that was made at run time: what is at its address changes.
    fn generated_location(
        &mut self,
        mapping: MappingId,
        frame: &LocatedFrame,
        name: Result<&Frame, MayCome>,
    ) -> LocationId {
        let lines = match name {
            Ok(name) => self.lines(std::slice::from_ref(name)),
            Err(_) => vec![self.line("[jit]")],
        };
        let (address, found_by) = (frame.address, frame.found_by);
        let key = LocationKey { mapping: Some(mapping), address, kind: FrameKind::User, found_by };
        let location = self.profile.location_with_lines(key, lines);
        if matches!(name, Err(MayCome(true))) {
            self.unnamed.push((address, location));
        }
        location
    }

    /// Takes in what generated code turned out to be.
    pub(crate) fn name_generated(&mut self, location: LocationId, frame: &Frame) {
        let lines = self.lines(std::slice::from_ref(frame));
        self.profile.set_lines(location, lines);
    }

    fn user_location(&mut self, frame: &LocatedFrame, tracker: &Tracker) -> LocationId {
        let (kind, found_by) = (FrameKind::User, frame.found_by);
        let Some(code) = frame.code else {
            return self.profile.location(LocationKey { mapping: None, address: frame.address, kind, found_by });
        };
        let executable = tracker.executable(code.file);
        let shown = self.mapping(None, code, tracker);
        let svma = frame.address.in_file(bias_of(code, executable));
        let (mapping, address) = (Some(shown.mapping), svma.in_process(shown.bias));
        let location = self.profile.location(LocationKey { mapping, address, kind, found_by });
        if self.known.insert(location) {
            if executable.is_none_or(Executable::is_unread) {
                // What the address means is not known in time: it stays without a name.
                self.known.remove(&location);
            } else {
                let file = executable.and_then(|executable| executable.file.as_ref()).map(|file| (code.file, file));
                self.want(shown.file, file, svma, location);
            }
        }
        location
    }

    /// Copies the symbols of `address` in what `first` stands for to a location, or has `file` asked for them.
    fn want(&mut self, first: FileKey, file: Option<(FileKey, &Arc<OwnedFd>)>, address: Svma, location: LocationId) {
        let locations = self.locations.entry(first).or_default().entry(address).or_default();
        if let Some(symbolized) = locations.first().and_then(|first| self.profile.lines(*first)) {
            let (lines, start) = (symbolized.to_vec(), self.profile.function_start(locations[0]));
            self.profile.set_lines(location, lines);
            if let Some(start) = start {
                self.profile.set_function_start(location, start);
            }
        } else if (locations.is_empty() || self.failed.remove(&(first, address)))
            && !file.is_some_and(|file| self.wanted.add(first, file, address))
        {
            self.failed.insert((first, address));
            self.known.remove(&location);
        }
        if !locations.contains(&location) {
            locations.push(location);
        }
    }

    fn mapping(&mut self, owner: Option<(Pid, MonotonicNs)>, code: Code, tracker: &Tracker) -> Shown {
        let Code { file, start, end, file_offset, .. } = code;
        let executable = tracker.executable(file);
        // Generated code is no file: it is where it is in memory.
        let bias = if owner.is_some() { Bias(0) } else { bias_of(code, executable) };
        let first = self.first_of_program(file, executable);
        let place = Place { file: first, start: start.in_file(bias), end: end.in_file(bias), file_offset, owner };
        if let Some(known) = self.mappings.get(&place) {
            return *known;
        }
        let path = executable.map_or("", |executable| executable.path.as_str());
        let build_id = executable.map_or("", |executable| executable.build_id.as_str());
        let discriminator = match build_id {
            // A number that no other mapping has.
            _ if owner.is_some() => self.mappings.len() as u64 | 1 << 63,
            "" => u64::from(file.0) << 32,
            _ => 0,
        };
        let (path_id, build_id) = (self.profile.string(path), self.profile.string(build_id));
        let mapping =
            self.profile.mapping(Mapping { start, end, file_offset, bias, path: path_id, build_id, discriminator });
        if self.profile.main_mapping().is_none() && !path.contains(".so") && !path.starts_with('[') {
            self.profile.set_main_mapping(mapping);
        }
        let shown = Shown { mapping, bias, file: first };
        if !executable.is_none_or(Executable::is_unread) {
            self.mappings.insert(place, shown);
        }
        shown
    }

    fn first_of_program(&mut self, file: FileKey, executable: Option<&Executable>) -> FileKey {
        let Some((executable, contents)) = executable.and_then(|known| Some((known, known.contents?))) else {
            return file;
        };
        *self.first_of_program.entry(file).or_insert_with(|| {
            let path = self.profile.string(&executable.path);
            *self.programs.entry(Program { path, contents }).or_insert(file)
        })
    }

    /// A copy of the file that `first` stands for did not tell what it was asked for: the next one that brings a sample
    /// is asked.
    pub(crate) fn ask_another(&mut self, first: FileKey) {
        for (address, locations) in self.locations.get(&first).into_iter().flatten() {
            let is_unknown = |location: &LocationId| self.profile.lines(*location).is_none();
            if locations.first().is_some_and(is_unknown) {
                for location in locations {
                    self.known.remove(location);
                }
                self.failed.insert((first, *address));
            }
        }
    }

    /// A function of which nothing but the name is known.
    fn line(&mut self, name: &str) -> Line {
        let name = self.profile.string(name);
        let file = self.profile.string("");
        let function = self.profile.function(Function { name, system_name: name, file, start_line: 0 });
        Line { function, line: 0, column: 0 }
    }

    /// Locations in files of which no symbolizer said what is there, not even that nothing is.
    pub(crate) fn unanswered_locations(&self) -> u64 {
        let all = self.locations.values().flat_map(HashMap::values).flatten();
        all.filter(|location| self.profile.lines(**location).is_none()).count() as u64
    }

    /// In how many samples each file has a frame.
    pub(crate) fn samples_by_file(&self) -> HashMap<FileKey, u64> {
        let of_file = |(file, addresses): (&FileKey, &HashMap<Svma, Vec<LocationId>>)| {
            addresses.values().flatten().map(|id| (*id, *file)).collect::<Vec<_>>()
        };
        let files: HashMap<LocationId, FileKey> = self.locations.iter().flat_map(of_file).collect();
        let (mut samples, mut hit) = (HashMap::new(), HashSet::new());
        for sample in self.profile.samples() {
            hit.clear();
            hit.extend(sample.stack.iter().filter_map(|location| files.get(location).copied()));
            for file in &hit {
                *samples.entry(*file).or_default() += sample.count;
            }
        }
        samples
    }

    /// The addresses of each of these files that stacks have.
    pub(crate) fn addresses_of(&self, files: &[FileKey]) -> BTreeMap<FileKey, Vec<Svma>> {
        let of_file = |file: &FileKey| Some((*file, self.locations.get(file)?.keys().copied().collect()));
        files.iter().filter_map(of_file).collect()
    }

    /// Whether the source of any code of a file is known.
    pub(crate) fn has_source(&self, file: FileKey) -> bool {
        let of_file = self.locations.get(&file).into_iter().flat_map(HashMap::values);
        let lines = of_file.filter_map(|all| self.profile.lines(*all.first()?)).flatten();
        let sources = lines.map(|line| &self.profile[self.profile[line.function].file]);
        sources.into_iter().any(|source| !source.is_empty())
    }

    /// The kernel addresses to symbolize since this was last asked.
    pub(crate) fn take_kernel_wanted(&mut self) -> Vec<(LocationId, VirtualAddress)> {
        std::mem::take(&mut self.kernel_wanted)
    }

    /// Takes in what is at an address of a file.
    pub(crate) fn symbolized(&mut self, file: FileKey, address: Svma, frames: &[Frame]) {
        let nameless = frames.first().map(|frame| frame.nameless_start).filter(|start| *start != Svma(0));
        let lines = if nameless.is_some() { Vec::new() } else { self.lines(frames) };
        let locations = self.locations.get(&file).and_then(|addresses| addresses.get(&address));
        for location in locations.into_iter().flatten() {
            self.profile.set_lines(*location, lines.clone());
            if let Some(start) = nameless {
                self.profile.set_function_start(*location, start);
            }
        }
    }

    /// Takes in what is at a kernel address.
    pub(crate) fn kernel_symbolized(&mut self, location: LocationId, symbol: Option<&KernelSymbol>) {
        let Some(symbol) = symbol else { return self.profile.set_lines(location, Vec::new()) };
        let line = self.line(&symbol.name);
        self.profile.set_lines(location, vec![line]);
        if let Some(module) = &symbol.module {
            let path = self.profile.string(&format!("[{}]", module.name));
            let build_id = self.profile.string("");
            let mapping = self.profile.mapping(kernel_mapping(path, build_id, module.start, module.end));
            self.profile.set_mapping(location, mapping);
        }
    }

    fn lines(&mut self, frames: &[Frame]) -> Vec<Line> {
        let mut line = |frame: &Frame| {
            let function = Function {
                name: self.profile.string(&frame.name),
                system_name: self.profile.string(&frame.system_name),
                file: self.profile.string(&self.sources.apply(&frame.file)),
                start_line: 0,
            };
            Line { function: self.profile.function(function), line: frame.line, column: frame.column }
        };
        frames.iter().map(&mut line).collect()
    }
}

fn bias_of(code: Code, executable: Option<&Executable>) -> Bias {
    executable.map_or(Bias(0), |executable| executable.bias(code.start, code.file_offset))
}

/// Whether the code was made at run time.
pub(crate) fn is_generated(tracker: &Tracker, code: &Code) -> bool {
    tracker.executable(code.file).is_some_and(|executable| executable.generated)
}

fn kernel_mapping(path: StringId, build_id: StringId, start: VirtualAddress, end: VirtualAddress) -> Mapping {
    Mapping { start, end, file_offset: FileOffset(0), bias: Bias(0), path, build_id, discriminator: 0 }
}

/// A thread's name: up to the first NUL, whatever bytes the thread chose.
fn comm(bytes: &[u8; 16]) -> String {
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}
