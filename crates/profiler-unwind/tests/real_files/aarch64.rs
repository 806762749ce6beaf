//! What rows of aarch64 say about exceptions in flight and contexts, next to the instructions.

use object::{Object, ObjectSymbol};
use profiler_common::address::Svma;
use profiler_common::row::Rule;
use profiler_unwind::{build, lookup};

/// The instructions of aarch64 in a file's functions, by their symbols.
struct Instructions {
    bytes: Vec<u8>,
    functions: Vec<(String, u64, u64)>,
}

impl Instructions {
    fn read(path: &str) -> Option<Self> {
        let Ok(bytes) = std::fs::read(path) else {
            println!("skipped {path}: not on this machine");
            return None;
        };
        let symbols = object::File::parse(&*bytes).unwrap();
        let symbols = symbols
            .dynamic_symbols()
            .map(|symbol| (symbol.name().unwrap().to_owned(), symbol.address(), symbol.address() + symbol.size()));
        Some(Self { functions: symbols.collect(), bytes })
    }

    fn function(&self, name: &str) -> (u64, u64) {
        let (_name, start, end) = self.functions.iter().find(|(other, ..)| other == name).unwrap();
        (*start, *end)
    }

    /// Code has the same place in these files as in memory.
    fn at(&self, svma: u64) -> u32 {
        let at = usize::try_from(svma).unwrap();
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    /// Where `bl` or `b` goes.
    fn target(&self, svma: u64) -> u64 {
        svma.wrapping_add_signed(i64::from(self.at(svma).cast_signed() << 6 >> 4))
    }
}

/// Behind `uw_install_context_1` comes `_Unwind_DebugHook`, which does nothing but return.
#[test]
fn aarch64_stacks_are_cut_from_where_the_context_is_installed() {
    let Some(code) = Instructions::read("/usr/aarch64-linux-gnu/lib/libgcc_s.so.1") else { return };
    let table = build(&code.bytes).unwrap();
    let is_cut = |svma: u64| lookup(&table, Svma(svma)) == Some(Rule::UNSUPPORTED);
    for name in ["RaiseException", "ForcedUnwind", "Resume", "Resume_or_Rethrow"] {
        let (start, end) = code.function(&format!("_Unwind_{name}"));
        let words = || (start..end).step_by(4);
        let calls: Vec<u64> = words().filter(|svma| code.at(*svma) >> 26 == 0x25).collect();
        let returns = |svma: u64| code.at(svma) == 0xd65f_03c0;
        let does_nothing = |svma: u64| returns(svma) || code.at(svma) == 0xd503_245f && returns(svma + 4);
        let hook = calls.iter().position(|call| does_nothing(code.target(*call))).unwrap();
        assert!(!is_cut(calls[hook - 2]) && is_cut(calls[hook - 1]) && is_cut(calls[hook]), "{name}");
        // add sp, sp, xN.
        let leaves = words().find(|svma| code.at(*svma) & 0xffe0_ffff == 0x8b20_63ff).unwrap();
        assert!(is_cut(leaves - 4) && is_cut(leaves) && is_cut(leaves + 4), "{name}");
        let cut = words().filter(|svma| is_cut(*svma)).count();
        assert!(cut * 3 < words().count() * 2, "{name}: {cut} instructions");
    }
    let (start, end) = code.function("_Unwind_Backtrace");
    assert!(!(start..end).any(is_cut));
}

/// `__startcontext` has no symbol, but goes to `setcontext`: mov x0, x19; cbnz x0, `setcontext`.
#[test]
fn aarch64_contexts_end_stacks() {
    let Some(code) = Instructions::read("/usr/aarch64-linux-gnu/lib/libc.so.6") else { return };
    let table = build(&code.bytes).unwrap();
    let (start, end) = code.function("setcontext");
    let goes_to_it = |svma: &u64| {
        let distance = (code.at(svma + 4) & 0xff_ffff).cast_signed() << 8 >> 13 << 2;
        code.at(*svma) == 0xaa13_03e0
            && code.at(svma + 4) >> 24 == 0xb5
            && u64::from(distance.unsigned_abs()) == svma + 4 - start
    };
    let next = (end..end + 256).step_by(4).find(goes_to_it).unwrap();
    let rules = [next - 1, next, next + 8].map(|svma| lookup(&table, Svma(svma)).unwrap());
    assert_eq!(rules, [Rule::END; 3]);
    let (start, end) = code.function("swapcontext");
    let find = |mask: u32, word: u32| (start..end).step_by(4).find(|svma| code.at(*svma) & mask == word);
    // adr x30: not in glibc 2.31.
    let (adr, call) = (find(0x9f00_001f, 0x1000_001e), find(!0, 0xd400_0001).unwrap());
    let is_cut = lookup(&table, Svma(call)) == Some(Rule::UNSUPPORTED);
    assert_eq!(is_cut, adr.is_some(), "x30 holds where it goes on later");
}
