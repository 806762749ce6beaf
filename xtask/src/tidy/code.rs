//! Rules of Rust files: where `unsafe` and `aya` may stand, how a file begins, how long it may be.

use std::path::Path;

use serde_json::Value;

use super::rust::{code_only, lines_with_word};
use super::{File, array, word};

/// The only places of `unsafe`, each block with a SAFETY comment (clippy sees to that).
const UNSAFE_ALLOWED: [&str; 3] = ["profiler-agent/src/kernel/", "profiler-ebpf/", "crates/thread-context/"];
/// The only places that name `aya`.
const AYA_ALLOWED: [&str; 2] = ["profiler-agent/src/kernel/", "profiler-ebpf/"];
/// Crates whose roots cannot forbid `unsafe`, because part of them may use it.
const UNSAFE_CRATES: [&str; 3] = ["profiler-agent", "profiler-ebpf", "thread-context"];

/// Code lines (neither blank nor comment) before the test module.
const LENGTH_BUDGET: usize = 600;
/// Files that may be longer: tables of constants or flags, each with the reason.
const LENGTH_EXCEPTIONS: [(&str, &str); 0] = [];

/// Checks one Rust file.
pub(super) fn check(file: &File) -> Vec<String> {
    let code = code_only(&file.text);
    let mut findings = Vec::new();
    let first = file.text.lines().find(|line| !line.trim().is_empty());
    if !first.is_some_and(|line| line.starts_with("//!")) {
        findings.push(file.finding(1, "opens without `//!`: say what the file is for"));
    }
    let inside = |folders: &[&str]| folders.iter().any(|folder| file.path.starts_with(folder));
    if !inside(&UNSAFE_ALLOWED) {
        let places = lines_with_word(&code, "unsafe").into_iter();
        findings.extend(places.map(|line| file.finding(line, &format!("`unsafe` stands only in {UNSAFE_ALLOWED:?}"))));
    }
    if !inside(&AYA_ALLOWED) {
        let places = ["aya", "aya_ebpf", "aya_obj"].into_iter().flat_map(|name| lines_with_word(&code, name));
        findings.extend(places.map(|line| file.finding(line, &format!("`aya` is named only in {AYA_ALLOWED:?}"))));
    }
    let length = code_lines(&code);
    if length > LENGTH_BUDGET && !LENGTH_EXCEPTIONS.iter().any(|(path, _)| *path == file.path) {
        findings
            .push(file.finding(1, &format!("{length} lines of code before the tests; {LENGTH_BUDGET} is the budget")));
    }
    findings.extend(undocumented_maps(file));
    findings.extend(ignored_without_reason(file, &code));
    findings
}

/// Lines of code before `#[cfg(test)]`.
fn code_lines(code: &str) -> usize {
    code.lines().take_while(|line| *line != "#[cfg(test)]").filter(|line| !line.trim().is_empty()).count()
}

/// `#[map]` statics of the kernel programs without a docstring.
fn undocumented_maps(file: &File) -> Vec<String> {
    let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
    let mut findings = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let is_map = line.starts_with("#[map]") || line.starts_with("#[map(");
        let documented = || {
            let above = lines[..index].iter().rev().find(|line| !line.starts_with("#["));
            above.is_some_and(|line| line.starts_with("///"))
        };
        if is_map && !documented() {
            findings.push(file.finding(index + 1, "a map without a docstring"));
        }
    }
    findings
}

fn ignored_without_reason(file: &File, code: &str) -> Vec<String> {
    let lines = code.lines().enumerate().filter(|(_, line)| line.replace(' ', "").contains("#[ignore]"));
    lines.map(|(index, _)| file.finding(index + 1, "`#[ignore]` without a reason: `#[ignore = \"why\"]`")).collect()
}

/// Every root of a crate forbids `unsafe`, but for the crates that may use it.
pub(super) fn check_roots(metadata: &Value, root: &Path, files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    let ours = array(metadata, "packages").filter(|package| package["source"].is_null());
    for package in ours.filter(|package| !UNSAFE_CRATES.contains(&word(package, "name"))) {
        for target in array(package, "targets") {
            let path = Path::new(word(target, "src_path")).strip_prefix(root);
            let file = path.ok().and_then(|path| files.iter().find(|file| Path::new(&file.path) == path));
            if let Some(file) = file.filter(|file| !code_only(&file.text).contains("#![forbid(unsafe_code)]")) {
                findings.push(file.finding(1, "the root of this crate lacks `#![forbid(unsafe_code)]`"));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    fn finds(path: &str, text: &str, expected: &[&str]) {
        let findings = check(&file(path, text));
        assert_eq!(findings.len(), expected.len(), "{findings:?}");
        for (finding, part) in findings.iter().zip(expected) {
            assert!(finding.contains(part), "{finding}");
        }
    }

    #[test]
    fn unsafe_and_aya_have_their_places() {
        let text = "//! x\nuse aya::Ebpf;\nfn f() { unsafe { g() } }\n";
        finds("profiler-agent/src/kernel/load.rs", text, &[]);
        finds("profiler-agent/src/app.rs", text, &[":3: `unsafe`", ":2: `aya`"]);
        finds(
            "crates/profiler-model/src/lib.rs",
            "//! aya, unsafe\n#![forbid(unsafe_code)]\nconst X: &str = \"unsafe\";\n",
            &[],
        );
    }

    #[test]
    fn files_open_with_their_purpose_and_are_short() {
        finds("a.rs", "fn f() {}\n", &[":1: opens without"]);
        finds("a.rs", &format!("//! x\n{}", "f();\n".repeat(600)), &[]);
        finds("a.rs", &format!("//! x\n{}", "f();\n".repeat(601)), &["601 lines of code"]);
        finds("a.rs", &format!("//! x\n#[cfg(test)]\n{}", "f();\n".repeat(601)), &[]);
        finds("a.rs", &format!("//! x\n{}", "// f();\n\n".repeat(601)), &[]);
    }

    #[test]
    fn maps_and_ignored_tests_say_why() {
        finds("a.rs", "//! x\n#[ignore]\nfn f() {}\n#[ignore = \"slow\"]\nfn g() {}\n", &[":2: `#[ignore]`"]);
        finds(
            "a.rs",
            "//! x\n/// Hits.\n#[unsafe_name]\n#[map]\nstatic A: B = C;\n\n#[map(name = \"x\")]\nstatic D: E = F;\n",
            &[":7: a map"],
        );
    }

    #[test]
    fn roots_forbid_unsafe() {
        let package =
            |name: &str, path: &str| json!({ "name": name, "source": null, "targets": [{ "src_path": path }] });
        let metadata = json!({ "packages": [
            package("a", "/r/a.rs"), package("b", "/r/b.rs"), package("profiler-agent", "/r/b.rs"),
        ]});
        let files = [file("a.rs", "//! x\n#![forbid(unsafe_code)]\n"), file("b.rs", "//! #![forbid(unsafe_code)]\n")];
        let findings = check_roots(&metadata, Path::new("/r"), &files);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].starts_with("b.rs:1:"));
    }
}
