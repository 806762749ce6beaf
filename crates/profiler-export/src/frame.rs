//! Frames as people read them: what a location is called, with or without symbols.

use std::borrow::Cow;

use profiler_model::{FunctionId, Line, LocationId, Mapping, Profile, StringId};

/// What stands for a name that is empty.
pub(crate) const UNKNOWN: &str = "[unknown]";

/// A function at a location.
pub(crate) struct Frame<'p> {
    /// Its name; without symbols the file and the address in it.
    pub(crate) name: Cow<'p, str>,
    /// Its source line; `None` without symbols.
    pub(crate) line: Option<&'p Line>,
    /// Whether it was inlined into the next one.
    pub(crate) inlined: bool,
}

/// The functions at a location, the innermost inlined one first; one at least.
pub(crate) fn frames<'p>(profile: &'p Profile, id: LocationId) -> Vec<Frame<'p>> {
    let lines = profile.lines(id).unwrap_or_default();
    let Some(outermost) = lines.len().checked_sub(1) else {
        let name = address_in_file(profile, id).into();
        return vec![Frame { name, line: None, inlined: false }];
    };
    let named = |(index, line): (usize, &'p Line)| Frame {
        name: function_name(profile, line.function).into(),
        line: Some(line),
        inlined: index < outermost,
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
