//! Frames as people read them: what a location is called, with or without symbols.

use std::borrow::Cow;

use profiler_model::{FoundBy, FrameKind, FunctionId, Line, LocationId, Mapping, Profile, StringId};
use serde::Serialize;

/// What stands for a name that is empty.
pub(crate) const UNKNOWN: &str = "[unknown]";

/// A function at a location.
pub(crate) struct Frame<'p> {
    /// Its name; without symbols the file and the address in it.
    pub(crate) name: Cow<'p, str>,
    /// Its source line; `None` without symbols.
    pub(crate) line: Option<&'p Line>,
    /// What is special about it.
    pub(crate) mark: Option<Mark>,
}

/// What is special about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mark {
    /// It is the kernel's.
    Kernel,
    /// It was inlined into the next one.
    Inlined,
    /// It was found by the frame pointer, for want of call frame information.
    ByFramePointer,
    /// Its caller may be missing: the frame pointer led on from where it was interrupted.
    CallerMayBeMissing,
}

impl Mark {
    /// What stands behind the name. The first two are those of perf's and inferno's stack collapsers.
    pub(crate) const fn suffix(self) -> &'static str {
        match self {
            Self::Kernel => "_[k]",
            Self::Inlined => "_[i]",
            Self::ByFramePointer => "_[f]",
            Self::CallerMayBeMissing => "_[?]",
        }
    }
}

/// The functions at a location, the innermost inlined one first; one at least.
pub(crate) fn frames<'p>(profile: &'p Profile, id: LocationId) -> Vec<Frame<'p>> {
    let key = profile.location_key(id);
    let mark = match (key.kind, key.found_by) {
        (FrameKind::Kernel, _) => Some(Mark::Kernel),
        (FrameKind::User, FoundBy::FramePointer | FoundBy::FramePointerOfInterrupted) => Some(Mark::ByFramePointer),
        (FrameKind::User, FoundBy::Cfi) => None,
    };
    let lines = profile.lines(id).unwrap_or_default();
    let Some(outermost) = lines.len().checked_sub(1) else {
        let name = address_in_file(profile, id).into();
        return vec![Frame { name, line: None, mark }];
    };
    let inlined = if mark == Some(Mark::Kernel) { mark } else { Some(Mark::Inlined) };
    let named = |(index, line): (usize, &'p Line)| Frame {
        name: function_name(profile, line.function).into(),
        line: Some(line),
        mark: if index < outermost { inlined } else { mark },
    };
    lines.iter().enumerate().map(named).collect()
}

/// The function's name; its name in the file when it has no other.
pub(crate) fn function_name(profile: &Profile, id: FunctionId) -> &str {
    let function = &profile[id];
    [function.name, function.system_name]
        .into_iter()
        .find(|name| *name != StringId::EMPTY)
        .map_or(UNKNOWN, |name| &profile[name])
}

/// `libc.so.6+0x2a1f0`: the file and the address as the file states it; that of the function's first
/// instruction, if it is known, so that a function has one name.
fn address_in_file(profile: &Profile, id: LocationId) -> String {
    let key = profile.location_key(id);
    match key.mapping {
        Some(mapping) => {
            let mapping = &profile[mapping];
            let address = profile.function_start(id).unwrap_or(key.address.in_file(mapping.bias));
            format!("{}+{address}", file_name(profile, mapping))
        }
        None => format!("{UNKNOWN}+{}", key.address),
    }
}

/// The last part of the mapping's path.
pub(crate) fn file_name<'p>(profile: &'p Profile, mapping: &Mapping) -> &'p str {
    let path = &profile[mapping.path];
    match path.rsplit('/').next() {
        Some(name) if !name.is_empty() => name,
        _ => UNKNOWN,
    }
}
