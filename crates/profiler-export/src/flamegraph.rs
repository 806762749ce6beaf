//! Flame graphs, drawn by inferno: an SVG that a browser can zoom and search.
//!
//! Orange is the kernel, blue-green what was inlined, grey what is missing, the rest are user functions;
//! names are marked as in [`folded`]. Colours follow from names, so equal functions look equal in every
//! graph. The comment at the top holds the quality section.

use std::fmt::Write;

use inferno::flamegraph::{Options, from_lines};
use profiler_model::Profile;

use crate::ExportError;
use crate::colours::colours;
use crate::{folded, quality, utc};

/// Characters that fit in one line of 1200 px at the title's 17 px and at the subtitle's 12 px.
const TITLE_CHARS: usize = 80;
const SUBTITLE_CHARS: usize = 160;

/// The profile as a flame graph. Without samples it is a picture that says so.
///
/// # Errors
/// When drawing fails.
pub fn svg(profile: &Profile) -> Result<Vec<u8>, ExportError> {
    let lines: Vec<String> = folded::lines(profile).collect();
    if lines.is_empty() {
        return Ok(empty(profile).into_bytes());
    }
    let mut options = Options::default();
    options.title = title(profile);
    options.subtitle = Some(subtitle(profile));
    options.notes = comment(&notes(profile));
    let mut colours = colours(&lines);
    options.palette_map = Some(&mut colours);
    options.count_name = "samples".to_owned();
    // The lines are sorted better than inferno would (see `folded`). This mode is the one that takes
    // an order as it is; it draws from the last line to the first.
    options.flame_chart = true;
    let mut svg = Vec::new();
    from_lines(&mut options, lines.iter().rev().map(String::as_str), &mut svg)
        .map_err(|source| ExportError::Draw { stacks: lines.len(), source })?;
    Ok(svg)
}

fn title(profile: &Profile) -> String {
    match profile.about().title.trim() {
        "" => "CPU flame graph".to_owned(),
        title => shortened(title, TITLE_CHARS),
    }
}

fn subtitle(profile: &Profile) -> String {
    shortened(&format!("{} | {}", circumstances(profile), quality::summary(profile)), SUBTITLE_CHARS)
}

/// Host, kernel, rate, duration and date.
fn circumstances(profile: &Profile) -> String {
    let about = profile.about();
    format!(
        "{} | Linux {} | {} Hz | {}.{} s | {}",
        about.host,
        about.kernel_release,
        about.sample_rate_hz,
        about.duration_ns / 1_000_000_000,
        about.duration_ns / 100_000_000 % 10,
        utc::date_time(about.start_unix_ns),
    )
}

/// All that title and subtitle have no room for.
fn notes(profile: &Profile) -> String {
    let mut notes = format!("{}\n{}\n", profile.about().title, circumstances(profile));
    for line in quality::lines(profile).iter().map(String::as_str).chain(profile.notes()) {
        notes.push_str(line);
        notes.push('\n');
    }
    notes
}

/// A text that an XML comment may hold: no two hyphens in a row (XML 1.0, section 2.5).
fn comment(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '-' && safe.ends_with('-') {
            safe.push(' ');
        }
        safe.push(c);
    }
    safe
}

/// At most `limit` characters.
fn shortened(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some(_) => text.chars().take(limit - 1).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A picture that says that there are no samples.
fn empty(profile: &Profile) -> String {
    let mut svg = format!(
        "<?xml version=\"1.0\" standalone=\"no\"?>\n\
         <svg version=\"1.1\" width=\"1200\" height=\"120\" viewBox=\"0 0 1200 120\" xmlns=\"http://www.w3.org/2000/svg\">\n\
         <!--NOTES: {}-->\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#f8f8f8\"/>\n",
        escaped(&comment(&notes(profile)))
    );
    let texts = [
        (24, 17, title(profile)),
        (48, 12, subtitle(profile)),
        (84, 14, "No samples: nothing that was asked for ran on a CPU, or all of it was lost.".to_owned()),
    ];
    for (y, size, text) in texts {
        // Writing to a string does not fail.
        let _ = writeln!(
            svg,
            "<text x=\"600\" y=\"{y}\" font-family=\"monospace\" font-size=\"{size}\" text-anchor=\"middle\">{}</text>",
            escaped(&text)
        );
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_fit() {
        assert_eq!(comment("a--b---c -"), "a- -b- - -c -");
        assert_eq!(shortened("日本語", 3), "日本語");
        assert_eq!(shortened("日本語x", 3), "日本…");
    }
}
