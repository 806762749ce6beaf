//! Room for tables: the least recently used ones make it. A table is in use when samples have frames
//! in its executable, whether processes have that mapped or not.

use std::collections::HashSet;

use profiler_common::address::MonotonicNs;
use profiler_common::counter::Counter;
use profiler_unwind::UnwindTable;

use super::Tracker;
use super::executable::{PlacedPart, Unwinding};
use crate::clock;
use crate::worker::FileKey;

/// How long a table stays after the last sample that needed it. Where more than fits is in use at once,
/// tables stay and others have none, rather than that all are built over and over.
const IN_USE_NS: u64 = 5_000_000_000;

/// The same where nobody runs the executable any more.
const IN_USE_UNMAPPED_NS: u64 = 1_000_000_000;

/// How long a table that found no room is not tried again.
const NO_ROOM_NS: u64 = 5_000_000_000;

/// The part of all rows that is made free at once, if it is not in use, so that the next tables do not
/// have to wait for the quarantine again: a sixteenth.
const AT_ONCE: u64 = 16;

impl Tracker {
    /// Places a table that was built, at once or when the rows that others give up for it are free.
    pub(super) fn make_room(&mut self, key: FileKey, table: UnwindTable) {
        let now = clock::monotonic();
        self.placement.expire(now);
        if let Some(parts) = self.place(&table) {
            return self.unwind_with(key, Unwinding::Placed(parts));
        }
        let rows = table.row_count() as u64;
        let is_needed =
            self.executables.get(key).is_some_and(|executable| executable.last_used.get() != MonotonicNs(0));
        if !is_needed {
            // It was built in advance. Should a sample need it, it is built again.
            self.unwind_with(key, Unwinding::Unasked);
        } else if rows > self.rows_to_be_had(now) {
            self.unwind_with(key, no_room(now));
        } else {
            self.evict(rows, now);
            self.held.push((key, table));
        }
    }

    /// Places the tables that wait, as far as there is room by now.
    pub(super) fn place_held(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let now = clock::monotonic();
        self.placement.expire(now);
        for (key, table) in std::mem::take(&mut self.held) {
            if let Some(parts) = self.place(&table) {
                self.unwind_with(key, Unwinding::Placed(parts));
            } else if self.placement.rows_in_quarantine() > 0 {
                self.held.push((key, table));
            } else {
                // Enough rows, but not in pieces of this length.
                self.unwind_with(key, no_room(now));
            }
        }
    }

    /// The rows that are free, will be or can be made free.
    pub(super) fn rows_to_be_had(&self, now: MonotonicNs) -> u64 {
        let unused: u64 = self.unused(now).into_iter().map(|(_used, _key, rows)| rows).sum();
        (self.placement.free_rows() + self.placement.rows_in_quarantine() + unused).saturating_sub(self.rows_held())
    }

    /// Whether tables are built before a sample needs them.
    pub(super) fn has_room_in_advance(&self) -> bool {
        self.placement.free_rows() >= self.placement.row_capacity() / AT_ONCE
    }

    fn rows_held(&self) -> u64 {
        self.held.iter().map(|(_key, table)| table.row_count() as u64).sum()
    }

    fn place(&mut self, table: &UnwindTable) -> Option<Vec<PlacedPart>> {
        if table.row_count() as u64 > self.placement.free_rows() {
            return None;
        }
        let mut placed = Vec::with_capacity(table.parts.len());
        for part in &table.parts {
            match self.placement.place(part.start, part.end.0 - part.start.0, &part.rows) {
                Some(part) => placed.push(part),
                None => {
                    self.placement.give_back_rows(&placed);
                    return None;
                }
            }
        }
        Some(placed)
    }

    /// Gives up the tables that were not used for the longest time, until `rows` more will be free.
    fn evict(&mut self, rows: u64, now: MonotonicNs) {
        let free = self.placement.free_rows();
        // So many are free, but not in pieces that are long enough.
        let in_pieces = if free >= rows { free } else { 0 };
        let wanted = rows.max(self.placement.row_capacity() / AT_ONCE) + self.rows_held() + in_pieces;
        let mut free = free + self.placement.rows_in_quarantine();
        let mut released = Vec::new();
        for (_used, key, _rows) in self.unused(now) {
            if free >= wanted {
                break;
            }
            let Some(executable) = self.executables.get_mut(key) else { continue };
            if let Unwinding::Placed(parts) = &mut executable.unwinding {
                released.append(parts);
                free += executable.row_count;
                executable.unwinding = Unwinding::Unasked;
                self.counts.add(Counter::TablesEvicted, 1);
                for process in self.processes.values_mut() {
                    process.dirty |= process.maps(key);
                }
            }
        }
        self.publish();
        self.withdraw_stale();
        self.placement.release_rows(&released, now);
    }

    /// The tables with rows of their own that no sample needed lately: when they were used last, whose they
    /// are, how many rows. The one that was not used for the longest time comes first.
    fn unused(&self, now: MonotonicNs) -> Vec<(MonotonicNs, FileKey, u64)> {
        let running = self.processes.values().filter(|process| process.ended.is_none());
        let mapped: HashSet<FileKey> = running.flat_map(|process| process.live().map(|code| code.file)).collect();
        let stays_ns = |key: &FileKey| if mapped.contains(key) { IN_USE_NS } else { IN_USE_UNMAPPED_NS };
        let own = self.executables.iter().filter(|(_key, executable)| executable.has_own_rows());
        let mut unused: Vec<_> = own
            .map(|(key, executable)| (executable.last_used.get(), key, executable.row_count))
            .filter(|(used, key, _rows)| now.0.saturating_sub(used.0) > stays_ns(key))
            .collect();
        unused.sort_unstable_by_key(|(used, key, _rows)| (*used, key.0));
        unused
    }

    /// Takes from the kernel the ranges of processes that could not be written anew: they may lead to
    /// rows that are given up. Their stacks are unwound from copies until they are published.
    fn withdraw_stale(&mut self) {
        let now = clock::monotonic();
        for process in self.processes.values_mut().filter(|process| process.dirty) {
            self.placement.remove_process(process.pid);
            self.placement.release_slot(process.slot.take(), now);
        }
    }
}

/// Not before what was given up for it is free.
fn no_room(now: MonotonicNs) -> Unwinding {
    Unwinding::NoRoom { retry_from: MonotonicNs(now.0 + NO_ROOM_NS) }
}
