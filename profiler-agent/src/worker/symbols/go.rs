//! Addresses to Go's functions, by the table that Go's runtime itself uses: it is there when symbols and
//! DWARF are stripped, and says the same when they are not.

use std::os::fd::AsFd;

use profiler_common::address::Svma;
use profiler_unwind::GoFunction;

use super::super::message::truncate;
use super::super::tables::Pread;
use super::Frame;

/// For each address its functions, innermost first; none where Go's table has none, and for all when the
/// file has no such table or a damaged one.
pub(super) fn frames(file: &Pread<impl AsFd>, addresses: &[Svma]) -> Vec<Vec<Frame>> {
    let found = profiler_unwind::go_functions(file, addresses).ok().flatten();
    let found = found.unwrap_or_else(|| vec![Vec::new(); addresses.len()]);
    found.into_iter().map(|functions| functions.into_iter().map(frame).collect()).collect()
}

fn frame(function: GoFunction) -> Frame {
    let name = truncate(&function.name).to_owned();
    Frame {
        system_name: name.clone(),
        name,
        file: truncate(&function.file).to_owned(),
        line: function.line,
        inlined: function.inlined,
        ..Frame::default()
    }
}
