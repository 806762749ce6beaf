//! Names for code that was made at run time: samples with such code wait until what their process says
//! of it was read after they were taken.
//!
//! ```text
//! locate -> Generated -> (worker: what was there then) -> Aggregator
//! ```
//!
//! Code is replaced, so a name holds for a time: each sample asks for its own. What the process does not
//! tell yet is `[jit]`, and is asked for again when it has written more.

mod image;
mod source;

use std::collections::HashMap;

use profiler_common::address::{MonotonicNs, Pid};
use profiler_common::counter::Counter;

use self::image::Image;
use crate::aggregate::{Aggregator, Names, is_generated};
use crate::clock;
use crate::counts::Counts;
use crate::locate::LocatedSample;
use crate::tracker::Tracker;
use crate::worker::{FileError, GeneratedNames, MapKey, Worker};

pub(crate) use self::source::{Told, told};

/// Processes whose generated code is named, at most.
const MOST_IMAGES: usize = 1024;

/// Frames of samples that wait, at most (about 30 MB): more are named later, without regard to when.
const MOST_HELD_FRAMES: usize = 400_000;

/// Sentences of processes that are gone, at most.
const MOST_SENTENCES: usize = 16;

/// Requests that the worker has at once.
const REQUESTS_IN_FLIGHT: usize = 16;

/// A process, and since when it is what it is.
type ImageKey = (Pid, MonotonicNs);

/// The samples that wait, and what was not told yet.
#[derive(Default)]
pub(crate) struct Generated {
    images: HashMap<ImageKey, Image>,
    /// Who asked about a file.
    asked_by: HashMap<MapKey, ImageKey>,
    held_frames: usize,
    next_key: u32,
    /// Locations that nobody will name though there was something to read.
    failed: u64,
    /// Why, for processes that are gone.
    refused: Vec<String>,
}

impl Generated {
    /// Takes in a located sample; one without generated code goes on at once.
    pub(crate) fn add(&mut self, sample: LocatedSample, aggregator: &mut Aggregator, tracker: &Tracker) {
        let frames = sample.user_frames.iter().enumerate();
        let generated = frames.filter(|(_, frame)| frame.code.is_some_and(|code| is_generated(tracker, &code)));
        let positions: Vec<usize> = generated.map(|(position, _frame)| position).collect();
        if positions.is_empty() {
            return aggregator.add(&sample, tracker, Names::default());
        }
        let pid = sample.header.pid;
        let known = tracker.process(pid).map(|process| (pid, process.image_at(sample.header.time)));
        let Some(key) = known.filter(|key| self.images.len() < MOST_IMAGES || self.images.contains_key(key)) else {
            aggregator.add(&sample, tracker, Names::default());
            aggregator.unnamed.clear();
            return;
        };
        let next_key = &mut self.next_key;
        let image = self.images.entry(key).or_insert_with(|| {
            let mut image = Image::default();
            image.look(key, tracker, next_key, true);
            image
        });
        let frames = sample.user_frames.len();
        if image.has_source() && self.held_frames + frames <= MOST_HELD_FRAMES {
            self.held_frames += frames;
            image.hold(sample, positions);
        } else {
            image.finish(&sample, Names::default(), aggregator, tracker);
        }
    }

    /// Asks for what is wanted; with `all` also for what would be asked for later.
    pub(crate) fn request(&mut self, worker: &mut Worker, tracker: &Tracker, all: bool) {
        let now = clock::monotonic();
        for (key, image) in &mut self.images {
            if image.is_asking() || worker.pending() >= REQUESTS_IN_FLIGHT {
                continue;
            }
            let process = tracker.process(key.0);
            let is_over = process.is_none_or(|process| process.image() != key.1 || process.ended.is_some());
            image.look(*key, tracker, &mut self.next_key, all || is_over);
            if let Some((map, file, questions)) = image.ask(now, all || is_over) {
                // Its queue is far from full, and the questions are not too many.
                if worker.request_generated(map, &file, &questions) {
                    self.asked_by.insert(map, *key);
                }
            }
        }
        let (failed, refused) = (&mut self.failed, &mut self.refused);
        self.images.retain(|key, image| {
            let stays = image.is_busy() || tracker.process(key.0).is_some();
            if !stays {
                *failed += image.failed();
                refused.extend(image.refused().filter(|_| refused.len() < MOST_SENTENCES));
            }
            stays
        });
    }

    /// Takes in an answer of the worker.
    pub(crate) fn answered(
        &mut self,
        key: MapKey,
        result: Result<GeneratedNames, FileError>,
        (aggregator, tracker, counts): (&mut Aggregator, &Tracker, &mut Counts),
    ) {
        let image = self.asked_by.remove(&key).and_then(|key| self.images.get_mut(&key));
        let Some(image) = image else { return };
        let names = result.unwrap_or_else(|reason| {
            image.refuse(&reason, counts);
            GeneratedNames::default()
        });
        if names.left_out {
            image.note_left_out(counts);
        }
        let frames = image.answered(&names, aggregator, tracker);
        self.held_frames = self.held_frames.saturating_sub(frames);
    }

    /// The time of the oldest sample that waits.
    pub(crate) fn oldest(&self) -> Option<MonotonicNs> {
        self.images.values().filter_map(Image::oldest).min()
    }

    /// Whether samples wait or answers are outstanding.
    pub(crate) fn is_busy(&self) -> bool {
        self.images.values().any(Image::is_busy)
    }

    /// Hands everything on that waits, without names, and says what could not be used.
    pub(crate) fn give_up(&mut self, aggregator: &mut Aggregator, tracker: &Tracker, counts: &mut Counts) {
        for image in self.images.values_mut() {
            image.give_up(aggregator, tracker);
            self.failed += image.failed();
            self.refused.extend(image.refused());
        }
        self.refused.drain(..).for_each(|why| counts.note(why));
        counts.add(Counter::SymbolizeFailed, self.failed);
    }
}
