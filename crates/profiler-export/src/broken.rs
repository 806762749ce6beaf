//! Where stacks that lack callers end.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use profiler_model::{FrameKind, LocationId, Profile, StopReason, Svma};
use serde::{Serialize, Serializer};

use crate::frame::frames;

/// Stacks that end for the same reason in the same function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// How many samples.
    pub samples: u64,
    /// Why they end.
    #[serde(serialize_with = "reason_name")]
    pub reason: StopReason,
    /// The outermost function that was found; without symbols its file and where it starts in it. Empty
    /// when no user code was found at all.
    pub function: String,
    /// The path of the file that the function is in; empty when it is in none.
    pub file: String,
    /// The address in it, as the file states it, where most of these stacks end; counted from the start of
    /// the mapping where there is no file.
    #[serde(serialize_with = "hex")]
    pub address: Svma,
    /// The number of different addresses.
    pub addresses: usize,
}

fn reason_name<S: Serializer>(reason: &StopReason, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(reason.name())
}

fn hex<S: Serializer>(address: &Svma, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(address)
}

impl std::fmt::Display for Broken {
    /// `7 no_unwind_table at walk in /usr/lib/libc.so.6+0x2a1f`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.samples, self.reason.name())?;
        match (self.function.as_str(), self.file.as_str()) {
            ("", _) => Ok(()),
            (function, "") => write!(f, " at {function}"),
            (function, file) => write!(f, " at {function} in {file}+{}", self.address),
        }
    }
}

/// The stacks of a profile that lack callers, the most frequent place first.
#[must_use]
pub fn broken(profile: &Profile) -> Vec<Broken> {
    let mut places: IndexMap<(StopReason, String, String), BTreeMap<Svma, u64>> = IndexMap::new();
    for sample in profile.samples().filter(|sample| sample.labels.incomplete()) {
        let outermost = sample.stack.last().filter(|id| profile.location_key(**id).kind == FrameKind::User);
        let (function, file, address) = outermost.map(|id| place(profile, *id)).unwrap_or_default();
        let samples = places.entry((sample.labels.stop, function, file)).or_default().entry(address).or_default();
        *samples = samples.saturating_add(sample.count);
    }
    let mut broken: Vec<Broken> = places
        .into_iter()
        .map(|((reason, function, file), addresses)| Broken {
            samples: addresses.values().fold(0, |sum, samples| sum.saturating_add(*samples)),
            reason,
            function,
            file,
            // The lowest one of equals.
            address: addresses.iter().rev().max_by_key(|(_, samples)| **samples).map(|(at, _)| *at).unwrap_or_default(),
            addresses: addresses.len(),
        })
        .collect();
    broken
        .sort_by(|a, b| (b.samples, &a.function, &a.file, a.reason).cmp(&(a.samples, &b.function, &b.file, b.reason)));
    broken
}

/// The function that holds a location, its file, and the address in that.
fn place(profile: &Profile, id: LocationId) -> (String, String, Svma) {
    let function = frames(profile, id).pop().map(|frame| frame.name.into_owned()).unwrap_or_default();
    let key = profile.location_key(id);
    match key.mapping.map(|mapping| &profile[mapping]) {
        Some(mapping) => (function, profile[mapping.path].to_owned(), key.address.in_file(mapping.bias)),
        None => (function, String::new(), Svma(key.address.0)),
    }
}
