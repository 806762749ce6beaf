//! Names, files and lines: where they come from, and what is made of them.

#![forbid(unsafe_code)]

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
