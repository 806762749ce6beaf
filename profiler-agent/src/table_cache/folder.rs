//! A folder that nobody else can change, and files in it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;

/// Why a folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TableCacheError {
    /// It can't be opened or made.
    #[error("cannot open {path} as the folder for tables: {source}. Name another with --table-cache, or none")]
    Open {
        /// The part of its path that can't be.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// Others could change what is in it.
    #[error("{path}: {why}, so others could forge tables. Name another folder with --table-cache, or none")]
    Unsafe {
        /// The part of its path that is unsafe.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// A file in the folder.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) size_bytes: u64,
    /// When it was last used, as `mtime`.
    pub(super) used: (i64, u64),
}

/// The folder. All that is done with it goes through its descriptor.
pub(super) struct Folder(OwnedFd);

impl Folder {
    /// Opens the folder, or makes it in one that is there. No part of its path may be a link, belong to
    /// another user than root and us, or be writable by others.
    pub(super) fn open(path: &Path) -> Result<Self, TableCacheError> {
        const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
        let path =
            std::path::absolute(path).map_err(|source| TableCacheError::Open { path: path.to_owned(), source })?;
        let mut at = PathBuf::from("/");
        let failed = |at: &Path, error: Errno| TableCacheError::Open { path: at.to_owned(), source: error.into() };
        let mut folder = rustix::fs::open("/", FOLDER, Mode::empty()).map_err(|error| failed(&at, error))?;
        let mut parts = path.components().skip(1).peekable();
        while let Some(part) = parts.next() {
            check(&at, &folder)?;
            at.push(part);
            let Component::Normal(name) = part else {
                return Err(TableCacheError::Unsafe { path: at, why: "the path goes up" });
            };
            if parts.peek().is_none() {
                match rustix::fs::mkdirat(&folder, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(failed(&at, error)),
                }
            }
            folder = rustix::fs::openat(&folder, name, FOLDER, Mode::empty()).map_err(|error| match error {
                Errno::NOTDIR | Errno::LOOP => {
                    TableCacheError::Unsafe { path: at.clone(), why: "a link, or no folder" }
                }
                error => failed(&at, error),
            })?;
        }
        check(&at, &folder)?;
        Ok(Self(folder))
    }

    /// All bytes of a file of ours, at most `most_bytes`; it counts as used now.
    pub(super) fn read(&self, name: &str, most_bytes: u64) -> Option<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.0, name, flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&file).ok()?;
        let size_bytes = stat.st_size.unsigned_abs();
        if !is_ours(&stat) || size_bytes > most_bytes {
            return None;
        }
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let _read_only = rustix::fs::futimens(&file, &Timestamps { last_access: now, last_modification: now });
        let mut bytes = Vec::with_capacity(usize::try_from(size_bytes).ok()?);
        File::from(file).take(most_bytes).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Writes a file; another one with that name is replaced when this one is complete.
    pub(super) fn write(&self, name: &str, pieces: &[&[u8]]) -> io::Result<()> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let new = format!("{}-{}.new", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.0, &new, flags, Mode::RUSR | Mode::WUSR)?);
        let written = pieces.iter().try_for_each(|piece| file.write_all(piece));
        let done = written.and_then(|()| Ok(rustix::fs::renameat(&self.0, &new, &self.0, name)?));
        if done.is_err() {
            self.remove(&new);
        }
        done
    }

    /// Removes a file. That it is not there is no error.
    pub(super) fn remove(&self, name: &str) {
        let _gone = rustix::fs::unlinkat(&self.0, name, AtFlags::empty());
    }

    /// All files of ours.
    pub(super) fn entries(&self) -> Vec<Entry> {
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

fn check(path: &Path, folder: &OwnedFd) -> Result<(), TableCacheError> {
    let stat = rustix::fs::fstat(folder)
        .map_err(|error| TableCacheError::Open { path: path.to_owned(), source: error.into() })?;
    let refused = |why| Err(TableCacheError::Unsafe { path: path.to_owned(), why });
    if stat.st_uid != 0 && stat.st_uid != rustix::process::geteuid().as_raw() {
        return refused("it belongs to another user");
    }
    if Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH) {
        return refused("others may write there");
    }
    Ok(())
}
