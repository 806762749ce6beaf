//! What user space counts, under the names that the kernel programs use too, and what it has to say.

use std::borrow::Cow;

use profiler_common::counter::{COUNT, Counter};

/// A path as it can be put into a command for a shell, whatever a process named its files: in quotes
/// unless it is plain, and without bytes that a terminal obeys.
pub(crate) fn quoted(path: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._/+-".contains(&byte);
    // A first `-` would make it an option.
    if !path.is_empty() && !path.starts_with('-') && path.bytes().all(plain) {
        return Cow::Borrowed(path);
    }
    if path.chars().all(|letter| matches!(letter, ' '..='~') && letter != '\'') {
        return Cow::Owned(if path.starts_with('-') { format!("'./{path}'") } else { format!("'{path}'") });
    }
    // POSIX.1-2024, Shell & Utilities, 2.2.4: dollar-single-quotes.
    let mut text = "$'".to_owned();
    for byte in path.bytes() {
        match byte {
            b'\'' | b'\\' => text.extend(['\\', char::from(byte)]),
            b' '..=b'~' => text.push(char::from(byte)),
            // Three octal digits, so that what follows is no part of it.
            _ => text.push_str(&format!("\\{byte:03o}")),
        }
    }
    text.push('\'');
    Cow::Owned(text)
}

/// Notes that are kept: one hostile process can have as many damaged files as it likes.
const MOST_NOTES: usize = 16;

/// A count for every counter, and sentences for the user.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    totals: [u64; COUNT],
    notes: Vec<String>,
    notes_left_out: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self { totals: [0; COUNT], notes: Vec::new(), notes_left_out: 0 }
    }
}

impl Counts {
    pub(crate) fn add(&mut self, counter: Counter, count: u64) {
        if let Some(total) = self.totals.get_mut(counter as usize) {
            *total = total.saturating_add(count);
        }
    }

    pub(crate) fn get(&self, counter: Counter) -> u64 {
        self.totals.get(counter as usize).copied().unwrap_or(0)
    }

    /// Adds a sentence for the user, once.
    pub(crate) fn note(&mut self, sentence: String) {
        if self.notes.contains(&sentence) {
            return;
        }
        if self.notes.len() < MOST_NOTES {
            self.notes.push(sentence);
        } else {
            self.notes_left_out += 1;
        }
    }

    /// The sentences, in the order in which they came.
    pub(crate) fn notes(&self) -> impl Iterator<Item = String> {
        let more = (self.notes_left_out > 0).then(|| format!("{} more notes like these", self.notes_left_out));
        self.notes.iter().cloned().chain(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_is_a_command() {
        for (path, expected) in [
            ("/usr/lib/libstdc++.so.6", "/usr/lib/libstdc++.so.6"),
            ("/tmp/x; reboot", "'/tmp/x; reboot'"),
            ("/tmp/$(id)`id`\\", "'/tmp/$(id)`id`\\'"),
            ("/tmp/it's\\", r"$'/tmp/it\'s\\'"),
            ("/a\n\u{1b}[2J7", r"$'/a\012\033[2J7'"),
            ("/\u{fc}", r"$'/\303\274'"),
            ("-rf", "'./-rf'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(path), expected);
            let command = format!("printf %s {}", quoted(path));
            // Where it has one: dash has no dollar-single-quotes.
            if let Ok(output) = std::process::Command::new("bash").args(["-c", &command]).output() {
                assert_eq!(String::from_utf8(output.stdout).unwrap().trim_start_matches("./"), path);
            }
        }
    }

    #[test]
    fn notes_are_told_once_and_have_a_bound() {
        let mut counts = Counts::default();
        for number in [0, 0].into_iter().chain(0..MOST_NOTES + 2) {
            counts.note(number.to_string());
        }
        let notes: Vec<String> = counts.notes().collect();
        assert_eq!(notes.len(), MOST_NOTES + 1);
        assert_eq!((notes[0].as_str(), notes[MOST_NOTES].as_str()), ("0", "2 more notes like these"));
    }
}
