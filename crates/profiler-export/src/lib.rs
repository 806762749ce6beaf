//! A profile as bytes: one module per format. No I/O, no clock, no network.
//!
//! Strings of a profile are bounded and hold no control characters (`profiler_model::clean`), so a
//! format only takes care of what is special to it.
#![forbid(unsafe_code)]

mod broken;
mod colours;
pub mod flamegraph;
pub mod folded;
mod format;
mod frame;
pub mod pprof;
mod quality;
pub mod threads;
pub mod top;
mod utc;

use profiler_model::Profile;
use thiserror::Error;

pub use broken::{Broken, broken};
pub use format::{Format, UnknownFormat};
pub use quality::figures;

/// Why a profile could not be written.
#[derive(Debug, Error)]
pub enum ExportError {
    /// pprof: compression failed.
    #[error("compressing a profile for pprof")]
    Compress(#[source] std::io::Error),
    /// The flame graph could not be drawn.
    #[error("drawing a flame graph of {stacks} stacks")]
    Draw {
        /// How many different stacks it was to show.
        stacks: usize,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// The table could not be written as JSON.
    #[error("writing a table of {functions} functions as JSON")]
    Json {
        /// How many functions it was to show.
        functions: usize,
        /// What went wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// The profile in this format.
///
/// # Errors
/// When the format's own writer fails.
pub fn export(format: Format, profile: &Profile) -> Result<Vec<u8>, ExportError> {
    match format {
        Format::FlameGraph => flamegraph::svg(profile),
        Format::Folded => Ok(folded::text(profile).into_bytes()),
        Format::Pprof => pprof::gzipped(profile),
    }
}
