//! The output files: a bad path fails before sampling starts, and a file is complete or as it was
//! before, wherever a new one can take its name.
//!
//! All is done in the folder that the path leads to at the start, which is kept open. What is there by
//! the name is opened at the start as well, with the kernel's own checks, and never looked up again.
//! Where everybody may write (`/tmp`), it must be ours and no symbolic link.
//!
//! The profile goes to a temporary file in that folder, which gets the name when it is complete, if
//! the name was free, or that of a regular file with the owner and the group that a new file gets. It
//! has the mode of that file, but no ACLs, and other hard links keep what they had. Pipes, devices,
//! files of others, mount points, what symbolic links lead to, and files where we may not make another
//! are written in place: then a full disk leaves a part of the profile, and a link that led nowhere
//! leads to an empty file from the start.
//!
//! The temporary file goes with us however we end, unless by a signal that can't be handled (`kill
//! -9`): then `.spanflame-PID-N` stays.

mod place;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use profiler_export::{ExportError, Format, UnknownFormat, export};
use profiler_model::Profile;
use rustix::io::Errno;

use place::{Destination, NEW_FILE, Place, Temporary, folder_of, write_in_place};

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
    /// There is no such folder.
    #[error(
        "cannot write {path}: the folder {folder} does not exist. Make it with mkdir -p, or choose another place with -o"
    )]
    NoFolder {
        /// The file.
        path: PathBuf,
        /// The folder.
        folder: PathBuf,
    },
    /// Two outputs would be one file.
    #[error("-o {first} and -o {second} are the same file. Give each a name of its own")]
    Same {
        /// The one.
        first: PathBuf,
        /// The other.
        second: PathBuf,
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
    to: Destination,
}

/// Makes sure that all files can be written, and that none of them would replace another.
pub(crate) fn create_all(paths: &[PathBuf]) -> Result<Vec<Output>, OutputError> {
    let outputs = paths.iter().map(|path| Output::create(path)).collect::<Result<Vec<_>, _>>()?;
    for (index, second) in outputs.iter().enumerate() {
        if let Some(first) = outputs[..index].iter().find(|first| first.is_same(second)) {
            return Err(OutputError::Same { first: first.path.clone(), second: second.path.clone() });
        }
    }
    Ok(outputs)
}

impl Output {
    /// Makes sure that the file can be written, and leaves it as it is.
    pub(crate) fn create(path: &Path) -> Result<Self, OutputError> {
        let format = Format::from_path(path)?;
        let failed = |doing| move |source| OutputError::File { doing, path: path.to_owned(), source };
        let place = Place::of(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                OutputError::NoFolder { path: path.to_owned(), folder: folder_of(path).to_owned() }
            }
            _ => failed("open the folder of")(source),
        })?;
        let to = match place.open_existing().map_err(failed("open"))? {
            Some(existing) => place.replacement(existing),
            None => Temporary::create(place, NEW_FILE).map(|new| Destination::New(new, None)).map_err(io::Error::from),
        };
        let to = to.map_err(failed("make a file beside"))?;
        Ok(Self { path: path.to_owned(), format, to })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether what is written to one is lost by writing to the other: they have the same name, or one of
    /// them is written in place, to what has the name of the other. Pipes and devices take all in turn.
    fn is_same(&self, other: &Self) -> bool {
        match (self.to.name(), other.to.name()) {
            (Some(name), Some(other_name)) => name == other_name,
            _ => self.to.file().is_some() && self.to.file() == other.to.file(),
        }
    }

    /// Writes the profile. When that fails, a file that was to be replaced is as it was.
    pub(crate) fn write(&mut self, profile: &Profile) -> Result<(), OutputError> {
        let bytes =
            export(self.format, profile).map_err(|source| OutputError::Export { path: self.path.clone(), source })?;
        let path = self.path.as_path();
        let failed = |doing| move |source| OutputError::File { doing, path: path.to_owned(), source };
        match &mut self.to {
            Destination::InPlace(file) => write_in_place(file, &bytes).map_err(failed("write")),
            Destination::New(new, existing) => {
                new.file.write_all(&bytes).map_err(failed("write"))?;
                match (new.put_in_place(), existing) {
                    // A mount point, as of a file that a container was given.
                    (Err(Errno::BUSY | Errno::XDEV), Some(file)) => {
                        write_in_place(file, &bytes).map_err(failed("write"))
                    }
                    (put, _) => put.map_err(io::Error::from).map_err(failed("replace")),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::{CWD, RenameFlags, renameat_with};

    use super::*;

    const NOBODY: u32 = 65534;

    fn profile() -> Profile {
        Profile::new(crate::session::about("test".to_owned(), std::num::NonZeroU32::MIN))
    }

    fn write(path: &Path) -> Result<(), OutputError> {
        Output::create(path)?.write(&profile())
    }

    /// A folder like `/tmp`.
    fn shared_folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).unwrap();
        folder
    }

    fn is_root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            println!("skipped: giving files to others needs root");
        }
        root
    }

    fn identity(path: &Path) -> (u64, u32, u32) {
        let metadata = path.metadata().unwrap();
        (metadata.ino(), metadata.uid(), metadata.mode())
    }

    #[test]
    fn what_is_put_by_the_name_meanwhile_is_replaced_and_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (victim, path) = (folder.path().join("victim"), folder.path().join("x.folded"));
        fs::write(&victim, "old").unwrap();
        for existing in [false, true] {
            let _gone = fs::remove_file(&path);
            if existing {
                fs::write(&path, "old").unwrap();
            }
            let mut output = Output::create(&path).unwrap();
            let _gone = fs::remove_file(&path);
            symlink(&victim, &path).unwrap();
            output.write(&profile()).unwrap();
            drop(output);
            assert!(path.symlink_metadata().unwrap().is_file());
            assert_eq!(fs::read_to_string(&victim).unwrap(), "old");
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        }
    }

    #[test]
    fn two_outputs_are_two_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("old.svg"), "old").unwrap();
        fs::hard_link(path("old.svg"), path("hard.svg")).unwrap();
        symlink("old.svg", path("link.svg")).unwrap();
        symlink("new.svg", path("dangling.svg")).unwrap();
        symlink("/dev/null", path("null.svg")).unwrap();
        for (first, second, same) in [
            ("new.svg", "./new.svg", true),
            ("old.svg", "./old.svg", true),
            ("link.svg", "old.svg", true),
            ("old.svg", "link.svg", true),
            ("link.svg", "link.svg", true),
            ("new.svg", "dangling.svg", true),
            ("new.svg", "new.folded", false),
            ("old.svg", "hard.svg", false),
            ("null.svg", "null.svg", false),
        ] {
            let created = create_all(&[path(first), path(second)]);
            assert_eq!(matches!(created, Err(OutputError::Same { .. })), same, "{first} {second}: {created:?}");
            assert!(same || created.is_ok(), "{created:?}");
        }
    }

    #[test]
    fn a_folder_that_is_moved_away_takes_the_file_along() {
        let folder = tempfile::tempdir().unwrap();
        let [here, there, other] = ["here", "there", "other"].map(|name| folder.path().join(name));
        fs::create_dir(&here).unwrap();
        fs::create_dir(&other).unwrap();
        let mut output = Output::create(&here.join("x.folded")).unwrap();
        fs::rename(&here, &there).unwrap();
        symlink(&other, &here).unwrap();
        output.write(&profile()).unwrap();
        drop(output);
        assert!(there.join("x.folded").exists());
        assert_eq!(fs::read_dir(&there).unwrap().count() + fs::read_dir(&other).unwrap().count(), 1);
    }

    #[test]
    fn where_everybody_may_write_only_our_own_files_are_written() {
        if !is_root() {
            return;
        }
        let (folder, elsewhere) = (shared_folder(), tempfile::tempdir().unwrap());
        let victim = elsewhere.path().join("victim");
        let [link, theirs, ours] =
            ["link", "theirs", "ours"].map(|name| folder.path().join(name).with_extension("folded"));
        for file in [&victim, &theirs, &ours] {
            fs::write(file, "old").unwrap();
        }
        chown(&theirs, Some(NOBODY), Some(NOBODY)).unwrap();
        symlink(&victim, &link).unwrap();
        for refused in [&link, &theirs] {
            let error = write(refused).unwrap_err().to_string();
            assert!(error.contains("everybody may write") || error.contains("Permission denied"), "{error}");
        }
        for file in [&victim, &theirs] {
            assert_eq!(fs::read_to_string(file).unwrap(), "old");
        }
        write(&ours).unwrap();
        assert_ne!(fs::read_to_string(&ours).unwrap(), "old");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
    }

    /// Somebody exchanges a link of theirs and a file of theirs as fast as they can.
    #[test]
    fn no_file_is_given_away_while_names_change() {
        if !is_root() {
            return;
        }
        for mode in [0o1777, 0o755] {
            let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
            let victim = elsewhere.path().join("victim");
            fs::write(&victim, "old").unwrap();
            let before = identity(&victim);
            let [path, other] = ["x.folded", "other"].map(|name| folder.path().join(name));
            fs::write(&path, "theirs").unwrap();
            chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
            symlink(&victim, &other).unwrap();
            let over = AtomicBool::new(false);
            let mut given_away = false;
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let _refused = renameat_with(CWD, &path, CWD, &other, RenameFlags::EXCHANGE);
                    }
                });
                for _ in 0..5000 {
                    let _refused = write(&path);
                    given_away |= identity(&victim) != before;
                }
                over.store(true, Ordering::Relaxed);
            });
            assert!(!given_away);
            // Where its owner alone may write, a link leads where it leads, as with `>` in a shell.
            assert!(mode == 0o755 || fs::read_to_string(&victim).unwrap() == "old");
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        }
    }

    #[test]
    fn files_of_others_are_written_in_place() {
        if !is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.folded");
        for (uid, mode, replaced) in [(0, 0o4640, true), (NOBODY, 0o640, false)] {
            fs::write(&path, "old".repeat(1000)).unwrap();
            chown(&path, Some(uid), None).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let before = path.metadata().unwrap();
            write(&path).unwrap();
            let after = path.metadata().unwrap();
            assert_eq!((after.uid(), after.gid(), after.mode() & 0o7777), (uid, before.gid(), mode & 0o777));
            assert_eq!(after.ino() != before.ino(), replaced);
            assert!(!fs::read_to_string(&path).unwrap().contains("oldold"));
        }
    }
}
