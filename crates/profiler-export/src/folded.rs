//! Folded stacks: `process;outermost;...;innermost count`, a line per stack.
//!
//! `_[k]` marks kernel frames, `_[i]` functions inlined into the one before, `_[f]` frames that were
//! found by the frame pointer, `_[?]` those whose caller may be missing. Callers that are missing show as a frame `[incomplete: reason]` right
//! after the process.

use std::collections::BTreeMap;

use profiler_model::{LocationId, Profile, Sample};

use crate::frame::{Mark, UNKNOWN, frames};

/// Between frames while stacks are sorted. No name holds it, and it sorts before all that a name can
/// hold, so the order is that of the lists of frames and equal callers stay together: with `;` the
/// callees of `f` would be torn apart by those of `f(int)`.
const SEPARATOR: char = '\u{1}';

/// How the frame begins that says that callers are missing.
pub(crate) const INCOMPLETE: &str = "[incomplete: ";

/// A line per stack, in the order of their frames, each ended by a newline.
#[must_use]
pub fn text(profile: &Profile) -> String {
    let mut text = String::new();
    for line in lines(profile) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// A line per stack, in the order of their frames.
pub(crate) fn lines(profile: &Profile) -> impl ExactSizeIterator<Item = String> {
    let segments: Vec<String> = profile.locations().map(|(id, _)| segment(profile, id, None)).collect();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for sample in profile.samples() {
        let total = counts.entry(stack(profile, &segments, &sample)).or_default();
        *total = total.saturating_add(sample.count);
    }
    let separator = SEPARATOR.to_string();
    counts.into_iter().map(move |(stack, count)| format!("{} {count}", stack.replace(&separator, ";")))
}

/// The frames of a sample, outermost first.
fn stack(profile: &Profile, segments: &[String], sample: &Sample<'_>) -> String {
    let mut stack = root_name(&profile[sample.labels.process]);
    if sample.labels.incomplete() {
        stack.push(SEPARATOR);
        stack.push_str(INCOMPLETE);
        stack.push_str(sample.labels.stop.name());
        stack.push(']');
    }
    let doubtful: Vec<usize> = profile.callers_perhaps_missing(sample.stack).collect();
    for (place, id) in sample.stack.iter().enumerate().rev() {
        stack.push(SEPARATOR);
        if doubtful.contains(&place) {
            stack.push_str(&segment(profile, *id, Some(Mark::CallerMayBeMissing)));
        } else {
            stack.push_str(&segments[id.index()]);
        }
    }
    unlike_a_count(stack)
}

/// The frames of a location, outermost first. That one has `mark`, if there is any.
fn segment(profile: &Profile, id: LocationId, mut mark: Option<Mark>) -> String {
    let mut segment = String::new();
    for frame in frames(profile, id).iter().rev() {
        if !segment.is_empty() {
            segment.push(SEPARATOR);
        }
        segment.push_str(&frame_name(&frame.name));
        segment.push_str(mark.take().or(frame.mark).map_or("", Mark::suffix));
    }
    segment
}

/// A name without the frame separator and without blanks around it, which readers trim.
fn frame_name(name: &str) -> String {
    match name.trim() {
        "" => UNKNOWN.to_owned(),
        name => name.replace(';', ":"),
    }
}

/// The name of a process; not like the start of a comment (`# `), which readers skip.
fn root_name(name: &str) -> String {
    let name = frame_name(name);
    if name == "#" || name.starts_with("# ") { name.replacen('#', "#_", 1) } else { name }
}

/// A stack that does not end in a blank and a number: readers would take it for the first of two
/// counts (of a differential flame graph).
fn unlike_a_count(mut stack: String) -> String {
    if let Some(blank) = stack.rfind(' ')
        && stack[blank + 1..].bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        stack.replace_range(blank..=blank, "_");
    }
    stack
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_the_line_readable() {
        assert_eq!(frame_name(" [u8; 4] "), "[u8: 4]");
        assert_eq!(frame_name("\u{a0}"), UNKNOWN);
        assert_eq!((root_name("# x"), root_name("#")), ("#_ x".to_owned(), "#_".to_owned()));
        assert_eq!(root_name("#x # y"), "#x # y");
        for (stack, kept) in [
            ("worker 12", "worker_12"),
            ("a b 1.5", "a b_1.5"),
            ("a 1 b", "a 1 b"),
            ("worker12", "worker12"),
            ("a -1", "a -1"),
            ("a 1_[k]", "a 1_[k]"),
        ] {
            assert_eq!(unlike_a_count(stack.to_owned()), kept);
        }
    }
}
