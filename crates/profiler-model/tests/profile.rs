//! Interning, late symbols, figures and merging, on profiles made by hand.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::num::NonZeroU32;

use profiler_common::address::{Bias, Cpu, FileOffset, Pid, Tid, VirtualAddress};
use profiler_common::record::StopReason;
use profiler_model::{
    About, Figures, FoundBy, FrameKind, Function, Labels, Line, LocationId, LocationKey, MAX_LINES, Mapping, MappingId,
    MergeError, Missed, Profile, StringId,
};

fn profile_of(rate_hz: u32, start_unix_ns: u64, duration_ns: u64) -> Profile {
    Profile::new(About {
        title: "demo\n".into(),
        host: "host".into(),
        kernel_release: "6.1".into(),
        sample_rate_hz: NonZeroU32::new(rate_hz).unwrap(),
        start_unix_ns,
        duration_ns,
    })
}

fn profile() -> Profile {
    profile_of(99, 0, 0)
}

fn labels(profile: &mut Profile) -> Labels {
    Labels {
        pid: Pid(1),
        tid: Tid(2),
        cpu: Some(Cpu(0)),
        thread: profile.string("worker"),
        process: profile.string("server"),
        stop: StopReason::Complete,
    }
}

fn mapping(profile: &mut Profile, path: &str, discriminator: u64) -> MappingId {
    let mapping = Mapping {
        start: VirtualAddress(0x1000),
        end: VirtualAddress(0x9000),
        file_offset: FileOffset(0),
        bias: Bias(0x1000),
        path: profile.string(path),
        build_id: StringId::EMPTY,
        discriminator,
    };
    profile.mapping(mapping)
}

fn key(mapping: Option<MappingId>, address: u64) -> LocationKey {
    LocationKey { mapping, address: VirtualAddress(address), kind: FrameKind::User, found_by: FoundBy::Cfi }
}

fn line(profile: &mut Profile, name: &str) -> Line {
    let name = profile.string(name);
    let function = profile.function(Function { name, system_name: name, file: StringId::EMPTY, start_line: 0 });
    Line { function, line: 7, column: 0 }
}

fn names(profile: &Profile, id: LocationId) -> Vec<&str> {
    profile.lines(id).unwrap().iter().map(|line| &profile[profile[line.function].name]).collect()
}

#[test]
fn equal_samples_add_up_and_different_ones_stay_apart() {
    let mut profile = profile();
    let base = labels(&mut profile);
    let (a, b) = (profile.location(key(None, 1)), profile.location(key(None, 2)));
    assert_eq!(profile.location(key(None, 1)), a);
    let other_names = [Labels { thread: profile.string("x"), ..base }, Labels { process: profile.string("x"), ..base }];
    let different = [
        base,
        Labels { pid: Pid(9), ..base },
        Labels { tid: Tid(9), ..base },
        Labels { cpu: None, ..base },
        Labels { cpu: Some(Cpu(1)), ..base },
        Labels { stop: StopReason::NoRange, ..base },
        other_names[0],
        other_names[1],
    ];
    for (round, labels) in different.iter().chain(&different).enumerate() {
        profile.add_sample(&[a, b], *labels, round as u64 + 1);
    }
    profile.add_sample(&[b, a], base, 1);
    profile.add_sample(&[a], base, u64::MAX);
    profile.add_sample(&[a], base, 1);
    profile.add_sample(&[], base, 0);
    let counts: Vec<_> = profile.samples().map(|sample| sample.count).collect();
    assert_eq!(counts, [10, 12, 14, 16, 18, 20, 22, 24, 1, u64::MAX]);
    let first = profile.samples().next().unwrap();
    assert_eq!((first.stack, first.labels), (&[a, b][..], &base));
}

#[test]
fn locations_differ_by_every_part_of_their_key() {
    let mut profile = profile();
    let (one, two) = (mapping(&mut profile, "[anon]", 1), mapping(&mut profile, "[anon]", 2));
    let base = key(Some(one), 0x1234);
    let keys = [
        base,
        LocationKey { mapping: Some(two), ..base },
        LocationKey { mapping: None, ..base },
        LocationKey { address: VirtualAddress(0x1235), ..base },
        LocationKey { kind: FrameKind::Kernel, ..base },
        LocationKey { found_by: FoundBy::FramePointer, ..base },
    ];
    let ids: Vec<_> = keys.iter().map(|key| profile.location(*key)).collect();
    assert_eq!(ids.iter().map(|id| id.index()).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    for (id, key) in ids.into_iter().zip(keys) {
        assert_eq!(*profile.location_key(id), key);
    }
}

#[test]
fn symbols_come_after_samples() {
    let mut profile = profile();
    let (a, b) = (profile.location(key(None, 1)), profile.location(key(None, 2)));
    let pending = |profile: &Profile| profile.unsymbolized().map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!((pending(&profile), profile.lines(a)), (vec![a, b], None));
    let lines = vec![line(&mut profile, "inlined"), line(&mut profile, "outer")];
    profile.set_lines(a, lines);
    assert_eq!(pending(&profile), [b]);
    profile.set_lines(b, vec![]);
    assert_eq!((pending(&profile), profile.lines(b)), (vec![], Some(&[][..])));
    assert_eq!(names(&profile, a), ["inlined", "outer"]);
    let mut many: Vec<_> = (0..MAX_LINES * 2).map(|n| line(&mut profile, &n.to_string())).collect();
    many.push(line(&mut profile, "outermost"));
    profile.set_lines(a, many);
    let kept = names(&profile, a);
    assert_eq!((kept.len(), kept[0], kept[MAX_LINES - 2], kept[MAX_LINES - 1]), (MAX_LINES, "0", "126", "outermost"));
}

#[test]
fn texts_are_clean() {
    let mut profile = profile();
    assert_eq!(profile.about().title, "demo\u{fffd}");
    profile.add_note("a\nb");
    profile.add_note("a\nb");
    assert_eq!(profile.notes().collect::<Vec<_>>(), ["a\u{fffd}b"]);
}

#[test]
fn figures_count_every_sample() {
    let mut profile = profile();
    let labels = labels(&mut profile);
    let known = profile.location(key(None, 1));
    let unknown = profile.location(LocationKey { found_by: FoundBy::FramePointerOfInterrupted, ..key(None, 2) });
    let lines = vec![line(&mut profile, "f"), line(&mut profile, "g")];
    profile.set_lines(known, lines);
    profile.add_sample(&[known, unknown], labels, 3);
    profile.add_sample(&[unknown], Labels { stop: StopReason::NoRange, ..labels }, 2);
    profile.add_sample(&[], Labels { stop: StopReason::NoUserStack, ..labels }, 1);
    let figures = Figures::of(&profile);
    assert_eq!((figures.samples, figures.incomplete), (6, 2));
    let stops = [(StopReason::Complete, 3), (StopReason::NoUserStack, 1), (StopReason::NoRange, 2)];
    assert_eq!(figures.stops, stops.into());
    assert_eq!((figures.frames, figures.frames_without_symbols, figures.frames_by_frame_pointer), (8, 5, 5));
    assert_eq!(figures.callers_perhaps_missing, 3, "not behind a frame that something else was called from");
}

#[test]
fn merged_windows_span_both_and_sum_their_quality() {
    let (mut first, mut second) = (profile_of(99, 1000, 500), profile_of(99, 1600, 400));
    for (profile, taken) in [(&mut first, 10), (&mut second, 20)] {
        profile.quality.samples_taken = taken;
        profile.quality.lost.insert("lost_ring_full".into(), taken / 10);
        profile.add_note("same");
    }
    first.quality.missed_by_kernel = Some(Missed { count: 1, uncertainty: 2 });
    second.quality.missed_by_kernel = Some(Missed { count: 3, uncertainty: 4 });
    second.quality.filtered.insert("filtered_idle".into(), 7);
    let executable = mapping(&mut second, "/bin/x", 0);
    second.set_main_mapping(executable);
    first.merge(&second).unwrap();
    assert_eq!((first.about().start_unix_ns, first.about().duration_ns), (1000, 1000));
    assert_eq!((first.quality.samples_taken, first.quality.samples_lost()), (30, 3));
    assert_eq!(first.quality.samples_filtered(), 7);
    assert_eq!(first.quality.missed_by_kernel, Some(Missed { count: 4, uncertainty: 6 }));
    assert_eq!(first.notes().count(), 1);
    assert_eq!(&first[first[first.main_mapping().unwrap()].path], "/bin/x");
    let refused = first.merge(&profile_of(100, 0, 0)).unwrap_err();
    assert!(matches!(refused, MergeError::RatesDiffer { .. }));
    assert_eq!(refused.to_string(), "merging a profile of 100 Hz into one of 99 Hz: a sample means another time");
}

/// Code that was replaced at run time: equal addresses, other functions.
#[test]
fn merging_never_gives_a_sample_another_function() {
    let with = |name: Option<&str>| {
        let mut profile = profile();
        let jit = mapping(&mut profile, "[anon]", 1);
        let id = profile.location(key(Some(jit), 0x2000));
        if let Some(name) = name {
            let line = line(&mut profile, name);
            profile.set_lines(id, vec![line]);
        }
        let labels = labels(&mut profile);
        profile.add_sample(&[id], labels, 1);
        profile
    };
    let mut merged = with(None);
    for name in [Some("old"), None, Some("new"), Some("old")] {
        merged.merge(&with(name)).unwrap();
    }
    let found: Vec<_> = merged.samples().map(|sample| (names(&merged, sample.stack[0]), sample.count)).collect();
    assert_eq!(found, [(vec!["old"], 4), (vec!["new"], 1)]);
}
