//! Prints what the unwind tables of ELF files come to: rows, bytes, time, and what can't be
//! expressed. `cargo run --release -p profiler-unwind --example rows -- FILE...`
#![forbid(unsafe_code)]

use profiler_common::address::FileOffset;
use profiler_common::row::Rule;
use profiler_unwind::{ReadAt, ReadError, UnwindTable};
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

fn report(path: &str, table: &UnwindTable, time_ms: f64) {
    let rules = || table.parts.iter().flat_map(|part| &part.rows).map(|row| row.rule());
    let rows = table.row_count();
    let guessed = rules().filter(|rule| rule.by_frame_pointer()).count();
    let cut = rules().filter(|rule| *rule == Rule::UNSUPPORTED).count();
    let problems = &table.problems;
    let share = problems.unsupported_rows() as f64 / problems.cfi_rows.max(1) as f64 * 100.0;
    println!(
        "{path}: {rows} rows, {} bytes, {} parts, {time_ms:.1} ms; {guessed} by frame pointer, {cut} cut; \
         {share:.3}% of {} rows of CFI not expressed; {problems:?}",
        rows * 8,
        table.parts.len(),
        problems.cfi_rows
    );
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for path in std::env::args().skip(1) {
        let file = File::open(&path)?;
        let file = OnDisk { size_bytes: file.metadata()?.len(), file };
        let start = Instant::now();
        match profiler_unwind::build(&file) {
            Ok(table) => report(&path, &table, start.elapsed().as_secs_f64() * 1e3),
            Err(error) => println!("{path}: {error:?}"),
        }
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    status.lines().filter(|line| line.starts_with("VmHWM")).for_each(|line| println!("{line}"));
    Ok(())
}
