//! The table of functions.

use indexmap::IndexSet;

use crate::handle::handle;
use crate::string::StringId;

handle!(
    /// A function of a profile.
    pub FunctionId
);

/// A function of the source code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Function {
    /// The name for people: demangled.
    pub name: StringId,
    /// The name in the file: mangled; equal to `name` where the language does not mangle.
    pub system_name: StringId,
    /// The source file; empty when not known.
    pub file: StringId,
    /// The line where the function begins, counted from 1; 0 when not known.
    pub start_line: u32,
}

/// Functions, each once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Functions(IndexSet<Function>);

impl Functions {
    pub(crate) fn intern(&mut self, function: Function) -> FunctionId {
        FunctionId::at(self.0.insert_full(function).0)
    }

    pub(crate) fn get(&self, id: FunctionId) -> &Function {
        &self.0[id.index()]
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (FunctionId, &Function)> {
        self.0.iter().enumerate().map(|(index, function)| (FunctionId::at(index), function))
    }
}
