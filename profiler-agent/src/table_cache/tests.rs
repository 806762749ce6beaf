//! Tests of the cache on disk.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use profiler_common::address::Svma;
use profiler_common::row::{Row, Rule};
use profiler_unwind::{Arch, Part, Problems};
use tempfile::TempDir;

use super::*;
use crate::worker::Piece;

/// A folder below one that is safe: `/tmp` is not.
fn scratch() -> Option<TempDir> {
    let folder = tempfile::tempdir_in("/root").ok();
    if folder.is_none() {
        println!("skipped: it takes root to have a folder that nobody else could change");
    }
    folder
}

/// A file with a build id at its start.
fn program(folder: &TempDir, contents: &[u8]) -> OwnedFd {
    let path = folder.path().join("program");
    let note = [&[4, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0][..], b"GNU\0", b"buildid1"].concat();
    fs::write(&path, [&[0; 100], note.as_slice(), contents, &[0; 64 << 10]].concat()).unwrap();
    File::open(path).unwrap().into()
}

fn table() -> UnwindTable {
    let part = |number: u64| Part {
        start: Svma(number * 0x10000),
        end: Svma(number * 0x10000 + 0x8000),
        rows: (0..4000).map(|row| Row::new(row, Rule::x86_64(0, 0, 1 + (row % 2) as i32))).collect(),
    };
    let parts = (1..=LEAST_ROWS as u64 / 4000 + 1).map(part).collect();
    UnwindTable { arch: Arch::X86_64, build_id: None, segments: vec![], parts, problems: Problems::default() }
}

/// What a worker would have read of a file: its header and its end.
fn source(file: &OwnedFd) -> TableSource {
    let size_bytes = size_of(file).unwrap();
    let pieces = vec![Piece { offset: 0, length: 64 }, Piece { offset: 124, length: size_bytes - 124 }];
    source_of(file, pieces)
}

fn source_of(file: &OwnedFd, pieces: Vec<Piece>) -> TableSource {
    let mut hash = Sha256::new();
    for piece in &pieces {
        let mut bytes = vec![0; usize::try_from(piece.length).unwrap()];
        rustix::io::pread(file, &mut bytes, piece.offset).unwrap();
        hash.update(&bytes);
    }
    TableSource { size_bytes: size_of(file).unwrap(), pieces, digest: hash.finalize().into() }
}

/// The one file of the cache.
fn entry(folder: &TempDir) -> std::path::PathBuf {
    let mut entries = fs::read_dir(folder.path().join("cache")).unwrap();
    entries.next().unwrap().unwrap().path()
}

#[test]
fn a_table_is_found_again_and_only_for_the_same_bytes() {
    let Some(folder) = scratch() else { return };
    let mut cache = TableCache::open(&folder.path().join("cache")).unwrap();
    let mut counts = Counts::default();
    let file = program(&folder, b"frames of one");
    assert_eq!(cache.find(&file, &mut counts), None);
    cache.keep(&file, &table(), &source(&file));
    assert_eq!(cache.find(&file, &mut counts), Some(table()));
    assert_eq!(fs::metadata(entry(&folder)).unwrap().permissions().mode() & 0o777, 0o600);
    let forged = program(&folder, b"other frames!");
    assert_eq!(size_of(&forged), size_of(&file));
    assert_eq!(cache.find(&forged, &mut counts), None, "the same build id and size");
    assert_eq!(counts.get(Counter::TableCacheDamaged), 0);
}

/// Such sources would fit any file.
#[test]
fn what_a_worker_can_not_have_read_is_not_kept() {
    let Some(folder) = scratch() else { return };
    let mut cache = TableCache::open(&folder.path().join("cache")).unwrap();
    let file = program(&folder, b"frames of one");
    let (header, rest) = (Piece { offset: 0, length: 64 }, Piece { offset: 64, length: 60 << 10 });
    let empty = Piece { offset: 0, length: 0 };
    let lies = [vec![], vec![empty], vec![header], vec![rest], vec![header, rest, empty]];
    let mut sources: Vec<_> = lies.into_iter().map(|pieces| source_of(&file, pieces)).collect();
    sources.push(TableSource { digest: [7; 32], ..source(&file) });
    for source in sources {
        cache.keep(&file, &table(), &source);
        assert_eq!(fs::read_dir(folder.path().join("cache")).unwrap().count(), 0, "{source:?}");
    }
    let mut lacking = table();
    lacking.problems.sections_unusable = 1;
    cache.keep(&file, &lacking, &source(&file));
    assert_eq!(fs::read_dir(folder.path().join("cache")).unwrap().count(), 0, "a section could not be read");
}

#[test]
fn damaged_entries_are_counted_and_removed() {
    let Some(folder) = scratch() else { return };
    let mut cache = TableCache::open(&folder.path().join("cache")).unwrap();
    let file = program(&folder, b"frames of one");
    for (number, at) in [0, 20, 100, 5000].into_iter().enumerate() {
        let mut counts = Counts::default();
        cache.keep(&file, &table(), &source(&file));
        let mut bytes = fs::read(entry(&folder)).unwrap();
        bytes[at] ^= 1;
        fs::write(entry(&folder), &bytes).unwrap();
        assert_eq!(cache.find(&file, &mut counts), None, "byte {at}");
        assert_eq!(counts.get(Counter::TableCacheDamaged), 1, "byte {at}");
        bytes[at] ^= 1;
        cache.keep(&file, &table(), &source(&file));
        fs::write(entry(&folder), &bytes[..bytes.len() - 1 - 19 * number]).unwrap();
        assert_eq!(cache.find(&file, &mut counts), None, "cut");
        assert_eq!(counts.get(Counter::TableCacheDamaged), 2);
    }
    assert!(cache.folder.entries().is_empty());
}

#[test]
fn rows_of_another_builder_are_not_used() {
    let Some(folder) = scratch() else { return };
    let mut cache = TableCache::open(&folder.path().join("cache")).unwrap();
    let mut counts = Counts::default();
    let file = program(&folder, b"frames of one");
    cache.keep(&file, &table(), &source(&file));
    let mut bytes = fs::read(entry(&folder)).unwrap();
    bytes[8] ^= 1;
    fs::write(entry(&folder), &bytes).unwrap();
    assert_eq!(cache.find(&file, &mut counts), None);
    assert_eq!(counts.get(Counter::TableCacheDamaged), 0);
    cache.keep(&file, &table(), &source(&file));
    assert_eq!(cache.find(&file, &mut counts), Some(table()));
}

#[test]
fn small_tables_are_not_kept() {
    let Some(folder) = scratch() else { return };
    let mut cache = TableCache::open(&folder.path().join("cache")).unwrap();
    let file = program(&folder, b"frames of one");
    let mut small = table();
    small.parts.truncate(2);
    cache.keep(&file, &small, &source(&file));
    assert!(cache.folder.entries().is_empty());
}

#[test]
fn unsafe_folders_are_refused() {
    let Some(folder) = scratch() else { return };
    let open = |path: &Path| TableCache::open(path).map(|_cache| ());
    let (mine, link, open_to_all) = (folder.path().join("mine"), folder.path().join("link"), folder.path().join("all"));
    open(&mine).unwrap();
    assert_eq!(fs::metadata(&mine).unwrap().permissions().mode() & 0o777, 0o700);
    symlink(&mine, &link).unwrap();
    fs::create_dir(&open_to_all).unwrap();
    fs::set_permissions(&open_to_all, Permissions::from_mode(0o777)).unwrap();
    for path in [&link, &link.join("below"), &open_to_all, &open_to_all.join("below"), Path::new("/tmp/cache")] {
        assert!(matches!(open(path), Err(TableCacheError(FolderError::Unsafe { .. }))), "{}", path.display());
    }
    std::os::unix::fs::chown(&mine, Some(12345), None).unwrap();
    assert!(matches!(open(&mine), Err(TableCacheError(FolderError::Unsafe { .. }))), "another user's");
    assert!(matches!(open(&folder.path().join("no/where")), Err(TableCacheError(FolderError::Open { .. }))));
    assert!(matches!(open(&mine.join("../other")), Err(TableCacheError(FolderError::Unsafe { .. }))));
}

#[test]
fn the_least_recently_used_go() {
    let Some(folder) = scratch() else { return };
    let cache = TableCache::open(&folder.path().join("cache")).unwrap();
    for (name, day) in [("new", 3), ("old", 1), ("middle", 2)] {
        cache.folder.write(name, &[b"x"]).unwrap();
        let file = File::options().write(true).open(folder.path().join("cache").join(name)).unwrap();
        // Sparse: it takes no room on the disk.
        file.set_len(MOST_BYTES / 2 - 1).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(day * 86400);
        file.set_modified(time).unwrap();
    }
    cache.folder.shrink_to(MOST_BYTES);
    let mut left: Vec<String> = cache.folder.entries().into_iter().map(|entry| entry.name).collect();
    left.sort_unstable();
    assert_eq!(left, ["middle", "new"]);
}
