//! Functions by the symbol tables of ELF files, which blazesym reads.
//!
//! It opens files by their paths and keeps what it parsed by path. So each file has a symbolizer of its own,
//! which is gone before the descriptor is closed that the path stands for: what was parsed of one file is
//! never taken for another one's.

use std::collections::HashMap;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{Input, Sym, Symbolized, Symbolizer};
use object::read::StringTable;
use object::{LittleEndian, elf};
use profiler_common::address::Svma;

use super::elf::parse;
use crate::kernel::FileBytes;

/// A symbol table's entry.
type Entry = elf::Sym64<LittleEndian>;

/// Where a function starts and how many bytes it is long, as its symbols have it.
type Place = (u64, u64);

/// Little-endian, as the machines that spanflame runs on.
const ENDIAN: LittleEndian = LittleEndian;

/// How many symbols without a size before an address are passed over for one that holds it: between the start
/// of a function and its end there may be labels (hand-written assembly).
const LOOK_BACK: usize = 64;

/// The symbol tables of one file, `.symtab` before `.dynsym`.
pub(super) struct Names {
    symbolizer: Symbolizer,
    source: Source<'static>,
    /// The same file.
    bytes: Rc<FileBytes>,
    /// Keeps the path in `source` valid; declared after what uses it, so dropped after it.
    _open: Rc<OwnedFd>,
}

/// What a symbol says about an address.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    /// The name as it stands in the table.
    pub(super) name: String,
    /// Where it starts.
    pub(super) start: Svma,
    /// How long it is; 0 when it does not say that: it is the last one before the address.
    pub(super) size_bytes: u64,
}

impl Names {
    /// Of the file that `open` leads to; in `descriptors` each descriptor has its number for a name.
    pub(super) fn new(open: Rc<OwnedFd>, bytes: Rc<FileBytes>, descriptors: &Path) -> Self {
        let mut tables = Elf::new(descriptors.join(open.as_raw_fd().to_string()));
        tables.debug_syms = false;
        let symbolizer = Symbolizer::builder().enable_auto_reload(false).enable_demangling(false).build();
        Self { symbolizer, source: Source::Elf(tables), bytes, _open: open }
    }

    /// For each address the symbol of the function that it is in. None for what comes behind a function inside
    /// another one, or in `.dynsym` behind a label inside one: blazesym looks no further. What is damaged costs
    /// the addresses that it is about.
    ///
    /// # Errors
    /// When the file can't be opened.
    pub(super) fn find(&self, addresses: &[Svma]) -> Result<Vec<Option<Symbol>>, blazesym::Error> {
        let offsets: Vec<u64> = addresses.iter().map(|address| address.0).collect();
        let nearest = self.symbolizer.symbolize(&self.source, Input::VirtOffset(&offsets))?;
        let found = addresses.iter().zip(nearest).map(|(address, nearest)| self.holder(*address, nearest));
        let mut found: Vec<Option<Symbol>> = found.collect();
        self.take_plainest(&mut found);
        Ok(found)
    }

    /// C libraries have several names for many functions (`free`, `__libc_free`), and blazesym gives any.
    fn take_plainest(&self, found: &mut [Option<Symbol>]) {
        let Ok(file) = parse(&self.bytes) else { return };
        let places = found.iter().flatten().map(|symbol| (symbol.place(), Vec::new()));
        let mut entries: HashMap<Place, Vec<&Entry>> = places.collect();
        for table in [file.elf_symbol_table(), file.elf_dynamic_symbol_table()] {
            for entry in table.symbols().iter().filter(|entry| is_code(entry)) {
                if let Some(entries) = entries.get_mut(&place(entry)) {
                    entries.push(entry);
                }
            }
            let several = entries.iter().filter(|(_place, entries)| entries.len() > 1);
            let names = several.filter_map(|(place, entries)| Some((*place, plainest(entries, table.strings())?)));
            let names: HashMap<Place, &str> = names.collect();
            for symbol in found.iter_mut().flatten() {
                if let Some(name) = names.get(&symbol.place()) {
                    (*name).clone_into(&mut symbol.name);
                }
            }
            entries.retain(|_place, entries| entries.is_empty());
        }
    }

    /// The nearest symbol that says that it holds `address`, from `nearest` on; else the nearest one without
    /// a size.
    fn holder(&self, address: Svma, nearest: Symbolized<'_>) -> Option<Symbol> {
        let mut candidate = nearest;
        let mut sizeless = None;
        for _ in 0..LOOK_BACK {
            // At 0 are the names of symbol versions.
            let Symbolized::Sym(symbol) = &candidate else { break };
            let Some(before) = symbol.addr.checked_sub(1) else { break };
            match symbol.size {
                Some(size) if address.0 - symbol.addr < size as u64 => return named(symbol),
                None if sizeless.is_none() && !is_mark(&symbol.name) => sizeless = named(symbol),
                _ => {}
            }
            let Ok(next) = self.symbolizer.symbolize_single(&self.source, Input::VirtOffset(before)) else { break };
            candidate = next;
        }
        sizeless
    }
}

impl Symbol {
    /// What it has in common with other names of the same function.
    const fn place(&self) -> Place {
        (self.start.0, self.size_bytes)
    }
}

/// Whether this is no name: on aarch64 `$x` and `$d` mark code and data between it (ELF for the Arm 64-bit
/// Architecture, "Mapping symbols").
fn is_mark(name: &str) -> bool {
    name.starts_with("$x") || name.starts_with("$d")
}

fn named(symbol: &Sym<'_>) -> Option<Symbol> {
    let size_bytes = symbol.size.map_or(0, |size| size as u64);
    let name = symbol.name.to_string();
    (!name.is_empty()).then_some(Symbol { name, start: Svma(symbol.addr), size_bytes })
}

fn place(entry: &Entry) -> Place {
    (entry.st_value.get(ENDIAN), entry.st_size.get(ENDIAN))
}

fn is_code(entry: &Entry) -> bool {
    !matches!(entry.st_shndx.get(ENDIAN), elf::SHN_UNDEF | elf::SHN_ABS)
        && matches!(entry.st_type(), elf::STT_FUNC | elf::STT_GNU_IFUNC | elf::STT_NOTYPE)
}

/// Of several names for one function, the one that other files see, then the plainest.
fn plainest<'a>(entries: &[&Entry], strings: StringTable<'a>) -> Option<&'a str> {
    let named = entries.iter().filter_map(|entry| {
        let name = std::str::from_utf8(strings.get(entry.st_name.get(ENDIAN)).ok()?).ok()?;
        (!name.is_empty() && !is_mark(name)).then_some((entry, name))
    });
    let best = named.min_by_key(|(entry, name)| {
        let binding = match entry.st_bind() {
            elf::STB_GLOBAL => 0,
            elf::STB_WEAK => 1,
            _ => 2,
        };
        let underscores = name.bytes().take_while(|byte| *byte == b'_').count();
        (entry.st_type() == elf::STT_NOTYPE, binding, underscores, name.len(), *name)
    });
    best.map(|(_entry, name)| name)
}

#[cfg(test)]
mod tests {
    use object::{U16, U32, U64};

    use super::*;

    #[test]
    fn the_plainest_name_is_one_that_others_call() {
        let strings = b"\0__libc_free\0free\0cfree\0$x\0fre\0";
        let entry = |name: &str, binding: u8, kind: u8| Entry {
            st_name: U32::new(
                ENDIAN,
                strings.windows(name.len() + 1).position(|at| at == [name.as_bytes(), b"\0"].concat()).unwrap() as u32,
            ),
            st_info: binding << 4 | kind,
            st_other: 0,
            st_shndx: U16::new(ENDIAN, 1),
            st_value: U64::new(ENDIAN, 0x1000),
            st_size: U64::new(ENDIAN, 0),
        };
        let entries = [
            entry("$x", elf::STB_GLOBAL, elf::STT_FUNC),
            entry("__libc_free", elf::STB_GLOBAL, elf::STT_FUNC),
            entry("cfree", elf::STB_GLOBAL, elf::STT_FUNC),
            entry("fre", elf::STB_LOCAL, elf::STT_FUNC),
            entry("fre", elf::STB_GLOBAL, elf::STT_NOTYPE),
        ];
        let plainest = |entries: &[Entry]| {
            let entries: Vec<&Entry> = entries.iter().collect();
            plainest(&entries, StringTable::new(strings.as_slice(), 0, strings.len() as u64)).map(str::to_owned)
        };
        assert_eq!(plainest(&entries).as_deref(), Some("cfree"));
        let free = entry("free", elf::STB_WEAK, elf::STT_FUNC);
        assert_eq!(plainest(&[entries[3], free]).as_deref(), Some("free"));
        assert_eq!(plainest(&entries[..1]), None);
        let damaged = Entry { st_name: U32::new(ENDIAN, 999), ..entries[2] };
        assert_eq!(plainest(&[damaged, entries[1]]).as_deref(), Some("__libc_free"));
    }
}
