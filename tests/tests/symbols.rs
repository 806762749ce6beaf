//! Names, files and lines: where they come from, and what is made of them.

#![forbid(unsafe_code)]

use profiler_export::pprof::proto;
use spanflame_tests::{Pprof, lab};

/// The source files of all functions.
fn files(pprof: &Pprof) -> Vec<&str> {
    let files = pprof.0.function.iter().map(|function| pprof.text(function.filename));
    files.filter(|file| !file.is_empty()).collect()
}

#[test]
fn source_files_are_shown_where_they_were_mapped_to() {
    let Some(lab) = lab() else { return };
    let program = lab.workload("inlined");
    let plain = lab.record(&[]).of(&program, &["1000"]).profile();
    let folder = files(&plain.pprof).into_iter().find_map(|file| file.strip_suffix("/inlined.c")).unwrap();
    let (exact, above) = (format!("{folder}=/elsewhere/"), format!("{}=/wrong", folder.rsplit_once('/').unwrap().0));
    let rules = ["--source-map", &above, "--source-map", &exact];
    let mapped = lab.record(&rules).of(&program, &["1000"]).profile();
    let of_ours: Vec<_> = files(&mapped.pprof).into_iter().filter(|file| file.ends_with("/inlined.c")).collect();
    assert!(!of_ours.is_empty() && of_ours.iter().all(|file| *file == "/elsewhere/inlined.c"), "{of_ours:?}");
}

/// The program ends, and its BPF program with it, before the names are looked up.
#[test]
fn bpf_programs_have_their_names_also_when_they_are_gone() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&["-F", "499"]).of(&lab.workload("bpf"), &["1000"]).profile();
    let pprof = &profile.pprof;
    let is_ours = |name: &str| name.starts_with("bpf_prog_") && name.ends_with("_sum_up");
    let functions: Vec<_> = pprof.0.function.iter().filter(|function| is_ours(pprof.text(function.name))).collect();
    assert_eq!(functions.len(), 1, "{functions:?}");
    let locations = pprof.0.location.iter();
    let of_it = |line: &proto::Line| line.function_id == functions[0].id;
    let locations: Vec<_> = locations.filter(|location| location.line.iter().any(of_it)).collect();
    for location in &locations {
        let mapping = pprof.0.mapping.iter().find(|mapping| mapping.id == location.mapping_id).unwrap();
        assert_eq!(pprof.text(mapping.filename), "[bpf]");
        assert!((mapping.memory_start..mapping.memory_limit).contains(&location.address), "{location:?} {mapping:?}");
    }
    let all: i64 = pprof.0.sample.iter().map(|sample| sample.value[0]).sum();
    let in_it = |id: &u64| locations.iter().any(|location| location.id == *id);
    let samples = pprof.0.sample.iter().filter(|sample| sample.location_id.iter().any(in_it));
    let samples: i64 = samples.map(|sample| sample.value[0]).sum();
    assert!(samples * 2 > all, "{samples} of {all} samples are in the program");
}
