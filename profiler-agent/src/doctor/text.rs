//! The answer for people: what is the matter, where, and what to do, in that order.

use std::fmt::Write as _;

use profiler_export::Broken;
use profiler_model::clean;

use super::family::Member;
use super::fix::Fix;
use super::generated::Names;
use super::report::{Advice, CodeEntry, DebugInfo, Report, Symbols, Unwinding};

/// Places of broken stacks that are shown.
const MOST_BROKEN: usize = 12;

/// Files that are shown whether there is something to say of them or not.
const MOST_ROWS: usize = 12;

/// Processes that are shown.
const MOST_PROCESSES: usize = 6;

/// Characters of the path of a debug file where there is little room.
const SHORT_DEBUG_PATH: usize = 28;

/// Bytes of code without a table that are worth a word.
const MANY_UNCOVERED_BYTES: u64 = 256;

/// The answer, in lines of about `width` characters.
pub(super) fn text(report: &Report, width: usize) -> String {
    let mut text = headline(report) + "\n";
    if let Some(children) = children(report) {
        line(&mut text, &children);
    }
    let items = items(report);
    if !report.code.is_empty() {
        text.push('\n');
        table(&mut text, report, width);
    }
    if let Names::PerfMap { path, size_bytes } | Names::Jitdump { path, size_bytes } = &report.generated {
        text.push('\n');
        line(&mut text, &format!("Code made at run time is named by {path} ({size_bytes} bytes)."));
    }
    if !report.broken.is_empty() {
        text.push_str("\nWhere stacks break:\n");
        for entry in report.broken.iter().take(MOST_BROKEN) {
            let number = items.iter().position(|(advice, _)| advice.iter().any(|advice| advice.fix == entry.fix));
            let fix = number.map_or_else(|| entry.fix.to_string(), |at| format!("see {} below", at + 1));
            line(&mut text, &format!("{:>8}  {}", entry.broken.samples, place(&entry.broken)));
            line(&mut text, &format!("          {fix}"));
        }
        if let Some(more) = report.broken.len().checked_sub(MOST_BROKEN).filter(|more| *more > 0) {
            line(&mut text, &format!("          and {more} more places: --json has all"));
        }
    }
    if report.fixes.is_empty() {
        text.push_str("\nNothing to do.\n");
    } else {
        text.push_str("\nWhat to do:\n");
        for ((advice, command), number) in items.iter().zip(1..) {
            let told: Vec<String> = advice.iter().map(|advice| words(advice, report)).collect();
            line(&mut text, &format!("{number:>3}. {}", told.join("; ")));
            if let Some(command) = command {
                line(&mut text, &format!("       {command}"));
            }
        }
    }
    for note in &report.notes {
        line(&mut text, &format!("Note: {note}"));
    }
    text
}

/// Adds a line. Names in it may be whatever a process chose.
fn line(text: &mut String, line: &str) {
    text.push_str(&clean(line));
    text.push('\n');
}

fn headline(report: &Report) -> String {
    let process = clean(&format!("{} (pid {})", report.name, report.pid)).into_owned();
    if report.kernel_thread {
        return format!("{process} is a thread of the kernel");
    }
    let seconds = report.duration_ns as f64 / 1e9;
    if report.samples == 0 && report.lost == 0 {
        return format!("{process} was idle: no CPU time was used in {seconds:.1} s, so there are no stacks to judge");
    }
    let mut text = format!("{process}: {} samples in {seconds:.1} s", report.samples);
    if report.samples > 0 {
        let _ =
            write!(text, ", {} of the stacks complete", percent(report.samples - report.incomplete, report.samples));
        if report.incomplete > 0 {
            let _ = write!(text, " ({} are not)", report.incomplete);
        }
    }
    if report.lost > 0 {
        let _ = write!(text, ", {} lost", report.lost);
    }
    text
}

/// Which of several processes work.
fn children(report: &Report) -> Option<String> {
    let (_named, children) = report.processes.split_first().filter(|(_named, children)| !children.is_empty())?;
    let mut busy: Vec<&Member> = report.processes.iter().filter(|member| member.samples > 0).collect();
    busy.sort_by_key(|member| std::cmp::Reverse(member.samples));
    let shown = busy.iter().take(MOST_PROCESSES);
    let shown: Vec<String> =
        shown.map(|member| format!("{} {} ({} samples)", member.pid, member.name, member.samples)).collect();
    let mut text = match children.len() {
        1 => "With its child (--no-children leaves it out)".to_owned(),
        count => format!("With its {count} children (--no-children leaves them out)"),
    };
    if !shown.is_empty() {
        let _ = write!(text, ": {}", shown.join(", "));
        if let Some(more) = busy.len().checked_sub(MOST_PROCESSES).filter(|more| *more > 0) {
            let _ = write!(text, " and {more} more");
        }
    }
    let advice_is_for = report.processes.iter().find(|member| member.pid == report.advice_is_for);
    if let Some(member) = advice_is_for.filter(|member| member.pid != report.pid) {
        let _ = write!(text, ". Advice about run times and packages is for {}", member.pid);
    }
    Some(text)
}

/// A share, never rounded up to all.
fn percent(part: u64, all: u64) -> String {
    let tenths = part.saturating_mul(1000) / all.max(1);
    format!("{}.{}%", tenths / 10, tenths % 10)
}

fn table(text: &mut String, report: &Report, width: usize) {
    let header =
        ["in samples", "unwinding", "covers", "rows", "refused", "symbols", "debug info", "code"].map(str::to_owned);
    let (shown, others): (Vec<&CodeEntry>, Vec<&CodeEntry>) = report
        .code
        .iter()
        .partition(|code| report.samples == 0 || report.code.len() <= MOST_ROWS || code.samples > 0 || !is_plain(code));
    let whole: Vec<Row> = shown.iter().map(|code| row(code, report, usize::MAX)).collect();
    let fits = |rows: &[Row]| widths(&header, rows).iter().sum::<usize>() + 2 * header.len() <= width;
    let rows =
        if fits(&whole) { whole } else { shown.iter().map(|code| row(code, report, SHORT_DEBUG_PATH)).collect() };
    let [a, b, c, d, e, f, g, _last] = widths(&header, &rows);
    for [samples, unwinding, covers, rows, refused, symbols, debug_info, path] in std::iter::once(&header).chain(&rows)
    {
        let left = format!("{samples:>a$}  {unwinding:<b$}  {covers:>c$}  {rows:>d$}  {refused:>e$}");
        line(text, &format!("{left}  {symbols:<f$}  {debug_info:<g$}  {path}"));
    }
    if !others.is_empty() {
        let count = others.len();
        line(text, &format!("{:>a$}  {count} more files with unwind tables, in no sample: --json has them", "-"));
    }
}

/// Whether there is nothing to say about the unwinding of a file.
fn is_plain(code: &CodeEntry) -> bool {
    let Unwinding::Table { unreadable: 0, covered_bytes, uncovered_bytes, by_instructions_bytes, .. } = code.unwinding
    else {
        return false;
    };
    // What start files add to every program is some dozens of bytes, and the kernel pads its own page.
    let lacking_bytes = uncovered_bytes.saturating_sub(by_instructions_bytes);
    let lacks_much = is_share(lacking_bytes, covered_bytes) && lacking_bytes >= MANY_UNCOVERED_BYTES;
    !lacks_much || code.path.starts_with('[')
}

/// Whether a part of a whole is worth a word, beside the rest.
const fn is_share(part: u64, rest: u64) -> bool {
    part.saturating_mul(19) > rest
}

/// What is said of a file, as the table's header has it.
type Row = [String; 8];

fn widths(header: &Row, rows: &[Row]) -> [usize; 8] {
    std::array::from_fn(|column| {
        let cells = std::iter::once(header).chain(rows).map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    })
}

fn row(code: &CodeEntry, report: &Report, debug_path_width: usize) -> Row {
    let samples = if code.samples == 0 { "-".to_owned() } else { percent(code.samples, report.samples) };
    let symbols = match code.symbols {
        Symbols::Symtab => ".symtab",
        Symbols::Go => "Go's",
        Symbols::GnuDebugdata => ".gnu_debugdata",
        Symbols::Dynsym => ".dynsym only",
        Symbols::PerfMap => "perf map",
        Symbols::Jitdump => "jitdump",
        Symbols::None => "none",
    };
    let debug_info = match &code.debug_info {
        DebugInfo::Own if code.missing_parts > 0 => "in the file, not .dwo".to_owned(),
        DebugInfo::Own => "in the file".to_owned(),
        DebugInfo::Separate { path } => shortened(path, debug_path_width),
        DebugInfo::Go => "Go's".to_owned(),
        DebugInfo::None => "none".to_owned(),
    };
    let (rows, refused) = match code.unwinding {
        Unwinding::Table { rows, refused, unreadable, .. } => (rows.to_string(), (refused + unreadable).to_string()),
        _ => (String::new(), String::new()),
    };
    let mut path = code.path.clone();
    if code.deleted {
        path.push_str(" (deleted)");
    }
    if code.mappings.len() > 1 {
        let _ = write!(path, " ({} mappings)", code.mappings.len());
    }
    [samples, unwinding(code), covers(code), rows, refused, symbols.to_owned(), debug_info, path]
}

fn unwinding(code: &CodeEntry) -> String {
    match &code.unwinding {
        Unwinding::Table { section, file, covered_bytes, by_instructions_bytes, by_frame_pointer_bytes, .. } => {
            let mut text = (*section).to_owned();
            if !file.is_empty() {
                text.push_str(" (debug file)");
            }
            // Start files are no more than that, and the kernel pads its own page.
            let many = *by_instructions_bytes >= MANY_UNCOVERED_BYTES && !code.path.starts_with('[');
            if many && is_share(*by_instructions_bytes, *covered_bytes) {
                text.push_str(", instructions");
            }
            if is_share(*by_frame_pointer_bytes, *covered_bytes) {
                text.push_str(", frame pointers");
            }
            text
        }
        Unwinding::Instructions { covered_bytes, by_frame_pointer_bytes, .. }
            if is_share(*by_frame_pointer_bytes, *covered_bytes) =>
        {
            "instructions, frame pointers".to_owned()
        }
        Unwinding::Instructions { .. } => "instructions".to_owned(),
        Unwinding::FramePointer { .. } => "frame pointers only".to_owned(),
        Unwinding::None => "none".to_owned(),
        Unwinding::Unsupported { why } if why.contains("32-bit") => "32-bit: not unwound".to_owned(),
        Unwinding::Unsupported { .. } => "not unwound".to_owned(),
        Unwinding::Unreadable { .. } => "unreadable".to_owned(),
    }
}

/// The share of the code that is unwound that way first.
fn covers(code: &CodeEntry) -> String {
    match code.unwinding {
        // The kernel pads its own page.
        _ if code.path.starts_with('[') => String::new(),
        Unwinding::Table { covered_bytes, uncovered_bytes, .. }
        | Unwinding::Instructions { covered_bytes, uncovered_bytes, .. }
        | Unwinding::FramePointer { covered_bytes, uncovered_bytes } => {
            percent(covered_bytes, covered_bytes.saturating_add(uncovered_bytes))
        }
        Unwinding::None | Unwinding::Unsupported { .. } | Unwinding::Unreadable { .. } => String::new(),
    }
}

/// `no_frame_pointer in bare_leaf, libbare.so+0x1139`.
fn place(broken: &Broken) -> String {
    let Broken { reason, function, file, address, addresses, .. } = broken;
    let mut text = reason.name().to_owned();
    if !function.is_empty() {
        let _ = write!(text, " in {function}");
    }
    // Where code made at run time lies says nothing to anybody.
    if let Some(name) = file.rsplit('/').next().filter(|name| !name.is_empty() && !name.starts_with('[')) {
        let _ = write!(text, ", {name}+{address}");
    }
    if *addresses > 1 {
        let _ = write!(text, " and {} more addresses", addresses - 1);
    }
    text
}

/// The things to do, and for each what is said of it. Packages are installed by one command.
fn items(report: &Report) -> Vec<(Vec<&Advice>, Option<String>)> {
    let mut items: Vec<(Vec<&Advice>, Option<String>)> = Vec::new();
    for advice in &report.fixes {
        let is_package = |advice: &Advice| matches!(advice.fix, Fix::InstallDebugPackage { .. });
        let first = items.iter_mut().find(|(known, _)| is_package(advice) && known.iter().all(|one| is_package(one)));
        if let (Some((known, command)), Some(word)) = (first, advice.fix.apt_word()) {
            known.push(advice);
            *command = command.take().map(|command| format!("{command} {word}"));
        } else {
            items.push((vec![advice], advice.fix.command()));
        }
    }
    items
}

/// What is to be done, and for which share of the samples.
fn words(advice: &Advice, report: &Report) -> String {
    let Advice { samples, fix, files } = advice;
    let mut words = fix.to_string();
    if *samples == 0 {
        return words;
    }
    let _ = write!(words, " ({} of the samples", percent(*samples, report.samples));
    if let Fix::InstallDebugPackage { .. } = fix {
        let names: Vec<&str> = files.iter().filter_map(|file| file.rsplit('/').next()).collect();
        let _ = write!(words, ": names in {}", names.join(", "));
    }
    words + ")"
}

/// A path in at most `width` characters: one that is too long loses its middle.
fn shortened(path: &str, width: usize) -> String {
    let length = path.chars().count();
    if length <= width {
        return path.to_owned();
    }
    let tail = width / 3 * 2;
    let head = width.saturating_sub(tail + 1);
    path.chars().take(head).chain(['…']).chain(path.chars().skip(length - tail)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::fixture;
    use super::*;

    /// Against a file in `golden`. `BLESS=1` rewrites it.
    fn check(name: &str, found: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/doctor/golden").join(name);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, found).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap();
        assert!(expected == found, "{name} differs from what is written now (BLESS=1 rewrites it):\n{found}");
    }

    #[test]
    fn a_server_with_defects_of_every_kind() {
        let report = Report::of(fixture::server());
        check("server.txt", &text(&report, 120));
        let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        check("server.json", &format!("{json:#}\n"));
    }

    #[test]
    fn a_process_that_is_idle() {
        check("idle.txt", &text(&Report::of(fixture::idle()), usize::MAX));
    }

    #[test]
    fn a_process_with_nothing_to_complain_about() {
        check("whole.txt", &text(&Report::of(fixture::whole()), 120));
    }

    #[test]
    fn a_virtual_machine() {
        check("java.txt", &text(&Report::of(fixture::java()), 120));
    }

    #[test]
    fn a_process_of_32_bits() {
        check("32-bit.txt", &text(&Report::of(fixture::process_of_32_bits()), 120));
    }

    #[test]
    fn shares_are_never_rounded_up_to_all() {
        assert_eq!(percent(9_999, 10_000), "99.9%");
        assert_eq!(percent(0, 0), "0.0%");
        assert_eq!(percent(3, 3), "100.0%");
    }

    #[test]
    fn long_paths_lose_their_middle() {
        assert_eq!(shortened("/usr/lib/debug/abcdef.debug", 27), "/usr/lib/debug/abcdef.debug");
        assert_eq!(shortened("/usr/lib/debug/abcdef.debug", 15), "/usr…cdef.debug");
        assert_eq!(shortened("日本語テキスト", 4), "日…スト");
    }
}
