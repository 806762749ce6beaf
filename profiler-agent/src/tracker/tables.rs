//! The tables of executables: asked for, placed where the kernel reads them, given up again; and
//! the ranges of processes that lead to them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use profiler_common::address::{MonotonicNs, Pid, Svma};
use profiler_common::counter::Counter;
use profiler_common::limits::{MAX_SEARCHED, RANGES_PER_CHUNK};
use profiler_common::range::Range;
use profiler_common::row::{Row, Rule};
use profiler_unwind::UnwindTable;

use super::executable::Unwinding;
use super::executables::{ANONYMOUS, TRAMPOLINES};
use super::process::Process;
use super::space::QUARANTINE;
use super::{Tracker, WantedTable, trampoline};
use crate::clock;
use crate::counts::quoted;
use crate::worker::{ContentsDigest, FileError, FileKey, TableSource};

/// Ranges that one process may have in quarantine, about: an eighth of all. One that changes its code all
/// the time is published less often.
const RANGES_A_SECOND: u64 = RANGES_PER_CHUNK as u64 / 8;

/// How long after an exec it is made sure that the kernel has the table of the new program.
const CONFIRM_NS: u64 = 3_000_000_000;

/// Bytes of generated code in one mapping that are unwound.
const MOST_GENERATED_BYTES: u64 = 1 << 31;

impl Tracker {
    /// Executable memory without a file has one row: the frame pointer, but in trampolines.
    pub(super) fn place_tables_of_generated_code(&mut self) {
        let by_frame_pointer =
            if cfg!(target_arch = "aarch64") { Rule::AARCH64_FRAME_POINTER } else { Rule::X86_64_FRAME_POINTER };
        for (key, rule) in [(ANONYMOUS, by_frame_pointer), (TRAMPOLINES, trampoline::RULE)] {
            let rows = [Row::new(0, rule)];
            // The first row is found for any offset, however far.
            let part = self.placement.place(Svma(0), MOST_GENERATED_BYTES, &rows);
            if let (Some(part), Some(executable)) = (part, self.executables.get_mut(key)) {
                executable.unwinding = Unwinding::Placed(vec![part]);
            }
        }
    }

    /// The next table to build; none while one that is built waits for room.
    pub(crate) fn take_wanted(&mut self) -> Option<WantedTable> {
        if !self.held.is_empty() {
            return None;
        }
        while let Some(key) = self.wanted.pop_front() {
            let Some(executable) = self.executables.get_mut(key) else { continue };
            let Some(file) = executable.file.as_ref().map(Arc::clone) else {
                executable.unwinding = Unwinding::Missing;
                continue;
            };
            let place = executable.place();
            let cached = self.cache.as_mut().and_then(|cache| cache.find(&file, &mut self.counts));
            match cached {
                Some(table) => self.table_built(key, Ok(table)),
                None => return Some(WantedTable { key, file, place }),
            }
            if !self.held.is_empty() {
                return None;
            }
        }
        None
    }

    /// Puts a table that was built into the cache on disk, if it took long.
    pub(crate) fn keep_table(
        &mut self,
        file: &OwnedFd,
        result: &Result<UnwindTable, FileError>,
        source: Option<TableSource>,
    ) {
        if let (Some(cache), Ok(table), Some(source)) = (&mut self.cache, result, source) {
            cache.keep(file, table, &source);
        }
    }

    /// What a worker found in an executable's file, unless that has other contents by now.
    pub(crate) fn unless_rewritten<T>(
        &self,
        (key, file): (FileKey, &OwnedFd),
        found: Result<T, FileError>,
    ) -> Result<T, FileError> {
        if self.executables.get(key).is_some_and(|executable| executable.is_rewritten(file)) {
            return Err(FileError::Unreadable("it was written to since it was mapped".to_owned()));
        }
        found
    }

    /// Samples wait for this table: it is built before others.
    pub(crate) fn demand(&mut self, key: FileKey) {
        self.ask(key);
        if let Some(executable) = self.executables.get(key) {
            executable.used_at(clock::monotonic());
        }
        if let Some(at) = self.wanted.iter().position(|wanted| *wanted == key) {
            self.wanted.remove(at);
            self.wanted.push_front(key);
        }
    }

    /// Has the table built, unless it was asked for before.
    pub(super) fn ask(&mut self, key: FileKey) {
        let Some(executable) = self.executables.get_mut(key) else { return };
        if !matches!(executable.unwinding, Unwinding::Unasked) {
            return;
        }
        if executable.file.is_some() {
            executable.unwinding = Unwinding::Waiting;
            self.wanted.push_back(key);
        } else {
            executable.unwinding = Unwinding::Missing;
        }
    }

    /// Takes in what the contents of an executable are, as the worker read them.
    pub(crate) fn note_contents(&mut self, key: FileKey, contents: Option<ContentsDigest>) {
        if let Some(executable) = self.executables.get_mut(key) {
            executable.contents = contents;
        }
    }

    /// Takes in the table of an executable, or the reason why there is none.
    pub(crate) fn table_built(&mut self, key: FileKey, result: Result<UnwindTable, FileError>) {
        self.note_damage(key, &result);
        let Some(executable) = self.executables.get_mut(key) else { return };
        executable.generated |= matches!(result, Err(FileError::NotElf));
        match result {
            Ok(mut table) => {
                executable.build_id = hex(table.build_id.as_deref().unwrap_or_default());
                executable.row_count = table.row_count() as u64;
                executable.segments = std::mem::take(&mut table.segments);
                self.make_room(key, table);
            }
            Err(FileError::NotElf) => self.unwind_with(key, self.anonymous_parts()),
            Err(_) => self.unwind_with(key, Unwinding::Missing),
        }
    }

    /// Tells the kernel how this executable is unwound from now on.
    pub(super) fn unwind_with(&mut self, key: FileKey, unwinding: Unwinding) {
        let Some(executable) = self.executables.get_mut(key) else { return };
        if matches!(unwinding, Unwinding::NoRoom { .. }) && !std::mem::replace(&mut executable.lacked_room, true) {
            self.counts.add(Counter::TablesFull, 1);
        }
        executable.unwinding = unwinding;
        for process in self.processes.values_mut() {
            process.dirty |= process.maps(key);
        }
        self.publish();
    }

    /// Counts what is wrong with a file, and says it once.
    fn note_damage(&mut self, key: FileKey, result: &Result<UnwindTable, FileError>) {
        let (counter, damage) = match result {
            Ok(table) if table.problems.unreadable() == 0 => return,
            Err(FileError::NotElf) => return,
            Ok(table) => {
                let count = table.problems.unreadable();
                let damage = match count {
                    1 => "1 piece of its call frame information makes no sense".to_owned(),
                    _ => format!("{count} pieces of its call frame information make no sense"),
                };
                (Some(Counter::ExecutableCorrupt), damage)
            }
            // Counted as a restart of the worker.
            Err(error @ FileError::Worker(_)) => (None, error.to_string()),
            Err(error @ FileError::Unreadable(_)) => (Some(Counter::ExecutableUnreadable), error.to_string()),
            Err(FileError::Unsupported(what)) => (Some(Counter::ExecutableUnsupported), what.clone()),
            Err(error) => (Some(Counter::ExecutableCorrupt), error.to_string()),
        };
        if let Some(counter) = counter {
            self.counts.add(counter, 1);
        }
        if let Some(executable) = self.executables.get(key) {
            let path = quoted(&executable.path);
            if counter == Some(Counter::ExecutableUnsupported) {
                self.counts.note(format!("not unwound: {path}: {damage}"));
                return;
            }
            self.counts.note(format!("stacks may be cut in {path}: {damage}. Look at it with: readelf -wF {path}"));
        }
    }

    /// Memory mapped from something that is no ELF file, such as a JIT's memfd.
    fn anonymous_parts(&self) -> Unwinding {
        match self.executables.get(ANONYMOUS).map(|anonymous| &anonymous.unwinding) {
            Some(Unwinding::Placed(parts)) => Unwinding::Placed(parts.clone()),
            _ => Unwinding::Missing,
        }
    }

    /// Writes the ranges of every process that changed.
    pub(crate) fn publish(&mut self) {
        let changed = self.processes.values().filter(|process| process.dirty).map(|process| process.pid);
        self.touched = changed.collect();
        self.publish_touched();
    }

    /// Writes the ranges of those processes that changed of which records told.
    pub(super) fn publish_touched(&mut self) {
        let now = clock::monotonic();
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        touched.retain(|pid| {
            let Some(process) = self.processes.get(pid).filter(|process| process.dirty) else { return false };
            if process.publish_from > now {
                return true;
            }
            let is_over = process.ended.is_some() && self.is_over(*pid);
            if !is_over {
                self.publish_process(*pid, now);
            }
            let process = self.processes.get_mut(pid);
            process.is_some_and(|process| {
                // The kernel has forgotten one that is over: its pid may soon be another process's.
                process.dirty &= !is_over;
                process.dirty
            })
        });
        self.touched = touched;
    }

    fn publish_process(&mut self, pid: Pid, now: MonotonicNs) {
        let Some(process) = self.processes.get(&pid) else { return };
        let known_up_to = self.applied_up_to.max(process.scanned_at);
        if self.tables().last_exec(pid).is_some_and(|exec| exec > known_up_to) {
            // It is another program by now: its table comes when the records of that are applied.
            return;
        }
        let (ranges, whole) = self.ranges_of(process);
        let replaces_code = self.replaces_code(process, now);
        let published = self.placement.publish(pid, &ranges, replaces_code);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let pause_ns = ranges.len() as u64 * QUARANTINE.0 / RANGES_A_SECOND;
        process.publish_from = MonotonicNs(now.0 + pause_ns);
        let no_room = published.is_none() && !ranges.is_empty();
        if (no_room || !whole) && !std::mem::replace(&mut process.table_lacking, true) {
            self.counts.add(if no_room { Counter::RangesFull } else { Counter::RangesTruncated }, 1);
        }
        if no_room {
            process.publish_from = MonotonicNs(now.0 + QUARANTINE.0);
            // Tried again. What the old table says of code that was replaced is found out by its samples.
            return;
        }
        let old_slot = std::mem::replace(&mut process.slot, published.map(|(slot, _generation)| slot));
        process.has_copies = replaces_code;
        process.published(published.map_or(0, |(_slot, generation)| generation), now);
        self.placement.release_slot(old_slot, now);
    }

    /// An exec makes the kernel forget the old program's table, when the new program is mapped already:
    /// so perhaps the new program's, if that was published in between.
    pub(super) fn confirm_execs(&mut self, now: MonotonicNs) {
        let placement = &self.placement;
        let lives = |process: &&mut Process| process.slot.is_some() && !process.is_over();
        for process in self.processes.values_mut().filter(lives) {
            let recent = process.last_exec().is_some_and(|exec| now.0.saturating_sub(exec.0) < CONFIRM_NS);
            if recent && !placement.has_process(process.pid) {
                process.dirty = true;
                self.touched.push(process.pid);
            }
        }
    }

    /// Whether a process replaced code of files lately. Code that is made at run time is replaced all the time, and
    /// has the same rows.
    fn replaces_code(&self, process: &Process, now: MonotonicNs) -> bool {
        let is_generated = |file| self.executable(file).is_some_and(|executable| executable.generated);
        process.lately_replaced_by(now).is_some_and(|file| !is_generated(file))
    }

    /// Has the kernel stop copying the stacks of processes that replace their code no more.
    pub(super) fn end_copies(&mut self, now: MonotonicNs) {
        let copied = self.processes.values().filter(|process| process.has_copies && !process.is_over());
        let over = copied.filter(|process| !self.replaces_code(process, now)).map(|process| process.pid);
        for pid in over.collect::<Vec<_>>() {
            if let Some(process) = self.processes.get_mut(&pid) {
                process.dirty = true;
                self.touched.push(pid);
            }
        }
    }

    /// The ranges of a process, in the order of addresses, and whether these are all: of too many, those
    /// of generated code are left out first.
    fn ranges_of(&self, process: &Process) -> (Vec<Range>, bool) {
        let (mut of_files, mut generated) = (Vec::new(), Vec::new());
        for mapping in process.live() {
            let Some(executable) = self.executables.get(mapping.file) else { continue };
            let Unwinding::Placed(parts) = &executable.unwinding else { continue };
            let ranges = if mapping.file == ANONYMOUS { &mut generated } else { &mut of_files };
            let bias = executable.bias(mapping.start, mapping.file_offset);
            for part in parts {
                let (part_start, part_end) = (part.start.in_process(bias).0, part.end.in_process(bias).0);
                let (start, end) = (mapping.start.0.max(part_start), mapping.end.0.min(part_end));
                if start < end {
                    let (first_row, extent) = (part.first_row, part.extent);
                    ranges.push(Range { start, end, bias: part_start, first_row, extent });
                }
            }
        }
        let mut ranges = of_files;
        ranges.append(&mut generated);
        let whole = ranges.len() <= MAX_SEARCHED;
        ranges.truncate(MAX_SEARCHED);
        ranges.sort_unstable_by_key(|range| range.start);
        (ranges, whole)
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
