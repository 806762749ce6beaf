//! Merging against a plain map from rendered samples to counts.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use profiler_common::address::{Bias, FileOffset, Pid, Tid, VirtualAddress};
use profiler_common::record::StopReason;
use profiler_model::{About, FoundBy, FrameKind, Function, Labels, Line, LocationKey, Mapping, Profile, StringId};
use proptest::collection::vec;
use proptest::prelude::*;

/// Frames (leaf first), process and count of one sample.
type Given = (Vec<u8>, u8, u32);

fn samples() -> impl Strategy<Value = Vec<Given>> {
    vec((vec(0..12u8, 0..6), 0..3u8, 1..1000u32), 0..20)
}

fn build(samples: &[Given]) -> Profile {
    let mut profile = Profile::new(About {
        title: String::new(),
        host: String::new(),
        kernel_release: String::new(),
        sample_rate_hz: NonZeroU32::MIN,
        start_unix_ns: 0,
        duration_ns: 0,
    });
    for (frames, process, count) in samples {
        let stack: Vec<_> = frames
            .iter()
            .map(|frame| {
                let mapping = Mapping {
                    start: VirtualAddress(0),
                    end: VirtualAddress(100),
                    file_offset: FileOffset(0),
                    bias: Bias(0),
                    path: profile.string(&format!("file{}", frame % 3)),
                    build_id: StringId::EMPTY,
                    discriminator: 0,
                };
                let key = LocationKey {
                    mapping: Some(profile.mapping(mapping)),
                    address: VirtualAddress(u64::from(*frame)),
                    kind: FrameKind::User,
                    found_by: FoundBy::Cfi,
                };
                let id = profile.location(key);
                let name = profile.string(&format!("function{frame}"));
                let function = Function { name, system_name: name, file: StringId::EMPTY, start_line: 0 };
                let line = Line { function: profile.function(function), line: 0, column: 0 };
                profile.set_lines(id, vec![line]);
                id
            })
            .collect();
        let name = profile.string(&format!("process{process}"));
        let labels = Labels {
            pid: Pid(u32::from(*process)),
            tid: Tid(1),
            cpu: None,
            thread: name,
            process: name,
            stop: StopReason::Complete,
        };
        profile.add_sample(&stack, labels, u64::from(*count));
    }
    profile
}

fn expected(samples: &[Given]) -> BTreeMap<(Vec<u8>, u8), u64> {
    let mut counts = BTreeMap::new();
    for (frames, process, count) in samples {
        *counts.entry((frames.clone(), *process)).or_default() += u64::from(*count);
    }
    counts
}

/// What the profile says, read through all its tables.
fn found(profile: &Profile) -> BTreeMap<(Vec<u8>, u8), u64> {
    let number = |text: &str, prefix: &str| text.strip_prefix(prefix).unwrap().parse::<u8>().unwrap();
    let mut counts = BTreeMap::new();
    for sample in profile.samples() {
        let frames = sample.stack.iter().map(|id| {
            let function = profile[profile.lines(*id).unwrap()[0].function];
            let frame = number(&profile[function.name], "function");
            let key = profile.location_key(*id);
            assert_eq!(key.address, VirtualAddress(u64::from(frame)));
            assert_eq!(number(&profile[profile[key.mapping.unwrap()].path], "file"), frame % 3);
            frame
        });
        let process = number(&profile[sample.labels.process], "process");
        assert_eq!(sample.labels.pid, Pid(u32::from(process)));
        assert_eq!(counts.insert((frames.collect(), process), sample.count), None, "equal samples are merged");
    }
    counts
}

proptest! {
    #[test]
    fn a_merged_profile_holds_what_both_held(a in samples(), b in samples()) {
        let mut merged = build(&a);
        prop_assert_eq!(found(&merged), expected(&a));
        merged.merge(&build(&b)).unwrap();
        prop_assert_eq!(found(&merged), expected(&[a, b].concat()));
    }
}
