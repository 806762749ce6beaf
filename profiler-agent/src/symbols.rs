//! Symbols for the profile's locations: asked for while sampling goes on, so that a process that
//! has ended by the time of the report has its names all the same.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use profiler_common::address::Svma;
use profiler_common::counter::Counter;

use crate::aggregate::Aggregator;
use crate::bpf_code::BpfCode;
use crate::counts::{Counts, quoted};
use crate::kernel_symbols;
use crate::tracker::{Executable, Tracker};
use crate::worker::{FileError, FileKey, Frame, MAX_ADDRESSES, Worker};

/// Requests that the worker has at once: it works on one, and the rest is at hand.
const REQUESTS_IN_FLIGHT: usize = 16;

/// Addresses to symbolize. Those of a file gather while the worker has a request for it: what it may
/// have to parse anew for each request can be large.
#[derive(Default)]
pub(crate) struct Wanted {
    files: HashMap<FileKey, WantedOfFile>,
    /// The files with addresses and without a request, the longest waiting one first.
    ready: VecDeque<FileKey>,
    /// Files that the worker did not survive, had no time for, or can't read: not asked again, others wait.
    given_up: HashSet<FileKey>,
}

struct WantedOfFile {
    /// The file that stands for all copies of this one.
    first: FileKey,
    /// Kept open: whoever maps it may have ended when it is asked for.
    file: Arc<OwnedFd>,
    addresses: Vec<Svma>,
    in_flight: bool,
}

impl Wanted {
    /// Adds an address, which was not added before, of a file for which `first` stands.
    /// Returns false when this file is not asked any more.
    pub(crate) fn add(&mut self, first: FileKey, (key, file): (FileKey, &Arc<OwnedFd>), address: Svma) -> bool {
        if self.given_up.contains(&key) {
            return false;
        }
        let new = || WantedOfFile { first, file: Arc::clone(file), addresses: Vec::new(), in_flight: false };
        let wanted = self.files.entry(key).or_insert_with(new);
        if wanted.addresses.is_empty() && !wanted.in_flight {
            self.ready.push_back(key);
        }
        wanted.addresses.push(address);
        true
    }

    /// What to ask next: at most [`MAX_ADDRESSES`] of one file, of which nothing is in flight.
    fn next(&mut self) -> Option<(FileKey, Arc<OwnedFd>, Vec<Svma>)> {
        let key = self.ready.pop_front()?;
        let wanted = self.files.get_mut(&key)?;
        let rest = wanted.addresses.split_off(wanted.addresses.len().min(MAX_ADDRESSES));
        wanted.in_flight = true;
        Some((key, Arc::clone(&wanted.file), std::mem::replace(&mut wanted.addresses, rest)))
    }

    /// The file that stands for one which has a request.
    pub(crate) fn first(&self, key: FileKey) -> FileKey {
        self.files.get(&key).map_or(key, |wanted| wanted.first)
    }

    /// There is nothing to be had of this file.
    fn give_up(&mut self, key: FileKey) {
        self.files.remove(&key);
        self.given_up.insert(key);
    }

    /// The request for this file is no longer in flight.
    fn answered(&mut self, key: FileKey) {
        match self.files.get_mut(&key) {
            Some(wanted) if !wanted.addresses.is_empty() => {
                wanted.in_flight = false;
                self.ready.push_back(key);
            }
            _ => drop(self.files.remove(&key)),
        }
    }
}

/// Asks for what the aggregator wants to know of user code.
pub(crate) fn request(aggregator: &mut Aggregator, tracker: &Tracker, worker: &mut Worker) {
    while worker.pending() < REQUESTS_IN_FLIGHT
        && let Some((key, file, addresses)) = aggregator.wanted.next()
    {
        let place = tracker.executable(key).map(Executable::place).unwrap_or_default();
        // Its queue is far from full.
        let _asked = worker.request_symbols(key, &file, place, &addresses);
    }
}

/// Takes in an answer of the worker. [`request`] has the next question.
pub(crate) fn answered(
    aggregator: &mut Aggregator,
    counts: &mut Counts,
    (key, path): (FileKey, &str),
    result: Result<Vec<(Svma, Vec<Frame>)>, FileError>,
) {
    let first = aggregator.wanted.first(key);
    aggregator.wanted.answered(key);
    match result {
        Ok(symbolized) => {
            for (address, frames) in symbolized {
                aggregator.symbolized(first, address, &frames);
            }
        }
        // Memory that a just-in-time compiler maps from a file of its own.
        Err(FileError::NotElf) => {}
        Err(reason) => {
            aggregator.wanted.give_up(key);
            aggregator.ask_another(first);
            let path = quoted(path);
            counts.note(format!("functions of {path} have no names: {reason}. Look at it with: readelf -sW {path}"));
        }
    }
}

/// Counts the locations of user code whose symbols nobody has told and nobody will.
pub(crate) fn count_failed(aggregator: &Aggregator, counts: &mut Counts) {
    counts.add(Counter::SymbolizeFailed, aggregator.unanswered_locations());
}

/// Names the kernel locations that have no name yet. Returns why it could not, if so.
pub(crate) fn name_kernel(aggregator: &mut Aggregator, bpf: &BpfCode) -> Option<String> {
    let wanted = aggregator.take_kernel_wanted();
    let addresses: Vec<_> = wanted.iter().map(|(_location, address)| *address).collect();
    match kernel_symbols::symbolize(&addresses) {
        Ok(named) => {
            for ((location, address), symbol) in wanted.iter().zip(named) {
                aggregator.kernel_symbolized(*location, bpf.symbol(*address).or(symbol).as_ref());
            }
            None
        }
        Err(why) => Some(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_request_at_a_time_and_the_rest_gathers() {
        let file = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        let (big, small) = (FileKey(1), FileKey(2));
        let mut wanted = Wanted::default();
        let next = |wanted: &mut Wanted| wanted.next().map(|(key, _file, addresses)| (key, addresses.len()));
        for address in 0..MAX_ADDRESSES as u64 + 2 {
            wanted.add(big, (big, &file), Svma(address));
        }
        wanted.add(small, (small, &file), Svma(0));
        assert_eq!(next(&mut wanted), Some((big, MAX_ADDRESSES)));
        wanted.add(big, (big, &file), Svma(1 << 20));
        assert_eq!(next(&mut wanted), Some((small, 1)));
        assert_eq!(next(&mut wanted), None, "both are in flight");
        wanted.add(small, (small, &file), Svma(1));
        wanted.answered(small);
        wanted.answered(big);
        assert_eq!(next(&mut wanted), Some((small, 1)));
        assert_eq!(next(&mut wanted), Some((big, 3)));
        wanted.answered(big);
        wanted.answered(small);
        assert_eq!(next(&mut wanted), None);
        wanted.add(big, (big, &file), Svma(5));
        assert_eq!(next(&mut wanted), Some((big, 1)));
        wanted.add(big, (big, &file), Svma(6));
        wanted.answered(big);
        wanted.give_up(big);
        wanted.add(big, (big, &file), Svma(7));
        assert_eq!(next(&mut wanted), None, "the worker failed over it");
        assert_eq!(Arc::strong_count(&file), 1, "no file is kept open for nothing");
    }
}
