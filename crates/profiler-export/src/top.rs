//! The hottest functions: how many samples hit a function itself, and how many it or what it called.

use std::collections::HashSet;
use std::fmt::Write;

use indexmap::IndexMap;
use profiler_model::{LocationId, Profile};
use serde::{Serialize, Serializer};

use crate::ExportError;
use crate::broken::{Broken, broken};
use crate::frame::{Mark, file_name, frames};
use crate::quality;

/// The narrowest table, in characters.
const MIN_WIDTH: usize = 60;

/// Places where stacks end, in the table for programs.
const MOST_BROKEN: usize = 20;

/// Characters before the name.
const FIGURES_WIDTH: usize = 38;

/// A function and its samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The function's name.
    pub name: String,
    /// Its source file; when that is not known, the file that holds its code.
    pub file: String,
    /// The line where it begins; 0 when not known.
    pub line: u32,
    /// Samples that hit it.
    #[serde(rename = "self")]
    pub own: u64,
    /// Samples that hit it or what it called; one sample counts once, however often it called itself.
    pub total: u64,
    /// Those of `total` where it was found by the frame pointer, for want of call frame information.
    pub by_frame_pointer: u64,
}

/// All functions of a profile, those hit most often first. Functions with the same name in different
/// files are different.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Top {
    /// All samples.
    pub samples: u64,
    /// Samples per second on a busy CPU, in Hz.
    pub rate_hz: u32,
    /// How long sampling went on, in ns.
    pub duration_ns: u64,
    /// The functions.
    pub functions: Vec<Row>,
    /// The quality section ([`crate::figures`]).
    #[serde(serialize_with = "as_map")]
    pub quality: Vec<(String, u64)>,
    /// Where stacks that lack callers end, the 20 most frequent places.
    pub broken: Vec<Broken>,
}

fn as_map<S: Serializer>(figures: &[(String, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(figures.iter().map(|(name, value)| (name, value)))
}

/// What makes a row: name and file.
type Key<'p> = (String, &'p str);

impl Top {
    /// Counts the samples of a profile.
    #[must_use]
    pub fn of(profile: &Profile) -> Self {
        let mut rows: IndexMap<Key<'_>, Row> = IndexMap::new();
        let at: Vec<Vec<Hit>> = profile.locations().map(|(id, _)| rows_at(profile, id, &mut rows)).collect();
        let mut samples: u64 = 0;
        let (mut seen, mut guessed) = (HashSet::new(), HashSet::new());
        for sample in profile.samples() {
            samples = samples.saturating_add(sample.count);
            if let Some(leaf) = sample.stack.first() {
                let own = &mut rows[at[leaf.index()][0].row].own;
                *own = own.saturating_add(sample.count);
            }
            seen.clear();
            guessed.clear();
            for hit in sample.stack.iter().flat_map(|id| &at[id.index()]) {
                let row = &mut rows[hit.row];
                if seen.insert(hit.row) {
                    row.total = row.total.saturating_add(sample.count);
                }
                if hit.by_frame_pointer && guessed.insert(hit.row) {
                    row.by_frame_pointer = row.by_frame_pointer.saturating_add(sample.count);
                }
            }
        }
        let mut functions: Vec<Row> = rows.into_values().filter(|row| row.total > 0).collect();
        functions.sort_by(|a, b| {
            let hot = |row: &Row| (std::cmp::Reverse(row.own), std::cmp::Reverse(row.total));
            (hot(a), &a.name, &a.file).cmp(&(hot(b), &b.name, &b.file))
        });
        let about = profile.about();
        let mut broken = broken(profile);
        broken.truncate(MOST_BROKEN);
        Self {
            samples,
            rate_hz: about.sample_rate_hz.get(),
            duration_ns: about.duration_ns,
            functions,
            quality: quality::figures(profile),
            broken,
        }
    }

    /// The first `rows` functions as a table for people, in lines of at most `width` characters (60
    /// at least; more where a count has more than 9 digits).
    #[must_use]
    pub fn table(&self, rows: usize, width: usize) -> String {
        let names = width.max(MIN_WIDTH) - FIGURES_WIDTH;
        let mut table = format!("{:>7} {:>9}  {:>7} {:>9}  function\n", "self %", "self", "total %", "total");
        for row in self.functions.iter().take(rows) {
            // Writing to a string does not fail.
            let _ = writeln!(
                table,
                "{:>6.2}% {:>9}  {:>6.2}% {:>9}  {}",
                self.percent(row.own),
                row.own,
                self.percent(row.total),
                row.total,
                name_and_file(row, names)
            );
        }
        if self.functions.len() > rows {
            let _ = writeln!(table, "... and {} more functions", self.functions.len() - rows);
        }
        table
    }

    /// The table for programs: one JSON object, in one line.
    ///
    /// # Errors
    /// When serializing fails.
    pub fn json(&self) -> Result<Vec<u8>, ExportError> {
        serde_json::to_vec(self).map_err(|source| ExportError::Json { functions: self.functions.len(), source })
    }

    #[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
    fn percent(&self, samples: u64) -> f64 {
        if self.samples == 0 { 0.0 } else { samples as f64 * 100.0 / self.samples as f64 }
    }
}

/// A function at a location.
struct Hit {
    row: usize,
    by_frame_pointer: bool,
}

/// The functions at a location, the innermost first; one at least.
fn rows_at<'p>(profile: &'p Profile, id: LocationId, rows: &mut IndexMap<Key<'p>, Row>) -> Vec<Hit> {
    let object = profile.location_key(id).mapping.map_or("", |mapping| file_name(profile, &profile[mapping]));
    let mut hits = Vec::new();
    for frame in frames(profile, id) {
        let function = frame.line.map(|line| &profile[line.function]);
        let source = function.map_or("", |function| &profile[function.file]);
        let file = if source.is_empty() { object } else { source };
        let line = function.map_or(0, |function| function.start_line);
        let name = frame.name.into_owned();
        let row = Row { name: name.clone(), file: file.to_owned(), line, own: 0, total: 0, by_frame_pointer: 0 };
        let entry = rows.entry((name, file));
        hits.push(Hit { row: entry.index(), by_frame_pointer: frame.mark == Some(Mark::ByFramePointer) });
        entry.or_insert(row);
    }
    hits
}

/// `name  [file]` in at most `width` characters; a name that is too long loses its middle, the file
/// goes when there is no room for it. Names found by the frame pointer are marked as in folded stacks.
fn name_and_file(row: &Row, width: usize) -> String {
    let mark = if row.by_frame_pointer > 0 { Mark::ByFramePointer.suffix() } else { "" };
    let name = format!("{}{mark}", row.name);
    let file = row.file.rsplit('/').next().unwrap_or_default();
    // Names of what is no file have brackets of their own.
    let with_file = if file.starts_with('[') { format!("{name}  {file}") } else { format!("{name}  [{file}]") };
    if !file.is_empty() && with_file.chars().count() <= width {
        return with_file;
    }
    let length = name.chars().count();
    if length <= width {
        return name;
    }
    let tail = width / 2;
    let head = width - 1 - tail;
    name.chars().take(head).chain(['…']).chain(name.chars().skip(length - tail)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_width() {
        let row = |name: &str, file: &str| Row {
            name: name.into(),
            file: file.into(),
            line: 0,
            own: 0,
            total: 1,
            by_frame_pointer: 0,
        };
        assert_eq!(name_and_file(&row("main", "/src/main.c"), 20), "main  [main.c]");
        assert_eq!(name_and_file(&row("main", "/src/main.c"), 13), "main");
        assert_eq!(name_and_file(&row("main", ""), 13), "main");
        assert_eq!(name_and_file(&row("abcdefghij", "f"), 5), "ab…ij");
        assert_eq!(name_and_file(&row("日本語テキスト", "f"), 4), "日…スト");
        let guessed = Row { by_frame_pointer: 1, ..row("main", "main.c") };
        assert_eq!(name_and_file(&guessed, 20), "main_[f]  [main.c]");
    }
}
