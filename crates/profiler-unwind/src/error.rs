//! What can go wrong.

use profiler_common::address::FileOffset;

/// Bytes of a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes lie outside the file.
    #[error("{length_bytes} bytes at {offset} lie outside the file of {size_bytes} bytes")]
    OutsideFile {
        /// Where reading should have begun.
        offset: FileOffset,
        /// How many bytes were wanted.
        length_bytes: u64,
        /// The size of the file.
        size_bytes: u64,
    },
    /// The operating system refused.
    #[error("reading the file failed")]
    Io(#[from] std::io::Error),
}

/// No unwind table could be made of a file.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A piece of the file could not be read.
    #[error("cannot read {what}")]
    Read {
        /// Which piece.
        what: &'static str,
        /// Why.
        source: ReadError,
    },
    /// Not an ELF file of 64 bits and little-endian byte order.
    #[error("{}", not_handled(.ident))]
    NotElf {
        /// The first bytes of the file.
        ident: [u8; 8],
    },
    /// An ELF file of another architecture.
    #[error("ELF machine {machine} is not supported (62, x86_64, and 183, aarch64, are)")]
    Machine {
        /// `e_machine`.
        machine: u16,
    },
    /// Program headers of a size that the ELF specification does not know.
    #[error("a program header has {size_bytes} bytes, not 56")]
    ProgramHeaderSize {
        /// `e_phentsize`.
        size_bytes: u16,
    },
    /// A length or count beyond the bound that keeps a hostile file from taking all memory.
    #[error("{what} is {value}, more than {limit}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The number that the file states, or at which reading stopped.
        value: u64,
        /// The largest number that is accepted.
        limit: u64,
    },
    /// Segments that overlap, run backwards or wrap around the address space.
    #[error("the segment at address {address:#x} of {memory_size_bytes:#x} bytes overlaps another or wraps around")]
    Segments {
        /// `p_vaddr` of the offending segment.
        address: u64,
        /// `p_memsz` of the offending segment.
        memory_size_bytes: u64,
    },
}

/// Says what a file is that is none of ours. `EI_CLASS` 1: 32 bits (ELF specification, "ELF identification").
fn not_handled(ident: &[u8; 8]) -> String {
    if ident.starts_with(b"\x7fELF\x01") {
        "a 32-bit ELF file; stacks of 32-bit programs are not unwound".to_owned()
    } else {
        format!("not a little-endian 64-bit ELF file: it starts with {ident:02x?}")
    }
}
