//! Addresses to functions: Go's by its own table, all others by DWARF and symbol tables, in the executable
//! or in files of their own.
//!
//! The executable's descriptor comes with the request; other files are asked for and come as descriptors
//! too ([`Ask`]). Nothing is opened by a name that stands in a file, so none can name one that it does harm
//! to open.

mod dwarf;
pub(super) mod elf;
mod embedded;
mod go;
mod names;
mod separate;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use addr2line::Location;
use profiler_common::address::Svma;

use self::dwarf::{Dwarf, Files};
use self::names::Names;
use super::child::{Identity, examine};
use super::demangle::demangle;
use super::message::truncate;
use super::tables::Pread;
use super::{FileError, Frame};
use crate::debug_files::DebugFile;
use crate::kernel::FileBytes;

/// Files kept open with what was parsed of them: the least recently used one goes.
const OPEN_FILES: usize = 16;

/// No program has an address from here on.
const USER_END: Svma = Svma(1 << 63);

/// How far behind its start a symbol without a size names code, in bytes. Sizes are left out in some
/// hand-written assembly; what follows is taken for it, up to the next symbol.
const SIZELESS_REACH_BYTES: u64 = 4096;

/// Asks the agent for a file that belongs to the executable in work: number so-and-so of those that are
/// there. The answer, with its path, may be a wrong file.
pub(super) type Ask<'a> = &'a dyn Fn(&DebugFile, usize) -> Option<(String, OwnedFd)>;

/// The files that are open.
pub(super) struct Symbols {
    /// Where each descriptor has its number for a name.
    descriptors: &'static Path,
    /// The most recently used one last.
    open: VecDeque<OpenFile>,
}

impl Symbols {
    pub(super) const fn new(descriptors: &'static Path) -> Self {
        Self { descriptors, open: VecDeque::new() }
    }

    /// Bytes of the files in memory that are kept; no other count of memory has them.
    pub(super) fn kept_bytes(&self) -> u64 {
        self.open.iter().map(|open| open.in_memory_bytes).sum()
    }

    /// For each address its functions, innermost first.
    pub(super) fn answer(
        &mut self,
        file: OwnedFd,
        addresses: &[Svma],
        ask: Ask<'_>,
    ) -> Result<Vec<Vec<Frame>>, FileError> {
        let identity = examine(&file)?;
        let known = self.open.iter().position(|open| open.identity == identity);
        let known = known.and_then(|index| self.open.remove(index));
        let open = known.map_or_else(|| OpenFile::new(file, identity, self.descriptors, ask), Ok)?;
        if self.open.len() >= OPEN_FILES {
            self.open.pop_front();
        }
        let frames = open.frames(addresses, ask).map(|frames| open.with_starts(addresses, frames));
        self.open.push_back(open);
        frames
    }
}

/// A file and what was parsed of it.
struct OpenFile {
    identity: Identity,
    /// None when there is no DWARF.
    dwarf: Option<Dwarf>,
    /// Where to look for names, in this order.
    names: Vec<Names>,
    /// What was damaged.
    failure: Option<String>,
    file: Rc<OwnedFd>,
    /// Of `names`, what is a file in memory.
    in_memory_bytes: u64,
}

impl OpenFile {
    fn new(file: OwnedFd, identity: Identity, descriptors: &Path, ask: Ask<'_>) -> Result<Self, FileError> {
        let corrupt = |error: elf::ElfError| FileError::Corrupt(error.to_string());
        let bytes = elf::map(&file).map_err(corrupt)?;
        let executable = elf::parse(&bytes).map_err(corrupt)?;
        let separate = separate::debug_file(&executable, ask);
        let (dwarf, failure) = match dwarf(&bytes, separate.as_ref().map(|found| &found.is), ask) {
            Ok(dwarf) => (dwarf, None),
            Err(error) => (None, Some(error.to_string())),
        };
        let file = Rc::new(file);
        let separate = separate.map(|found| (Rc::new(found.open), found.is));
        let in_memory = embedded::symbol_tables(&executable);
        let in_memory = in_memory.and_then(|tables| Some((elf::map(&tables).ok()?, Rc::new(tables))));
        let in_memory_bytes = in_memory.as_ref().map_or(0, |(bytes, _tables)| bytes.len() as u64);
        let own = in_memory.map_or_else(|| (Rc::clone(&file), Rc::clone(&bytes)), |(bytes, tables)| (tables, bytes));
        let names = separate.into_iter().chain([own]);
        let names = names.map(|(file, bytes)| Names::new(file, bytes, descriptors)).collect();
        Ok(Self { identity, dwarf, names, failure, file, in_memory_bytes })
    }

    fn frames(&self, addresses: &[Svma], ask: Ask<'_>) -> Result<Vec<Vec<Frame>>, FileError> {
        let file = Pread { file: &self.file, size_bytes: self.identity.size_bytes };
        let mut found = go::frames(&file, addresses);
        if let Some(dwarf) = &self.dwarf {
            for (frames, address) in found.iter_mut().zip(addresses) {
                if frames.is_empty() && *address < USER_END {
                    *frames = dwarf.frames(address.0, ask);
                }
            }
        }
        let mut failure = self.failure.clone();
        let sizeless = self.take_names(addresses, &mut found, &mut failure);
        if !sizeless.is_empty() {
            let wanted: Vec<Svma> = sizeless.iter().map(|(index, _start)| addresses[*index]).collect();
            let stated = profiler_unwind::function_starts(&file, &wanted).unwrap_or_default();
            for ((index, start), stated) in sizeless.into_iter().zip(stated) {
                // Another function begins in between (`_init` has no size, and the PLT comes behind it).
                if stated > Some(start) {
                    found[index].clear();
                }
            }
        }
        // A line without a function is no place that a stack can show.
        found.iter_mut().filter(|frames| frames.last().is_some_and(|frame| frame.name.is_empty())).for_each(Vec::clear);
        match failure {
            Some(failure) if found.iter().all(Vec::is_empty) => Err(FileError::Corrupt(failure)),
            _ => Ok(found),
        }
    }

    /// Names the functions that DWARF does not know, or knows by their bare names only: without linkage
    /// names (rustc's line tables) those are the same for the functions of many types. Tells which names
    /// stand for code of unknown length, and where it starts.
    fn take_names(
        &self,
        addresses: &[Svma],
        found: &mut [Vec<Frame>],
        failure: &mut Option<String>,
    ) -> Vec<(usize, Svma)> {
        let bare = |frame: &Frame| !frame.file.is_empty() && frame.name == frame.system_name;
        let lacking = |&index: &usize| found[index].last().is_none_or(bare) && addresses[index] < USER_END;
        let mut lacking: Vec<usize> = (0..addresses.len()).filter(lacking).collect();
        let mut sizeless = Vec::new();
        for names in &self.names {
            if lacking.is_empty() {
                break;
            }
            let wanted: Vec<Svma> = lacking.iter().map(|index| addresses[*index]).collect();
            let symbols = match names.find(&wanted) {
                Ok(symbols) => symbols,
                Err(error) => {
                    *failure = Some(format!("its symbol tables can't be read: {error:#}"));
                    continue;
                }
            };
            let mut rest = Vec::new();
            for (index, symbol) in lacking.into_iter().zip(symbols) {
                let reach = |start: Svma| addresses[index].0 - start.0 < SIZELESS_REACH_BYTES;
                let Some(symbol) = symbol.filter(|symbol| symbol.size_bytes > 0 || reach(symbol.start)) else {
                    rest.push(index);
                    continue;
                };
                let full = frame(without_version(&symbol.name), None, false);
                match found[index].last_mut() {
                    None => {
                        found[index].push(full);
                        sizeless.extend((symbol.size_bytes == 0).then_some((index, symbol.start)));
                    }
                    Some(bare) if bare.name.is_empty() || full.name != full.system_name || is_plainer(&full, bare) => {
                        (bare.name, bare.system_name) = (full.name, full.system_name);
                    }
                    Some(_) => {}
                }
            }
            lacking = rest;
        }
        sizeless
    }

    /// Tells where the functions start that have no name.
    fn with_starts(&self, addresses: &[Svma], mut frames: Vec<Vec<Frame>>) -> Vec<Vec<Frame>> {
        let nameless: Vec<usize> = (0..frames.len()).filter(|index| frames[*index].is_empty()).collect();
        if nameless.is_empty() {
            return frames;
        }
        let wanted: Vec<Svma> = nameless.iter().map(|index| addresses[*index]).collect();
        let file = Pread { file: &self.file, size_bytes: self.identity.size_bytes };
        // Without such a table its addresses stay what they are.
        let starts = profiler_unwind::function_starts(&file, &wanted).unwrap_or_default();
        for (index, start) in nameless.into_iter().zip(starts) {
            frames[index] =
                start.map(|nameless_start| Frame { nameless_start, ..Frame::default() }).into_iter().collect();
        }
        frames
    }
}

/// A symbol's name without the version that linkers leave in `.symtab` (`dlopen@@GLIBC_2.34`).
fn without_version(name: &str) -> &str {
    name.split_once('@').map_or(name, |(bare, _version)| if bare.is_empty() { name } else { bare })
}

/// Whether a symbol is what users call a function that DWARF knows by a name of the C library's own
/// (`__GI___select`, `__libc_malloc`).
fn is_plainer(symbol: &Frame, known: &Frame) -> bool {
    let underscores = |name: &str| name.bytes().take_while(|byte| *byte == b'_').count();
    underscores(&known.name) >= 2 && underscores(&symbol.name) < underscores(&known.name)
}

/// The path of the file with the debug information of an executable, if it is apart and there.
pub(super) fn debug_file(executable: &OwnedFd, ask: Ask<'_>) -> Option<String> {
    let bytes = elf::map(executable).ok()?;
    Some(separate::debug_file(&elf::parse(&bytes).ok()?, ask)?.path)
}

/// The first part of an executable's DWARF that is neither where the compiler wrote it nor in a package, and how many
/// lack; `None` where none does.
pub(super) fn missing_parts(executable: &OwnedFd, ask: Ask<'_>) -> Option<(String, u64)> {
    let bytes = elf::map(executable).ok()?;
    let separate = separate::debug_file(&elf::parse(&bytes).ok()?, ask);
    let debug = separate.map_or(bytes, |found| found.is);
    if !elf::has_section(&elf::parse(&debug).ok()?, ".debug_addr") {
        return None;
    }
    dwarf::missing_parts(Files { debug, supplement: None, package: separate::package(ask) }, ask)
}

/// The DWARF of an executable: its own, or that of its debug file.
fn dwarf(
    executable: &Rc<FileBytes>,
    separate: Option<&Rc<FileBytes>>,
    ask: Ask<'_>,
) -> Result<Option<Dwarf>, dwarf::DwarfError> {
    for debug in separate.into_iter().chain([executable]) {
        let file = elf::parse(debug)?;
        if elf::has_section(&file, ".debug_info") {
            let supplement = separate::supplement(&file, ask);
            let is_split = elf::has_section(&file, ".debug_addr");
            let package = is_split.then(|| separate::package(ask)).flatten();
            return Dwarf::parse(Files { debug: Rc::clone(debug), supplement, package }).map(Some);
        }
    }
    Ok(None)
}

fn frame(symbol: &str, location: Option<&Location<'_>>, inlined: bool) -> Frame {
    let file = location.and_then(|location| location.file).unwrap_or_default();
    Frame {
        name: demangle(symbol),
        system_name: truncate(symbol).to_owned(),
        file: truncate(file).to_owned(),
        line: location.and_then(|location| location.line).unwrap_or_default(),
        column: location.and_then(|location| location.column).unwrap_or_default(),
        inlined,
        nameless_start: Svma(0),
    }
}
