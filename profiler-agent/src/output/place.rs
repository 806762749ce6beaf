//! Where an output file is to be: what is there by its name, and the new file that takes its place.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fchmod, fstat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

/// Names that are tried for a temporary file: a killed process with our pid may have left some.
const MOST_NAMES: usize = 1000;

/// The rights of a new file, before the umask takes some away.
pub(super) const NEW_FILE: Mode = Mode::from_raw_mode(0o666);

/// Where the profile goes.
#[derive(Debug)]
pub(super) enum Destination {
    /// To what was there.
    InPlace(File),
    /// To a new file. What was there is written when it can't be replaced.
    New(Temporary, Option<File>),
}

impl Destination {
    /// Device and inode of the folder, and the name there, of what is to be new.
    pub(super) fn name(&self) -> Option<((u64, u64), &OsStr)> {
        match self {
            Self::InPlace(_) => None,
            Self::New(new, _) => {
                let folder = fstat(&new.target.folder).ok()?;
                Some(((folder.st_dev, folder.st_ino), &new.target.name))
            }
        }
    }

    /// Device and inode of the regular file that is written, or has the name of what is to be new.
    pub(super) fn file(&self) -> Option<(u64, u64)> {
        let stat = match self {
            Self::InPlace(file) => fstat(file).ok()?,
            Self::New(new, _) => new.target.look().ok()??,
        };
        (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then_some((stat.st_dev, stat.st_ino))
    }
}

/// A name in a folder.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) folder: OwnedFd,
    pub(super) name: OsString,
}

impl Place {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let folder = openat(CWD, folder_of(path), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let name = path.file_name().ok_or(Errno::ISDIR)?.to_owned();
        Ok(Self { folder, name })
    }

    pub(super) fn look(&self) -> Result<Option<Stat>, Errno> {
        match statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            found => found.map(Some),
        }
    }

    /// What is there by this name, or what the link by this name leads to: opened as `>` in a shell
    /// would, except that nothing is cut off.
    pub(super) fn open_existing(&self) -> io::Result<Option<File>> {
        if self.look()?.is_none() {
            return Ok(None);
        }
        // With this the kernel asks what fs.protected_regular and fs.protected_fifos are about.
        let mut flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOCTTY;
        let shared = Mode::from_raw_mode(fstat(&self.folder)?.st_mode).contains(Mode::WOTH);
        flags.set(OFlags::NOFOLLOW, shared);
        let file = match openat(&self.folder, &self.name, flags, NEW_FILE) {
            Err(Errno::LOOP) if shared => return Err(refused("a symbolic link")),
            file => file?,
        };
        if shared && fstat(&file)?.st_uid != rustix::process::geteuid().as_raw() {
            return Err(refused("another user's file"));
        }
        Ok(Some(File::from(file)))
    }

    /// A new file instead of this one, if nobody can tell: with its owner, its group and its rights.
    pub(super) fn replacement(self, existing: File) -> io::Result<Destination> {
        let stat = fstat(&existing)?;
        let is_named = self.look()?.is_some_and(|named| (named.st_dev, named.st_ino) == (stat.st_dev, stat.st_ino));
        if !is_named || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(Destination::InPlace(existing));
        }
        let rights = Mode::from_raw_mode(stat.st_mode & 0o777);
        let new = match Temporary::create(self, rights) {
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => return Ok(Destination::InPlace(existing)),
            new => new?,
        };
        let made = fstat(&new.file)?;
        if (made.st_uid, made.st_gid) != (stat.st_uid, stat.st_gid) {
            return Ok(Destination::InPlace(existing));
        }
        // What the umask took away.
        fchmod(&new.file, rights)?;
        Ok(Destination::New(new, Some(existing)))
    }
}

pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn refused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, format!("{what}, in a folder where everybody may write"))
}

/// A file that is to get a name, removed when this is dropped before.
#[derive(Debug)]
pub(super) struct Temporary {
    pub(super) file: File,
    pub(super) name: String,
    pub(super) target: Place,
}

impl Temporary {
    pub(super) fn create(target: Place, rights: Mode) -> Result<Self, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        for number in 0..MOST_NAMES {
            let name = format!(".spanflame-{}-{number}", std::process::id());
            match openat(&target.folder, &name, flags, rights) {
                Err(Errno::EXIST) => {}
                file => return Ok(Self { file: File::from(file?), name, target }),
            }
        }
        Err(Errno::EXIST)
    }

    /// A link by that name is replaced itself, and not followed.
    pub(super) fn put_in_place(&self) -> Result<(), Errno> {
        let Place { folder, name } = &self.target;
        renameat(folder, &self.name, folder, name)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Once it is in place there is nothing by this name.
        let _gone = unlinkat(&self.target.folder, &self.name, AtFlags::empty());
    }
}

pub(super) fn write_in_place(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    // Pipes and devices have no length.
    if file.metadata()?.is_file() { file.set_len(bytes.len() as u64) } else { Ok(()) }
}
