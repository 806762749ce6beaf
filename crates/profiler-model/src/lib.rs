//! The profile: what was sampled, where, how often, and how good the figures are.
//!
//! A [`Profile`] is made of interned tables that point to each other by typed handles:
//! samples -> stacks -> locations -> lines -> functions -> strings, and locations -> mappings.
//! The nouns are those of pprof and OTLP. Entries are equal when all their fields are equal, never
//! by a hash alone, and iterate in the order in which they came. No I/O, no clock.
//!
//! A handle is good for the profile that gave it. Using it with another one is a programming error:
//! it panics or names another entry.
#![forbid(unsafe_code)]

mod figures;
mod function;
mod handle;
mod location;
mod mapping;
mod merge;
mod positions;
mod profile;
mod quality;
mod sample;
mod stack;
mod string;

pub use profiler_common::address::{Bias, Cpu, FileOffset, Pid, Svma, Tid, VirtualAddress};
pub use profiler_common::record::StopReason;

pub use figures::Figures;
pub use function::{Function, FunctionId};
pub use location::{FoundBy, FrameKind, Line, LocationId, LocationKey, MAX_LINES};
pub use mapping::{Mapping, MappingId};
pub use merge::MergeError;
pub use profile::{About, Profile};
pub use quality::{Counts, Missed, Quality};
pub use sample::{Labels, Sample};
pub use stack::StackId;
pub use string::{MAX_STRING_BYTES, StringId, clean};
