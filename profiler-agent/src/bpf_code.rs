//! BPF programs, trampolines and dispatchers that were loaded or unloaded while a recording went on: when it
//! ends, /proc/kallsyms may no longer tell of them, or of others at the same place.

use std::collections::BTreeMap;

use profiler_common::address::VirtualAddress;

use crate::kernel::sideband::{BpfSymbol, SidebandEvent, SidebandKind};
use crate::kernel_symbols::{KernelModule, KernelSymbol, PAGE_BYTES, page_end};

/// Pieces of code that are remembered; a node with hundreds of programs that are replaced all the time has
/// some thousands in an hour.
const MOST_SYMBOLS: usize = 10_000;

/// How code is shown that was one program and another one in the same recording.
const UNKNOWN: &str = "[bpf]";

/// What the kernel told of.
#[derive(Debug, Default)]
pub(crate) struct BpfCode {
    /// By the first address; no two overlap.
    known: BTreeMap<u64, Known>,
}

#[derive(Debug)]
struct Known {
    end: u64,
    /// None: code of several names was there.
    name: Option<String>,
}

impl BpfCode {
    /// Takes what tells of BPF code out of `events`.
    pub(crate) fn take_from(&mut self, events: &mut Vec<SidebandEvent>) {
        events.retain(|event| match &event.kind {
            SidebandKind::BpfCode(symbol) => {
                self.learn(symbol);
                false
            }
            _ => true,
        });
    }

    fn learn(&mut self, symbol: &BpfSymbol) {
        let (mut start, mut end) = (symbol.start.0, symbol.end.0);
        let mut name = Some(symbol.name.clone());
        while let Some((&known_start, known)) =
            self.known.range(..end).next_back().filter(|(_, known)| known.end > start)
        {
            if (known_start, known.end, &known.name) == (start, end, &name) {
                return;
            }
            // From here on they are one, under no name.
            (start, end, name) = (start.min(known_start), end.max(known.end), None);
            self.known.remove(&known_start);
        }
        if self.known.len() < MOST_SYMBOLS {
            self.known.insert(start, Known { end, name });
        }
    }

    /// What is at an address.
    pub(crate) fn symbol(&self, address: VirtualAddress) -> Option<KernelSymbol> {
        let (start, known) = self.known.range(..=address.0).next_back()?;
        (address.0 < known.end).then(|| KernelSymbol {
            name: known.name.clone().unwrap_or_else(|| UNKNOWN.to_owned()),
            module: Some(KernelModule {
                name: "bpf".to_owned(),
                start: VirtualAddress(start - start % PAGE_BYTES),
                end: VirtualAddress(page_end(known.end - 1)),
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use profiler_common::address::{MonotonicNs, Pid, Tid};
    use proptest::prelude::*;

    use super::*;

    fn code(told: &[(u64, u64, &str)]) -> BpfCode {
        let event = |kind| SidebandEvent { time: MonotonicNs(0), pid: Pid(0), tid: Tid(0), kind };
        let symbol = |&(start, end, name): &(u64, u64, &str)| {
            let (start, end) = (VirtualAddress(start), VirtualAddress(end));
            event(SidebandKind::BpfCode(BpfSymbol { start, end, name: name.to_owned() }))
        };
        let mut events: Vec<_> = told.iter().map(symbol).chain([event(SidebandKind::Exited)]).collect();
        let mut code = BpfCode::default();
        code.take_from(&mut events);
        assert_eq!(events, [event(SidebandKind::Exited)], "the rest is others'");
        code
    }

    fn name(code: &BpfCode, address: u64) -> Option<String> {
        code.symbol(VirtualAddress(address)).map(|symbol| symbol.name)
    }

    #[test]
    fn code_is_known_by_what_was_told_of_it() {
        let code = code(&[(0x1040, 0x1100, "a"), (0x1040, 0x1100, "a"), (0x2000, 0x2100, "b")]);
        let known = |name: &str| Some(name.to_owned());
        for (address, expected) in
            [(0x103f, None), (0x1040, known("a")), (0x10ff, known("a")), (0x1100, None), (0x2000, known("b"))]
        {
            assert_eq!(name(&code, address), expected, "{address:#x}");
        }
        let module = code.symbol(VirtualAddress(0x1040)).and_then(|symbol| symbol.module);
        assert_eq!(
            module.map(|module| (module.name, module.start.0, module.end.0)),
            Some(("bpf".into(), 0x1000, 0x2000))
        );
    }

    #[test]
    fn a_place_of_two_programs_has_neither_name() {
        let code = code(&[(0x1000, 0x1200, "a"), (0x1100, 0x1300, "b"), (0x2000, 0x2100, "c")]);
        for address in [0x1000, 0x1150, 0x1250] {
            assert_eq!(name(&code, address).as_deref(), Some(UNKNOWN), "{address:#x}");
        }
        assert_eq!(name(&code, 0x2000).as_deref(), Some("c"));
    }

    #[test]
    fn a_short_neighbour_hides_no_long_one() {
        let told =
            [(0x1000, 0x3000, "long"), (0x1100, 0x1200, "short"), (0x2000, 0x2100, "late"), (0x3000, 0x3100, "d")];
        let code = code(&told);
        for address in [0x1000, 0x1150, 0x1250, 0x2050, 0x2fff] {
            assert_eq!(name(&code, address).as_deref(), Some(UNKNOWN), "{address:#x}");
        }
        assert_eq!(name(&code, 0x3000).as_deref(), Some("d"));
    }

    proptest! {
        #[test]
        fn a_name_stands_for_code_that_was_nothing_else(
            told in proptest::collection::vec((0u64..60, 1u64..12, 0usize..3), 0..20),
        ) {
            let told: Vec<_> = told.into_iter().map(|(start, length, name)| (start, start + length, ["a", "b", "c"][name])).collect();
            let code = code(&told);
            for address in 0..80 {
                let there: BTreeSet<_> = told.iter().filter(|(start, end, _)| (*start..*end).contains(&address)).collect();
                match (there.len(), name(&code, address)) {
                    (0, found) => prop_assert_eq!(found, None),
                    (1, Some(found)) => prop_assert!(found == UNKNOWN || there.iter().any(|told| told.2 == found)),
                    (_, found) => prop_assert_eq!(found.as_deref(), Some(UNKNOWN)),
                }
            }
        }
    }
}
