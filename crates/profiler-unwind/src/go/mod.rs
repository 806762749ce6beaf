//! Go programs: their own tables stand in for call frame information and symbols, also when both are
//! stripped. Go's linker writes no `.eh_frame`, and its `.debug_frame` goes with the DWARF.
//!
//! Layouts: Go 1.18 to 1.27, runtime/symtab.go (`pcHeader`, `moduledata`), runtime/runtime2.go (`_func`),
//! internal/abi/symtab.go (flags, numbers of tables), cmd/internal/obj/pcln.go (how values are stored).

mod find;
mod goroutine;
mod pclntab;
mod rows;
mod symbols;

pub(crate) use find::find;
pub(crate) use rows::GoRows;
pub use symbols::{GoFunction, go_functions};
