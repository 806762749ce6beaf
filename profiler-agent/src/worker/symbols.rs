//! Addresses to functions: Go's by its own table, all others by blazesym.
//!
//! blazesym opens files by path and keeps what it parsed by path, so each file has a symbolizer of
//! its own, which lives as long as the descriptor that the path `/proc/self/fd/N` names: what was
//! parsed of one file is never taken for another one's.

mod go;

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Symbolized, Symbolizer};
use profiler_common::address::Svma;

use super::child::{Identity, examine};
use super::demangle::demangle;
use super::message::truncate;
use super::tables::Pread;
use super::{FileError, Frame};

/// Files kept open with what was parsed of them: the least recently used one goes. Each takes at
/// most three descriptors of the sandbox's limit.
const OPEN_FILES: usize = 16;

/// No program has an address from here on. blazesym calculates with addresses without looking for
/// overflow.
const USER_END: Svma = Svma(1 << 63);

/// How far behind its start a symbol without a size names code, in bytes. Sizes are left out in some
/// hand-written assembly; blazesym takes what follows for it, up to the next symbol, however far.
const SIZELESS_REACH_BYTES: usize = 4096;

/// Where distributions put separate debug information, by build id.
const DEBUG_DIRECTORY: &str = "/usr/lib/debug/.build-id";

/// The files that are open.
#[derive(Default)]
pub(super) struct Symbols {
    /// The most recently used one last.
    open: VecDeque<OpenFile>,
}

impl Symbols {
    /// For each address its functions, innermost first.
    pub(super) fn answer(&mut self, file: OwnedFd, addresses: &[Svma]) -> Result<Vec<Vec<Frame>>, FileError> {
        let identity = examine(&file)?;
        let known = self.open.iter().position(|open| open.identity == identity);
        let open = known.and_then(|index| self.open.remove(index)).unwrap_or_else(|| OpenFile::new(file, identity));
        if self.open.len() >= OPEN_FILES {
            self.open.pop_front();
        }
        let frames = open.frames(addresses).map(|frames| open.with_starts(addresses, frames));
        self.open.push_back(open);
        frames
    }
}

/// A file and what was parsed of it.
struct OpenFile {
    identity: Identity,
    /// Where to look, in this order, for what the ones before do not know. The last one is the symbol
    /// table alone.
    sources: Vec<Source<'static>>,
    symbolizer: Symbolizer,
    /// Keeps the path in `sources` valid; declared after what uses it, so dropped after it.
    file: OwnedFd,
}

impl OpenFile {
    fn new(file: OwnedFd, identity: Identity) -> Self {
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        // DWARF can be corrupt, or compressed in a way that is not built in: then names alone.
        let mut names_only = Elf::new(&path);
        names_only.debug_syms = false;
        let separate = debug_file(&path).map(Elf::new);
        let sources = separate.into_iter().chain([Elf::new(&path), names_only]).map(Source::Elf).collect();
        // Without debug directories, and without `readlink` (see the sandbox), it follows no link
        // that a file contains: with the right file name, opening reboots a node (/dev/watchdog).
        let symbolizer = Symbolizer::builder()
            .set_debug_dirs(Some(std::iter::empty::<&Path>()))
            .enable_auto_reload(false)
            .enable_demangling(false)
            .build();
        Self { identity, sources, symbolizer, file }
    }

    fn frames(&self, addresses: &[Svma]) -> Result<Vec<Vec<Frame>>, FileError> {
        let file = Pread { file: &self.file, size_bytes: self.identity.size_bytes };
        let mut found = go::frames(&file, addresses);
        let (mut failure, mut sizeless) = (None, Vec::new());
        for source in &self.sources {
            let missing = |&index: &usize| found[index].is_empty() && addresses[index] < USER_END;
            let indices: Vec<usize> = (0..addresses.len()).filter(missing).collect();
            if indices.is_empty() {
                break;
            }
            let offsets: Vec<u64> = indices.iter().map(|&index| addresses[index].0).collect();
            match self.symbolizer.symbolize(source, Input::VirtOffset(&offsets)) {
                Ok(symbols) => {
                    for (index, symbol) in indices.into_iter().zip(symbols) {
                        found[index] = frames_of(&symbol);
                        sizeless.extend(start_without_size(&symbol).map(|start| (index, start)));
                    }
                }
                Err(error) => failure = Some(error),
            }
        }
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
        self.take_linkage_names(addresses, &mut found);
        match failure {
            Some(error) if found.iter().all(Vec::is_empty) => Err(FileError::Corrupt(error.to_string())),
            _ => Ok(found),
        }
    }
}

impl OpenFile {
    /// DWARF without linkage names (rustc's line tables) has bare names, the same for the functions of
    /// many types: then the symbol table's name counts.
    fn take_linkage_names(&self, addresses: &[Svma], found: &mut [Vec<Frame>]) {
        let bare = |frame: &Frame| !frame.file.is_empty() && frame.name == frame.system_name;
        let bare = |&index: &usize| found[index].last().is_some_and(bare) && addresses[index] < USER_END;
        let indices: Vec<usize> = (0..addresses.len()).filter(bare).collect();
        let offsets: Vec<u64> = indices.iter().map(|&index| addresses[index].0).collect();
        let Some(names_only) = self.sources.last().filter(|_| !indices.is_empty()) else { return };
        let Ok(symbols) = self.symbolizer.symbolize(names_only, Input::VirtOffset(&offsets)) else { return };
        for (index, symbol) in indices.into_iter().zip(symbols) {
            if let (Some(bare), Some(full)) = (found[index].last_mut(), frames_of(&symbol).pop())
                && full.name != full.system_name
            {
                (bare.name, bare.system_name) = (full.name, full.system_name);
            }
        }
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

/// The file that holds the debug information of the one at `path`, where this system has it. Its
/// name is made of nothing but the build id's digits.
pub(super) fn debug_file(path: &Path) -> Option<PathBuf> {
    let build_id = blazesym::helper::read_elf_build_id(&path).ok()??;
    let (first, rest) = build_id.split_first()?;
    let digits: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    let file = Path::new(DEBUG_DIRECTORY).join(format!("{first:02x}")).join(digits + ".debug");
    file.is_file().then_some(file)
}

/// The functions at one address, innermost first; none when it is in no function with a name.
fn frames_of(symbol: &Symbolized<'_>) -> Vec<Frame> {
    let Symbolized::Sym(symbol) = symbol else { return Vec::new() };
    // At 0 are the names of symbol versions.
    let guess = symbol.size.is_none() && (symbol.addr == 0 || symbol.offset >= SIZELESS_REACH_BYTES);
    if guess || symbol.name.is_empty() {
        return Vec::new();
    }
    let inner = symbol.inlined.iter().rev();
    let inner = inner.map(|function| frame(&function.name, function.code_info.as_ref(), true));
    inner.chain([frame(&symbol.name, symbol.code_info.as_deref(), false)]).collect()
}

/// Where the function starts, if its symbol does not say how long it is.
fn start_without_size(symbol: &Symbolized<'_>) -> Option<Svma> {
    let Symbolized::Sym(symbol) = symbol else { return None };
    symbol.size.is_none().then_some(Svma(symbol.addr))
}

fn frame(symbol: &str, code: Option<&CodeInfo<'_>>, inlined: bool) -> Frame {
    let file = code.map(|code| code.to_path().to_string_lossy().into_owned());
    Frame {
        name: demangle(symbol),
        system_name: truncate(symbol).to_owned(),
        file: file.as_deref().map(truncate).unwrap_or_default().to_owned(),
        line: code.and_then(|code| code.line).unwrap_or_default(),
        column: code.and_then(|code| code.column).unwrap_or_default().into(),
        inlined,
        nameless_start: Svma(0),
    }
}
