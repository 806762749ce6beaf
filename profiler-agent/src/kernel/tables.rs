//! The kernel's tables of rows, ranges and processes: the only place that writes them.

use std::os::fd::AsFd as _;

use aya::maps::{HashMap, Map, MapData};
use aya::{Ebpf, Pod};
use profiler_common::address::{MonotonicNs, Pid};
use profiler_common::limits::CHUNK_BYTES;
use profiler_common::range::{ProcessEntry, Range, table_header};
use profiler_common::row::Row;

use super::KernelError;
use super::mapped::Mapped;

/// A process entry, as bytes for the kernel.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Entry(ProcessEntry);
// SAFETY: four `u32` under `repr(C)` and `repr(transparent)`: any bytes are a value, no padding.
unsafe impl Pod for Entry {}

/// Rows, ranges and process entries, as the sampling program reads them.
pub struct Tables {
    rows: Mapped,
    ranges: Mapped,
    processes: HashMap<MapData, u32, Entry>,
    execs: HashMap<MapData, u32, u64>,
}

impl Tables {
    pub(super) fn new(ebpf: &mut Ebpf, row_chunks: u32) -> Result<Self, KernelError> {
        let rows = map_chunks(ebpf, "ROWS", row_chunks as usize)?;
        let ranges = map_chunks(ebpf, "RANGES", 1)?;
        let processes = HashMap::try_from(take(ebpf, "PROCESSES")?).map_err(map_error("PROCESSES"))?;
        let execs = HashMap::try_from(take(ebpf, "EXECS")?).map_err(map_error("EXECS"))?;
        Ok(Self { rows, ranges, processes, execs })
    }

    /// Rows that fit in all chunks.
    #[must_use]
    pub fn row_capacity(&self) -> usize {
        self.rows.length_words()
    }

    /// Writes rows from `first_row` on. They must be in no range that the kernel can reach.
    pub fn write_rows(&self, first_row: u32, rows: &[Row]) {
        self.rows.store(first_row as usize, rows.iter().map(|row| row.0));
    }

    /// The row at `index`, as the kernel sees it.
    #[must_use]
    pub fn row(&self, index: u64) -> Row {
        Row(usize::try_from(index).map_or(0, |index| self.rows.load(index)))
    }

    /// Writes the range table of a process to where `entry` says, its header in the slot before. The
    /// slots must be in no process entry.
    pub fn write_ranges(&self, pid: Pid, entry: &ProcessEntry, ranges: &[Range]) {
        let [owner, length] = table_header(pid.0, entry);
        let words = [owner, length, 0, 0].into_iter().chain(ranges.iter().flat_map(|range| range.to_words()));
        self.ranges.store((entry.first_range as usize).saturating_sub(1) * 4, words);
    }

    /// Makes the kernel use this table for the process from now on.
    ///
    /// # Errors
    /// When the kernel refuses (the map of processes is full).
    pub fn set_process(&mut self, pid: Pid, entry: ProcessEntry) -> Result<(), KernelError> {
        self.processes.insert(pid.0, Entry(entry), 0).map_err(map_error("PROCESSES"))
    }

    /// Whether the kernel has a table for the process.
    #[must_use]
    pub fn has_process(&self, pid: Pid) -> bool {
        self.processes.get(&pid.0, 0).is_ok()
    }

    /// When the process last began to run another program, if that was in the last moments.
    #[must_use]
    pub fn last_exec(&self, pid: Pid) -> Option<MonotonicNs> {
        self.execs.get(&pid.0, 0).ok().map(MonotonicNs)
    }

    /// Makes the kernel forget the process. That it is not there is no error.
    pub fn remove_process(&mut self, pid: Pid) {
        let _not_there = self.processes.remove(&pid.0);
    }
}

/// The processes to sample.
pub struct Followed {
    map: HashMap<MapData, u32, u32>,
}

impl Followed {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self { map: HashMap::try_from(take(ebpf, "FOLLOWED")?).map_err(map_error("FOLLOWED"))? })
    }

    /// Samples the process from now on.
    ///
    /// # Errors
    /// When the kernel refuses (the map is full).
    pub fn follow(&mut self, pid: Pid) -> Result<(), KernelError> {
        self.map.insert(pid.0, 1, 0).map_err(map_error("FOLLOWED"))
    }

    /// Samples the process from its next exec on.
    ///
    /// # Errors
    /// When the kernel refuses (the map is full).
    pub fn follow_from_exec(&mut self, pid: Pid) -> Result<(), KernelError> {
        self.map.insert(pid.0, 0, 0).map_err(map_error("FOLLOWED"))
    }

    /// Leaves out its samples, or takes them again, until its next exec: from then on they are taken. Its children are
    /// sampled whatever is said of it. What has ended stays forgotten.
    pub fn pause(&mut self, pid: Pid, pause: bool) {
        /// `BPF_EXIST` (linux/include/uapi/linux/bpf.h).
        const EXIST: u64 = 2;
        let _ended = self.map.insert(pid.0, u32::from(!pause), EXIST);
    }

    /// Samples the process no longer.
    pub fn forget(&mut self, pid: Pid) {
        let _ended = self.map.remove(&pid.0);
    }

    /// Whether the process is sampled, or will be from its next exec on.
    #[must_use]
    pub fn contains(&self, pid: Pid) -> bool {
        self.map.get(&pid.0, 0).is_ok()
    }
}

pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, KernelError> {
    ebpf.take_map(name).ok_or_else(|| KernelError::Map { map: name, message: "not in the object".to_owned() })
}

pub(super) fn map_error<E: std::error::Error>(map: &'static str) -> impl Fn(E) -> KernelError {
    move |error| KernelError::Map { map, message: super::error::chain(&error) }
}

/// Maps an array of `count` chunks into our memory; the array itself lives on in the programs.
fn map_chunks(ebpf: &mut Ebpf, name: &'static str, count: usize) -> Result<Mapped, KernelError> {
    let Map::Array(array) = take(ebpf, name)? else {
        return Err(KernelError::Map { map: name, message: "not an array".to_owned() });
    };
    Mapped::new(array.fd().as_fd(), count * CHUNK_BYTES)
        .map_err(|source| KernelError::System { what: "mmap of a BPF array", source })
}
