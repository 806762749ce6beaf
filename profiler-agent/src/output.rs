//! The output files: created before sampling starts, so that a bad path fails at once, and
//! complete or absent when it is over.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use profiler_export::{ExportError, Format, UnknownFormat, export};
use profiler_model::Profile;

/// Why an output can't be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The name asks for no format that we know.
    #[error(transparent)]
    Format(#[from] UnknownFormat),
    /// The file can't be created or written.
    #[error("cannot write {path}: {source}. Choose another place with -o")]
    File {
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
    /// It was not there before: nothing is lost when it is removed again.
    created: bool,
    written: bool,
}

impl Output {
    /// Creates the file, or opens the one that is there without touching what it holds.
    pub(crate) fn create(path: &Path) -> Result<Self, OutputError> {
        let format = Format::from_path(path)?;
        let failed = |source| OutputError::File { path: path.to_owned(), source };
        let created = !path.exists();
        let file = File::options().write(true).create(true).truncate(false).open(path).map_err(failed)?;
        Ok(Self { path: path.to_owned(), format, file, created, written: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the profile.
    pub(crate) fn write(&mut self, profile: &Profile) -> Result<(), OutputError> {
        let bytes =
            export(self.format, profile).map_err(|source| OutputError::Export { path: self.path.clone(), source })?;
        let length = bytes.len() as u64;
        let result = self.file.write_all(&bytes).and_then(|()| truncate_regular(&self.file, length));
        result.map_err(|source| OutputError::File { path: self.path.clone(), source })?;
        self.written = true;
        Ok(())
    }
}

/// `/dev/stdout` and pipes have no length.
fn truncate_regular(file: &File, length: u64) -> io::Result<()> {
    if file.metadata()?.is_file() { file.set_len(length) } else { Ok(()) }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.created && !self.written {
            // An empty file would look like a result.
            let _kept = fs::remove_file(&self.path);
        }
    }
}
