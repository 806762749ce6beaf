//! What user space counts, under the names that the kernel programs use too, and what it has to say.

use profiler_common::counter::{COUNT, Counter};

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
