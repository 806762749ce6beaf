//! Every format of one profile against files in `tests/golden`. `BLESS=1` rewrites them.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::fmt::Write;
use std::path::Path;

use profiler_export::top::Top;
use profiler_export::{Format, export, pprof};

use crate::common;

fn check(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, found).expect("golden file is writable");
    }
    let expected = std::fs::read_to_string(&path).expect("golden file exists; BLESS=1 writes it");
    assert!(expected == found, "{name} differs from what is written now; compare with BLESS=1 and git diff:\n{found}");
}

fn text(format: Format) -> String {
    String::from_utf8(export(format, &common::server()).expect("it can be written")).expect("it is text")
}

#[test]
fn folded() {
    check("server.folded", &text(Format::Folded));
}

#[test]
fn flame_graph() {
    check("server.svg", &text(Format::FlameGraph));
}

#[test]
fn flame_graph_without_samples() {
    let svg = export(Format::FlameGraph, &common::empty("idle --<&>")).expect("it can be written");
    check("empty.svg", &String::from_utf8(svg).expect("it is text"));
}

#[test]
fn top() {
    let top = Top::of(&common::server());
    check("server.top", &top.table(5, 80));
    let json: serde_json::Value = serde_json::from_slice(&top.json().expect("it can be written")).expect("it is JSON");
    check("server.json", &format!("{json:#}\n"));
}

#[test]
fn pprof_message() {
    check("server.pprof.txt", &pprof_text(&pprof::message(&common::server())));
}

/// The message with all strings and functions looked up.
fn pprof_text(profile: &pprof::proto::Profile) -> String {
    let s = |index: i64| &profile.string_table[usize::try_from(index).expect("an index")];
    let kind = |kind: &pprof::proto::ValueType| format!("{}/{}", s(kind.r#type), s(kind.unit));
    let mut text = format!(
        "types {:?}, default {}, period {} {}, time {}, duration {}\n",
        profile.sample_type.iter().map(kind).collect::<Vec<_>>(),
        s(profile.default_sample_type),
        profile.period,
        kind(&profile.period_type.expect("set")),
        profile.time_nanos,
        profile.duration_nanos,
    );
    for index in &profile.comment {
        writeln!(text, "comment {}", s(*index)).expect("written");
    }
    for m in &profile.mapping {
        let flags = [m.has_functions, m.has_filenames, m.has_line_numbers, m.has_inline_frames].map(u8::from);
        let range = format!("{:#x}-{:#x} at {:#x}", m.memory_start, m.memory_limit, m.file_offset);
        writeln!(text, "mapping {} {range} {:?} {:?} {flags:?}", m.id, s(m.filename), s(m.build_id)).expect("written");
    }
    for f in &profile.function {
        let (name, system_name, file) = (s(f.name), s(f.system_name), s(f.filename));
        writeln!(text, "function {} {name:?} {system_name:?} {file:?} {}", f.id, f.start_line).expect("written");
    }
    for l in &profile.location {
        let lines: Vec<_> = l.line.iter().map(|line| format!("{}:{}", line.function_id, line.line)).collect();
        writeln!(text, "location {} in {} {:#x} {lines:?}", l.id, l.mapping_id, l.address).expect("written");
    }
    for sample in &profile.sample {
        let labels = sample.label.iter().map(|l| format!("{}={}{} {}", s(l.key), s(l.str), l.num, s(l.num_unit)));
        let labels: Vec<_> = labels.collect();
        writeln!(text, "sample {:?} {:?} {labels:?}", sample.value, sample.location_id).expect("written");
    }
    text
}
