//! Symbols for the profile's locations: asked for while sampling goes on, so that a process that
//! has ended by the time of the report has its names all the same.

use profiler_common::counter::Counter;

use crate::aggregate::Aggregator;
use crate::counts::Counts;
use crate::kernel_symbols;
use crate::tracker::Tracker;
use crate::worker::{FileError, FileKey, Frame, Worker};
use profiler_common::address::Svma;

/// Asks for what the aggregator wants to know of user code.
pub(crate) fn request(aggregator: &mut Aggregator, tracker: &Tracker, worker: &mut Worker, counts: &mut Counts) {
    for (key, addresses) in aggregator.take_wanted() {
        let file = tracker.executable(key).and_then(|executable| executable.file.as_ref());
        let asked = file.is_some_and(|file| worker.request_symbols(key, file, &addresses));
        if !asked {
            give_up(aggregator, key, &addresses, counts);
        }
    }
}

fn give_up(aggregator: &mut Aggregator, key: FileKey, addresses: &[Svma], counts: &mut Counts) {
    counts.add(Counter::SymbolizeFailed, addresses.len() as u64);
    for address in addresses {
        aggregator.symbolized(key, *address, &[]);
    }
}

/// Takes in an answer of the worker.
pub(crate) fn answered(
    aggregator: &mut Aggregator,
    counts: &mut Counts,
    (key, path): (FileKey, &str),
    result: Result<Vec<(Svma, Vec<Frame>)>, FileError>,
) {
    match result {
        Ok(symbolized) => {
            for (address, frames) in symbolized {
                aggregator.symbolized(key, address, &frames);
            }
        }
        // Memory that a just-in-time compiler maps from a file of its own.
        Err(FileError::NotElf) => counts.add(Counter::SymbolizeFailed, 1),
        Err(reason) => {
            counts.add(Counter::SymbolizeFailed, 1);
            counts.note(format!("functions of {path} have no names: {reason}. Look at it with: readelf -sW {path}"));
        }
    }
}

/// Names the kernel locations that have no name yet. Returns why it could not, if so.
pub(crate) fn name_kernel(aggregator: &mut Aggregator) -> Option<String> {
    let wanted = aggregator.take_kernel_wanted();
    let addresses: Vec<_> = wanted.iter().map(|(_location, address)| *address).collect();
    match kernel_symbols::symbolize(&addresses) {
        Ok(named) => {
            for ((location, _address), symbol) in wanted.iter().zip(named) {
                aggregator.kernel_symbolized(*location, symbol.as_ref());
            }
            None
        }
        Err(why) => Some(why),
    }
}
