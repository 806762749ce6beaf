//! Names of kernel code, from /proc/kallsyms. Resolved in the main process, which keeps CAP_SYSLOG:
//! without it every address in that file reads 0.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};

use profiler_common::address::VirtualAddress;

const KALLSYMS: &str = "/proc/kallsyms";

/// The smallest page: modules begin and end at its multiples.
pub(crate) const PAGE_BYTES: u64 = 4096;

/// What is at an address of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelSymbol {
    /// The function.
    pub(crate) name: String,
    /// The module that it is in; `None` for the kernel itself.
    pub(crate) module: Option<KernelModule>,
}

/// A module of the kernel, or what the kernel lists as one: `bpf` is all compiled BPF programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelModule {
    /// Its name, without brackets.
    pub(crate) name: String,
    /// The page of its first function.
    pub(crate) start: VirtualAddress,
    /// The end of the page in which its last function starts.
    pub(crate) end: VirtualAddress,
}

/// The function at each address; none where the kernel tells no name. All symbols are read anew:
/// modules come and go.
///
/// # Errors
/// When the kernel's symbols can't be read, in a sentence.
pub(crate) fn symbolize(addresses: &[VirtualAddress]) -> Result<Vec<Option<KernelSymbol>>, String> {
    if addresses.is_empty() {
        return Ok(Vec::new());
    }
    let file = File::open(KALLSYMS).map_err(|error| format!("opening {KALLSYMS}: {error}"))?;
    let found = look_up(BufReader::new(file), addresses).map_err(|error| format!("reading {KALLSYMS}: {error}"))?;
    found.ok_or_else(|| {
        "the kernel hides its symbols (kernel.kptr_restrict). Run with CAP_SYSLOG, or: \
         sudo sysctl kernel.kptr_restrict=0"
            .to_owned()
    })
}

/// The end of the kernel's own code, as linker scripts name it (linux/include/asm-generic/sections.h).
const END_OF_KERNEL: &str = "_etext";

/// The end of the page in which `address` is.
pub(crate) const fn page_end(address: u64) -> u64 {
    (address - address % PAGE_BYTES).saturating_add(PAGE_BYTES)
}

/// The symbol at or before each address, among those of code; `None` when no address is told. What lies
/// behind the end of a module's code, or of the kernel's, has none: it was a module's that is gone.
fn look_up(kallsyms: impl BufRead, addresses: &[VirtualAddress]) -> io::Result<Option<Vec<Option<KernelSymbol>>>> {
    let mut sorted: Vec<u64> = addresses.iter().map(|address| address.0).collect();
    sorted.sort_unstable();
    sorted.dedup();
    // For each address, the last symbol between it and the address before it. The lines are not in
    // order, and too many to be kept.
    let mut last: Vec<Option<(u64, String, Option<String>)>> = vec![None; sorted.len()];
    let mut modules: HashMap<String, (u64, u64)> = HashMap::new();
    let (mut kernel_end, mut last_of_kernel) = (None, 0);
    let mut told = false;
    for line in kallsyms.split(b'\n') {
        let line = line?;
        let Some(symbol) = std::str::from_utf8(&line).ok().and_then(parse) else { continue };
        if symbol.module.is_none() && symbol.name == END_OF_KERNEL {
            kernel_end = Some(symbol.address);
        }
        if !symbol.is_code {
            continue;
        }
        told = true;
        if let Some(module) = symbol.module {
            if let Some((first, last)) = modules.get_mut(module) {
                (*first, *last) = ((*first).min(symbol.address), (*last).max(symbol.address));
            } else {
                modules.insert(module.to_owned(), (symbol.address, symbol.address));
            }
        } else {
            last_of_kernel = last_of_kernel.max(symbol.address);
        }
        let index = sorted.partition_point(|address| *address < symbol.address);
        // Of several names for one address the first, as in the kernel's own traces (get_symbol_pos
        // in kernel/kallsyms.c).
        if let Some(last) = last.get_mut(index)
            && last.as_ref().is_none_or(|(address, ..)| *address < symbol.address)
        {
            *last = Some((symbol.address, symbol.name.to_owned(), symbol.module.map(str::to_owned)));
        }
    }
    if !told {
        return Ok(None);
    }
    let kernel_end = kernel_end.unwrap_or_else(|| page_end(last_of_kernel));
    let module = |name: &String| {
        let (first, last) = modules.get(name).copied().unwrap_or_default();
        let (start, end) = (first - first % PAGE_BYTES, page_end(last));
        KernelModule { name: name.clone(), start: VirtualAddress(start), end: VirtualAddress(end) }
    };
    let symbol = |address: &VirtualAddress| {
        let index = sorted.partition_point(|other| other < &address.0);
        let (_address, name, of) = last.get(..=index)?.iter().rev().flatten().next()?;
        let module = of.as_ref().map(module);
        let end = module.as_ref().map_or(kernel_end, |module| module.end.0);
        (address.0 < end).then(|| KernelSymbol { name: name.clone(), module })
    };
    Ok(Some(addresses.iter().map(symbol).collect()))
}

/// A line of kallsyms.
struct Line<'a> {
    address: u64,
    name: &'a str,
    module: Option<&'a str>,
    is_code: bool,
}

/// Reads `ADDRESS TYPE NAME`, with `[MODULE]` behind it in modules. Only what has an address is one.
fn parse(line: &str) -> Option<Line<'_>> {
    let mut words = line.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok().filter(|address| *address != 0)?;
    // nm(1): T and t are code, W and w are weak.
    let is_code = matches!(words.next()?, "T" | "t" | "W" | "w");
    // `$x` and `$d` mark code and data (ELF for the Arm 64-bit Architecture, mapping symbols); Linux 5.10
    // lists those of modules.
    let name = words.next().filter(|name| !name.starts_with('$'))?;
    let module = words.next().and_then(|word| word.strip_prefix('[')?.strip_suffix(']'));
    Some(Line { address, name, module, is_code })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KALLSYMS: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000100 T vfs_read
ffffffff81000100 t alias_of_vfs_read
ffffffff81000200 D data
ffffffffc0203010 t second\t[slow]
ffffffffc0201020 t late\t[other]
ffffffffc0203000 r table\t[slow]
ffffffffc0202008 t $x\t[slow]
ffffffffc0202008 t first\t[slow]
ffffffffc0203014 t $d.1\t[slow]
";

    fn names(text: &str, addresses: &[u64]) -> Option<Vec<String>> {
        let addresses: Vec<_> = addresses.iter().copied().map(VirtualAddress).collect();
        let shown = |symbol: Option<KernelSymbol>| {
            let Some(KernelSymbol { name, module }) = symbol else { return "none".to_owned() };
            module.map_or(name.clone(), |module| {
                format!("{name} {} {:x} {:x}", module.name, module.start.0, module.end.0)
            })
        };
        let found = look_up(text.as_bytes(), &addresses).unwrap()?;
        Some(found.into_iter().map(shown).collect())
    }

    #[test]
    fn code_of_the_kernel_and_of_modules() {
        let slow = "slow ffffffffc0202000 ffffffffc0204000";
        let cases = [
            (0xffff_ffff_c020_3015, format!("second {slow}")),
            (0xffff_ffff_8100_01ff, "vfs_read".to_owned()),
            (0xffff_ffff_8100_0100, "vfs_read".to_owned()),
            (0xffff_ffff_8100_00ff, "_text".to_owned()),
            (0xffff_ffff_80ff_ffff, "none".to_owned()),
            (0xffff_ffff_c020_3005, format!("first {slow}")),
            (0xffff_ffff_c020_2008, format!("first {slow}")),
            (0xffff_ffff_c020_1fff, "late other ffffffffc0201000 ffffffffc0202000".to_owned()),
            (0xffff_ffff_8100_01ff, "vfs_read".to_owned()),
        ];
        let addresses: Vec<u64> = cases.iter().map(|(address, _)| *address).collect();
        let expected: Vec<String> = cases.into_iter().map(|(_, name)| name).collect();
        assert_eq!(names(KALLSYMS, &addresses), Some(expected));
    }

    /// A module or BPF program that was unloaded since is nobody else's code.
    #[test]
    fn what_lies_behind_the_end_of_code_has_no_name() {
        let behind = [0xffff_ffff_c020_2007, 0xffff_ffff_c020_4000, 0xffff_ffff_c000_0000, u64::MAX];
        assert_eq!(names(KALLSYMS, &behind).unwrap(), ["none"; 4]);
        // Without its end, the kernel's code ends with the page of its last function.
        assert_eq!(names(KALLSYMS, &[0xffff_ffff_8100_0fff, 0xffff_ffff_8100_1000]).unwrap(), ["vfs_read", "none"]);
        let ended = format!("{KALLSYMS}ffffffff81002000 D _etext\nffffffff81003000 t init_once\n");
        let addresses = [0xffff_ffff_8100_1fff, 0xffff_ffff_8100_2000, 0xffff_ffff_8100_3000, 0xffff_ffff_c000_0000];
        assert_eq!(names(&ended, &addresses).unwrap(), ["vfs_read", "none", "none", "none"]);
    }

    #[test]
    fn hidden_addresses_are_no_names() {
        let hidden = "0000000000000000 T _text\n0000000000000000 t second\t[slow]\n";
        assert_eq!(names(hidden, &[0xffff_ffff_8100_0000]), None);
        assert_eq!(names("", &[1]), None);
        assert_eq!(names("no line\n\u{ff}\nffffffff81000000 T\n", &[1]), None);
    }
}
