//! What every format owes to every profile: the same totals, readable by its readers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use profiler_export::top::Top;
use profiler_export::{Format, export, folded, pprof};
use profiler_model::{FoundBy, Labels, LocationKey, MAX_STRING_BYTES, Profile, StopReason};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use quick_xml::events::Event;

use crate::common;

/// Names that need no change in any format, so that what is read can be compared.
fn name() -> impl Strategy<Value = String> {
    "[a-c(<:]{1,3}"
}

/// Frames (leaf first), process, whether it is incomplete, count.
fn samples() -> impl Strategy<Value = Vec<(Vec<String>, String, bool, u32)>> {
    vec((vec(name(), 0..5), name(), any::<bool>(), 1..300u32), 0..25)
}

fn build(samples: &[(Vec<String>, String, bool, u32)]) -> Profile {
    let mut profile = common::empty("generated");
    let names: BTreeSet<&String> = samples.iter().flat_map(|sample| &sample.0).collect();
    let ids: BTreeMap<&String, _> =
        names.into_iter().zip(0..).map(|(name, number)| (name, common::named(&mut profile, name, number))).collect();
    for (frames, process, incomplete, count) in samples {
        let stack: Vec<_> = frames.iter().map(|name| ids[name]).collect();
        let stop = if *incomplete { StopReason::NoRange } else { StopReason::Complete };
        let labels = Labels { stop, ..common::labels(&mut profile, 1, process) };
        profile.add_sample(&stack, labels, u64::from(*count));
    }
    profile
}

/// Frames, outermost first, and counts.
fn parse_folded(text: &str) -> BTreeMap<Vec<&str>, u64> {
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let (stack, count) = line.rsplit_once(' ').unwrap();
        let earlier = counts.insert(stack.split(';').collect(), count.parse().unwrap());
        assert_eq!(earlier, None, "a stack has one line");
    }
    counts
}

fn unpack(gzipped: &[u8]) -> pprof::proto::Profile {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(gzipped).read_to_end(&mut bytes).unwrap();
    pprof::proto::Profile::decode(&*bytes).unwrap()
}

fn pprof_of(profile: &Profile) -> pprof::proto::Profile {
    unpack(&export(Format::Pprof, profile).unwrap())
}

/// The rules of pprof's `CheckValid` and of its decoder.
fn assert_valid(message: &pprof::proto::Profile) {
    let strings = message.string_table.len() as i64;
    assert_eq!(message.string_table[0], "");
    let functions: BTreeSet<_> = message.function.iter().map(|function| function.id).collect();
    let locations: BTreeSet<_> = message.location.iter().map(|location| location.id).collect();
    assert_eq!((functions.len(), locations.len()), (message.function.len(), message.location.len()));
    assert!(!functions.contains(&0) && !locations.contains(&0));
    for function in &message.function {
        assert!(function.name > 0 && function.name < strings && function.filename < strings);
    }
    for location in &message.location {
        assert!(location.mapping_id <= message.mapping.len() as u64);
        assert!(location.line.iter().all(|line| functions.contains(&line.function_id)));
    }
    for sample in &message.sample {
        assert_eq!(sample.value.len(), message.sample_type.len());
        assert!(sample.location_id.iter().all(|id| locations.contains(id)));
        assert!(sample.label.iter().all(|label| label.str > 0 || label.num_unit > 0));
    }
}

/// Parses the SVG as XML and returns the texts of its `title` elements: a frame, its samples.
fn svg_titles(svg: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(svg).unwrap();
    let mut reader = quick_xml::Reader::from_str(text);
    reader.config_mut().check_comments = true;
    let (mut titles, mut title, mut depth) = (Vec::new(), None::<String>, 0);
    loop {
        match reader.read_event().unwrap() {
            Event::Start(element) => {
                depth += 1;
                title = (element.name().as_ref() == b"title").then(String::new);
            }
            Event::End(_) => {
                depth -= 1;
                titles.extend(title.take());
            }
            Event::Text(part) if title.is_some() => title.as_mut().unwrap().push_str(&part.decode().unwrap()),
            Event::GeneralRef(part) if title.is_some() => {
                let name = format!("&{};", part.decode().unwrap());
                title.as_mut().unwrap().push_str(&quick_xml::escape::unescape(&name).unwrap());
            }
            Event::Eof => break,
            _ => {}
        }
    }
    assert_eq!(depth, 0, "every element is closed");
    titles
}

proptest! {
    #[test]
    fn folded_lines_hold_every_sample(samples in samples()) {
        let mut expected: BTreeMap<Vec<&str>, u64> = BTreeMap::new();
        for (frames, process, incomplete, count) in &samples {
            let mut stack = vec![process.as_str()];
            stack.extend(incomplete.then_some("[incomplete: no_range]"));
            stack.extend(frames.iter().rev().map(String::as_str));
            *expected.entry(stack).or_default() += u64::from(*count);
        }
        let text = folded::text(&build(&samples));
        prop_assert_eq!(parse_folded(&text), expected.clone());
        let order: Vec<Vec<&str>> = text.lines().map(|line| line.rsplit_once(' ').unwrap().0.split(';').collect()).collect();
        prop_assert_eq!(order, expected.into_keys().collect::<Vec<_>>());
    }

    #[test]
    fn pprof_holds_every_sample(samples in samples()) {
        let total: u64 = samples.iter().map(|sample| u64::from(sample.3)).sum();
        let message = pprof_of(&build(&samples));
        assert_valid(&message);
        let sum = |index: usize| message.sample.iter().map(|sample| sample.value[index]).sum::<i64>() as u64;
        prop_assert_eq!(sum(0), total);
        prop_assert_eq!(sum(1), total * 10_101_010);
    }

    #[test]
    fn top_agrees_with_the_samples(samples in samples()) {
        let top = Top::of(&build(&samples));
        let count = |hits: &dyn Fn(&[String]) -> bool| -> u64 {
            samples.iter().filter(|sample| hits(&sample.0)).map(|sample| u64::from(sample.3)).sum()
        };
        prop_assert_eq!(top.samples, count(&|_| true));
        for row in &top.functions {
            prop_assert_eq!(row.own, count(&|frames| frames.first() == Some(&row.name)));
            prop_assert_eq!(row.total, count(&|frames| frames.contains(&row.name)));
        }
        let names: BTreeSet<_> = samples.iter().flat_map(|sample| &sample.0).collect();
        prop_assert_eq!(top.functions.len(), names.len());
        prop_assert!(top.functions.is_sorted_by(|a, b| (a.own, a.total) >= (b.own, b.total)));
    }

    /// Equal frames below equal callers are one box, and the box has all their samples.
    #[test]
    fn a_flame_graph_has_a_box_per_caller_path(samples in samples()) {
        let profile = build(&samples);
        let folded = folded::text(&profile);
        let mut boxes: BTreeMap<Vec<&str>, u64> = BTreeMap::new();
        for (stack, count) in parse_folded(&folded) {
            for depth in 0..=stack.len() {
                *boxes.entry(stack[..depth].to_vec()).or_default() += count;
            }
        }
        let total = boxes.get(&vec![]).copied().unwrap_or_default();
        // inferno leaves out what is narrower than 0.01%; nothing here is.
        let mut expected: Vec<String> = boxes.iter().map(|(path, count)| {
            let separated: String = thousands(*count);
            match path.last() {
                None => format!("all ({separated} samples, 100%)"),
                Some(name) => format!("{name} ({separated} samples, {:.2}%)", *count as f64 * 100.0 / total as f64),
            }
        }).collect();
        let mut found = svg_titles(&export(Format::FlameGraph, &profile).unwrap());
        expected.sort();
        found.sort();
        prop_assert_eq!(found, expected);
    }
}

fn thousands(count: u64) -> String {
    if count < 1000 { count.to_string() } else { format!("{},{:03}", count / 1000, count % 1000) }
}

#[test]
fn hostile_names_break_no_format() {
    let profile = common::hostile();
    let total: u64 = profile.samples().map(|sample| sample.count).sum();
    let text = folded::text(&profile);
    assert_eq!(parse_folded(&text).values().sum::<u64>(), total);
    for (stack, _) in parse_folded(&text) {
        assert!(stack.iter().all(|frame| !frame.is_empty() && frame.len() <= MAX_STRING_BYTES + 32));
        assert!(!stack.iter().any(|frame| frame.contains(char::is_control)));
    }
    let titles = svg_titles(&export(Format::FlameGraph, &profile).unwrap());
    assert!(titles.contains(&format!("all ({total} samples, 100%)")), "inferno read every line");
    assert!(titles.iter().any(|title| title.starts_with("<script>alert(1)</script> (")));
    assert!(titles.iter().any(|title| title.starts_with("worker_12 (")));
    assert!(!titles.iter().any(|title| title.contains("%; ")), "no number is taken for a second count");
    let message = pprof_of(&profile);
    assert_valid(&message);
    assert_eq!(message.sample.iter().map(|sample| sample.value[0]).sum::<i64>() as u64, total);
    assert!(message.string_table.iter().all(|text| text.len() <= MAX_STRING_BYTES + 32));
    let top = Top::of(&profile);
    assert_eq!(top.samples, total);
    for line in top.table(1000, 60).lines() {
        assert!(line.chars().count() <= 60 && !line.contains(char::is_control), "{line}");
    }
    let json: serde_json::Value = serde_json::from_slice(&top.json().unwrap()).unwrap();
    assert_eq!(json["functions"].as_array().unwrap().len(), top.functions.len());
}

#[test]
fn equal_profiles_give_equal_bytes() {
    for format in Format::ALL {
        let written = export(format, &common::server()).unwrap();
        assert!(written == export(format, &common::server()).unwrap(), "{format:?}");
    }
}

#[test]
fn numbers_that_do_not_fit_become_the_largest() {
    let mut profile = common::empty("");
    let labels = common::labels(&mut profile, 0, "");
    profile.add_sample(&[], labels, u64::MAX);
    let message = pprof_of(&profile);
    assert_eq!(message.sample[0].value, [i64::MAX, i64::MAX]);
    assert_eq!(message.sample[0].label.len(), 3, "pid, tid and cpu 0 are labels; empty names are none");
}

#[test]
fn frames_found_by_the_frame_pointer_are_told() {
    let mut profile = common::empty("guesses");
    let sure = common::named(&mut profile, "sure", 1);
    let key = LocationKey { found_by: FoundBy::FramePointer, ..*profile.location_key(sure) };
    let guessed = profile.location(key);
    let doubtful = profile.location(LocationKey { found_by: FoundBy::FramePointerOfInterrupted, ..key });
    let labels = common::labels(&mut profile, 1, "p");
    profile.add_sample(&[sure, doubtful, sure, guessed], labels, 1);
    let message = pprof::message(&profile);
    let text = |index: i64| message.string_table[usize::try_from(index).unwrap()].as_str();
    let guesses = message.sample[0].label.iter().filter(|label| text(label.key) == "by_frame_pointer");
    let guesses: Vec<_> = guesses.map(|label| (label.num, text(label.num_unit))).collect();
    assert_eq!(guesses, [(1, "frame"), (3, "frame")]);
    let doubtful = message.sample[0].label.iter().filter(|label| text(label.key) == "caller_may_be_missing");
    assert_eq!(doubtful.map(|label| label.num).collect::<Vec<_>>(), [0]);
}
