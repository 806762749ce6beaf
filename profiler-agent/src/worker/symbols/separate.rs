//! Files that hold what an executable leaves out: its debug information, and what belongs to that.
//!
//! Executables are other people's, and so are the names that they give. The agent looks for files and opens
//! them (`debug_files`); here what it hands over is mapped, and used only if it is the right one.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use object::Object as _;

use super::Ask;
use super::elf::{Elf, has_section, map, parse};
use crate::debug_files::{DebugFile, MOST_CANDIDATES};
use crate::kernel::FileBytes;

/// A file that belongs to an executable.
pub(super) struct Found<T> {
    /// What was made of it.
    pub(super) is: T,
    pub(super) path: String,
    pub(super) open: OwnedFd,
}

/// The file with the debug information or the symbols of `executable`: known by its build id, else by name
/// and checksum ("Separate Debug Files" in the manual of GDB).
pub(super) fn debug_file(executable: &Elf<'_>, ask: Ask<'_>) -> Option<Found<Rc<FileBytes>>> {
    let build_id = executable.build_id().ok().flatten().filter(|id| !id.is_empty());
    let by_id = build_id.and_then(|id| {
        ask_for(&DebugFile::BuildId(id.to_vec()), ask, |file| {
            (has_build_id(file, id) && has_more(file)).then(|| Rc::clone(file))
        })
    });
    by_id.or_else(|| {
        let (name, checksum) = executable.gnu_debuglink().ok()??;
        let is_it = |file: &Rc<FileBytes>| match build_id {
            Some(id) if has_build_id(file, id) => true,
            _ => crc32fast::hash(file) == checksum,
        };
        ask_for(&DebugFile::Link(name.to_vec()), ask, |file| (is_it(file) && has_more(file)).then(|| Rc::clone(file)))
    })
}

/// What dwz moved out of a file with debug information because several have it.
pub(super) fn supplement(debug: &Elf<'_>, ask: Ask<'_>) -> Option<Rc<FileBytes>> {
    let (path, build_id) = debug.gnu_debugaltlink().ok()??;
    let wanted = DebugFile::Supplement { path: path.to_vec(), build_id: build_id.to_vec() };
    ask_for(&wanted, ask, |file| has_build_id(file, build_id).then(|| Rc::clone(file))).map(|found| found.is)
}

/// The package of all that split DWARF left out of the executable. Each unit in it has an id.
pub(super) fn package(ask: Ask<'_>) -> Option<Rc<FileBytes>> {
    ask_for(&DebugFile::Package, ask, |file| Some(Rc::clone(file))).map(|found| found.is)
}

/// The first of the files by that name that `check` accepts, with what it makes of it.
pub(super) fn ask_for<T>(
    wanted: &DebugFile,
    ask: Ask<'_>,
    check: impl Fn(&Rc<FileBytes>) -> Option<T>,
) -> Option<Found<T>> {
    (0..MOST_CANDIDATES).map_while(|candidate| ask(wanted, candidate)).find_map(|(path, open)| {
        let is = check(&map(&open).ok()?)?;
        Some(Found { is, path, open })
    })
}

fn has_build_id(file: &FileBytes, id: &[u8]) -> bool {
    parse(file).is_ok_and(|file| matches!(file.build_id(), Ok(Some(found)) if found == id))
}

/// Whether it says more than an executable must.
fn has_more(file: &FileBytes) -> bool {
    parse(file).is_ok_and(|file| has_section(&file, ".debug_info") || !file.elf_symbol_table().is_empty())
}
