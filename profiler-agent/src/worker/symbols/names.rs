//! Functions by the symbol tables of ELF files.

use std::cell::OnceCell;
use std::rc::Rc;

use object::read::StringTable;
use object::{LittleEndian, elf};
use profiler_common::address::Svma;

use super::elf::{Bytes, parse};

/// A symbol table's entry.
type Entry = elf::Sym64<LittleEndian>;

/// Little-endian, as the machines that spanflame runs on.
const ENDIAN: LittleEndian = LittleEndian;

/// How many symbols before an address are looked at for one that holds it: between the start of a function
/// and its end there may be those of labels, and of functions inside (hand-written assembly).
const LOOK_BACK: usize = 64;

/// Which of a file's symbol tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// `.symtab`: all functions, unless it is stripped.
    All,
    /// `.dynsym`: what other files may call.
    Dynamic,
}

/// One symbol table of one file.
pub(super) struct Names {
    bytes: Rc<Bytes>,
    which: Which,
    /// The indices of the symbols of code, by address.
    sorted: OnceCell<Vec<u32>>,
}

/// What a symbol says about an address.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    /// The name as it stands in the table.
    pub(super) name: String,
    /// Where it starts.
    pub(super) start: Svma,
    /// It does not say how long it is: it is the last one before the address.
    pub(super) sizeless: bool,
}

impl Names {
    pub(super) const fn new(bytes: Rc<Bytes>, which: Which) -> Self {
        Self { bytes, which, sorted: OnceCell::new() }
    }

    /// For each address the symbol of the function that it is in.
    pub(super) fn find(&self, addresses: impl Iterator<Item = Svma>) -> Vec<Option<Symbol>> {
        let Some(table) = self.table() else { return addresses.map(|_address| None).collect() };
        let sorted = self.sorted.get_or_init(|| table.sorted());
        addresses.map(|address| table.find(sorted, address, self.which)).collect()
    }

    fn table(&self) -> Option<Table<'_>> {
        let file = parse(&self.bytes).ok()?;
        let (section, other) = (file.elf_symbol_table(), file.elf_dynamic_symbol_table());
        let table = if self.which == Which::All { section } else { other };
        let is_aarch64 = file.elf_header().e_machine.get(ENDIAN) == elf::EM_AARCH64;
        Some(Table { entries: table.symbols(), strings: table.strings(), is_aarch64 })
    }
}

/// A symbol table as it is in the file.
struct Table<'a> {
    entries: &'a [Entry],
    strings: StringTable<'a>,
    is_aarch64: bool,
}

impl<'a> Table<'a> {
    fn sorted(&self) -> Vec<u32> {
        let of_code = self.entries.iter().zip(0u32..).filter(|(entry, _index)| self.is_code(entry));
        let mut sorted: Vec<u32> = of_code.map(|(_entry, index)| index).collect();
        sorted.sort_unstable_by_key(|index| self.start(*index));
        sorted
    }

    fn start(&self, index: u32) -> u64 {
        self.entries.get(index as usize).map_or(0, |entry| entry.st_value.get(ENDIAN))
    }

    /// At 0 are the names of symbol versions. On aarch64 `$x` and `$d` mark code and data between it (ELF for
    /// the Arm 64-bit Architecture, "Mapping symbols").
    fn is_code(&self, entry: &Entry) -> bool {
        let section = entry.st_shndx.get(ENDIAN);
        let there = section != elf::SHN_UNDEF && section != elf::SHN_ABS && entry.st_value.get(ENDIAN) != 0;
        there
            && match entry.st_type() {
                elf::STT_FUNC | elf::STT_GNU_IFUNC => true,
                elf::STT_NOTYPE => !(self.is_aarch64 && self.name(entry).is_none_or(|name| name.starts_with(b"$"))),
                _ => false,
            }
    }

    fn name(&self, entry: &Entry) -> Option<&'a [u8]> {
        self.strings.get(entry.st_name.get(ENDIAN)).ok().filter(|name| !name.is_empty())
    }

    fn find(&self, sorted: &[u32], address: Svma, which: Which) -> Option<Symbol> {
        let at = sorted.partition_point(|index| self.start(*index) <= address.0);
        let before = sorted.get(at.saturating_sub(LOOK_BACK)..at)?.iter().rev();
        let before = before.filter_map(|index| self.entries.get(*index as usize));
        let holds = |entry: &&Entry| address.0 - entry.st_value.get(ENDIAN) < entry.st_size.get(ENDIAN);
        if let Some(holder) = before.clone().find(holds) {
            return self.symbol(self.best(before.filter(holds), holder)?, false);
        }
        // In `.dynsym` the next symbol can be far away, with other functions in between.
        let last = before.clone().next()?;
        let sizeless = |entry: &&Entry| entry.st_size.get(ENDIAN) == 0;
        let told = sizeless(&last) && (which == Which::All || last.st_value.get(ENDIAN) == address.0);
        told.then(|| self.symbol(self.best(before.filter(sizeless), last)?, true)).flatten()
    }

    /// Of all names for the same place, the one that other files see, then the plainest.
    fn best(&self, entries: impl Iterator<Item = &'a Entry>, first: &Entry) -> Option<&'a Entry> {
        let start = first.st_value.get(ENDIAN);
        let same = entries.take_while(|entry| entry.st_value.get(ENDIAN) == start);
        same.min_by_key(|entry| {
            let name = self.name(entry).unwrap_or_default();
            let binding = match entry.st_bind() {
                elf::STB_GLOBAL => 0,
                elf::STB_WEAK => 1,
                _ => 2,
            };
            let underscores = name.iter().take_while(|byte| **byte == b'_').count();
            (name.is_empty(), entry.st_type() == elf::STT_NOTYPE, binding, underscores, name.len(), name)
        })
    }

    fn symbol(&self, entry: &Entry, sizeless: bool) -> Option<Symbol> {
        let name = String::from_utf8_lossy(self.name(entry)?).into_owned();
        Some(Symbol { name, start: Svma(entry.st_value.get(ENDIAN)), sizeless })
    }
}

#[cfg(test)]
mod tests {
    use object::{U16, U32, U64};

    use super::*;

    fn table<'a>(entries: &'a [Entry], names: &'a [u8]) -> Table<'a> {
        Table { entries, strings: StringTable::new(names, 0, names.len() as u64), is_aarch64: true }
    }

    /// Names are cut out of `"\0text\0"` by where they start there.
    fn entry((name, at): (usize, u64), size: u64, (binding, kind): (u8, u8)) -> Entry {
        Entry {
            st_name: U32::new(ENDIAN, u32::try_from(name).unwrap()),
            st_info: binding << 4 | kind,
            st_other: 0,
            st_shndx: U16::new(ENDIAN, 1),
            st_value: U64::new(ENDIAN, at),
            st_size: U64::new(ENDIAN, size),
        }
    }

    const NAMES: &[u8] = b"\0outer\0inner\0__outer\0label\0$x\0end\0";
    const GLOBAL: (u8, u8) = (elf::STB_GLOBAL, elf::STT_FUNC);
    const LABEL: (u8, u8) = (elf::STB_LOCAL, elf::STT_NOTYPE);

    fn entries() -> Vec<Entry> {
        vec![
            entry((13, 0x1000), 0x100, GLOBAL),
            entry((1, 0x1000), 0x100, (elf::STB_WEAK, elf::STT_FUNC)),
            entry((1, 0x1000), 0x100, GLOBAL),
            entry((7, 0x1040), 0x10, GLOBAL),
            entry((21, 0x1080), 0, LABEL),
            entry((27, 0x1090), 0, LABEL),
            entry((30, 0x2000), 0, GLOBAL),
            entry((1, 0), 0x10_0000, GLOBAL),
            entry((999, 0x3000), 0x10, GLOBAL),
        ]
    }

    fn found(which: Which, address: u64) -> Option<(String, bool)> {
        let entries = entries();
        let table = table(&entries, NAMES);
        let symbol = table.find(&table.sorted(), Svma(address), which);
        symbol.map(|symbol| (symbol.name, symbol.sizeless))
    }

    #[test]
    fn a_place_is_in_the_innermost_function_that_holds_it() {
        let named = |name: &str, sizeless| Some((name.to_owned(), sizeless));
        for (address, expected) in [
            (0xfff, None),
            (0x1000, named("outer", false)),
            (0x1045, named("inner", false)),
            (0x1050, named("outer", false)),
            (0x1095, named("outer", false)),
            (0x1100, named("label", true)),
            (0x2000, named("end", true)),
            (0x2fff, named("end", true)),
            (0x3005, None),
        ] {
            assert_eq!(found(Which::All, address), expected, "{address:#x}");
        }
    }

    #[test]
    fn among_few_symbols_one_without_size_is_its_first_byte() {
        assert_eq!(found(Which::Dynamic, 0x2000), Some(("end".to_owned(), true)));
        assert_eq!(found(Which::Dynamic, 0x2001), None);
        assert_eq!(found(Which::Dynamic, 0x1045), Some(("inner".to_owned(), false)));
    }
}
