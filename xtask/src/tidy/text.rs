//! Rules of all text files: paths that exist, permalinks, nothing of one machine or one moment.

use std::path::Path;

use super::File;

/// What a path in a document may begin with to be taken for one of ours.
const TOP_FOLDERS: [&str; 8] =
    ["crates/", "deploy/", "profiler-agent/", "profiler-common/", "profiler-ebpf/", "tests/", "xtask/", ".ci/"];
/// Parts of a word that make it a pattern, a command or a URL, but no path.
const NO_PATH: [char; 12] = ['*', '<', '>', '{', '}', '$', '~', '=', '(', ' ', '|', '…'];
/// Links that show something else tomorrow. Split, so that this file passes.
const MOVING_LINKS: [&str; 4] = [
    concat!("/blob/", "master/"),
    concat!("/blob/", "main/"),
    concat!("elixir.bootlin.com/linux/", "latest/"),
    concat!("/linux.git/", "tree/"),
];
/// Folders of a machine, where a path begins.
const MACHINE_FOLDERS: [&str; 3] = [concat!("/wo", "rk/"), concat!("/tmp", "/w/"), concat!("/ro", "ot/")];

/// Checks one file.
pub(super) fn check(file: &File, root: &Path) -> Vec<String> {
    let mut findings = Vec::new();
    let mut in_fence = false;
    for (index, line) in file.text.lines().enumerate() {
        let number = index + 1;
        let mut report = |what: String| findings.push(file.finding(number, &what));
        if file.is_markdown() && line.trim_start().starts_with("```") {
            in_fence = !in_fence;
        }
        let doc_comment = file.is_rust() && ["//!", "///"].iter().any(|mark| line.trim_start().starts_with(mark));
        if (file.is_markdown() && !in_fence) || doc_comment {
            missing_paths(line, &file.path, root).for_each(|path| report(format!("`{path}` does not exist")));
        }
        if file.is_markdown() && counts_lines(line) {
            report("a count of lines is wrong tomorrow: leave it out".to_owned());
        }
        if let Some(link) = MOVING_LINKS.iter().find(|link| line.contains(*link)) {
            report(format!("`{link}` is no permalink: name a commit or a version"));
        }
        if let Some(folder) = MACHINE_FOLDERS.iter().find(|folder| begins_path(line, folder)) {
            report(format!("`{folder}` is a folder of one machine"));
        }
        if names_issue(line) {
            report("a number of an issue says nothing to the reader: say what it is about".to_owned());
        }
    }
    findings
}

/// The paths in backticks of a line that look like ours and do not exist, neither from the root
/// nor from a folder that the file is in.
fn missing_paths<'a>(line: &'a str, file: &'a str, root: &'a Path) -> impl Iterator<Item = &'a str> {
    let exists =
        move |path: &&str| Path::new(file).ancestors().skip(1).any(|folder| root.join(folder).join(path).exists());
    let spans = line.split('`').skip(1).step_by(2).filter(|span| looks_like_path(span));
    // `file.rs:12` and `file.rs::function` name the file.
    spans.map(|span| span.split(':').next().unwrap_or(span)).filter(move |path| !exists(path))
}

fn looks_like_path(span: &str) -> bool {
    let document = !span.contains('/') && span.ends_with(".md");
    (document || TOP_FOLDERS.iter().any(|top| span.starts_with(top))) && !span.contains(NO_PATH)
}

/// A number directly before the word "lines".
fn counts_lines(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    words.windows(2).any(|pair| pair[1].starts_with("lines") && pair[0].ends_with(|c: char| c.is_ascii_digit()))
}

/// Does a path begin with this folder here? `/proc/PID/root/` only holds it.
fn begins_path(line: &str, folder: &str) -> bool {
    let inside = |before: &str| {
        before.ends_with(|c: char| c.is_alphanumeric() || "_-}>)$*.\"'".contains(c) && !"\"'".contains(c))
    };
    line.match_indices(folder).any(|(at, _)| !inside(&line[..at]))
}

/// "issue 12", "issue #12".
fn names_issue(line: &str) -> bool {
    let lower = line.to_lowercase();
    let words: Vec<&str> = lower.split_whitespace().collect();
    words.windows(2).any(|pair| {
        let number = pair[1].trim_start_matches('#');
        pair[0].trim_start_matches('(') == "issue" && number.starts_with(|c: char| c.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell;

    fn finds(path: &str, text: &str, expected: usize) {
        let file = File { path: path.to_owned(), text: text.to_owned() };
        let findings = check(&file, &shell::root());
        assert_eq!(findings.len(), expected, "{findings:?}");
    }

    #[test]
    fn paths_in_documents_exist() {
        finds("README.md", "see `xtask/src/main.rs`, `xtask/src/main.rs:3`, `tests/` and `/proc/self`", 0);
        finds("README.md", "see `xtask/src/absent.rs` and `ABSENT.md`", 2);
        finds("README.md", "any `tests/*.rs`, `tests/<name>.c`, `cargo xtask ebpf`", 0);
        finds("README.md", "```\n`xtask/absent`\n```\n", 0);
        finds("xtask/src/main.rs", "//! see `xtask/absent.rs`\nlet x = \"`xtask/absent.rs`\";\n", 1);
        finds("xtask/Cargo.toml", "# see `src/main.rs`", 0);
    }

    #[test]
    fn nothing_of_one_machine_or_one_moment() {
        finds("a.rs", concat!("let x = \"/wo", "rk/main\";"), 1);
        finds("a.rs", concat!("/proc/PID/ro", "ot/etc, /proc/1/ro", "ot/, {pid}/ro", "ot/"), 0);
        finds("a.rs", concat!("// https://github.com/a/b/blob/", "main/c.rs"), 1);
        finds("a.md", concat!("fixed by iss", "ue #12"), 1);
        finds("a.md", "an issue of 3 kinds, in 12 lines", 1);
    }
}
