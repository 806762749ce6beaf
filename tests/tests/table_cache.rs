//! Tables that are kept on disk from one recording to the next.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use spanflame_tests::{Lab, Profile, from_main, lab};

fn record(lab: &Lab, cache: &Path) -> Profile {
    let recording = lab.record(&["-F", "499", "--table-cache", cache.to_str().unwrap()]);
    let profile = recording.of(&lab.workload("bulky"), &["1000"]).profile();
    profile.check_chain("bulky", &from_main(&["outer", "inner", "leaf"]), 0.97);
    profile
}

fn entries(cache: &Path) -> Vec<PathBuf> {
    fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The second recording finds the table of the first; a damaged one is counted and built again.
#[test]
fn tables_are_kept_and_damaged_ones_built_again() {
    let Some(lab) = lab() else { return };
    // Not in the usual place for such: others may write there.
    let folder = tempfile::tempdir_in("/var/cache").unwrap();
    let cache = folder.path().join("tables");
    record(&lab, &cache);
    let [entry] = &entries(&cache)[..] else { panic!("{:?}", entries(&cache)) };
    // What is written again is another file, made before it takes the place of this one.
    let file = || fs::metadata(entry).unwrap().ino();
    let (bytes, written) = (fs::read(entry).unwrap(), file());
    assert_eq!(record(&lab, &cache).figure("table_cache_damaged"), 0);
    assert_eq!(file(), written, "it was used, not written again");
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 0x10;
    fs::write(entry, damaged).unwrap();
    assert_eq!(record(&lab, &cache).figure("table_cache_damaged"), 1);
    assert!(fs::read(entry).unwrap() == bytes, "the table is there again");
}

/// Where others may write, the recording does not begin.
#[test]
fn a_folder_that_others_can_write_to_is_refused() {
    let Some(lab) = lab() else { return };
    let recording = lab.record(&["--table-cache", "/tmp/spanflame-cache"]).of(Path::new("/bin/true"), &[""; 0]);
    let ended = recording.end();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("/tmp: others may write there"), "{}", ended.stderr);
    assert!(!Path::new("/tmp/spanflame-cache").exists());
}
