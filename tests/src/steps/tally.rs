//! What came out, instruction by instruction.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::image::Image;
use super::judge::Verdict;

/// How unwinding can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Finding {
    /// Another caller than the true one.
    Caller,
    /// The true caller, with another stack pointer.
    StackPointer,
    /// The stack is said to end where it does not.
    EndsEarly,
    /// The stack goes on where it ends.
    GoesOn,
}

/// Instructions at which something was found, and one of them in full.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// How many.
    pub instructions: u64,
    /// Where the first one was.
    pub example: String,
}

/// What came out of a walk.
#[derive(Debug, Default)]
pub struct Tally {
    /// Instructions that were looked at.
    pub instructions: u64,
    /// Those with the same callers to the outermost frame.
    pub equal: u64,
    /// Those cut, by reason and function.
    pub cut: BTreeMap<(&'static str, String), Found>,
    /// Those with a wrong caller, by what is wrong and the function above which it is.
    pub wrong: BTreeMap<(Finding, String), Found>,
    /// Returns that did not lead to the caller, by function: the truth itself is in doubt there.
    pub strange_returns: BTreeMap<String, u64>,
    /// To what `cut` and `wrong` count: names are looked up once for each.
    places: HashMap<Place, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place(u64);

impl Tally {
    pub(super) fn count(&mut self, verdict: Verdict, pc: u64, image: &Image<'_>) {
        self.instructions += 1;
        let at = match verdict {
            Verdict::Equal => {
                self.equal += 1;
                return;
            }
            Verdict::Cut { at, .. } | Verdict::Wrong { at, .. } => at,
        };
        let function = self.places.entry(Place(at)).or_insert_with(|| image.name(at).0).clone();
        let found = match verdict {
            Verdict::Cut { reason, .. } => self.cut.entry((reason.name(), function)).or_default(),
            Verdict::Wrong { what, .. } => self.wrong.entry((what, function)).or_default(),
            Verdict::Equal => return,
        };
        found.instructions += 1;
        if found.example.is_empty() {
            let (leaf, place) = image.name(pc);
            found.example = format!("{} from {place} ({leaf})", image.name(at).1);
            if let Verdict::Wrong { found: wrong, expected, .. } = verdict {
                let (wrong, expected) = (image.name(wrong), image.name(expected));
                found.example += &format!(": {} ({}) instead of {} ({})", wrong.1, wrong.0, expected.1, expected.0);
            }
        }
    }

    pub(super) fn count_strange_returns(&mut self, places: &mut Vec<u64>, image: &Image<'_>) {
        for place in places.drain(..) {
            *self.strange_returns.entry(image.name(place).0).or_default() += 1;
        }
    }

    /// Forgets what was where: another program is in the process.
    pub(super) fn forget_places(&mut self) {
        self.places.clear();
    }

    /// Instructions at which the stack was cut.
    #[must_use]
    pub fn cut_instructions(&self) -> u64 {
        self.cut.values().map(|found| found.instructions).sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wrong: u64 = self.wrong.values().map(|found| found.instructions).sum();
        write!(
            f,
            "{} instructions: {} equal, {} cut, {wrong} wrong",
            self.instructions,
            self.equal,
            self.cut_instructions()
        )?;
        for ((reason, function), found) in &self.cut {
            write!(f, "\n  cut   {:>7} {reason} in {function}: {}", found.instructions, found.example)?;
        }
        for ((what, function), found) in &self.wrong {
            write!(f, "\n  WRONG {:>7} {what:?} above {function}: {}", found.instructions, found.example)?;
        }
        for (function, times) in &self.strange_returns {
            write!(f, "\n  {times} returns elsewhere in {function}")?;
        }
        Ok(())
    }
}
