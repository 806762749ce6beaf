//! The table of strings, and what a string of a profile may hold.

use std::borrow::Cow;

use indexmap::IndexSet;

use crate::handle::handle;

handle!(
    /// A string of a profile.
    pub StringId
);

impl StringId {
    /// The empty string: "not known".
    pub const EMPTY: Self = Self(0);
}

/// The longest string, in bytes. Names come from files and processes that nobody vouches for; real
/// names of C++ and Rust functions reach a few KiB. What is longer is cut and ends in `…`.
pub const MAX_STRING_BYTES: usize = 4096;

const CUT_MARK: char = '…';

/// `text` as a profile holds it: at most [`MAX_STRING_BYTES`], and [`char::REPLACEMENT_CHARACTER`] for
/// what would break a line, a terminal or an XML document.
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_STRING_BYTES && !text.contains(is_unfit) {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::new();
    // Where to cut if the rest turns out not to fit.
    let mut cut_at = 0;
    for c in text.chars() {
        let c = if is_unfit(c) { char::REPLACEMENT_CHARACTER } else { c };
        if cleaned.len() + c.len_utf8() > MAX_STRING_BYTES {
            cleaned.truncate(cut_at);
            cleaned.push(CUT_MARK);
            break;
        }
        cleaned.push(c);
        if cleaned.len() + CUT_MARK.len_utf8() <= MAX_STRING_BYTES {
            cut_at = cleaned.len();
        }
    }
    Cow::Owned(cleaned)
}

/// Control characters, line separators, marks that reorder text, and what XML 1.0 excludes
/// (section 2.2, production 2).
fn is_unfit(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}')
}

/// Cleaned strings; the first is the empty one.
#[derive(Clone, Debug)]
pub(crate) struct Strings(IndexSet<Box<str>>);

impl Strings {
    pub(crate) fn new() -> Self {
        Self(IndexSet::from([Box::default()]))
    }

    pub(crate) fn intern(&mut self, text: &str) -> StringId {
        let text = clean(text);
        let index = match self.0.get_index_of(&*text) {
            Some(index) => index,
            None => self.0.insert_full(text.into()).0,
        };
        StringId::at(index)
    }

    pub(crate) fn get(&self, id: StringId) -> &str {
        &self.0[id.index()]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|text| &**text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_are_one() {
        let mut strings = Strings::new();
        assert_eq!(strings.intern(""), StringId::EMPTY);
        let main = strings.intern("main");
        assert_ne!(main, strings.intern("mains"));
        assert_eq!(main, strings.intern("main"));
        assert_eq!(strings.get(main), "main");
    }

    #[test]
    fn good_text_is_kept() {
        for text in ["", "a<b>::c(int)", "日本語", "…", &"x".repeat(MAX_STRING_BYTES)] {
            assert!(matches!(clean(text), Cow::Borrowed(kept) if kept == text));
        }
    }

    #[test]
    fn unfit_characters_are_replaced() {
        assert_eq!(clean("a\0b\nc\x1b[2J\u{7f}\u{85}"), "a\u{fffd}b\u{fffd}c\u{fffd}[2J\u{fffd}\u{fffd}");
        assert_eq!(clean("\u{202e}x\u{2069}\u{fffe}\u{2028}"), "\u{fffd}x\u{fffd}\u{fffd}\u{fffd}");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let cut = clean(&"x".repeat(1 << 20)).into_owned();
        assert_eq!((cut.len(), cut.ends_with("x…")), (MAX_STRING_BYTES, true));
        for shift in 0..4 {
            let cut = clean(&format!("{}{}", "x".repeat(shift), "日\n".repeat(2000))).into_owned();
            assert!((MAX_STRING_BYTES - 3..=MAX_STRING_BYTES).contains(&cut.len()), "{}", cut.len());
            assert!(cut.ends_with('…') && !cut.contains('\n'));
        }
        let grows = "\n".repeat(MAX_STRING_BYTES / 3 + 1);
        assert!(clean(&grows).len() <= MAX_STRING_BYTES, "a replacement is longer than what it replaces");
    }
}
