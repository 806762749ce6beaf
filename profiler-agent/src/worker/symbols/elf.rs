//! ELF files as the symbolizer reads them: their sections, decompressed where they are compressed.

use std::cell::Cell;
use std::io::Read;
use std::os::fd::AsFd;
use std::rc::Rc;

use object::read::elf::{ElfFile64, ElfSection64};
use object::{CompressionFormat, LittleEndian, Object as _, ObjectSection as _, ReadRef};

use crate::kernel::FileBytes;

/// An ELF file for the machines that spanflame runs on: 64 bits, little-endian.
pub(in crate::worker) type Elf<'a, R = &'a [u8]> = ElfFile64<'a, LittleEndian, R>;

type Section<'data, 'file, R> = ElfSection64<'data, 'file, LittleEndian, R>;

/// Bytes that section contents of one executable may take when decompressed, all together: half of what
/// a worker may allocate.
pub(super) const MOST_DECOMPRESSED_BYTES: usize = 512 << 20;

/// Bytes of an ELF file inside another one (`.gnu_debugdata`), at most. It holds names only; Fedora's
/// largest are a few MiB.
const MOST_EMBEDDED_BYTES: usize = 64 << 20;

/// Memory of the xz decoder, at most, in KiB: its dictionary. `xz -9` uses 64 MiB.
const MOST_XZ_KIB: u32 = 96 << 10;

/// Why a file or a part of it can't be used.
#[derive(Debug, thiserror::Error)]
pub(in crate::worker) enum ElfError {
    /// It can't be mapped.
    #[error("it can't be mapped: {0}")]
    Map(#[from] std::io::Error),
    /// Its structure is damaged.
    #[error("{0}")]
    Parse(#[from] object::Error),
    /// A section is compressed, and damaged or too large.
    #[error("the section {section} can't be decompressed: {why}")]
    Decompress {
        /// Its name.
        section: String,
        /// What is wrong.
        why: String,
    },
}

/// The bytes of a whole file.
pub(super) fn map(file: &impl AsFd) -> Result<Rc<FileBytes>, ElfError> {
    Ok(Rc::new(FileBytes::map(file)?))
}

/// The headers of the file.
pub(super) fn parse(bytes: &[u8]) -> Result<Elf<'_>, ElfError> {
    Ok(Elf::parse(bytes)?)
}

/// Whether the file has a section with contents of this name.
pub(in crate::worker) fn has_section<'a, R: ReadRef<'a>>(elf: &Elf<'a, R>, name: &str) -> bool {
    let section = section(elf, name);
    section.is_some_and(|section| section.file_range().is_some_and(|(_offset, length_bytes)| length_bytes > 0))
}

/// A section, by its name or by the one that says that GNU tools before 2014 compressed it.
fn section<'data, 'file, R: ReadRef<'data>>(elf: &'file Elf<'data, R>, name: &str) -> Option<Section<'data, 'file, R>> {
    let compressed =
        || Some(name.strip_prefix(".debug_")?).and_then(|rest| elf.section_by_name(&format!(".zdebug_{rest}")));
    elf.section_by_name(name).or_else(compressed)
}

/// What a section holds: bytes of the file, or new ones.
pub(in crate::worker) enum Contents<'a> {
    InFile(&'a [u8]),
    Decompressed(Vec<u8>),
}

/// The contents of a section, empty when there is none. What is decompressed is taken from `room`, which
/// counts bytes. Knows zlib and zstd (System V ABI, chapter 4, "Section Compression") and the older
/// `.zdebug_` names.
pub(in crate::worker) fn contents<'a, R: ReadRef<'a>>(
    elf: &Elf<'a, R>,
    name: &str,
    room: &Cell<usize>,
) -> Result<Contents<'a>, ElfError> {
    let Some(section) = section(elf, name) else { return Ok(Contents::InFile(&[])) };
    let data = section.compressed_data()?;
    let failed = |why: String| ElfError::Decompress { section: name.to_owned(), why };
    if data.format == CompressionFormat::None {
        return Ok(Contents::InFile(data.data));
    }
    let size_bytes = usize::try_from(data.uncompressed_size).unwrap_or(usize::MAX);
    let left = room.get().checked_sub(size_bytes);
    room.set(left.ok_or_else(|| failed(format!("too large ({size_bytes} bytes)")))?);
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(size_bytes).map_err(|error| failed(error.to_string()))?;
    let decompressed = match data.format {
        CompressionFormat::Zlib => read_at_most(flate2::bufread::ZlibDecoder::new(data.data), size_bytes, bytes),
        CompressionFormat::Zstandard => read_at_most(Zstd::new(data.data), size_bytes, bytes),
        other => return Err(failed(format!("an unknown compression: {other:?}"))),
    };
    match decompressed {
        Ok(bytes) if bytes.len() == size_bytes => Ok(Contents::Decompressed(bytes)),
        Ok(bytes) => Err(failed(format!("{} bytes instead of {size_bytes}", bytes.len()))),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// The ELF file inside `.gnu_debugdata`.
pub(super) fn embedded(elf: &Elf<'_>) -> Option<Vec<u8>> {
    let compressed = elf.section_by_name(".gnu_debugdata")?.data().ok()?;
    let xz = lzma_rust2::XzReader::new_mem_limit(compressed, false, MOST_XZ_KIB);
    read_at_most(xz, MOST_EMBEDDED_BYTES, Vec::new()).ok()
}

/// What a decoder gives, up to so many bytes: the rest is left out.
fn read_at_most(decoder: impl Read, most_bytes: usize, mut bytes: Vec<u8>) -> std::io::Result<Vec<u8>> {
    decoder.take(most_bytes as u64).read_to_end(&mut bytes)?;
    bytes.shrink_to_fit();
    Ok(bytes)
}

/// All frames of a zstd stream: linkers write one for each piece that they compressed.
struct Zstd<'a> {
    rest: &'a [u8],
    frame: Option<Box<ruzstd::decoding::StreamingDecoder<&'a [u8], ruzstd::decoding::FrameDecoder>>>,
}

impl<'a> Zstd<'a> {
    const fn new(rest: &'a [u8]) -> Self {
        Self { rest, frame: None }
    }
}

impl Read for Zstd<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            if let Some(frame) = &mut self.frame {
                let read_bytes = frame.read(buffer)?;
                if read_bytes > 0 || buffer.is_empty() {
                    return Ok(read_bytes);
                }
                self.rest = frame.get_ref();
                self.frame = None;
            }
            if self.rest.is_empty() {
                return Ok(0);
            }
            let frame = ruzstd::decoding::StreamingDecoder::new(self.rest);
            self.frame = Some(Box::new(frame.map_err(|error| std::io::Error::other(error.to_string()))?));
        }
    }
}
