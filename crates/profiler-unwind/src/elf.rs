//! The headers of an ELF file: what is loaded where, and where the call frame information is.
//!
//! Layouts: System V ABI, generic, chapters 4 and 5 (`Elf64_Ehdr`, `Elf64_Phdr`, `Elf64_Shdr`).

use crate::bytes::{u16_at, u32_at, u64_at};
use crate::error::BuildError;
use crate::read::{ReadAt, read_bytes};
use crate::segment::{Arch, Segment};
use profiler_common::address::{FileOffset, Svma};

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const SECTION_HEADER_BYTES: usize = 64;

/// Program headers, or section headers, in one file: what their 16-bit counts can state. Files with
/// the extended numbering beyond it are refused.
const MAX_HEADERS: u64 = 65_535;
/// Segments that are loaded (`PT_LOAD`), in one file. Real ones have a dozen at most, and each frame of
/// a stack may ask for the one that it is in.
pub const MAX_SEGMENTS: usize = 256;
/// `PT_NOTE` headers in which the build id is looked for. It is in the first or second.
const MAX_NOTES: usize = 16;
/// Bytes of `.dynamic` that are read: real ones have some hundred.
const MAX_DYNAMIC_BYTES: u64 = 64 << 10;
/// Tables of the kind of `.plt` in one file: the code beyond is like other code without CFI. Linkers
/// make three or four.
const MAX_PLTS: usize = 64;
/// Bytes of a section's name that are compared.
const NAME_BYTES: usize = 16;
/// So begins the name of `.gopclntab` in position-independent programs up to Go 1.25.
const DATA_REL_RO_GOPCLNTAB: &[u8] = b".data.rel.ro.gop";
/// The names of all sections together. Executables have a few dozen.
const MAX_NAMES_BYTES: u64 = 1 << 20;
/// The notes of one `PT_NOTE`; those of core files are longer, and no business of ours.
const MAX_NOTES_BYTES: u64 = 64 * 1024;
/// A build id: 20 bytes of SHA-1 as a rule, up to 64 on request.
const MAX_BUILD_ID_BYTES: usize = 64;
/// All executable segments together: beyond any program, and it bounds the number of parts.
const MAX_EXECUTABLE_BYTES: u64 = 64 << 30;

/// `e_type` of a program with a fixed address.
const ET_EXEC: u16 = 2;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
const PF_X: u32 = 1;
const SHT_NOBITS: u32 = 8;
const SHF_COMPRESSED: u64 = 1 << 11;
/// `e_phnum` when the number of program headers does not fit 16 bits.
const PN_XNUM: u16 = 0xffff;

/// A section, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) file_offset: FileOffset,
    pub(crate) size_bytes: u64,
    pub(crate) svma: Svma,
    pub(crate) compressed: bool,
    /// `sh_link`: of a symbol table, the number of the section with its names.
    link: u32,
}

/// `.symtab` or `.dynsym`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SymbolTable {
    pub(crate) symbols: Section,
    pub(crate) names: Section,
}

/// Which sections that name or describe code a file has, by its section headers. Empty ones do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sections {
    /// `.eh_frame`; also where only its program header (`PT_GNU_EH_FRAME`) tells of it.
    pub eh_frame: bool,
    /// `.debug_frame`.
    pub debug_frame: bool,
    /// `.gopclntab`, the table of Go's runtime.
    pub go_table: bool,
    /// `.symtab`.
    pub symtab: bool,
    /// `.dynsym`.
    pub dynsym: bool,
    /// `.gnu_debugdata`: a compressed ELF file with a symbol table (Fedora's "mini debug info").
    pub gnu_debugdata: bool,
    /// `.debug_info` or `.zdebug_info`.
    pub debug_info: bool,
    /// `.debug_line` or `.zdebug_line`.
    pub debug_line: bool,
}

/// The headers of a file.
#[derive(Debug)]
pub(crate) struct Elf {
    pub(crate) arch: Arch,
    pub(crate) build_id: Option<Vec<u8>>,
    /// Sorted by address.
    pub(crate) segments: Vec<Segment>,
    pub(crate) eh_frame_hdr: Option<Svma>,
    pub(crate) eh_frame: Option<Section>,
    pub(crate) debug_frame: Option<Section>,
    /// `.plt`, `.plt.got`, `.plt.sec`, ...: at most [`MAX_PLTS`], sorted by address; none overlap.
    pub(crate) plts: Vec<Section>,
    /// `.symtab` and `.dynsym`.
    pub(crate) symbol_tables: Vec<SymbolTable>,
    /// `e_entry`, where programs begin; libraries have 0 there or some address.
    pub(crate) entry: Svma,
    /// Said to be a program, by its type or by naming its loader. Programs that need no loader and have
    /// no fixed address do not say so, and neither do loaders.
    pub(crate) is_program: bool,
    /// `.gopclntab`: what Go programs know about their code.
    pub(crate) go_table: Option<Section>,
    /// Where the loader finds its own tables (`PT_DYNAMIC`).
    pub(crate) dynamic: Option<Segment>,
    /// There are section headers, and none is of those that Go's linker makes.
    pub(crate) is_not_go: bool,
    /// The address of `.text`, which pointers in CFI may be relative to; 0 when it is not known.
    pub(crate) text: Svma,
    /// Section headers or names are stated, but can't be read.
    pub(crate) sections_unreadable: bool,
    /// What there is besides.
    pub(crate) sections: Sections,
}

impl Elf {
    /// Reads the headers of `file`.
    ///
    /// # Errors
    /// When it is no ELF file of a supported kind, or a header can't be read or is out of bounds.
    pub(crate) fn read(file: &impl ReadAt) -> Result<Self, BuildError> {
        let header = Header::read(file)?;
        let mut elf = Self {
            arch: header.arch,
            build_id: None,
            segments: Vec::new(),
            eh_frame_hdr: None,
            eh_frame: None,
            debug_frame: None,
            plts: Vec::new(),
            symbol_tables: Vec::new(),
            entry: header.entry,
            is_program: header.is_program,
            go_table: None,
            dynamic: None,
            is_not_go: false,
            text: Svma(0),
            sections_unreadable: false,
            sections: Sections::default(),
        };
        elf.read_segments(file, &header)?;
        // The loader does without section headers, so a file may lack the end that they stand in.
        elf.sections_unreadable = elf.read_sections(file, &header).is_err();
        elf.sections.eh_frame = elf.eh_frame.is_some() || elf.eh_frame_hdr.is_some();
        elf.sections.debug_frame = elf.debug_frame.is_some();
        elf.sections.go_table = elf.go_table.is_some();
        Ok(elf)
    }

    fn read_segments(&mut self, file: &impl ReadAt, header: &Header) -> Result<(), BuildError> {
        let count = u64::from(header.program_headers);
        let length = count * PROGRAM_HEADER_BYTES as u64;
        let table = read_bytes(file, "the program headers", header.program_headers_at, length, length)?;
        let mut notes_left = MAX_NOTES;
        for bytes in table.chunks_exact(PROGRAM_HEADER_BYTES) {
            let Some((kind, segment)) = program_header(bytes) else { break };
            match kind {
                PT_LOAD if self.segments.len() == MAX_SEGMENTS => {
                    let (value, limit) = (MAX_SEGMENTS as u64 + 1, MAX_SEGMENTS as u64);
                    return Err(BuildError::TooMany { what: "the number of loaded segments", value, limit });
                }
                PT_LOAD => self.segments.push(segment),
                PT_DYNAMIC => self.dynamic = Some(segment),
                PT_INTERP => self.is_program = true,
                PT_GNU_EH_FRAME => self.eh_frame_hdr = Some(segment.svma),
                PT_NOTE if self.build_id.is_none() && notes_left > 0 && segment.file_size_bytes <= MAX_NOTES_BYTES => {
                    notes_left -= 1;
                    let align = u64_at(bytes, 48).unwrap_or(4);
                    let length = segment.file_size_bytes;
                    let notes = read_bytes(file, "the notes", segment.file_offset, length, MAX_NOTES_BYTES)?;
                    self.build_id = build_id(&notes, if align == 8 { 8 } else { 4 });
                }
                _ => {}
            }
        }
        self.segments.sort_by_key(|segment| segment.svma);
        check_segments(&self.segments)
    }

    fn read_sections(&mut self, file: &impl ReadAt, header: &Header) -> Result<(), BuildError> {
        if header.section_headers_at.0 == 0 || header.section_headers == 0 {
            return Ok(());
        }
        let length = u64::from(header.section_headers) * SECTION_HEADER_BYTES as u64;
        let table = read_bytes(file, "the section headers", header.section_headers_at, length, length)?;
        let sections: Vec<_> = table.chunks_exact(SECTION_HEADER_BYTES).filter_map(section_header).collect();
        let Some((_, _, names)) = sections.get(usize::from(header.names_section)) else { return Ok(()) };
        let names = read_bytes(file, "the section names", names.file_offset, names.size_bytes, MAX_NAMES_BYTES)?;
        self.is_not_go = true;
        for &(name, kind, section) in &sections {
            if kind == SHT_NOBITS || section.size_bytes == 0 {
                continue;
            }
            match name_at(&names, name) {
                b".text" => self.text = section.svma,
                b".eh_frame" => self.eh_frame = Some(section),
                b".gopclntab" | DATA_REL_RO_GOPCLNTAB => self.go_table = Some(section),
                b".go.buildinfo" | b".note.go.buildid" => self.is_not_go = false,
                b".debug_frame" => self.debug_frame = Some(section),
                b".plt" | b".iplt" => self.plts.push(section),
                name @ (b".symtab" | b".dynsym") => {
                    let is_symtab = name == b".symtab";
                    self.sections.symtab |= is_symtab;
                    self.sections.dynsym |= !is_symtab;
                    let names = usize::try_from(section.link).ok().and_then(|link| sections.get(link));
                    let names = names.map(|(_name, _kind, names)| *names);
                    self.symbol_tables.extend(names.map(|names| SymbolTable { symbols: section, names }));
                }
                b".gnu_debugdata" => self.sections.gnu_debugdata = true,
                b".debug_info" | b".zdebug_info" => self.sections.debug_info = true,
                b".debug_line" | b".zdebug_line" => self.sections.debug_line = true,
                name if name.starts_with(b".plt.") => self.plts.push(section),
                _ => {}
            }
        }
        self.plts.sort_by_key(|section| section.svma);
        let mut free_from = 0;
        self.plts.retain(|section| {
            let apart = section.svma.0 >= free_from;
            if apart {
                free_from = section.svma.0.saturating_add(section.size_bytes);
            }
            apart
        });
        self.plts.truncate(MAX_PLTS);
        Ok(())
    }

    /// What the loader's own table says for each of `tags` (System V ABI, generic, chapter 5: `Elf64_Dyn`).
    pub(crate) fn dynamic_values<const N: usize>(&self, file: &impl ReadAt, tags: [u64; N]) -> [Option<u64>; N] {
        let read = |dynamic: Segment| {
            let length = dynamic.file_size_bytes.min(MAX_DYNAMIC_BYTES);
            read_bytes(file, "the dynamic section", dynamic.file_offset, length, MAX_DYNAMIC_BYTES).ok()
        };
        let bytes = self.dynamic.and_then(read).unwrap_or_default();
        let (entries, _rest) = bytes.as_chunks::<16>();
        tags.map(|tag| entries.iter().find(|entry| u64_at(*entry, 0) == Some(tag)).and_then(|entry| u64_at(entry, 8)))
    }

    /// The segments that hold code.
    pub(crate) fn executable(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| segment.executable)
    }

    /// Where the byte at `svma` is in the file, and how many bytes of its segment follow.
    pub(crate) fn in_file(&self, svma: Svma) -> Option<(FileOffset, u64)> {
        let after = self.segments.partition_point(|segment| segment.svma <= svma);
        self.segments.get(after.checked_sub(1)?)?.in_file(svma)
    }
}

struct Header {
    arch: Arch,
    is_program: bool,
    entry: Svma,
    program_headers_at: FileOffset,
    program_headers: u16,
    section_headers_at: FileOffset,
    section_headers: u16,
    names_section: u16,
}

impl Header {
    fn read(file: &impl ReadAt) -> Result<Self, BuildError> {
        let what = "the ELF header";
        let bytes = read_bytes(file, what, FileOffset(0), HEADER_BYTES as u64, HEADER_BYTES as u64)?;
        Self::parse(&bytes).unwrap_or(Err(BuildError::NotElf { ident: [0; 8] }))
    }

    /// `None` when `bytes` are fewer than a header has.
    fn parse(bytes: &[u8]) -> Option<Result<Self, BuildError>> {
        // EI_CLASS 2: 64 bits; EI_DATA 1: little-endian; EI_VERSION 1.
        if !bytes.starts_with(b"\x7fELF\x02\x01\x01") {
            return Some(Err(BuildError::NotElf { ident: bytes.get(..8)?.try_into().ok()? }));
        }
        let arch = match u16_at(bytes, 18)? {
            62 => Arch::X86_64,
            183 => Arch::Aarch64,
            machine => return Some(Err(BuildError::Machine { machine })),
        };
        let sections_known = usize::from(u16_at(bytes, 58)?) == SECTION_HEADER_BYTES;
        let header = Self {
            arch,
            is_program: u16_at(bytes, 16)? == ET_EXEC,
            entry: Svma(u64_at(bytes, 24)?),
            program_headers_at: FileOffset(u64_at(bytes, 32)?),
            program_headers: u16_at(bytes, 56)?,
            section_headers_at: FileOffset(u64_at(bytes, 40)?),
            section_headers: if sections_known { u16_at(bytes, 60)? } else { 0 },
            names_section: u16_at(bytes, 62)?,
        };
        if header.program_headers == PN_XNUM {
            let (value, limit) = (MAX_HEADERS + 1, MAX_HEADERS);
            return Some(Err(BuildError::TooMany { what: "the number of program headers", value, limit }));
        }
        let size_bytes = u16_at(bytes, 54)?;
        if header.program_headers > 0 && usize::from(size_bytes) != PROGRAM_HEADER_BYTES {
            return Some(Err(BuildError::ProgramHeaderSize { size_bytes }));
        }
        Some(Ok(header))
    }
}

/// `p_type` and the rest of a program header.
fn program_header(bytes: &[u8]) -> Option<(u32, Segment)> {
    let segment = Segment {
        file_offset: FileOffset(u64_at(bytes, 8)?),
        file_size_bytes: u64_at(bytes, 32)?,
        svma: Svma(u64_at(bytes, 16)?),
        memory_size_bytes: u64_at(bytes, 40)?,
        executable: u32_at(bytes, 4)? & PF_X != 0,
    };
    Some((u32_at(bytes, 0)?, segment))
}

/// `sh_name`, `sh_type` and the rest of a section header.
fn section_header(bytes: &[u8]) -> Option<(u32, u32, Section)> {
    let section = Section {
        file_offset: FileOffset(u64_at(bytes, 24)?),
        size_bytes: u64_at(bytes, 32)?,
        svma: Svma(u64_at(bytes, 16)?),
        compressed: u64_at(bytes, 8)? & SHF_COMPRESSED != 0,
        link: u32_at(bytes, 40)?,
    };
    Some((u32_at(bytes, 0)?, u32_at(bytes, 4)?, section))
}

/// The NUL-terminated name at `at`, empty when there is none; its first [`NAME_BYTES`] bytes.
fn name_at(names: &[u8], at: u32) -> &[u8] {
    let name = usize::try_from(at).ok().and_then(|at| names.get(at..)).unwrap_or_default();
    let name = name.get(..NAME_BYTES).unwrap_or(name);
    name.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Segments must neither overlap nor wrap around, and their code must be of a sane size.
fn check_segments(sorted: &[Segment]) -> Result<(), BuildError> {
    let mut previous_end = 0;
    let mut executable_bytes = 0u64;
    for segment in sorted {
        let error = BuildError::Segments { address: segment.svma.0, memory_size_bytes: segment.memory_size_bytes };
        let Some(end) = segment.svma.0.checked_add(segment.memory_size_bytes) else { return Err(error) };
        if segment.svma.0 < previous_end {
            return Err(error);
        }
        previous_end = end;
        if segment.executable {
            executable_bytes = executable_bytes.saturating_add(segment.memory_size_bytes);
        }
    }
    if executable_bytes > MAX_EXECUTABLE_BYTES {
        let (value, limit) = (executable_bytes, MAX_EXECUTABLE_BYTES);
        return Err(BuildError::TooMany { what: "the size of the code in bytes", value, limit });
    }
    Ok(())
}

/// The build id among `notes`, each aligned to `align` bytes: name "GNU", type 3
/// (`NT_GNU_BUILD_ID`).
fn build_id(mut notes: &[u8], align: usize) -> Option<Vec<u8>> {
    loop {
        let name_bytes = usize::try_from(u32_at(notes, 0)?).ok()?;
        let value_bytes = usize::try_from(u32_at(notes, 4)?).ok()?;
        let kind = u32_at(notes, 8)?;
        let value_at = 12usize.checked_add(name_bytes)?.checked_next_multiple_of(align)?;
        let value_end = value_at.checked_add(value_bytes)?;
        if kind == 3 && notes.get(12..)?.starts_with(b"GNU\0") && name_bytes == 4 && value_bytes <= MAX_BUILD_ID_BYTES {
            return notes.get(value_at..value_end).map(<[u8]>::to_vec);
        }
        notes = notes.get(value_end.checked_next_multiple_of(align)?..)?;
    }
}
