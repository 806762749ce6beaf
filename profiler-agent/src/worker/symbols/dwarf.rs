//! Functions, files and lines by DWARF: in the executable or a file of its own, with what dwz moved to a
//! supplementary file, and with the parts that split DWARF leaves beside object files or packs together.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use addr2line::gimli::{self, AbbreviationsCacheStrategy, EndianSlice, LittleEndian, SectionId};
use addr2line::{Context, LookupContinuation as _, LookupResult, SplitDwarfLoad};
use self_cell::self_cell;
use typed_arena::Arena;

use super::elf::{self, Contents, Elf, ElfError, MOST_DECOMPRESSED_BYTES};
use super::{Ask, Frame, frame};
use crate::debug_files::DebugFile;
use crate::kernel::FileBytes;

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Why there is no DWARF.
#[derive(Debug, thiserror::Error)]
pub(super) enum DwarfError {
    /// The file that holds it is damaged.
    #[error(transparent)]
    File(#[from] ElfError),
    /// It is damaged itself.
    #[error("damaged debug information: {0}")]
    Damaged(#[from] gimli::Error),
}

/// The bytes that DWARF is read from.
pub(super) struct Files {
    /// The file with `.debug_info`.
    pub(super) debug: Rc<FileBytes>,
    /// What `.gnu_debugaltlink` there names.
    pub(super) supplement: Option<Rc<FileBytes>>,
    /// The `.dwp` of the executable.
    pub(super) package: Option<Rc<FileBytes>>,
}

/// All that is borrowed by what was parsed.
struct Loaded {
    files: Files,
    split: Arena<Rc<FileBytes>>,
    decompressed: Arena<Vec<u8>>,
    /// Bytes that may still be decompressed.
    room: Cell<usize>,
}

/// What was parsed. Units are parsed when an address is in them.
struct Parsed<'a> {
    context: Context<Slice<'a>>,
    package: Option<gimli::DwarfPackage<Slice<'a>>>,
}

self_cell! {
    struct Both {
        owner: Loaded,
        #[not_covariant]
        dependent: Parsed,
    }
}

/// The DWARF of one executable.
pub(super) struct Dwarf(Both);

impl Dwarf {
    /// Finds out where each compilation unit has code.
    pub(super) fn parse(files: Files) -> Result<Self, DwarfError> {
        let room = Cell::new(MOST_DECOMPRESSED_BYTES);
        let loaded = Loaded { files, split: Arena::new(), decompressed: Arena::new(), room };
        Ok(Self(Both::try_new(loaded, |loaded| loaded.parse())?))
    }

    /// The functions at an address, innermost first. The outermost one is without a name where DWARF knows
    /// the line and no function. None where it knows nothing, or is damaged.
    pub(super) fn frames(&self, address: u64, ask: Ask<'_>) -> Vec<Frame> {
        self.0.with_dependent(|loaded, parsed| loaded.frames(parsed, address, ask)).unwrap_or_default()
    }
}

/// The first part of a program's DWARF that split DWARF left beside object files and that is not there, and how many
/// of its units lack theirs: of the first [`MOST_UNITS`].
pub(super) fn missing_parts(files: Files, ask: Ask<'_>) -> Option<(String, u64)> {
    let room = Cell::new(MOST_DECOMPRESSED_BYTES);
    let loaded = Loaded { files, split: Arena::new(), decompressed: Arena::new(), room };
    loaded.missing_parts(ask).ok()?
}

/// Units whose parts are looked for.
const MOST_UNITS: usize = 64;

impl Loaded {
    fn missing_parts(&self, ask: Ask<'_>) -> Result<Option<(String, u64)>, DwarfError> {
        let debug = elf::parse(&self.files.debug)?;
        let parent = Arc::new(gimli::Dwarf::load(|id| self.section(&debug, Some(id.name()), id))?);
        let package = self.files.package.as_ref().and_then(|package| self.package(package).ok());
        let (mut units, mut looked_at, mut first, mut count) = (parent.units(), 0, None, 0);
        while let Some(header) = units.next()?
            && looked_at < MOST_UNITS
        {
            let unit = parent.unit(header)?;
            let (Some(dwo_id), Some(name)) = (unit.dwo_id, unit.dwo_name()?) else { continue };
            looked_at += 1;
            let path = parent.attr_string(&unit, name)?;
            let (comp_dir, parent) = (unit.comp_dir, Arc::clone(&parent));
            let load = SplitDwarfLoad { dwo_id, comp_dir, path: Some(path), parent };
            let packed = package.as_ref().and_then(|package| package.find_cu(dwo_id, &load.parent).ok()?);
            if packed.is_none() && self.split_file(&load, ask).is_none() {
                count += 1;
                first.get_or_insert_with(|| path.to_string_lossy().into_owned());
            }
        }
        Ok(first.map(|first| (first, count)))
    }

    fn parse(&self) -> Result<Parsed<'_>, DwarfError> {
        let debug = elf::parse(&self.files.debug)?;
        let mut dwarf = gimli::Dwarf::load(|id| self.section(&debug, Some(id.name()), id))?;
        if let Some(supplement) = &self.files.supplement {
            let supplement = elf::parse(supplement)?;
            dwarf.load_sup(|id| self.section(&supplement, Some(id.name()), id))?;
        }
        dwarf.populate_abbreviations_cache(AbbreviationsCacheStrategy::Duplicates);
        let context = Context::from_dwarf(dwarf)?;
        let package = self.files.package.as_ref().and_then(|package| self.package(package).ok());
        Ok(Parsed { context, package })
    }

    fn package<'a>(&'a self, package: &'a FileBytes) -> Result<gimli::DwarfPackage<Slice<'a>>, DwarfError> {
        let file = elf::parse(package)?;
        // All sections, for its index tells which part of each belongs to a unit.
        gimli::DwarfPackage::load(|id| self.any_section(&file, id.dwo_name()), Slice::new(&[], LittleEndian))
    }

    /// A section for [`Context`], which reads neither variables nor macros.
    fn section<'a>(&'a self, file: &Elf<'a>, name: Option<&str>, id: SectionId) -> Result<Slice<'a>, DwarfError> {
        use SectionId::{DebugLoc, DebugLocLists, DebugMacinfo, DebugMacro, DebugNames, DebugTypes};
        let unread = matches!(id, DebugLoc | DebugLocLists | DebugMacinfo | DebugMacro | DebugNames | DebugTypes);
        self.any_section(file, name.filter(|_| !unread))
    }

    fn any_section<'a>(&'a self, file: &Elf<'a>, name: Option<&str>) -> Result<Slice<'a>, DwarfError> {
        let Some(name) = name else { return Ok(Slice::new(&[], LittleEndian)) };
        let bytes = match elf::contents(file, name, &self.room)? {
            Contents::InFile(bytes) => bytes,
            Contents::Decompressed(bytes) => self.decompressed.alloc(bytes),
        };
        Ok(Slice::new(bytes, LittleEndian))
    }

    fn frames<'a>(&'a self, parsed: &Parsed<'a>, address: u64, ask: Ask<'_>) -> gimli::Result<Vec<Frame>> {
        let mut lookup = parsed.context.find_frames(address);
        let mut found = loop {
            lookup = match lookup {
                LookupResult::Output(found) => break found?,
                LookupResult::Load { load, continuation } => continuation.resume(self.split_unit(parsed, &load, ask)),
            };
        };
        let mut frames = Vec::new();
        while let Some(function) = found.next()? {
            let name = function.function.as_ref().and_then(|name| name.raw_name().ok()).unwrap_or_default();
            frames.push(frame(&name, function.location.as_ref(), true));
        }
        if let Some(outermost) = frames.last_mut() {
            outermost.inlined = false;
        }
        // An inlined function without a name is none for the reader.
        frames.retain(|frame| !(frame.inlined && frame.name.is_empty()));
        Ok(frames)
    }

    /// The part of a compilation unit that is not in the executable.
    fn split_unit<'a>(
        &'a self,
        parsed: &Parsed<'a>,
        load: &SplitDwarfLoad<Slice<'a>>,
        ask: Ask<'_>,
    ) -> Option<Arc<gimli::Dwarf<Slice<'a>>>> {
        let packed = parsed.package.as_ref().and_then(|package| package.find_cu(load.dwo_id, &load.parent).ok()?);
        packed.map(Arc::new).or_else(|| self.split_file(load, ask))
    }

    fn split_file<'a>(
        &'a self,
        load: &SplitDwarfLoad<Slice<'a>>,
        ask: Ask<'_>,
    ) -> Option<Arc<gimli::Dwarf<Slice<'a>>>> {
        let folder = load.comp_dir.map(|folder| folder.slice().to_vec()).unwrap_or_default();
        let path = DebugFile::SplitUnit { folder, name: load.path?.slice().to_vec() };
        let found = super::separate::ask_for(&path, ask, |file| {
            let dwarf = self.split_dwarf(self.split.alloc(Rc::clone(file)), load).ok()??;
            Some(dwarf)
        });
        found.map(|found| Arc::new(found.is))
    }

    /// The DWARF of a `.dwo` file, if it is the wanted one.
    fn split_dwarf<'a>(
        &'a self,
        file: &'a FileBytes,
        load: &SplitDwarfLoad<Slice<'a>>,
    ) -> Result<Option<gimli::Dwarf<Slice<'a>>>, DwarfError> {
        let file = elf::parse(file)?;
        let mut dwarf = gimli::Dwarf::load(|id| self.section(&file, id.dwo_name(), id))?;
        let Some(header) = dwarf.units().next()? else { return Ok(None) };
        let is_it = dwarf.unit(header)?.dwo_id == Some(load.dwo_id);
        dwarf.make_dwo(&load.parent);
        Ok(is_it.then_some(dwarf))
    }
}
