//! Unwind tables of real files, beside what they would take in the formats of others.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::MIB;
use crate::shell;

/// Builds the program that makes the table of one file and says what it took.
const BUILD: [&str; 6] = ["build", "--release", "-p", "profiler-unwind", "--example", "rows"];

/// Files whose tables are known to be small or large, as far as they are here: `*` stands for any
/// part of a name.
const FILES: [&str; 9] = [
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib/aarch64-linux-gnu/libc.so.6",
    "/usr/bin/python3",
    "/usr/bin/node",
    "/usr/bin/go",
    "/usr/lib/jvm/*/lib/server/libjvm.so",
    "/usr/lib/x86_64-linux-gnu/libLLVM*.so*",
    "/usr/lib/chromium/chromium",
    "/usr/lib/postgresql/*/bin/postgres",
];

const MB: f64 = 1e6;

/// `cargo xtask bench tables`.
pub(super) fn run(files: &[PathBuf]) -> Result<()> {
    shell::run(&mut shell::cargo(&BUILD))?;
    let files = if files.is_empty() { installed()? } else { files.to_vec() };
    if files.is_empty() {
        bail!("none of the usual files is here: name some");
    }
    println!(
        "\n   file MB  code MB     rows   KiB/MB  unmerged  ms       worker MiB  rows MiB  file\n{}",
        "-".repeat(96)
    );
    for file in &files {
        match measure(file) {
            Ok(line) => println!("{line}  {}", file.display()),
            Err(error) => println!("{}: {error:#}", file.display()),
        }
    }
    println!(
        "\nKiB/MB: of rows, 8 bytes each, for each MB of code. In 4-byte deltas and a table of rules that all files \
         share (OpenTelemetry's profiler): 0.50 x these rows. `unmerged`: 8 bytes for each row of CFI (lightswitch), \
         as a multiple of ours. `worker`: the most memory of the process that builds; the agent has the rows as well, \
         until they are in the kernel's map."
    );
    Ok(())
}

fn installed() -> Result<Vec<PathBuf>> {
    let sysroot = shell::output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(shell::root()))?;
    let rustc = [format!("{}/lib/librustc_driver*.so", sysroot.trim()), format!("{}/lib/libLLVM*.so*", sysroot.trim())];
    let patterns = FILES.iter().map(ToString::to_string).chain(rustc);
    let mut files = Vec::new();
    for pattern in patterns {
        for file in matching(&pattern) {
            let file = file.canonicalize().unwrap_or(file);
            if file.is_file() && !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// The paths that a pattern stands for.
fn matching(pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        found = found.iter().flat_map(|folder| children(folder, part)).collect();
    }
    found
}

fn children(folder: &Path, part: &str) -> Vec<PathBuf> {
    if !part.contains('*') {
        return vec![folder.join(part)];
    }
    let names = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut names: Vec<_> = names.filter(|name| name.to_str().is_some_and(|name| stands_for(part, name))).collect();
    names.sort();
    names.into_iter().map(|name| folder.join(name)).collect()
}

/// Whether the pieces between the stars of a pattern come in a name in that order, from its start to its end.
fn stands_for(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((first, rest)) => name
            .strip_prefix(first)
            .is_some_and(|left| (0..=left.len()).any(|at| left.get(at..).is_some_and(|left| stands_for(rest, left)))),
    }
}

/// One line of the table. Each file has a process of its own, so that the most memory is that file's.
fn measure(file: &Path) -> Result<String> {
    let program = shell::root().join("target/release/examples/rows");
    let text = shell::output(Command::new(program).arg("--json").arg(file))?;
    let json: Value = serde_json::from_str(text.trim()).context("what the program says")?;
    let number = |name: &str| json[name].as_f64().with_context(|| format!("no {name} in {json}"));
    let (rows, code_bytes) = (number("rows")?, number("code_bytes")?);
    Ok(format!(
        "{:10.1} {:8.1} {:8} {:8.1} {:8.2}x {:6.1} {:12.1} {:9.1}",
        number("file_bytes")? / MB,
        code_bytes / MB,
        rows,
        rows * 8.0 / 1024.0 / (code_bytes / MB),
        number("cfi_rows")? / rows.max(1.0),
        number("time_ms")?,
        number("peak_kib")? * 1024.0 / MIB,
        rows * 8.0 / MIB,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_part() {
        for (pattern, name, expected) in [
            ("libLLVM*.so*", "libLLVM-14.so.1", true),
            ("libLLVM*.so*", "libLLVM.so", true),
            ("libLLVM*.so", "libLLVM-14.so.1", false),
            ("*", "", true),
            ("a*b*c", "abbc", true),
            ("a*b*c", "acb", false),
            ("postgres", "postgres", true),
        ] {
            assert_eq!(stands_for(pattern, name), expected, "{pattern} {name}");
        }
    }
}
