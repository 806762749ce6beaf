//! What a process is from a fork or an exec on, and the code that it makes in that time.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use profiler_common::address::{MonotonicNs, VirtualAddress};
use profiler_model::LocationId;

use super::ImageKey;
use super::source::{Found, Place, Source, State};
use crate::aggregate::{Aggregator, Names};
use crate::clock;
use crate::counts::{Counts, quoted};
use crate::locate::LocatedSample;
use crate::tracker::Tracker;
use crate::worker::{FileError, GeneratedNames, MAX_QUESTIONS, MapKey, Meaning, Question};

/// The pauses between two looks for a map, and between two questions for the same addresses: each is
/// twice the one before.
const FIRST_PAUSE_NS: u64 = 100_000_000;
const LONGEST_PAUSE_NS: u64 = 5_000_000_000;
/// A map that is removed at the end has to be found before.
const LONGEST_LOOK_PAUSE_NS: u64 = 1_000_000_000;

/// How often it is made sure that the map is still the file of that name.
const SAME_FILE_NS: u64 = 1_000_000_000;

/// Addresses without a name that are asked for again, at most.
const MOST_UNNAMED: usize = 65_536;

/// Answers that may fail before a file is not asked about any more.
const MOST_FAILURES: u32 = 3;

/// When something is tried again.
#[derive(Clone, Copy)]
struct Retry {
    from: MonotonicNs,
    pause_ns: u64,
}

impl Retry {
    const fn at_once() -> Self {
        Self { from: MonotonicNs(0), pause_ns: FIRST_PAUSE_NS }
    }

    fn later(&mut self, now: MonotonicNs, longest_ns: u64) {
        self.from = MonotonicNs(now.0.saturating_add(self.pause_ns));
        self.pause_ns = (2 * self.pause_ns).min(longest_ns);
    }
}

/// An address of which nothing was told yet.
struct Unnamed {
    /// One for each way in which it was found.
    locations: Vec<LocationId>,
    /// When it was last sampled.
    time: MonotonicNs,
}

/// A sample that waits, and which of its frames are generated code: at most
/// [`profiler_common::limits::MAX_USER_FRAMES`], which fit into a request.
type Held = (LocatedSample, Vec<usize>);

/// What was asked.
struct Asked {
    samples: Vec<Held>,
    unnamed: Vec<VirtualAddress>,
}

/// A process in such a time.
pub(super) struct Image {
    source: Option<Source>,
    place: Option<Place>,
    look: Retry,
    /// Why a map that is there is not used.
    refused: Option<String>,
    failures: u32,
    no_dump: bool,
    held: VecDeque<Held>,
    asked: Option<Asked>,
    unnamed: HashMap<VirtualAddress, Unnamed>,
    /// Those of `unnamed` that are not in work, in the order in which they are asked for.
    queue: VecDeque<VirtualAddress>,
    /// So many of `queue` are due.
    due: usize,
    again: Retry,
    /// The file when `queue` was last asked for.
    asked_at: Option<State>,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            source: None,
            place: None,
            look: Retry::at_once(),
            refused: None,
            failures: 0,
            no_dump: false,
            held: VecDeque::new(),
            asked: None,
            unnamed: HashMap::new(),
            queue: VecDeque::new(),
            due: 0,
            again: Retry::at_once(),
            asked_at: None,
        }
    }
}

impl Image {
    pub(super) const fn has_source(&self) -> bool {
        self.source.is_some()
    }

    pub(super) const fn is_asking(&self) -> bool {
        self.asked.is_some()
    }

    pub(super) fn is_busy(&self) -> bool {
        self.is_asking() || !self.held.is_empty() || self.due > 0
    }

    /// Looks for where the process says what it makes: when it is time, or `at_once`.
    pub(super) fn look(&mut self, (pid, image): ImageKey, tracker: &Tracker, next_key: &mut u32, at_once: bool) {
        let process = tracker.process(pid).filter(|process| process.image() == image);
        // What another program writes is not for this one.
        let Some(process) = process.filter(|_| self.failures < MOST_FAILURES) else { return };
        let mut new_key = || {
            *next_key += 1;
            MapKey(*next_key)
        };
        if let Some(dump) = process.jitdump.as_ref().filter(|dump| dump.since >= image && !self.no_dump) {
            if self.source.as_ref().is_none_or(|source| !source.is(&dump.file)) {
                let (file, path) = (Arc::clone(&dump.file), dump.path.clone());
                self.set_source(Source { key: new_key(), file, path, is_dump: true });
            }
            return;
        }
        let now = clock::monotonic();
        if now < self.look.from && !at_once {
            return;
        }
        self.look.later(now, LONGEST_LOOK_PAUSE_NS);
        let is_over = process.ended.is_some();
        if self.place.is_none() {
            self.place = Place::of(process);
        }
        match self.place.as_mut().map_or(Found::Nothing, |place| place.find(is_over)) {
            Found::Map(file, path) => {
                self.look.from = MonotonicNs(now.0.saturating_add(SAME_FILE_NS));
                self.refused = None;
                if self.source.as_ref().is_none_or(|source| !source.is(&file)) {
                    self.set_source(Source { key: new_key(), file: Arc::new(file), path, is_dump: false });
                }
            }
            // One that was open once goes on to hold.
            Found::Nothing => {}
            Found::Refused(why) => self.refused = Some(why),
        }
    }

    fn set_source(&mut self, source: Source) {
        self.source = Some(source);
        self.again = Retry::at_once();
        self.asked_at = None;
    }

    pub(super) fn hold(&mut self, sample: LocatedSample, positions: Vec<usize>) {
        self.held.push_back((sample, positions));
    }

    pub(super) fn oldest(&self) -> Option<MonotonicNs> {
        let asked = self.asked.iter().flat_map(|asked| &asked.samples);
        self.held.iter().chain(asked).map(|(sample, _positions)| sample.header.time).min()
    }

    /// What to ask now: what the samples that wait need, and what was not told before if it is time and
    /// the file is another one than then. `at_once`: it is time.
    pub(super) fn ask(&mut self, now: MonotonicNs, at_once: bool) -> Option<(MapKey, Arc<OwnedFd>, Vec<Question>)> {
        let source = self.source.as_ref()?;
        let (key, file) = (source.key, Arc::clone(&source.file));
        if self.due == 0 && !self.queue.is_empty() && (at_once || self.again.from <= now) {
            let state = source.state();
            if state.is_some() && state != self.asked_at {
                self.asked_at = state;
                self.due = self.queue.len();
                self.again.later(now, LONGEST_PAUSE_NS);
            }
        }
        let mut room = MAX_QUESTIONS;
        let mut samples = Vec::new();
        while let Some(rest) = self.held.front().and_then(|(_sample, positions)| room.checked_sub(positions.len())) {
            samples.extend(self.held.pop_front());
            room = rest;
        }
        let unnamed: Vec<VirtualAddress> = self.queue.drain(..self.due.min(room)).collect();
        self.due -= unnamed.len();
        if samples.is_empty() && unnamed.is_empty() {
            return None;
        }
        let question = |address, time| Question { address, time };
        let mut questions = Vec::with_capacity(MAX_QUESTIONS - room + unnamed.len());
        for (sample, positions) in &samples {
            let asked = positions.iter().filter_map(|position| sample.user_frames.get(*position));
            questions.extend(asked.map(|frame| question(frame.address, sample.header.time)));
        }
        let time = |address| self.unnamed.get(address).map_or(now, |unnamed| unnamed.time);
        questions.extend(unnamed.iter().map(|address| question(*address, time(address))));
        self.asked = Some(Asked { samples, unnamed });
        Some((key, file, questions))
    }

    /// Takes in the answers to what was asked. Returns how many frames no longer wait.
    pub(super) fn answered(&mut self, names: &GeneratedNames, aggregator: &mut Aggregator, tracker: &Tracker) -> usize {
        let Some(Asked { samples, unnamed }) = self.asked.take() else { return 0 };
        let mut meanings = names.meanings.as_slice();
        let mut frames = 0;
        for (sample, positions) in samples {
            let (own, rest) = meanings.split_at(positions.len().min(meanings.len()));
            meanings = rest;
            frames += sample.user_frames.len();
            let names = Names { positions: &positions, meanings: own, frames: &names.frames };
            self.finish(&sample, names, aggregator, tracker);
        }
        for (index, address) in unnamed.into_iter().enumerate() {
            match meanings.get(index).unwrap_or(&Meaning::Unknown) {
                Meaning::Unknown => self.queue.push_back(address),
                Meaning::Replaced => drop(self.unnamed.remove(&address)),
                Meaning::Function(at) => {
                    let known = self.unnamed.remove(&address).zip(names.frames.get(*at as usize));
                    for location in known.iter().flat_map(|(unnamed, _frame)| &unnamed.locations) {
                        known.iter().for_each(|(_unnamed, frame)| aggregator.name_generated(*location, frame));
                    }
                }
            }
        }
        frames
    }

    /// Hands a sample on, and notes what of it has no name.
    pub(super) fn finish(
        &mut self,
        sample: &LocatedSample,
        names: Names<'_>,
        aggregator: &mut Aggregator,
        tracker: &Tracker,
    ) {
        aggregator.add(sample, tracker, names);
        for (address, location) in std::mem::take(&mut aggregator.unnamed) {
            if self.unnamed.len() >= MOST_UNNAMED && !self.unnamed.contains_key(&address) {
                continue;
            }
            let time = sample.header.time;
            let unnamed = self.unnamed.entry(address).or_insert_with(|| {
                self.queue.push_back(address);
                Unnamed { locations: Vec::new(), time }
            });
            unnamed.time = unnamed.time.max(time);
            if !unnamed.locations.contains(&location) {
                unnamed.locations.push(location);
            }
        }
    }

    /// The file tells of more code than is kept in memory.
    pub(super) fn note_left_out(&self, counts: &mut Counts) {
        if let Some(source) = &self.source {
            let path = quoted(&source.path);
            counts.note(format!("some functions of {path} have no names: it tells of too many"));
        }
    }

    /// What was asked about could not be answered.
    pub(super) fn refuse(&mut self, reason: &FileError, counts: &mut Counts) {
        let Some(source) = self.source.take() else { return };
        let path = quoted(&source.path);
        counts.note(format!("functions of {path} have no names: {reason}"));
        self.failures += 1;
        if source.is_dump {
            self.no_dump = true;
        }
    }

    /// Locations that have no name though there was something that should have told it.
    pub(super) fn failed(&self) -> u64 {
        let all = self.unnamed.values().map(|unnamed| unnamed.locations.len() as u64).sum();
        if self.failures > 0 || self.refused.is_some() { all } else { 0 }
    }

    /// Why what is there is not used, if anybody misses it.
    pub(super) fn refused(&self) -> Option<String> {
        self.refused.clone().filter(|_| !self.unnamed.is_empty())
    }

    pub(super) fn give_up(&mut self, aggregator: &mut Aggregator, tracker: &Tracker) {
        let asked = self.asked.take().map(|asked| asked.samples).unwrap_or_default();
        let held: Vec<Held> = asked.into_iter().chain(self.held.drain(..)).collect();
        for (sample, _positions) in held {
            self.finish(&sample, Names::default(), aggregator, tracker);
        }
    }
}
