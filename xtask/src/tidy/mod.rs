//! `cargo xtask tidy`: the rules of the code base that the compiler does not know. Each rule is a
//! function from files (or from `cargo metadata`) to findings.

mod code;
mod edges;
mod licences;
mod rust;
mod text;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::shell;

/// `cargo xtask tidy`.
pub(crate) fn run() -> Result<()> {
    let findings = findings()?;
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy: {} finding(s)", findings.len());
    }
    println!("tidy: nothing to report");
    Ok(())
}

/// A file of the repository.
pub(crate) struct File {
    /// From the repository's root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_markdown(&self) -> bool {
        self.path.ends_with(".md")
    }

    /// A finding in this file; lines count from 1.
    fn finding(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

fn findings() -> Result<Vec<String>> {
    let root = shell::root();
    let files = files(&root)?;
    let metadata = [metadata("Cargo.toml")?, metadata("profiler-ebpf/Cargo.toml")?];
    let mut findings = Vec::new();
    for metadata in &metadata {
        findings.extend(edges::check(metadata));
        findings.extend(licences::check(metadata));
        findings.extend(code::check_roots(metadata, &root, &files));
    }
    for file in &files {
        if file.is_rust() {
            findings.extend(code::check(file));
        }
        findings.extend(text::check(file, &root));
    }
    findings.sort();
    findings.dedup();
    Ok(findings)
}

/// Every text file that is, or will be, in the repository.
fn files(root: &Path) -> Result<Vec<File>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    let list = shell::output(&mut git)?;
    let mut files = Vec::new();
    for path in list.split('\0').filter(|path| !path.is_empty()) {
        // A file may be deleted but not yet from the index; objects are no text.
        if let Ok(text) = fs::read_to_string(root.join(path)) {
            files.push(File { path: path.to_owned(), text });
        }
    }
    Ok(files)
}

fn metadata(manifest: &str) -> Result<Value> {
    let mut cargo = shell::cargo(&["metadata", "--format-version", "1", "--manifest-path", manifest]);
    serde_json::from_str(&shell::output(&mut cargo)?).with_context(|| format!("cargo metadata of {manifest}"))
}

/// The elements of an array in JSON; none when it is no array.
fn array<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

/// A text in JSON; empty when it is none.
fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}
