//! `.gopclntab`: functions, and tables of values by program counter.

use crate::bytes::{u32_at, u64_at};
use crate::segment::Arch;

/// Magic numbers: Go 1.18 and 1.19; 1.20 and later.
const MAGIC_1_18: u32 = 0xffff_fff0;
const MAGIC_1_20: u32 = 0xffff_fff1;
/// Bytes of `pcHeader`.
pub(super) const HEADER_BYTES: usize = 72;
/// Bytes of an entry of the table of functions: where it starts, and where its `_func` is.
const ENTRY_BYTES: usize = 8;
/// A name of a function or file is cut here, in bytes.
const MAX_NAME_BYTES: usize = 4096;

/// `FuncFlagTopFrame`: nothing called this function.
pub(super) const FLAG_TOP_FRAME: u8 = 1 << 0;
/// `FuncFlagSPWrite`: the stack pointer is set in a way that the table of its changes can't tell.
pub(super) const FLAG_SP_WRITE: u8 = 1 << 1;

/// `PCDATA_InlTreeIndex` and `FUNCDATA_InlTree`.
const INLINE_INDEX: u32 = 2;
const INLINE_TREE: u32 = 3;

/// The table of a module. Nothing in it is checked beyond the header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pclntab<'a> {
    bytes: &'a [u8],
    /// Go 1.20 or later.
    pub(super) since_1_20: bool,
    /// The least length of an instruction in bytes: program counters are stored in units of it.
    quantum: u32,
    function_count: usize,
    names: usize,
    units: usize,
    files: usize,
    values: usize,
    functions: usize,
}

/// A function: `_func`, without what is of no use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Function {
    /// From the start of the module's code, in bytes.
    pub(super) start: u32,
    pub(super) end: u32,
    name: u32,
    stack_depths: u32,
    file_numbers: u32,
    lines: u32,
    value_tables: u32,
    unit: u32,
    pub(super) flags: u8,
    data_count: u8,
    /// Where the lists of further tables are.
    lists: usize,
}

impl<'a> Pclntab<'a> {
    /// The table at the start of `bytes`; `None` when it is none of a known kind.
    pub(super) fn parse(bytes: &'a [u8], arch: Arch) -> Option<Self> {
        let magic = u32_at(bytes, 0)?;
        let quantum: u8 = match arch {
            Arch::X86_64 => 1,
            Arch::Aarch64 => 4,
        };
        let known = matches!(magic, MAGIC_1_18 | MAGIC_1_20) && bytes.get(4..8)? == [0, 0, quantum, 8];
        let word = |index: usize| usize::try_from(u64_at(bytes, 8 * index)?).ok();
        let offset = |index| word(index).filter(|offset| *offset < bytes.len());
        let table = Self {
            bytes,
            since_1_20: magic == MAGIC_1_20,
            quantum: quantum.into(),
            function_count: word(1)?,
            names: offset(4)?,
            units: offset(5)?,
            files: offset(6)?,
            values: offset(7)?,
            functions: offset(8)?,
        };
        let entries_end =
            table.function_count.checked_mul(ENTRY_BYTES)?.checked_add(4)?.checked_add(table.functions)?;
        (known && table.function_count > 0 && entries_end <= bytes.len()).then_some(table)
    }

    /// The offsets of its parts that `moduledata` repeats as pointers, in their order there.
    pub(super) fn part_offsets(&self) -> [usize; 6] {
        [self.names, self.units, self.files, self.values, self.functions, self.functions]
    }

    pub(super) fn function_count(&self) -> usize {
        self.function_count
    }

    /// Where the code ends, from its start.
    pub(super) fn code_end(&self) -> Option<u32> {
        self.start(self.function_count)
    }

    fn start(&self, index: usize) -> Option<u32> {
        u32_at(self.bytes, self.functions.checked_add(index.checked_mul(ENTRY_BYTES)?)?)
    }

    /// The function with the number `index`; `None` when it can't be read or does not end behind its
    /// start.
    pub(super) fn function(&self, index: usize) -> Option<Function> {
        let (start, end) = (self.start(index)?, self.start(index.checked_add(1)?)?);
        let entry = self.functions.checked_add(index.checked_mul(ENTRY_BYTES)?)?;
        let at = self.functions.checked_add(u32_at(self.bytes, entry + 4)? as usize)?;
        let field = |index: usize| u32_at(self.bytes, at.checked_add(4 * index)?);
        // 1.20 has the line where the function starts before the last word.
        let last = if self.since_1_20 { 10 } else { 9 };
        let [_id, flags, _padding, data_count] = field(last)?.to_le_bytes();
        let function = Function {
            start,
            end,
            name: field(1)?,
            stack_depths: field(4)?,
            file_numbers: field(5)?,
            lines: field(6)?,
            value_tables: field(7)?,
            unit: field(8)?,
            flags,
            data_count,
            lists: at.checked_add(4 * (last + 1))?,
        };
        (field(0)? == start && start < end).then_some(function)
    }

    /// The number of the function that holds `offset`, counted from the start of the code.
    pub(super) fn function_at(&self, offset: u32) -> Option<usize> {
        let (mut low, mut high) = (0, self.function_count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.start(middle)? <= offset { low = middle + 1 } else { high = middle }
        }
        low.checked_sub(1)
    }

    /// The function's name, with its package.
    pub(super) fn name(&self, function: &Function) -> Option<&'a [u8]> {
        self.name_at(function.name)
    }

    /// The name at an offset into the names: not empty, and nothing else ends there.
    pub(super) fn name_at(&self, offset: u32) -> Option<&'a [u8]> {
        let at = self.names.checked_add(offset as usize)?;
        let begins = at == self.names || self.bytes.get(at.checked_sub(1)?) == Some(&0);
        self.string(at).filter(|name| begins && !name.is_empty())
    }

    fn string(&self, at: usize) -> Option<&'a [u8]> {
        let rest = self.bytes.get(at..)?;
        let rest = rest.get(..MAX_NAME_BYTES).unwrap_or(rest);
        rest.split(|byte| *byte == 0).next()
    }

    /// By how many bytes the stack pointer is below where it was when the function was called, by
    /// program counter. `None` for functions that Go did not compile.
    pub(super) fn stack_depths(&self, function: &Function) -> Option<Values<'a>> {
        self.table(function.stack_depths)
    }

    /// The source file and line of the instruction at `offset` into the function.
    pub(super) fn line(&self, function: &Function, offset: u32) -> (Option<&'a [u8]>, u32) {
        let line = self.table(function.lines).and_then(|lines| lines.at(offset));
        let file = self.table(function.file_numbers).and_then(|files| files.at(offset));
        let file = file.and_then(|number| {
            let number = function.unit.checked_add(u32::try_from(number).ok()?)?;
            let at = u32_at(self.bytes, self.units.checked_add(4 * number as usize)?)?;
            self.string(self.files.checked_add(at as usize)?).filter(|_| at != u32::MAX)
        });
        (file, line.and_then(|line| u32::try_from(line).ok()).unwrap_or_default())
    }

    /// The node of the function's tree of inlined calls to which the instruction at `offset` into the
    /// function belongs; `None` when it was not inlined.
    pub(super) fn inline_index(&self, function: &Function, offset: u32) -> Option<u32> {
        u32::try_from(self.inline_indices(function)?.at(offset)?).ok()
    }

    /// Where in the function the first inlined code is.
    pub(super) fn first_inlined(&self, function: &Function) -> Option<u32> {
        let mut start = 0;
        self.inline_indices(function)?.find_map(|(end, index)| {
            let from = std::mem::replace(&mut start, end);
            (index >= 0).then_some(from)
        })
    }

    fn inline_indices(&self, function: &Function) -> Option<Values<'a>> {
        let at = function.lists.checked_add(4 * INLINE_INDEX as usize)?;
        self.table((INLINE_INDEX < function.value_tables).then(|| u32_at(self.bytes, at))??)
    }

    /// Where the function's tree of inlined calls is, from the start of all such data (`go:func.*`).
    pub(super) fn inline_tree(&self, function: &Function) -> Option<u32> {
        let index = (function.value_tables as usize).checked_add(INLINE_TREE as usize)?;
        let at = function.lists.checked_add(index.checked_mul(4)?)?;
        let offset = (INLINE_TREE < function.data_count.into()).then(|| u32_at(self.bytes, at))??;
        (offset != u32::MAX).then_some(offset)
    }

    /// The table of values at an offset; 0 stands for none.
    fn table(&self, offset: u32) -> Option<Values<'a>> {
        let at = self.values.checked_add(offset as usize).filter(|_| offset != 0)?;
        Some(Values { rest: self.bytes.get(at..)?, quantum: self.quantum, end: 0, value: -1, first: true })
    }
}

/// A table of values: where each one ends, in bytes from the function's start, in ascending order. It
/// ends where the table does, or can't be read on.
#[derive(Clone, Debug)]
pub(super) struct Values<'a> {
    rest: &'a [u8],
    quantum: u32,
    end: u32,
    value: i32,
    first: bool,
}

impl Values<'_> {
    fn at(self, offset: u32) -> Option<i32> {
        let mut values = self;
        values.find(|(end, _value)| offset < *end).map(|(_end, value)| value)
    }

    /// A number of 32 bits, 7 in a byte, the lowest first.
    fn number(&mut self) -> Option<u32> {
        let mut number = 0u32;
        for shift in (0..35).step_by(7) {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            number |= u32::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

impl Iterator for Values<'_> {
    type Item = (u32, i32);

    fn next(&mut self) -> Option<Self::Item> {
        let change = self.number().filter(|change| *change != 0 || self.first)?;
        self.first = false;
        let change = (change >> 1).cast_signed() ^ -((change & 1).cast_signed());
        self.value = self.value.wrapping_add(change);
        let length = self.number().filter(|length| *length > 0)?.checked_mul(self.quantum)?;
        self.end = self.end.checked_add(length)?;
        Some((self.end, self.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(bytes: &[u8], quantum: u32) -> Values<'_> {
        Values { rest: bytes, quantum, end: 0, value: -1, first: true }
    }

    #[test]
    fn values_are_changes_and_lengths() {
        // From -1 to 0 for 15 bytes, 8 more for 1, 0x88 more for 300, 0x90 less for 2.
        let bytes = [2, 15, 16, 1, 0x90, 2, 0xac, 2, 0x9f, 2, 2, 0, 77];
        let expected = [(15, 0), (16, 8), (316, 144), (318, 0)];
        assert_eq!(values(&bytes, 1).collect::<Vec<_>>(), expected);
        assert_eq!(values(&bytes, 4).next(), Some((60, 0)));
        assert_eq!(values(&bytes, 1).at(16), Some(144));
        assert_eq!(values(&bytes, 1).at(318), None);
    }

    #[test]
    fn a_first_value_may_be_minus_one() {
        assert_eq!(values(&[0, 5, 2, 1, 0], 1).collect::<Vec<_>>(), [(5, -1), (6, 0)]);
    }

    /// A table of two functions at 0 and 32, which end at 80. In the second one the bytes from 4 to 8 were
    /// inlined.
    fn table(magic: u32) -> Vec<u8> {
        let names = b"main.main\0main.work\0";
        let values = [0, 2, 4, 16, 44, 0, 0, 4, 2, 4, 1, 40, 0, 2, 48, 0, 22, 4, 2, 44, 0];
        let (depths, inlined, file, lines) = (1u32, 6u32, 13u32, 16u32);
        let parts: [&[u8]; 4] = [names, &0u32.to_le_bytes(), b"a.go\0", &values];
        let mut bytes = vec![0; HEADER_BYTES];
        let mut offsets = Vec::new();
        for part in parts {
            offsets.push(bytes.len());
            bytes.extend_from_slice(part);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        offsets.push(bytes.len());
        for word in [0, 24, 32, 100, 80u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend([0; 4]);
        let line = if magic == MAGIC_1_20 { vec![7u32] } else { Vec::new() };
        for (start, name, place) in [(0u32, 0u32, 24), (32, 10, 100)] {
            bytes.resize(offsets[4] + place, 0);
            let fields = [start, name, 0, 0, depths, file, lines, 3, 0].into_iter().chain(line.clone());
            let flags = u32::from_le_bytes([0, FLAG_TOP_FRAME, 0, 4]);
            let lists = [flags, 0, 0, inlined, u32::MAX, u32::MAX, u32::MAX, 64];
            fields.chain(lists).for_each(|field| bytes.extend(field.to_le_bytes()));
        }
        bytes[..4].copy_from_slice(&magic.to_le_bytes());
        bytes[6..8].copy_from_slice(&[1, 8]);
        bytes[8] = 2;
        for (index, offset) in offsets.iter().enumerate() {
            bytes[32 + index * 8..40 + index * 8].copy_from_slice(&(*offset as u64).to_le_bytes());
        }
        bytes
    }

    #[test]
    fn functions_are_found_and_described() {
        for magic in [MAGIC_1_18, MAGIC_1_20] {
            let bytes = table(magic);
            let table = Pclntab::parse(&bytes, Arch::X86_64).unwrap();
            assert_eq!((table.function_count(), table.code_end()), (2, Some(80)));
            assert_eq!([0, 31, 32, 79].map(|offset| table.function_at(offset)), [0, 0, 1, 1].map(Some));
            let function = table.function(1).unwrap();
            assert_eq!((function.start, function.end, function.flags), (32, 80, FLAG_TOP_FRAME));
            assert_eq!(table.name(&function), Some(b"main.work".as_slice()));
            assert_eq!(table.stack_depths(&function).unwrap().collect::<Vec<_>>(), [(4, 0), (48, 8)]);
            assert_eq!(table.line(&function, 3), (Some(b"a.go".as_slice()), 10));
            assert_eq!(table.line(&function, 4), (Some(b"a.go".as_slice()), 11));
            assert_eq!([0, 4, 8].map(|pc| table.inline_index(&function, pc)), [None, Some(0), None]);
            assert_eq!((table.first_inlined(&function), table.inline_tree(&function)), (Some(4), Some(64)));
            assert_eq!(table.name_at(3), None, "in the middle of a name");
        }
        assert!(Pclntab::parse(&table(MAGIC_1_20), Arch::Aarch64).is_none(), "its instructions have 4 bytes");
        assert!(Pclntab::parse(&table(0xffff_fffb), Arch::X86_64).is_none(), "Go 1.2 to 1.15");
    }

    proptest! {
        #[test]
        fn no_damage_breaks_it(
            old in any::<bool>(),
            changes in prop::collection::vec((any::<usize>(), any::<u8>()), 0..8),
            offset in any::<u32>(),
        ) {
            let mut bytes = table(if old { MAGIC_1_18 } else { MAGIC_1_20 });
            for (at, value) in changes {
                let at = 8 + at % (bytes.len() - 8);
                bytes[at] = value;
            }
            let Some(table) = Pclntab::parse(&bytes, Arch::X86_64) else { return Ok(()) };
            let _found = table.function_at(offset);
            for function in (0..table.function_count().min(9)).filter_map(|index| table.function(index)) {
                prop_assert!(function.start < function.end);
                let _name = table.name(&function);
                let _inlined = (table.inline_index(&function, offset), table.inline_tree(&function));
                let (file, _line) = table.line(&function, offset % 100);
                prop_assert!(file.is_none_or(|file| file.len() <= MAX_NAME_BYTES));
                let depths: Vec<_> = table.stack_depths(&function).into_iter().flatten().collect();
                prop_assert!(depths.len() <= bytes.len());
            }
        }

        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..200), quantum in 1u32..5) {
            let ends: Vec<u32> = values(&bytes, quantum).map(|(end, _value)| end).collect();
            prop_assert!(ends.is_sorted_by(|a, b| a < b));
            prop_assert!(ends.len() <= bytes.len() / 2);
        }
    }
}
