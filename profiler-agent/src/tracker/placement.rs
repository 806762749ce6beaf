//! What is where in the kernel's tables.

use profiler_common::address::{MonotonicNs, Pid, Svma};
use profiler_common::limits::{RANGES_PER_CHUNK, ROWS_PER_CHUNK};
use profiler_common::range::{ProcessEntry, Range};
use profiler_common::row::Row;
use profiler_common::search::Extent;

use super::executable::PlacedPart;
use super::process::Slot;
use super::space::Space;
use crate::clock;
use crate::kernel::Tables;

/// The kernel's tables, and which pieces of them are taken.
pub(crate) struct Placement {
    tables: Tables,
    rows: Space,
    ranges: Space,
    next_generation: u32,
}

impl Placement {
    pub(crate) fn new(tables: Tables) -> Self {
        let row_chunks = u32::try_from(tables.row_capacity() / ROWS_PER_CHUNK).unwrap_or(1);
        #[expect(clippy::cast_possible_truncation, reason = "constants below 2^32")]
        let (rows_per_chunk, ranges) = (ROWS_PER_CHUNK as u32, RANGES_PER_CHUNK as u32);
        let rows = Space::new(row_chunks, rows_per_chunk);
        Self { tables, rows, ranges: Space::new(1, ranges), next_generation: 1 }
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Writes the rows for `length` addresses from `start` on; `None` when there is no room.
    pub(crate) fn place(&mut self, start: Svma, length: u64, rows: &[Row]) -> Option<PlacedPart> {
        let extent = Extent::new(rows.len())?;
        let first_row = self.rows.take(extent.count())?;
        self.tables.write_rows(first_row, rows);
        Some(PlacedPart { start, end: Svma(start.0 + length), first_row, extent })
    }

    /// Gives rows back that are in no range of any process.
    pub(crate) fn release_rows(&mut self, parts: &[PlacedPart], now: MonotonicNs) {
        for part in parts {
            self.rows.release(now, part.first_row, part.extent.count());
        }
    }

    /// Gives rows back that never were in a range.
    pub(crate) fn give_back_rows(&mut self, parts: &[PlacedPart]) {
        for part in parts {
            self.rows.give_back(part.first_row, part.extent.count());
        }
    }

    pub(crate) fn free_rows(&self) -> u64 {
        self.rows.free()
    }

    /// Rows that are free after the quarantine.
    pub(crate) fn rows_in_quarantine(&self) -> u64 {
        self.rows.in_quarantine()
    }

    /// Rows in all.
    pub(crate) fn row_capacity(&self) -> u64 {
        self.tables.row_capacity() as u64
    }

    /// Makes the kernel unwind the process with these ranges; without any it forgets the process.
    /// With `whole_stack` its records have the stack that the sample began with. Returns where they are and the
    /// number of this state; `None` when there are none, or no room for them: then what was published before stays.
    pub(crate) fn publish(&mut self, pid: Pid, ranges: &[Range], whole_stack: bool) -> Option<(Slot, u32)> {
        if ranges.is_empty() {
            self.tables.remove_process(pid);
            return None;
        }
        self.write(pid, ranges, whole_stack)
    }

    /// Whether the kernel has a table for the process.
    pub(crate) fn has_process(&self, pid: Pid) -> bool {
        self.tables.has_process(pid)
    }

    fn write(&mut self, pid: Pid, ranges: &[Range], whole_stack: bool) -> Option<(Slot, u32)> {
        let extent = Extent::new(ranges.len())?;
        let length = extent.count() + 1;
        let start = self.ranges.take(length).or_else(|| {
            self.ranges.expire(clock::monotonic());
            self.ranges.take(length)
        })?;
        let slot = Slot { start, length };
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1).max(1);
        let first_range = slot.start + 1;
        let entry = ProcessEntry { first_range, extent, generation, whole_stack: whole_stack.into() };
        self.tables.write_ranges(pid, &entry, ranges);
        if self.tables.set_process(pid, entry).is_err() {
            // No walk can have found it.
            self.ranges.give_back(slot.start, slot.length);
            return None;
        }
        Some((slot, generation))
    }

    pub(crate) fn remove_process(&mut self, pid: Pid) {
        self.tables.remove_process(pid);
    }

    pub(crate) fn release_slot(&mut self, slot: Option<Slot>, now: MonotonicNs) {
        if let Some(slot) = slot {
            self.ranges.release(now, slot.start, slot.length);
        }
    }

    /// Frees what was released long enough ago.
    pub(crate) fn expire(&mut self, now: MonotonicNs) {
        self.rows.expire(now);
        self.ranges.expire(now);
    }
}
