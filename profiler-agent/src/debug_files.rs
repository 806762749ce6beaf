//! Which files belong to an executable: where its debug information may be, and opening what is there.
//!
//! The names come from files of other programs, and in containers so do the folders. A name never leads out
//! of the folders below, nor through a link that a process could have made; what is there is opened only
//! if it is a regular file. Whether it is the right one is for the worker to say, who reads it.
//!
//! | wanted | where |
//! |---|---|
//! | by build id | `/usr/lib/debug/.build-id/ab/cdef.debug` |
//! | by debug link | beside the executable, in `.debug` there, in `/usr/lib/debug` and its folder there |
//! | dwz's supplement | `/usr/lib/debug/.dwz`, by build id, or beside the executable |
//! | `.dwp` | beside the executable, or in its folder in `/usr/lib/debug` |
//! | `.dwo` | where the compiler wrote it, or beside the executable |
//!
//! All in the root directory of the process that runs it, and `/usr/lib/debug` also in ours. What has a build
//! id may also be among the files that servers sent.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::hash::{BuildHasher as _, RandomState};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::debuginfod::DebugCache;
use crate::tracker::open_in;

/// Files that may be looked at for one that is wanted.
pub(crate) const MOST_CANDIDATES: usize = 8;

/// Where separate debug information is (Filesystem Hierarchy Standard 3.0, `/usr/lib`; GDB's
/// `debug-file-directory`), from the root directory.
const DEBUG_FOLDER: &str = "usr/lib/debug";

/// Bytes of a build id: SHA-1's are 20, linkers let people choose others.
pub(crate) const BUILD_ID_BYTES: std::ops::RangeInclusive<usize> = 2..=64;

/// Where an executable is.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Its path when it was first mapped, in the root directory of the process.
    pub path: String,
    /// That root directory, where it is not ours.
    pub root: Option<Arc<OwnedFd>>,
}

/// A file that an executable's own contents tell of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DebugFile {
    /// The debug information of the executable with this build id.
    BuildId(Vec<u8>),
    /// What `.gnu_debuglink` names.
    Link(Vec<u8>),
    /// What `.gnu_debugaltlink` names, and its build id.
    Supplement {
        /// The path.
        path: Vec<u8>,
        /// The build id of what is wanted.
        build_id: Vec<u8>,
    },
    /// The executable's `.dwp`.
    Package,
    /// The `.dwo` of a compilation unit.
    SplitUnit {
        /// The folder in which the compiler ran.
        folder: Vec<u8>,
        /// The path from there.
        name: Vec<u8>,
    },
}

impl DebugFile {
    /// The build id that it must have, if it is known by that.
    #[must_use]
    pub fn build_id(&self) -> Option<&[u8]> {
        match self {
            Self::BuildId(id) | Self::Supplement { build_id: id, .. } => Some(id),
            Self::Link(_) | Self::Package | Self::SplitUnit { .. } => None,
        }
    }
}

/// Parts of executables that were looked for in vain. There may be one for each compilation unit, and who reads
/// the executable may have to begin anew for each request.
#[derive(Debug, Default)]
pub(crate) struct Missing {
    /// By whom and what: 1 MiB, where paths would be hundreds.
    hashes: HashSet<u64>,
    state: RandomState,
}

impl Missing {
    /// With so many all are forgotten.
    const MOST: usize = 65_536;

    /// Whether this was looked for already. `executable` is any number that stands for it.
    pub(crate) fn has(&self, executable: u32, wanted: &DebugFile) -> bool {
        self.hash(executable, wanted).is_some_and(|hash| self.hashes.contains(&hash))
    }

    /// Remembers that it is not there. Other files than split units are few, and may come later.
    pub(crate) fn note(&mut self, executable: u32, wanted: &DebugFile) {
        let Some(hash) = self.hash(executable, wanted) else { return };
        if self.hashes.len() >= Self::MOST {
            self.hashes.clear();
        }
        self.hashes.insert(hash);
    }

    fn hash(&self, executable: u32, wanted: &DebugFile) -> Option<u64> {
        match wanted {
            DebugFile::SplitUnit { folder, name } => Some(self.state.hash_one((executable, folder, name))),
            DebugFile::BuildId(_) | DebugFile::Link(_) | DebugFile::Supplement { .. } | DebugFile::Package => None,
        }
    }
}

/// A place to look.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    /// From the root directory.
    path: PathBuf,
    /// In our root directory, whatever that of the process is. Links are followed then: only root can
    /// make some there.
    ours: bool,
}

/// Opens the file number `candidate` of those that are there and may be what is wanted. With it comes its path,
/// in our root directory or in that of the process. Files in `downloaded` come last.
#[must_use]
pub fn open(
    place: &Place,
    downloaded: Option<&DebugCache>,
    wanted: &DebugFile,
    candidate: usize,
) -> Option<(PathBuf, OwnedFd)> {
    let mut candidates = candidates(place, wanted);
    if place.root.is_none() {
        candidates.dedup_by(|second, first| second.path == first.path);
    }
    let opened = candidates.into_iter().filter_map(|candidate| {
        let root = place.root.as_ref().filter(|_theirs| !candidate.ours);
        let file = open_in(root.map(AsRef::as_ref), &candidate.path, candidate.ours)?;
        Some((Path::new("/").join(&candidate.path), file))
    });
    let id = wanted.build_id().filter(|id| BUILD_ID_BYTES.contains(&id.len()));
    let downloaded = || downloaded?.find(id?);
    opened.chain(std::iter::once_with(downloaded).flatten()).take(MOST_CANDIDATES).nth(candidate)
}

fn candidates(place: &Place, wanted: &DebugFile) -> Vec<Candidate> {
    let executable = Path::new(&place.path).strip_prefix("/").ok();
    let folder = executable.and_then(Path::parent);
    let debug = Path::new(DEBUG_FOLDER);
    let by_id = |id: &[u8]| debug_path(id).into_iter().flat_map(in_both).collect::<Vec<_>>();
    let beside = |name: &OsStr| folder.map(|folder| theirs(folder.join(name)));
    let mirrored = |name: &OsStr| folder.map(|folder| in_both(debug.join(folder).join(name))).into_iter().flatten();
    match wanted {
        DebugFile::BuildId(id) => by_id(id),
        DebugFile::Link(name) => {
            let Some(name) = plain_name(name) else { return Vec::new() };
            let hidden = folder.map(|folder| theirs(folder.join(".debug").join(name)));
            beside(name).into_iter().chain(hidden).chain(mirrored(name)).collect()
        }
        DebugFile::Supplement { path, build_id } => {
            let shared = below_dwz(path).into_iter().flat_map(|rest| in_both(debug.join(".dwz").join(rest)));
            let beside = plain_name(path).and_then(beside);
            shared.chain(by_id(build_id)).chain(beside).collect()
        }
        DebugFile::Package => {
            let Some(name) = executable.and_then(Path::file_name) else { return Vec::new() };
            let mut name = name.to_owned();
            name.push(".dwp");
            beside(&name).into_iter().chain(mirrored(&name)).collect()
        }
        DebugFile::SplitUnit { folder, name } => {
            let path = Path::new(OsStr::from_bytes(folder)).join(OsStr::from_bytes(name));
            let Some(name) = path.file_name().filter(|_| path.extension() == Some(OsStr::new("dwo"))) else {
                return Vec::new();
            };
            // Whose path it is is known with the place of the executable.
            let written = executable.and_then(|_known| path.strip_prefix("/").ok()).map(|path| theirs(path.to_owned()));
            written.into_iter().chain(beside(name)).collect()
        }
    }
}

const fn theirs(path: PathBuf) -> Candidate {
    Candidate { path, ours: false }
}

/// A path below `/usr/lib/debug`, first in our root directory.
fn in_both(path: PathBuf) -> [Candidate; 2] {
    [Candidate { path: path.clone(), ours: true }, Candidate { path, ours: false }]
}

/// Where the debug information with this build id is: a name made of nothing but its digits.
fn debug_path(build_id: &[u8]) -> Option<PathBuf> {
    let (first, rest) = build_id.split_first().filter(|_| BUILD_ID_BYTES.contains(&build_id.len()))?;
    Some(Path::new(DEBUG_FOLDER).join(".build-id").join(hex(&[*first])).join(hex(rest) + ".debug"))
}

/// Bytes as digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of a file, if it leads to no other folder.
fn plain_name(name: &[u8]) -> Option<&OsStr> {
    let path = Path::new(OsStr::from_bytes(name));
    path.file_name().filter(|_| path.components().count() == 1 && !name.contains(&b'/'))
}

/// What stands behind `.dwz/` in the path of a supplement: distributions have them all in one folder, and
/// name them from the root or from the file that refers to it.
fn below_dwz(path: &[u8]) -> Option<PathBuf> {
    let mut parts = Path::new(OsStr::from_bytes(path)).components();
    parts.find(|part| part.as_os_str() == ".dwz")?;
    let rest = parts.as_path();
    let stays = rest.components().all(|part| matches!(part, Component::Normal(_)));
    (stays && rest.file_name().is_some()).then(|| rest.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn paths(path: &str, wanted: &DebugFile) -> Vec<String> {
        let place = Place { path: path.to_owned(), root: None };
        let shown =
            |candidate: Candidate| format!("{}{}", if candidate.ours { "ours:" } else { "" }, candidate.path.display());
        candidates(&place, wanted).into_iter().map(shown).collect()
    }

    fn both(path: &str) -> [String; 2] {
        [format!("ours:{path}"), path.to_owned()]
    }

    #[test]
    fn debug_files_are_looked_for_where_debuggers_do() {
        let by_id = paths("/opt/a", &DebugFile::BuildId(vec![0xab, 0xcd, 0xef]));
        assert_eq!(by_id, both("usr/lib/debug/.build-id/ab/cdef.debug"));
        let by_link = paths("/opt/bin/a", &DebugFile::Link(b"a.debug".to_vec()));
        assert_eq!(by_link[..2], ["opt/bin/a.debug", "opt/bin/.debug/a.debug"]);
        assert_eq!(by_link[2..], both("usr/lib/debug/opt/bin/a.debug"));
        let dwz = both("usr/lib/debug/.dwz/x86_64-linux-gnu/c.debug");
        for path in ["/usr/lib/debug/.dwz/x86_64-linux-gnu/c.debug", "../../.dwz/x86_64-linux-gnu/c.debug"] {
            let wanted = DebugFile::Supplement { path: path.into(), build_id: vec![] };
            assert_eq!(paths("/opt/a", &wanted), dwz, "{path}");
        }
        let wanted = DebugFile::Supplement { path: b"c".to_vec(), build_id: vec![] };
        assert_eq!(paths("/opt/a", &wanted), ["opt/c"]);
        let package = paths("/opt/a.out", &DebugFile::Package);
        assert_eq!(package[0], "opt/a.out.dwp");
        let split = |folder: &str, name: &str| DebugFile::SplitUnit { folder: folder.into(), name: name.into() };
        assert_eq!(paths("/opt/a", &split("/src", "b/c.dwo")), ["src/b/c.dwo", "opt/c.dwo"]);
        assert_eq!(paths("/opt/a", &split("", "c.dwo")), ["opt/c.dwo"]);
        assert_eq!(paths("/opt/a", &split("/etc", "shadow")), Vec::<String>::new());
        assert_eq!(paths("[vdso]", &DebugFile::Package), Vec::<String>::new());
        assert_eq!(paths("", &split("/src", "b/c.dwo")), Vec::<String>::new());
    }

    #[test]
    fn names_lead_to_no_other_folder() {
        for name in ["", ".", "..", "/etc/passwd", "../a", "a/b", "a/", "./a", "/"] {
            assert_eq!(paths("/opt/a", &DebugFile::Link(name.into())), Vec::<String>::new(), "{name}");
        }
        for path in ["/usr/lib/debug/.dwz/../../../etc/passwd", ".dwz/", ".dwz/..", ".dwz/a/../b", "/etc/a"] {
            let wanted = DebugFile::Supplement { path: path.into(), build_id: vec![1] };
            assert_eq!(paths("/opt/a", &wanted), Vec::<String>::new(), "{path}");
        }
        assert_eq!(paths("/opt/a", &DebugFile::BuildId(vec![1; 65])), Vec::<String>::new());
    }

    proptest! {
        #[test]
        fn whatever_the_name_it_stays_below(name in proptest::collection::vec(prop_oneof![Just(b'.'), Just(b'/'), Just(b'a')], 0..8)) {
            let wanted = [
                DebugFile::Link(name.clone()),
                DebugFile::Supplement { path: [b".dwz/", name.as_slice()].concat(), build_id: name.clone() },
            ];
            for path in wanted.iter().flat_map(|wanted| paths("/opt/a", wanted)) {
                let path = path.strip_prefix("ours:").unwrap_or(&path);
                prop_assert!(path.starts_with("opt/") || path.starts_with("usr/lib/debug/"), "{}", path);
                prop_assert!(!Path::new(path).components().any(|part| part == Component::ParentDir), "{}", path);
            }
        }
    }
}
