//! Unwind tables: the bytes of an ELF file in, sorted rows for every address of its code out.
//!
//! [`build`] reads headers and call frame information through [`ReadAt`], never the whole file, and
//! turns each row of the CFI into one of the kernel program's rules ([`profiler_common::row`]). In Go
//! programs the table of their runtime takes the place of CFI. The
//! parts of an [`UnwindTable`] cover every executable segment without a hole: what no CFI covers is
//! unwound by what its instructions do (x86_64), or by the frame pointer and says so; what a rule can't
//! express is marked and counted.
//!
//! Pure: no I/O of its own, no `unsafe`. The file may be hostile: every length has a bound, and the
//! time is linear in the size of the CFI.
#![forbid(unsafe_code)]

mod aarch64;
mod bare;
mod bare_aarch64;
mod bytes;
mod cfi;
mod contexts;
mod crt;
mod describe;
mod doubt;
mod eh_return;
mod eh_return_aarch64;
mod elf;
mod entry;
mod error;
mod expression;
mod flow;
mod functions;
mod go;
mod holes;
mod plt;
mod read;
mod section;
mod segment;
mod spans;
mod starts;
mod state;
mod table;
mod tiles;
mod x86_64;

/// A number that stands for the sources that rows are made by: rows of another one may differ.
pub const ROW_BUILDER: u64 = match u64::from_str_radix(env!("ROW_BUILDER"), 10) {
    Ok(number) => number,
    Err(_) => panic!("the build script writes a number"),
};

pub use describe::{Coverage, sections};
pub use elf::{MAX_SEGMENTS, Sections};
pub use error::{BuildError, ReadError};
pub use flow::leaves_by_frame_pointer;
pub use functions::function_starts;
pub use go::{GoFunction, go_functions};
pub use profiler_common::step::*;
pub use read::ReadAt;
pub use segment::{Arch, Segment, bias_of_mapping};
pub use table::{Elsewhere, Part, Problems, UnwindTable, build, build_into, build_with, lookup};
