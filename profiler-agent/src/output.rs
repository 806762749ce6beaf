//! The output files: a bad path fails before sampling starts, and a file is complete or as it was
//! before, whatever happens.
//!
//! A profile is written to a temporary file in the same folder, made before sampling, and renamed.
//! It goes with us however we end, unless by a signal that can't be handled (`kill -9`): then
//! `.spanflame-PID-N` stays. Pipes, devices and `/dev/stdout` can't be renamed: they are written
//! directly, as is a file that is a mount point of its own.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};

use profiler_export::{ExportError, Format, UnknownFormat, export};
use profiler_model::Profile;

/// Symbolic links in a row that the kernel follows (linux/include/linux/namei.h, `MAXSYMLINKS`).
const MOST_LINKS: usize = 40;

/// Names that are tried for a temporary file: a killed process with our pid may have left some.
const MOST_NAMES: usize = 1000;

/// Why an output can't be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The name asks for no format that we know.
    #[error(transparent)]
    Format(#[from] UnknownFormat),
    /// The file can't be opened, written or replaced.
    #[error("cannot {doing} {path}: {source}. Choose another place with -o")]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The profile can't be shown in this format.
    #[error("cannot make {path}: {source}")]
    Export {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ExportError,
    },
}

/// A file to be written when the profile is complete.
#[derive(Debug)]
pub(crate) struct Output {
    path: PathBuf,
    format: Format,
    file: File,
    /// None: what is written is there at once.
    replacement: Option<Replacement>,
}

/// A temporary file, removed when this is dropped, and what it is to become.
#[derive(Debug)]
struct Replacement {
    temporary: PathBuf,
    target: PathBuf,
}

impl Output {
    /// Makes sure that the file can be written, and leaves it as it is.
    pub(crate) fn create(path: &Path) -> Result<Self, OutputError> {
        let format = Format::from_path(path)?;
        let failed = |doing| move |source| OutputError::File { doing, path: path.to_owned(), source };
        let existing = match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            found => Some(found.map_err(failed("look at"))?),
        };
        let file = match &existing {
            None => None,
            // Its rights are asked for, though it may be another file that is written.
            Some(_) => Some(File::options().write(true).open(path).map_err(failed("open"))?),
        };
        let target = target_of(path).filter(|_| existing.as_ref().is_none_or(Metadata::is_file));
        let (file, replacement) = match (file, target) {
            (Some(file), None) => (file, None),
            (_, target) => {
                let target = target.unwrap_or_else(|| path.to_owned());
                let made = Replacement::create(target, existing.as_ref()).map_err(failed("make a file beside"))?;
                (made.0, Some(made.1))
            }
        };
        Ok(Self { path: path.to_owned(), format, file, replacement })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the profile. When that fails, a file that was there is as it was.
    pub(crate) fn write(&mut self, profile: &Profile) -> Result<(), OutputError> {
        let bytes =
            export(self.format, profile).map_err(|source| OutputError::Export { path: self.path.clone(), source })?;
        let path = self.path.as_path();
        let failed = |doing| move |source| OutputError::File { doing, path: path.to_owned(), source };
        self.file.write_all(&bytes).map_err(failed("write"))?;
        match &self.replacement {
            Some(replacement) => replacement.put_in_place().map_err(failed("replace")),
            None => truncate_regular(&self.file, bytes.len() as u64).map_err(failed("truncate")),
        }
    }
}

impl Replacement {
    /// Makes the temporary file, with the owner and the rights of what it replaces.
    fn create(target: PathBuf, existing: Option<&Metadata>) -> io::Result<(File, Self)> {
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = |number| folder.join(format!(".spanflame-{}-{number}", std::process::id()));
        for temporary in (0..MOST_NAMES).map(name) {
            let file = match File::options().write(true).create_new(true).open(&temporary) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                file => file?,
            };
            let replacement = Self { temporary, target };
            if let Some(existing) = existing {
                // Only root may give files away; to others the new file is their own.
                let _refused = fchown(&file, Some(existing.uid()), Some(existing.gid()));
                file.set_permissions(existing.permissions())?;
            }
            return Ok((file, replacement));
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    fn put_in_place(&self) -> io::Result<()> {
        match fs::rename(&self.temporary, &self.target) {
            // A mount point, as of a file that a container was given.
            Err(error) if matches!(error.kind(), ErrorKind::ResourceBusy | ErrorKind::CrossesDevices) => {
                fs::copy(&self.temporary, &self.target).map(|_bytes| ())
            }
            renamed => renamed,
        }
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // Once it is in place there is nothing by this name.
        let _gone = fs::remove_file(&self.temporary);
    }
}

/// The file that a path leads to through symbolic links, there or not. `None` where the last one is
/// no path but an open file, as in `/dev/stdout`: who holds it would not see another file.
fn target_of(path: &Path) -> Option<PathBuf> {
    let mut target = path.to_owned();
    for _ in 0..MOST_LINKS {
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let Ok(link) = fs::read_link(&target) else {
            // A path that ends in `/` or `/.` is that of a folder, unless put together anew.
            return Some(target.file_name().map_or_else(|| target.clone(), |name| folder.join(name)));
        };
        if folder.canonicalize().is_ok_and(|folder| folder.starts_with("/proc")) {
            return None;
        }
        target = folder.join(link);
    }
    Some(target)
}

/// Pipes and devices have no length.
fn truncate_regular(file: &File, length: u64) -> io::Result<()> {
    if file.metadata()?.is_file() { file.set_len(length) } else { Ok(()) }
}
