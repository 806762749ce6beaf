//! Names, files and lines of Go's functions, also of inlined ones.

use super::find::{Module, find};
use super::pclntab::{Function, Pclntab};
use super::rows::is_signal_return;
use crate::bytes::u32_at;
use crate::elf::Elf;
use crate::error::BuildError;
use crate::read::{ReadAt, read_bytes};
use profiler_common::address::Svma;

/// Levels of inlining that are followed.
const MAX_LEVELS: usize = 128;
/// Functions with inlined calls by which a place for their data is tried.
const TRIED_FUNCTIONS: usize = 16;
/// Bytes of an inlined call, and where its name's offset and the place of the call are in it
/// (`runtime.inlinedCall`): Go 1.18 and 1.19; 1.20 and later.
const CALL_1_18: (u64, usize, usize) = (20, 12, 16);
const CALL_1_20: (u64, usize, usize) = (16, 4, 8);

/// A function at an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GoFunction {
    /// Its name with its package's path.
    pub name: String,
    /// The source file; empty when it is not known.
    pub file: String,
    /// The line in it; 0 when it is not known.
    pub line: u32,
    /// Whether its code was inlined into the function that follows.
    pub inlined: bool,
}

/// For each address its functions, innermost first; none where no Go function is. `None` when the file
/// has no table of Go's functions.
///
/// # Errors
/// When a header or that table can't be read.
pub fn go_functions(file: &impl ReadAt, addresses: &[Svma]) -> Result<Option<Vec<Vec<GoFunction>>>, BuildError> {
    let elf = Elf::read(file)?;
    let Some(module) = find(file, &elf)? else { return Ok(None) };
    let Some(table) = module.table() else { return Ok(None) };
    let mut symbols = Symbols { file, elf: &elf, module: &module, table, data: None };
    symbols.data = symbols.inline_data();
    Ok(Some(addresses.iter().map(|address| symbols.at(*address).unwrap_or_default()).collect()))
}

struct Symbols<'a, F> {
    file: &'a F,
    elf: &'a Elf,
    module: &'a Module,
    table: Pclntab<'a>,
    /// Where the data about inlined calls begins, if it is known.
    data: Option<Svma>,
}

impl<F: ReadAt> Symbols<'_, F> {
    fn at(&self, address: Svma) -> Option<Vec<GoFunction>> {
        let offset = u32::try_from(address.0.checked_sub(self.module.code.0)?).ok()?;
        let index = self.table.function_at(offset)?;
        let mut function = self.table.function(index)?;
        // A signal handler returns to the first byte of what is called by no instruction before it.
        let next = self.table.function(index + 1).filter(|next| offset + 1 == next.start);
        if let Some(next) = next.filter(|next| self.table.name(next).is_some_and(is_signal_return)) {
            function = next;
        }
        // C functions in the table, and what is behind the last one, have none.
        self.table.stack_depths(&function).filter(|_| offset < function.end)?;
        let mut pc = offset.saturating_sub(function.start);
        let mut found = Vec::new();
        while let Some((name, call)) = self.inlined(&function, pc).filter(|_| found.len() < MAX_LEVELS) {
            found.push(self.described(&function, pc, name, true));
            pc = call;
        }
        found.push(self.described(&function, pc, self.table.name(&function)?, false));
        Some(found)
    }

    fn described(&self, function: &Function, pc: u32, name: &[u8], inlined: bool) -> GoFunction {
        let (file, line) = self.table.line(function, pc);
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        GoFunction { name: text(name), file: file.map(text).unwrap_or_default(), line, inlined }
    }

    /// The inlined function at `pc`, and where in the function the call was. What can't be read counts as
    /// not inlined.
    fn inlined(&self, function: &Function, pc: u32) -> Option<(&[u8], u32)> {
        self.inlined_call(function, pc, self.data?)
    }

    fn inlined_call(&self, function: &Function, pc: u32, data: Svma) -> Option<(&[u8], u32)> {
        let index = self.table.inline_index(function, pc)?;
        let tree = data.0.checked_add(self.table.inline_tree(function)?.into())?;
        let (size_bytes, name, call) = if self.table.since_1_20 { CALL_1_20 } else { CALL_1_18 };
        let at = tree.checked_add(size_bytes.checked_mul(index.into())?)?;
        let (offset, _left) = self.elf.in_file(Svma(at)).filter(|(_offset, left)| *left >= size_bytes)?;
        let bytes = read_bytes(self.file, "an inlined call", offset, size_bytes, size_bytes).ok()?;
        let name = self.table.name_at(u32_at(&bytes, name)?)?;
        let call = u32_at(&bytes, call).filter(|call| *call < function.end - function.start)?;
        Some((name, call))
    }

    /// The place for data about inlined calls by which the first functions with such calls make sense.
    fn inline_data(&self) -> Option<Svma> {
        let functions = (0..self.table.function_count()).filter_map(|index| self.table.function(index));
        let with_calls = functions.filter(|function| self.table.inline_tree(function).is_some());
        let inlined = |function| self.table.first_inlined(&function).map(|pc| (function, pc));
        let tried: Vec<(Function, u32)> = with_calls.take(TRIED_FUNCTIONS).filter_map(inlined).collect();
        let fits = |data: &Svma| tried.iter().all(|(function, pc)| self.inlined_call(function, *pc, *data).is_some());
        self.module.function_data.iter().copied().find(fits)
    }
}
