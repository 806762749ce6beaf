//! A folder that nobody else can change, and files in it: what is kept from one recording to the next.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;

use crate::clock;

/// Why a folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It can't be opened or made.
    #[error("cannot open the folder {path}: {source}")]
    Open {
        /// The part of its path that can't be.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// Others could change what is in it.
    #[error("{path}: {why}, so others could forge what is kept there")]
    Unsafe {
        /// The part of its path that is unsafe.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// A file in the folder.
pub(crate) struct Entry {
    pub(crate) name: String,
    size_bytes: u64,
    /// When it was last used, as `mtime`.
    used: (i64, u64),
}

/// What the names of files end with that are not complete.
const NEW: &str = ".new";

/// The longest that one is written to: nobody waits so long.
const LEFT_BEHIND_AFTER: Duration = Duration::from_secs(3600);

/// A file that nobody sees before it is complete; without that it is removed.
pub(crate) struct Unfinished<'a> {
    folder: &'a Folder,
    name: String,
    pub(crate) file: File,
}

impl Unfinished<'_> {
    /// Gives it its name; another file with that name is replaced.
    pub(crate) fn finish(self, name: &str) -> io::Result<()> {
        // Then nothing is left to remove.
        Ok(rustix::fs::renameat(&self.folder.0, &self.name, &self.folder.0, name)?)
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.folder.remove(&self.name);
    }
}

/// The folder. All that is done with it goes through its descriptor.
#[derive(Debug)]
pub(crate) struct Folder(OwnedFd);

impl Folder {
    /// Opens the folder, or makes it in one that is there. No part of its path may be a link, belong to
    /// another user than root and us, or be writable by others.
    pub(crate) fn open(path: &Path) -> Result<Self, FolderError> {
        const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
        let path = std::path::absolute(path).map_err(|source| FolderError::Open { path: path.to_owned(), source })?;
        let mut at = PathBuf::from("/");
        let failed = |at: &Path, error: Errno| FolderError::Open { path: at.to_owned(), source: error.into() };
        let mut folder = rustix::fs::open("/", FOLDER, Mode::empty()).map_err(|error| failed(&at, error))?;
        let mut parts = path.components().skip(1).peekable();
        while let Some(part) = parts.next() {
            check(&at, &folder)?;
            at.push(part);
            let Component::Normal(name) = part else {
                return Err(FolderError::Unsafe { path: at, why: "the path goes up" });
            };
            if parts.peek().is_none() {
                match rustix::fs::mkdirat(&folder, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(failed(&at, error)),
                }
            }
            folder = rustix::fs::openat(&folder, name, FOLDER, Mode::empty()).map_err(|error| match error {
                Errno::NOTDIR | Errno::LOOP => FolderError::Unsafe { path: at.clone(), why: "a link, or no folder" },
                error => failed(&at, error),
            })?;
        }
        check(&at, &folder)?;
        Ok(Self(folder))
    }

    /// Opens a file of ours, of which this is the size in bytes; it counts as used now.
    pub(crate) fn open_file(&self, name: &str) -> Option<(OwnedFd, u64)> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.0, name, flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&file).ok()?;
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let _read_only = rustix::fs::futimens(&file, &Timestamps { last_access: now, last_modification: now });
        is_ours(&stat).then_some((file, stat.st_size.unsigned_abs()))
    }

    /// All bytes of a file of ours, at most `most_bytes`; it counts as used now.
    pub(crate) fn read(&self, name: &str, most_bytes: u64) -> Option<Vec<u8>> {
        let (file, size_bytes) = self.open_file(name).filter(|(_file, size_bytes)| *size_bytes <= most_bytes)?;
        let mut bytes = Vec::with_capacity(usize::try_from(size_bytes).ok()?);
        File::from(file).take(most_bytes).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// A new file, to be filled.
    pub(crate) fn begin(&self) -> io::Result<Unfinished<'_>> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let new = format!("{}-{}{NEW}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.0, &new, flags, Mode::RUSR | Mode::WUSR)?);
        Ok(Unfinished { folder: self, name: new, file })
    }

    /// Writes a file; another one with that name is replaced when this one is complete.
    pub(crate) fn write(&self, name: &str, pieces: &[&[u8]]) -> io::Result<()> {
        let mut new = self.begin()?;
        pieces.iter().try_for_each(|piece| new.file.write_all(piece))?;
        new.finish(name)
    }

    /// Removes the files that were not used for the longest time, until no more than this is left, and what
    /// was begun and left behind.
    pub(crate) fn shrink_to(&self, most_bytes: u64) {
        let mut entries = self.entries();
        let mut bytes: u64 = entries.iter().map(|entry| entry.size_bytes).sum();
        entries.sort_unstable_by_key(|entry| entry.used);
        for Entry { name, size_bytes, .. } in entries {
            let left_behind = || self.age(&name).is_none_or(|age| age > LEFT_BEHIND_AFTER);
            if bytes > most_bytes || name.ends_with(NEW) && left_behind() {
                self.remove(&name);
                bytes -= size_bytes;
            }
        }
    }

    /// How long ago a file of ours was last used or written; none for times to come.
    pub(crate) fn age(&self, name: &str) -> Option<Duration> {
        let stat = rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW).ok().filter(is_ours)?;
        let used = Duration::new(stat.st_mtime.try_into().ok()?, stat.st_mtime_nsec.try_into().ok()?);
        Duration::from_nanos(clock::unix_ns()).checked_sub(used)
    }

    /// Removes a file. That it is not there is no error.
    pub(crate) fn remove(&self, name: &str) {
        let _gone = rustix::fs::unlinkat(&self.0, name, AtFlags::empty());
    }

    /// All files of ours.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let names = Dir::read_from(self.0.as_fd()).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
        let look = |name: String| {
            let stat = rustix::fs::statat(&self.0, &name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            let used = (stat.st_mtime, stat.st_mtime_nsec);
            is_ours(&stat).then_some(Entry { name, size_bytes: stat.st_size.unsigned_abs(), used })
        };
        names.filter_map(look).collect()
    }
}

fn is_ours(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_uid == rustix::process::geteuid().as_raw()
        && !Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH)
}

/// A path with its links resolved, as far as it is there, for [`Folder::open`], which checks where they led.
/// Only for paths that we chose, below folders of root: /var or /var/cache may be links.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    match (std::fs::canonicalize(path), path.parent(), path.file_name()) {
        (Ok(found), ..) => found,
        (Err(_absent), Some(parent), Some(name)) => resolved(parent).join(name),
        (Err(_absent), ..) => path.to_owned(),
    }
}

fn check(path: &Path, folder: &OwnedFd) -> Result<(), FolderError> {
    let stat =
        rustix::fs::fstat(folder).map_err(|error| FolderError::Open { path: path.to_owned(), source: error.into() })?;
    let refused = |why| Err(FolderError::Unsafe { path: path.to_owned(), why });
    if stat.st_uid != 0 && stat.st_uid != rustix::process::geteuid().as_raw() {
        return refused("it belongs to another user");
    }
    if Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH) {
        return refused("others may write there");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_usual_paths_are_resolved() {
        let scratch = tempfile::tempdir().unwrap();
        let scratch = std::fs::canonicalize(scratch.path()).unwrap();
        std::fs::create_dir(scratch.join("data")).unwrap();
        std::os::unix::fs::symlink("data", scratch.join("cache")).unwrap();
        assert_eq!(resolved(&scratch.join("cache/spanflame")), scratch.join("data/spanflame"), "not made yet");
        assert_eq!(resolved(&scratch.join("cache/a/b")), scratch.join("data/a/b"));
        assert_eq!(resolved(Path::new("/no/such/folder")), Path::new("/no/such/folder"));
        std::fs::create_dir(scratch.join("data/spanflame")).unwrap();
        assert_eq!(resolved(&scratch.join("cache/spanflame")), scratch.join("data/spanflame"));
        // A link that leads nowhere is no folder, and stays one.
        std::os::unix::fs::symlink("nowhere", scratch.join("dangling")).unwrap();
        assert_eq!(resolved(&scratch.join("dangling")), scratch.join("dangling"));
    }
}
