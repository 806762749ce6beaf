//! One file that processes run: which it is, and what is known of it.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use profiler_common::address::{Bias, FileOffset, MonotonicNs, Pid, Svma, VirtualAddress};
use profiler_common::row::{Row, Rule};
use profiler_common::search::{Extent, last_at_most};
use profiler_common::step::NoBarrier;
use profiler_unwind::{Segment, bias_of_mapping};

use super::executables::TRAMPOLINES;
use super::open::{Presence, is_mapped, unchanged_since};
use crate::clock;
use crate::debug_files::Place;
use crate::kernel::Tables;
use crate::kernel::sideband::Mapping;
use crate::worker::{ContentsDigest, FileKey};

/// Which file it is, whatever its name. A file that was written again is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    size_bytes: u64,
    /// When its contents or its inode were last changed (ctime).
    changed: (i64, u64),
    /// When its contents were last changed (mtime).
    modified: (i64, u64),
}

/// A piece of an executable's table, where the kernel reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlacedPart {
    pub(crate) start: Svma,
    pub(crate) end: Svma,
    pub(crate) first_row: u32,
    pub(crate) extent: Extent,
}

/// What is known of an executable's unwind table.
#[derive(Debug)]
pub(crate) enum Unwinding {
    /// Nobody needed it yet, or it made room for others.
    Unasked,
    /// The worker builds it, or it waits for the room that others made.
    Waiting,
    /// The kernel has it.
    Placed(Vec<PlacedPart>),
    /// There is no room for it now.
    NoRoom {
        /// When it is tried again.
        retry_from: MonotonicNs,
    },
    /// There is none.
    Missing,
}

/// A file that processes run.
#[derive(Debug)]
pub(crate) struct Executable {
    /// The path under which it was first seen, or a name in brackets.
    pub(crate) path: String,
    /// The GNU build id in hex; empty when there is none.
    pub(crate) build_id: String,
    /// Kept open while it is mapped and a little longer.
    pub(crate) file: Option<Arc<OwnedFd>>,
    /// Where it is for a process that has it mapped; `None` where no such process could be asked in time. A
    /// root directory that is not ours is kept as long as `file`.
    pub(super) place: Option<Place>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) unwinding: Unwinding,
    /// Made at run time: memory without a file, or of a file that is no program.
    pub(crate) generated: bool,
    /// Its table once found no room: that was counted.
    pub(crate) lacked_room: bool,
    /// Rows of its table, whether it is placed or not; 0 before it was built.
    pub(crate) row_count: u64,
    /// The time of the last sample with a frame in it, or that waited for its table.
    pub(crate) last_used: Cell<MonotonicNs>,
    /// Known of small files whose table was built.
    pub(crate) contents: Option<ContentsDigest>,
    /// Since when no process has it mapped.
    pub(crate) idle_since: Option<MonotonicNs>,
    pub(super) identity: Option<Identity>,
    /// From when and up to when the file is known to have been what `identity` says.
    pub(super) known: Cell<(MonotonicNs, MonotonicNs)>,
}

impl Identity {
    pub(super) fn of(file: &impl AsFd) -> Option<Self> {
        let stat = rustix::fs::fstat(file).ok()?;
        Some(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size_bytes: stat.st_size.unsigned_abs(),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
        })
    }

    /// From when on what a process has or had mapped is this, as it was found a moment ago; `None` when that may have
    /// been written there later.
    pub(super) fn holds_from(&self, presence: Presence, pid: Pid, mapping: &Mapping) -> Option<MonotonicNs> {
        let (since, at) = (unchanged_since(self.changed), presence.from);
        if since < at {
            return Some(since);
        }
        let on_our_clock = |(seconds, nanoseconds)| clock::monotonic_at(seconds, nanoseconds);
        let changed = on_our_clock(self.changed);
        let is_written_later = changed > at && changed <= clock::monotonic() && on_our_clock(self.modified) > at;
        // A program can't be written to while it runs; of a library the process sees what is written to it.
        (!is_written_later && (since < presence.to || is_mapped(pid, mapping))).then_some(at)
    }
}

impl Executable {
    /// Where it is, to look for what belongs to it; nowhere when that is not known.
    pub(crate) fn place(&self) -> Place {
        self.place.clone().unwrap_or_default()
    }

    /// Whether the open file was `at` that time what it was when it was opened.
    pub(super) fn is_unchanged(&self, at: MonotonicNs) -> bool {
        let (since, until) = self.known.get();
        if at < since || at <= until {
            return at >= since;
        }
        let now = clock::monotonic();
        let unchanged = self.identity.is_some() && self.file.as_ref().and_then(Identity::of) == self.identity;
        if unchanged {
            self.known.set((since, now));
        }
        unchanged
    }

    /// Whether the executable's file, which somebody may have kept open for longer, has other contents than it had when
    /// it was opened: what is read of it now is not what runs, or ran. Linking and unlinking change nothing.
    pub(super) fn is_rewritten(&self, file: &OwnedFd) -> bool {
        let contents = |identity: Identity| (identity.size_bytes, identity.modified);
        let now = Identity::of(file).map(contents);
        now.zip(self.identity.map(contents)).is_some_and(|(now, then)| now != then)
    }

    /// What is added to this file's addresses where `start` shows `file_offset`.
    ///
    /// Without segments (no ELF, or unreadable) addresses count from the start of the mapping.
    pub(crate) fn bias(&self, start: VirtualAddress, file_offset: FileOffset) -> Bias {
        let page_bytes = rustix::param::page_size() as u64;
        bias_of_mapping(&self.segments, start, file_offset, page_bytes).unwrap_or(Bias(start.0))
    }

    /// Whether its table is yet to come.
    pub(crate) fn is_awaited(&self) -> bool {
        matches!(self.unwinding, Unwinding::Unasked | Unwinding::Waiting)
    }

    /// Whether what its addresses mean is yet to come: it does with its first table.
    pub(crate) fn is_unread(&self) -> bool {
        self.is_awaited() && self.row_count == 0
    }

    /// A sample of this time has a frame in it.
    pub(crate) fn used_at(&self, time: MonotonicNs) {
        self.last_used.set(self.last_used.get().max(time));
    }

    /// Whether it is code made at run time that is unwound by the frame pointer.
    pub(crate) fn is_unwound_by_frame_pointer(&self, key: FileKey) -> bool {
        self.generated && key != TRAMPOLINES
    }

    /// Whether its table takes rows of its own; generated code shares one.
    pub(crate) fn has_own_rows(&self) -> bool {
        matches!(self.unwinding, Unwinding::Placed(_)) && self.row_count > 0
    }

    /// The rule for `address`, read from where the kernel reads it.
    pub(crate) fn rule(&self, address: Svma, tables: &Tables) -> Option<Rule> {
        let Unwinding::Placed(parts) = &self.unwinding else { return None };
        let part = parts.get(parts.partition_point(|part| part.end <= address))?;
        let offset = address.0.checked_sub(part.start.0)?;
        let row = |index| tables.row(u64::from(part.first_row) + index);
        let found = last_at_most::<NoBarrier>(part.extent, Row::search_key(offset), |index| row(index).0);
        Some(row(found).rule())
    }
}
