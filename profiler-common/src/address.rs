//! Types for address spaces, ids and times, so that one cannot be taken for another.

use core::fmt;

macro_rules! number_type {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

number_type!(
    /// An address in the address space of a running process, or of the running kernel.
    VirtualAddress(u64), "{:#x}"
);
number_type!(
    /// An address as an ELF file states it (`p_vaddr`, `st_value`, CFI and DWARF): before relocation.
    Svma(u64), "{:#x}"
);
number_type!(
    /// An offset in a file, in bytes.
    FileOffset(u64), "{:#x}"
);
number_type!(
    /// What is added to an [`Svma`] to get the [`VirtualAddress`] in one process (wrapping).
    Bias(u64), "{:#x}"
);
number_type!(
    /// Nanoseconds of `CLOCK_MONOTONIC`: the clock of `bpf_ktime_get_ns` and of our sideband records.
    MonotonicNs(u64), "{} ns"
);
number_type!(
    /// A process: the kernel's `tgid`, in the initial pid namespace.
    Pid(u32), "{}"
);
number_type!(
    /// A thread: the kernel's `pid`, in the initial pid namespace.
    Tid(u32), "{}"
);
number_type!(
    /// A CPU's logical number.
    Cpu(u32), "{}"
);

impl Svma {
    /// The address that this one has in a process where the file is loaded with `bias`.
    #[must_use]
    pub const fn in_process(self, bias: Bias) -> VirtualAddress {
        VirtualAddress(self.0.wrapping_add(bias.0))
    }
}

impl VirtualAddress {
    /// The address as the ELF file that is loaded with `bias` states it.
    #[must_use]
    pub const fn in_file(self, bias: Bias) -> Svma {
        Svma(self.0.wrapping_sub(bias.0))
    }
}
