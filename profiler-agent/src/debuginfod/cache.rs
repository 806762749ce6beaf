//! Debug files that servers sent, in a folder that nobody else can change, and what no server had.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::MOST_TOTAL_BYTES;
use crate::cache_folder::{Folder, FolderError, Unfinished};
use crate::debug_files::hex;

/// Bytes of all files, at most: all that one recording fetches fits. The least recently used go.
const MOST_BYTES: u64 = MOST_TOTAL_BYTES;

/// How long it is believed that no server has a file (`cache_miss_s` of elfutils' client is the same).
const ABSENT_FOR: Duration = Duration::from_secs(600);

/// Files by build id.
#[derive(Debug)]
pub struct DebugCache {
    folder: Folder,
    path: PathBuf,
}

impl DebugCache {
    /// Opens or makes the folder, and the one that it is in.
    pub(super) fn open(path: &Path) -> Result<Self, FolderError> {
        if let Some(parent) = path.parent() {
            let _safe = Folder::open(parent)?;
        }
        Ok(Self { folder: Folder::open(path)?, path: path.to_owned() })
    }

    /// The file that is said to have this build id, and its path.
    pub(crate) fn find(&self, build_id: &[u8]) -> Option<(PathBuf, OwnedFd)> {
        let name = name(build_id);
        let (file, _size_bytes) = self.folder.open_file(&name)?;
        Some((self.path.join(name), file))
    }

    /// Whether no server had the file lately.
    pub(super) fn is_absent(&self, build_id: &[u8]) -> bool {
        self.folder.age(&absent_name(build_id)).is_some_and(|age| age < ABSENT_FOR)
    }

    /// Notes that no server has the file, or a wrong one.
    pub(crate) fn set_absent(&self, build_id: &[u8]) {
        self.folder.remove(&name(build_id));
        // Otherwise servers are asked again the next time.
        let _unwritable = self.folder.write(&absent_name(build_id), &[]);
    }

    /// Keeps what `fill` writes, if it says that this is all.
    pub(super) fn keep<E>(
        &self,
        build_id: &[u8],
        fill: impl FnOnce(&mut File) -> Result<(), E>,
    ) -> Result<Result<(), E>, io::Error> {
        let mut new: Unfinished<'_> = self.folder.begin()?;
        if let Err(error) = fill(&mut new.file) {
            return Ok(Err(error));
        }
        new.finish(&name(build_id))?;
        self.folder.remove(&absent_name(build_id));
        self.folder.shrink_to(MOST_BYTES);
        Ok(Ok(()))
    }
}

fn name(build_id: &[u8]) -> String {
    hex(build_id) + ".debug"
}

fn absent_name(build_id: &[u8]) -> String {
    hex(build_id) + ".absent"
}
