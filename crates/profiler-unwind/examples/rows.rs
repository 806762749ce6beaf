//! Prints what the unwind tables of ELF files come to: rows, bytes, time, and what can't be
//! expressed. `cargo run --release -p profiler-unwind --example rows -- [--json] FILE...`
#![forbid(unsafe_code)]

use profiler_common::address::FileOffset;
use profiler_common::row::Rule;
use profiler_unwind::{Part, ReadAt, ReadError, UnwindTable};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

struct OnDisk {
    file: File,
    size_bytes: u64,
}

impl ReadAt for OnDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: FileOffset, buffer: &mut [u8]) -> Result<(), ReadError> {
        Ok(self.file.read_exact_at(buffer, offset.0)?)
    }
}

/// What the table of a file came to.
struct Report {
    rows: usize,
    parts: usize,
    /// Rows that step by the frame pointer.
    guessed: usize,
    /// Rows where stacks end.
    cut: usize,
    table: UnwindTable,
    time_ms: f64,
    file_bytes: u64,
}

fn measure(file: &OnDisk) -> Result<Report, Box<dyn std::error::Error>> {
    let (mut rows, mut parts, mut guessed, mut cut) = (0, 0, 0, 0);
    let start = Instant::now();
    // As in the worker: no part stays in memory.
    let table = profiler_unwind::build_into(file, &mut |_build_id| None, &mut |part: Part| {
        let rules = || part.rows.iter().map(|row| row.rule());
        rows += part.rows.len();
        parts += 1;
        guessed += rules().filter(|rule| rule.by_frame_pointer()).count();
        cut += rules().filter(|rule| *rule == Rule::UNSUPPORTED).count();
    })?;
    let time_ms = start.elapsed().as_secs_f64() * 1e3;
    Ok(Report { rows, parts, guessed, cut, table, time_ms, file_bytes: file.size_bytes })
}

/// The most memory that this process had, in KiB.
fn peak_kib() -> Result<u64, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn print(path: &str, report: &Report) {
    let Report { rows, parts, guessed, cut, table, time_ms, .. } = report;
    let problems = &table.problems;
    let share = problems.unsupported_rows() as f64 / problems.cfi_rows.max(1) as f64 * 100.0;
    println!(
        "{path}: {rows} rows, {} bytes, {parts} parts, {time_ms:.1} ms; {guessed} by frame pointer, {cut} cut; \
         {share:.3}% of {} rows of CFI not expressed; {problems:?}",
        rows * 8,
        problems.cfi_rows
    );
}

/// For `cargo xtask bench tables`.
fn print_json(report: &Report) -> Result<(), Box<dyn std::error::Error>> {
    let Report { rows, table, time_ms, file_bytes, .. } = report;
    let executable = table.segments.iter().filter(|segment| segment.executable);
    let code_bytes: u64 = executable.map(|segment| segment.memory_size_bytes).sum();
    println!(
        "{{\"rows\": {rows}, \"cfi_rows\": {}, \"code_bytes\": {code_bytes}, \"file_bytes\": {file_bytes}, \
         \"time_ms\": {time_ms}, \"peak_kib\": {}}}",
        table.problems.cfi_rows,
        peak_kib()?
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (options, paths): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|word| word == "--json");
    for path in paths {
        let file = File::open(&path)?;
        let file = OnDisk { size_bytes: file.metadata()?.len(), file };
        match measure(&file) {
            Ok(report) if options.is_empty() => print(&path, &report),
            Ok(report) => print_json(&report)?,
            Err(error) => println!("{path}: {error:?}"),
        }
    }
    if options.is_empty() {
        println!("VmHWM: {} kB", peak_kib()?);
    }
    Ok(())
}
