//! The quality section: the one list of figures that every format carries.

use profiler_model::{Figures, Profile};

use crate::broken::broken;

/// Every figure on the quality of a profile: its name and its value.
///
/// `samples_taken` = `samples_written` + the `filtered_` and the `lost_` figures. What was not
/// measured is not in the list.
#[must_use]
pub fn figures(profile: &Profile) -> Vec<(String, u64)> {
    let quality = &profile.quality;
    let found = Figures::of(profile);
    let mut list = vec![
        ("samples_taken".to_owned(), quality.samples_taken),
        ("samples_written".to_owned(), found.samples),
        ("samples_filtered".to_owned(), quality.samples_filtered()),
        ("samples_lost".to_owned(), quality.samples_lost()),
    ];
    for counts in [&quality.filtered, &quality.lost] {
        list.extend(counts.iter().map(|(name, count)| (name.clone(), *count)));
    }
    if let Some(missed) = quality.missed_by_kernel {
        list.push(("missed_by_kernel".to_owned(), missed.count));
        list.push(("missed_by_kernel_uncertainty".to_owned(), missed.uncertainty));
    }
    list.push(("stacks_incomplete".to_owned(), found.incomplete));
    list.extend(found.stops.iter().map(|(reason, count)| (format!("stacks_ended_{}", reason.name()), *count)));
    list.push(("frames".to_owned(), found.frames));
    list.push(("frames_without_symbols".to_owned(), found.frames_without_symbols));
    list.push(("frames_by_frame_pointer".to_owned(), found.frames_by_frame_pointer));
    list.push(("callers_perhaps_missing".to_owned(), found.callers_perhaps_missing));
    list.extend(quality.errors.iter().map(|(name, count)| (name.clone(), *count)));
    list
}

/// Places where stacks end, in comments.
const MOST_BROKEN: usize = 5;

/// The figures as lines `name=value`; then the places where most of the stacks end that lack callers.
pub(crate) fn lines(profile: &Profile) -> Vec<String> {
    let figures = figures(profile).into_iter().map(|(name, value)| format!("{name}={value}"));
    let broken = broken(profile).into_iter().take(MOST_BROKEN);
    figures.chain(broken.map(|broken| format!("broken={broken}"))).collect()
}

/// What an engineer must know before trusting the profile, in one line.
pub(crate) fn summary(profile: &Profile) -> String {
    let found = Figures::of(profile);
    let missed = match profile.quality.missed_by_kernel {
        Some(missed) => format!(", {} missed by the kernel", missed.count),
        None => String::new(),
    };
    let (lost, incomplete) = (profile.quality.samples_lost(), found.incomplete);
    format!("{} samples, {lost} lost{missed}, {incomplete} incomplete", found.samples)
}
