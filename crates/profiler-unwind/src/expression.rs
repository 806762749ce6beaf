//! The few DWARF expressions that CFI is made of in practice.

use gimli::{EndianSlice, Expression, LittleEndian, Operation, Register};

pub(crate) type Reader<'a> = EndianSlice<'a, LittleEndian>;

/// Operations of the longest expression that is recognized.
const MAX_OPERATIONS: usize = 9;

/// The instruction pointer of x86_64 in DWARF (System V ABI, x86-64 supplement, figure 3.36).
const X86_64_RIP: Register = Register(16);

/// What an expression computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A register plus an offset in bytes.
    Register(Register, i64),
    /// The word stored at a register plus an offset in bytes, plus `added` bytes.
    Stored {
        /// The register.
        register: Register,
        /// Added to the register before reading, in bytes.
        offset: i64,
        /// Eight times this is added, too.
        index: Option<Register>,
        /// Added to what was read, in bytes.
        added: u64,
    },
    /// What linkers write for `.plt` of x86_64: the stack pointer plus 8, and plus 8 more from byte
    /// `pushed_from` of each 16-byte entry on.
    Plt {
        /// The register, plus 8 is the CFA at the start of an entry.
        register: Register,
        /// The first byte of an entry after its `push`, 0 to 15.
        pushed_from: u8,
    },
    /// Anything else.
    Unknown,
}

/// Recognizes an expression.
pub(crate) fn shape(expression: Expression<Reader<'_>>, encoding: gimli::Encoding) -> Shape {
    let mut operations = Vec::with_capacity(MAX_OPERATIONS);
    let mut rest = expression.operations(encoding);
    loop {
        match rest.next() {
            Ok(Some(_)) if operations.len() == MAX_OPERATIONS => return Shape::Unknown,
            Ok(Some(operation)) => operations.push(operation),
            Ok(None) => return shape_of(&operations),
            Err(_) => return Shape::Unknown,
        }
    }
}

fn shape_of(operations: &[Operation<Reader<'_>>]) -> Shape {
    use Operation as O;
    match *operations {
        [O::RegisterOffset { register, offset, .. }] => Shape::Register(register, offset),
        [ref address @ .., O::Deref { size: 8, space: false, .. }] => stored(address, 0),
        [ref address @ .., O::Deref { size: 8, space: false, .. }, O::PlusConstant { value: added }] => {
            stored(address, added)
        }
        // base + 8 + ((rip & 15) >= pushed_from) << 3
        [
            O::RegisterOffset { register, offset: 8, .. },
            O::RegisterOffset { register: X86_64_RIP, offset: 0, .. },
            O::UnsignedConstant { value: 15 },
            O::And,
            O::UnsignedConstant { value: pushed_from @ 0..=15 },
            O::Ge,
            O::UnsignedConstant { value: 3 },
            O::Shl,
            O::Plus,
        ] => Shape::Plt { register, pushed_from: u8::try_from(pushed_from).unwrap_or(0) },
        _ => Shape::Unknown,
    }
}

/// The word at an address, plus `added` bytes.
fn stored(address: &[Operation<Reader<'_>>], added: u64) -> Shape {
    use Operation as O;
    match *address {
        [O::RegisterOffset { register, offset, .. }] => Shape::Stored { register, offset, index: None, added },
        [
            O::RegisterOffset { register, offset, .. },
            O::RegisterOffset { register: index, offset: 0, .. },
            O::UnsignedConstant { value: 8 },
            O::Mul,
            O::Plus,
        ] => Shape::Stored { register, offset, index: Some(index), added },
        _ => Shape::Unknown,
    }
}
