//! What is mapped in a stopped program: its memory, its code, and the rows for it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use object::{Object as _, ObjectSymbol as _};
use profiler_common::address::{FileOffset, Svma, VirtualAddress};
use profiler_common::row::Rule;
use profiler_unwind::{ReadAt, ReadError, UnwindTable, bias_of_mapping, build, lookup};

const PAGE_BYTES: u64 = 4096;
/// What is read of the stack at once.
const WINDOW_WORDS: usize = 64;
/// The longest instruction (Intel SDM, volume 2, 2.3.11).
const MAX_INSTRUCTION_BYTES: usize = 15;

/// Tables of files, and what their functions are called: shared by the programs of a test.
#[derive(Debug, Default)]
pub struct Files(HashMap<String, Rc<CodeFile>>);

#[derive(Debug)]
struct CodeFile {
    table: Option<UnwindTable>,
    /// Functions by address.
    symbols: Vec<(u64, String)>,
}

struct OnDisk(File);

impl ReadAt for OnDisk {
    fn size_bytes(&self) -> u64 {
        self.0.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read_at(&self, offset: FileOffset, buffer: &mut [u8]) -> Result<(), ReadError> {
        Ok(self.0.read_exact_at(buffer, offset.0)?)
    }
}

impl Files {
    fn on_disk(&mut self, path: &str) -> Rc<CodeFile> {
        let read = || {
            let table = File::open(path).ok().and_then(|file| build(&OnDisk(file)).ok());
            Rc::new(CodeFile { table, symbols: symbols(&fs::read(path).unwrap_or_default()) })
        };
        Rc::clone(self.0.entry(path.to_owned()).or_insert_with(read))
    }
}

fn symbols(bytes: &[u8]) -> Vec<(u64, String)> {
    let Ok(elf) = object::File::parse(bytes) else { return Vec::new() };
    let all = elf.symbols().chain(elf.dynamic_symbols()).filter(|symbol| symbol.address() != 0);
    let mut symbols: Vec<_> =
        all.filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?.to_owned()))).collect();
    symbols.sort();
    symbols.dedup_by_key(|(address, _name)| *address);
    symbols
}

struct Mapping {
    start: u64,
    end: u64,
    executable: bool,
    /// What is added to the file's addresses.
    bias: u64,
    path: String,
    /// `None` for memory that is no file's.
    file: Option<Rc<CodeFile>>,
}

/// The rule at an address.
pub(super) enum Found {
    Rule(Rule),
    /// Nothing executable is there.
    NotCode,
    /// An executable without a table.
    NoTable,
}

/// The memory of a stopped program.
pub(super) struct Image<'a> {
    pid: Pid,
    files: &'a mut Files,
    mappings: Vec<Mapping>,
    pages: HashMap<u64, [u8; PAGE_BYTES as usize]>,
    window_start: u64,
    window: [u64; WINDOW_WORDS],
    window_words: usize,
}

impl<'a> Image<'a> {
    pub(super) fn new(pid: Pid, files: &'a mut Files) -> Self {
        let mut image = Self {
            pid,
            files,
            mappings: Vec::new(),
            pages: HashMap::new(),
            window_start: 0,
            window: [0; WINDOW_WORDS],
            window_words: 0,
        };
        image.read_mappings();
        image
    }

    /// The program has run: its data is to be read again.
    pub(super) fn data_changed(&mut self) {
        self.window_words = 0;
    }

    /// The program may have mapped, unmapped or replaced files.
    pub(super) fn read_mappings(&mut self) {
        self.pages.clear();
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap_or_default();
        self.mappings = maps.lines().filter_map(|line| self.mapping(line)).collect();
    }

    fn mapping(&mut self, line: &str) -> Option<Mapping> {
        let mut fields = line.split_ascii_whitespace();
        let (range, permissions, offset) = (fields.next()?, fields.next()?, fields.next()?);
        let path = fields.nth(2).unwrap_or_default().to_owned();
        let hex = |digits| u64::from_str_radix(digits, 16).ok();
        let (start, end) = range.split_once('-').and_then(|(start, end)| Some((hex(start)?, hex(end)?)))?;
        let executable = permissions.as_bytes().get(2) == Some(&b'x');
        let file = match path.as_str() {
            _ if !executable => None,
            "[vdso]" => Some(self.vdso(start, end)),
            path if path.starts_with('/') => Some(self.files.on_disk(path)),
            _ => None,
        };
        let offset = FileOffset(hex(offset)?);
        let table = file.as_ref().and_then(|file| file.table.as_ref());
        let bias = table
            .and_then(|table| bias_of_mapping(&table.segments, VirtualAddress(start), offset, PAGE_BYTES))
            .map_or(0, |bias| bias.0);
        Some(Mapping { start, end, executable, bias, path, file })
    }

    fn vdso(&mut self, start: u64, end: u64) -> Rc<CodeFile> {
        if let Some(vdso) = self.files.0.get("[vdso]") {
            return Rc::clone(vdso);
        }
        let mut bytes = vec![0; usize::try_from(end - start).expect("the size of the vDSO")];
        self.read_bytes(start, &mut bytes);
        let vdso = Rc::new(CodeFile { table: build(&bytes).ok(), symbols: symbols(&bytes) });
        self.files.0.insert("[vdso]".to_owned(), Rc::clone(&vdso));
        vdso
    }

    fn at(&self, address: u64) -> Option<&Mapping> {
        let after = self.mappings.partition_point(|mapping| mapping.start <= address);
        self.mappings.get(after.checked_sub(1)?).filter(|mapping| address < mapping.end)
    }

    /// What the profiler has at an address: the file's row, or for generated code the frame pointer.
    pub(super) fn rule(&self, address: u64) -> Found {
        let Some(mapping) = self.at(address).filter(|mapping| mapping.executable) else { return Found::NotCode };
        let Some(file) = &mapping.file else { return Found::Rule(Rule::X86_64_FRAME_POINTER) };
        let svma = Svma(address.wrapping_sub(mapping.bias));
        match file.table.as_ref().and_then(|table| lookup(table, svma)) {
            Some(rule) => Found::Rule(rule),
            None => Found::NoTable,
        }
    }

    /// Whether two addresses are in one mapping.
    pub(super) fn same_mapping(&self, one: u64, other: u64) -> bool {
        self.at(one).is_some_and(|mapping| (mapping.start..mapping.end).contains(&other))
    }

    /// The function and the place in its file, for messages.
    pub(super) fn name(&self, address: u64) -> (String, String) {
        let Some(mapping) = self.at(address) else { return ("?".to_owned(), format!("{address:#x}")) };
        let svma = address.wrapping_sub(mapping.bias);
        let symbols = mapping.file.as_ref().map_or(&[][..], |file| &file.symbols);
        let before = symbols.partition_point(|(start, _name)| *start <= svma).checked_sub(1);
        let function = before.and_then(|index| symbols.get(index)).map_or("?", |(_start, name)| name);
        (format!("{function} in {}", mapping.path), format!("{}+{svma:#x}", mapping.path))
    }

    /// The bytes of the instruction at an address, and more; zeros where there is no memory.
    pub(super) fn code(&mut self, address: u64) -> [u8; MAX_INSTRUCTION_BYTES] {
        let mut code = [0; MAX_INSTRUCTION_BYTES];
        let offset = (address % PAGE_BYTES) as usize;
        if offset + code.len() > PAGE_BYTES as usize {
            self.read_bytes(address, &mut code);
            return code;
        }
        let page = address - address % PAGE_BYTES;
        if !self.pages.contains_key(&page) {
            let mut bytes = [0; PAGE_BYTES as usize];
            self.read_bytes(page, &mut bytes);
            self.pages.insert(page, bytes);
        }
        if let Some(bytes) = self.pages.get(&page).and_then(|bytes| bytes.get(offset..offset + code.len())) {
            code.copy_from_slice(bytes);
        }
        code
    }

    /// Some words of data.
    pub(super) fn words(&mut self, address: u64, count: usize) -> Option<&[u64]> {
        let inside = |start: u64, words: usize| {
            let distance = address.checked_sub(start).filter(|distance| distance % 8 == 0)?;
            let from = usize::try_from(distance / 8).ok()?;
            (from.checked_add(count)? <= words).then_some(from)
        };
        let from = match inside(self.window_start, self.window_words) {
            Some(from) => from,
            None => {
                self.read_window(address, count)?;
                0
            }
        };
        self.window.get(from..from + count)
    }

    pub(super) fn word(&mut self, address: u64) -> Option<u64> {
        self.words(address, 1)?.first().copied()
    }

    fn read_window(&mut self, address: u64, count: usize) -> Option<()> {
        let mut bytes = [0; WINDOW_WORDS * 8];
        // What ends at the end of a mapping is read as far as it goes.
        let read = self.read_bytes(address, &mut bytes);
        self.window_start = address;
        self.window_words = read / 8;
        for (word, bytes) in self.window.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        (count <= self.window_words).then_some(())
    }

    /// Returns how many bytes there were.
    fn read_bytes(&self, address: u64, bytes: &mut [u8]) -> usize {
        let Ok(base) = usize::try_from(address) else { return 0 };
        // A read stops at the first page that is not there, but only between pieces (process_vm_readv(2)).
        let to_page_end = usize::try_from(PAGE_BYTES - address % PAGE_BYTES).unwrap_or(0).min(bytes.len());
        let rest = bytes.len() - to_page_end;
        let remote =
            [RemoteIoVec { base, len: to_page_end }, RemoteIoVec { base: base.wrapping_add(to_page_end), len: rest }];
        let pieces = if rest == 0 { &remote[..1] } else { &remote[..] };
        process_vm_readv(self.pid, &mut [IoSliceMut::new(bytes)], pieces).unwrap_or(0)
    }
}
