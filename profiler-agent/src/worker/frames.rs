//! Call frame information that can't be read where an executable has it: `.debug_frame`, compressed or in its
//! debug file (musl as distributions build it has no other). As all that tables are made from it is read with
//! `pread`.

use std::cell::Cell;
use std::os::fd::OwnedFd;

use object::Object as _;
use object::read::{ReadCache, ReadCacheOps};

use super::symbols::Ask;
use super::symbols::elf::{Contents, Elf, contents, has_section};
use super::tables::Pread;
use crate::debug_files::{DebugFile, MOST_CANDIDATES};

/// Its name.
const SECTION: &str = ".debug_frame";

/// Bytes that it may have, decompressed: what the row builder takes.
const MOST_BYTES: usize = 256 << 20;

/// Such a section.
pub(super) struct Frames {
    pub(super) bytes: Vec<u8>,
    /// The file that has it; empty when it is the executable.
    pub(super) path: String,
}

/// Finds that of an executable with this build id. A debug file is known by that; by name and checksum where there
/// is none ("Separate Debug Files" in the manual of GDB).
pub(super) fn find(executable: &OwnedFd, build_id: Option<&[u8]>, ask: Ask<'_>) -> Option<Frames> {
    let pieces = ReadCache::new(Pieces::of(executable)?);
    let own = Elf::parse(&pieces).ok();
    if let Some(bytes) = own.as_ref().and_then(section) {
        return Some(Frames { bytes, path: String::new() });
    }
    let has_id = |debug: &Debug<'_>| build_id.is_some() && matches!(debug.build_id(), Ok(id) if id == build_id);
    let by_id = build_id.and_then(|id| find_in(&DebugFile::BuildId(id.to_vec()), ask, |_file, debug| has_id(debug)));
    by_id.or_else(|| {
        let (name, checksum) = own?.gnu_debuglink().ok()??;
        find_in(&DebugFile::Link(name.to_vec()), ask, |file, debug| {
            has_id(debug) || (build_id.is_none() && checksum_of(file) == Some(checksum))
        })
    })
}

/// A file of which only what is needed is read.
type Debug<'a> = Elf<'a, &'a ReadCache<Pieces<'a>>>;

/// That of the first of the files by that name that `is_it` says to be the one.
fn find_in(wanted: &DebugFile, ask: Ask<'_>, is_it: impl Fn(&OwnedFd, &Debug<'_>) -> bool) -> Option<Frames> {
    (0..MOST_CANDIDATES).map_while(|candidate| ask(wanted, candidate)).find_map(|(path, file)| {
        let pieces = ReadCache::new(Pieces::of(&file)?);
        let debug = Elf::parse(&pieces).ok()?;
        // A file without it is not read to its end for a checksum.
        let bytes = if has_section(&debug, SECTION) && is_it(&file, &debug) { section(&debug) } else { None };
        Some(Frames { bytes: bytes?, path })
    })
}

/// The section's contents, if there are any.
fn section(file: &Debug<'_>) -> Option<Vec<u8>> {
    if !has_section(file, SECTION) {
        return None;
    }
    let bytes = match contents(file, SECTION, &Cell::new(MOST_BYTES)).ok()? {
        Contents::InFile(bytes) => bytes.to_vec(),
        Contents::Decompressed(bytes) => bytes,
    };
    Some(bytes).filter(|bytes| !bytes.is_empty())
}

/// CRC-32 of a whole file.
fn checksum_of(file: &OwnedFd) -> Option<u32> {
    let mut hash = crc32fast::Hasher::new();
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        match rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut buffer[..], at)).ok()? {
            0 => return Some(hash.finalize()),
            read_bytes => {
                hash.update(&buffer[..read_bytes]);
                at += read_bytes as u64;
            }
        }
    }
}

/// A file that is read at a place of our own: its descriptor's is that of whoever opened it.
struct Pieces<'a> {
    file: Pread<&'a OwnedFd>,
    at: u64,
}

impl<'a> Pieces<'a> {
    fn of(file: &'a OwnedFd) -> Option<Self> {
        let size_bytes = super::child::examine(file).ok()?.size_bytes;
        Some(Self { file: Pread { file, size_bytes }, at: 0 })
    }
}

impl ReadCacheOps for Pieces<'_> {
    fn len(&mut self) -> Result<u64, ()> {
        Ok(self.file.size_bytes)
    }

    fn seek(&mut self, to: u64) -> Result<u64, ()> {
        self.at = to;
        Ok(to)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ()> {
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(self.file.file, &mut *buffer, self.at));
        let read_bytes = read.map_err(|_unreadable| ())?;
        self.at += read_bytes as u64;
        Ok(read_bytes)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), ()> {
        use profiler_unwind::ReadAt as _;
        self.file.read_at(profiler_common::address::FileOffset(self.at), buffer).map_err(|_unreadable| ())?;
        self.at += buffer.len() as u64;
        Ok(())
    }
}
