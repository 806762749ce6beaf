//! Symbol names to names for people. The names come from hostile files: output is bounded.

use std::fmt::{self, Write};

use super::message::{MAX_STRING_BYTES, truncate};

/// Longer symbols stay as they are: demanglers take memory in proportion.
const MAX_SYMBOL_BYTES: usize = 64 << 10;

/// The demangled name: Rust (without the hash), else C++, else the symbol itself.
/// At most [`MAX_STRING_BYTES`] long: the rest is cut off.
pub(super) fn demangle(symbol: &str) -> String {
    let demangled = if symbol.len() <= MAX_SYMBOL_BYTES { rust(symbol).or_else(|| cpp(symbol)) } else { None };
    demangled.unwrap_or_else(|| truncate(symbol).to_owned())
}

fn rust(symbol: &str) -> Option<String> {
    let name = rustc_demangle::try_demangle(symbol).ok()?;
    bounded(|out| write!(out, "{name:#}"))
}

fn cpp(symbol: &str) -> Option<String> {
    // cpp_demangle also takes names of C for types: `i` is int.
    let name = symbol.starts_with("_Z").then(|| cpp_demangle::Symbol::new(symbol))?.ok()?;
    // An empty parameter pack leaves its comma behind.
    let name = bounded(|out| name.structured_demangle(out, &cpp_demangle::DemangleOptions::new()))?;
    Some(name.replace(", >", ">"))
}

/// What `write` writes, cut at [`MAX_STRING_BYTES`]; none when it fails by itself.
fn bounded(write: impl FnOnce(&mut Bounded) -> fmt::Result) -> Option<String> {
    let mut out = Bounded::default();
    let complete = write(&mut out).is_ok();
    (complete || out.full).then_some(out.text).filter(|text| !text.is_empty())
}

/// A string that refuses to grow beyond [`MAX_STRING_BYTES`]: a few bytes of C++ symbol can stand for
/// gigabytes of name.
#[derive(Default)]
struct Bounded {
    text: String,
    full: bool,
}

impl Write for Bounded {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        let room = MAX_STRING_BYTES - self.text.len();
        if piece.len() <= room {
            self.text.push_str(piece);
            return Ok(());
        }
        self.text.push_str(&piece[..piece.floor_char_boundary(room)]);
        self.full = true;
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_each_language() {
        for (symbol, name) in [
            ("_ZN5tokio7runtime4task17h0123456789abcdefE", "tokio::runtime::task"),
            ("_RNvCs1234_7mycrate3foo", "mycrate::foo"),
            ("_ZN5space3fooEibc", "space::foo(int, bool, char)"),
            ("_ZNSt6vectorIiSaIiEE9push_backEOi", "std::vector<int, std::allocator<int> >::push_back(int&&)"),
            (
                "_ZN4llvm11PassManagerINS_6ModuleENS_15AnalysisManagerIS1_JEEEJEE3runERS1_RS3_",
                "llvm::PassManager<llvm::Module, llvm::AnalysisManager<llvm::Module>>::run(llvm::Module&, llvm::AnalysisManager<llvm::Module>&)",
            ),
            ("main", "main"),
            ("i", "i"),
            ("_Znonsense", "_Znonsense"),
            ("", ""),
        ] {
            assert_eq!(demangle(symbol), name);
        }
    }

    /// Each `S_` level doubles the name: 2^30 times `int`.
    #[test]
    fn a_name_that_explodes_is_cut() {
        let mut symbol = String::from("_Z1f1AIiiE");
        for level in 0..24u32 {
            let back = match level {
                0 => "S_".to_owned(),
                _ => format!("S{}_", char::from_digit(level - 1, 36).unwrap().to_ascii_uppercase()),
            };
            write!(symbol, "1BI{back}{back}E").unwrap();
        }
        let name = demangle(&symbol);
        assert!(name.len() <= MAX_STRING_BYTES);
        assert!(!name.is_empty());
    }

    #[test]
    fn a_long_symbol_is_cut_at_a_character() {
        let symbol = "ä".repeat(MAX_SYMBOL_BYTES);
        let name = demangle(&symbol);
        assert_eq!(name.len(), MAX_STRING_BYTES);
        assert!(name.chars().all(|c| c == 'ä'));
    }
}
