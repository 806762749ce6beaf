//! What `go tool pprof`, the reference reader, makes of our files.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::process::Command;

use profiler_export::{Format, export};
use profiler_model::Profile;

use crate::common;

/// What pprof prints with these arguments; `None`, and the reason on stderr, when there is no `go`.
fn pprof(profile: &Profile, name: &str, arguments: &[&str]) -> Option<String> {
    if let Err(error) = Command::new("go").arg("version").output() {
        eprintln!("skipped: go tool pprof cannot be started: {error}");
        return None;
    }
    let file: PathBuf = [env!("CARGO_TARGET_TMPDIR"), name].iter().collect();
    std::fs::write(&file, export(Format::Pprof, profile).expect("it can be written")).expect("file is writable");
    // Local symbolization would print complaints about files that do not exist here.
    let output = Command::new("go")
        .args(["tool", "pprof", "-symbolize=demangle=default"])
        .args(arguments)
        .arg(&file)
        .env("PPROF_TMPDIR", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .expect("go was just started");
    let text = String::from_utf8(output.stdout).expect("pprof prints UTF-8");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

fn assert_contains(text: &str, parts: &[&str]) {
    let squeezed: Vec<String> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for part in parts {
        assert!(squeezed.iter().any(|line| line.contains(part)), "no line holds {part:?}:\n{text}");
    }
}

#[test]
fn raw() {
    let Some(text) = pprof(&common::server(), "raw.pb.gz", &["-raw"]) else { return };
    assert_contains(
        &text,
        &[
            "PeriodType: cpu nanoseconds",
            "Period: 10101010",
            "Time: 2026-11-21 13:08:26",
            "Duration: 10.2",
            "samples/count cpu/nanoseconds[dflt]",
            "400 4040404000: 1 2 3",
            "samples_taken=1500",
            "lost_ring_full=10",
            "note=1 executable had no symbols",
            "core::str::find<char> core/str.rs:700",
            "server::parse<T> src/parse.rs:40",
            "libc.so.6+0x2a1f",
            "1: 0x550000000000/0x550000010000/0x0 /usr/bin/server beef02 [FN][FL][LN][IN]",
            "cpu:[0 cpu]",
        ],
    );
}

#[test]
fn top_and_tags() {
    let profile = common::server();
    let Some(text) = pprof(&profile, "top.pb.gz", &["-top", "-nodecount=20"]) else { return };
    assert_contains(
        &text,
        &["Type: cpu", "Duration: 10.25s", "core::str::find<char> (inline)", "server::parse<T>", "libc.so.6+0x2a1f"],
    );
    let tags = pprof(&profile, "tags.pb.gz", &["-tags", "-sample_index=samples"]).expect("there is go");
    assert_contains(&tags, &["(10.81%): worker-1", "( 100%): no_unwind_table", "(99.70%): server", "(89.16%): 0"]);
    let focus = pprof(&profile, "focus.pb.gz", &["-top", "-sample_index=samples", "-tagfocus=thread=worker-1"]);
    assert_contains(&focus.expect("there is go"), &["107, 10.81% of 990 total"]);
}

#[test]
fn profiles_without_samples_and_with_hostile_names() {
    if pprof(&common::empty("idle"), "empty.pb.gz", &["-raw"]).is_none() {
        return;
    }
    let hostile = pprof(&common::hostile(), "hostile.pb.gz", &["-raw"]).expect("there is go");
    assert_contains(&hostile, &["<script>alert(1)</script>"]);
    assert!(!hostile.contains(['\0', '\x1b']));
}
