//! Perf's sideband records: executable mappings, exec, fork, exit and BPF code, as they happen.
//!
//! One dummy event a CPU writes them into its own ring; they carry `CLOCK_MONOTONIC` like the
//! samples, so both can be put in order. Layout: "struct perf_event_header" and "enum
//! perf_event_type" in linux/include/uapi/linux/perf_event.h.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::sync::atomic::Ordering;

use profiler_common::address::{FileOffset, MonotonicNs, Pid, Tid, VirtualAddress};

use super::KernelError;
use super::mapped::Mapped;
use super::perf_event::PerfEvent;

/// A file as the kernel names it in a mapping: the device of its file system, inode, generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FileId {
    /// Major number of the device.
    pub device_major: u32,
    /// Minor number of the device.
    pub device_minor: u32,
    /// The inode.
    pub inode: u64,
    /// The inode's generation; 0 where the file system has none.
    pub generation: u64,
}

/// One executable mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The first address.
    pub start: VirtualAddress,
    /// The address after the last one.
    pub end: VirtualAddress,
    /// What of the file is mapped at `start`.
    pub file_offset: FileOffset,
    /// The file; zeroes when there is none.
    pub file: FileId,
    /// The path, as the kernel prints it; `//anon`, `[vdso]` and the like when there is no file.
    pub path: OsString,
}

/// A piece of code that the kernel made of a BPF program, or for one (trampolines, dispatchers).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BpfSymbol {
    /// The first address.
    pub start: VirtualAddress,
    /// The address after the last one.
    pub end: VirtualAddress,
    /// The name, as in /proc/kallsyms.
    pub name: String,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SidebandKind {
    /// Code was mapped into a process.
    Mapped(Mapping),
    /// A process runs another program: all its mappings are gone.
    Exec {
        /// The thread's new name.
        comm: String,
    },
    /// A thread was given another name.
    Renamed {
        /// The new name.
        comm: String,
    },
    /// A thread was made, of the parent's process or of a new one.
    Forked {
        /// The process that made it.
        parent: Pid,
    },
    /// A thread ended.
    Exited,
    /// BPF code was made or removed. Of no process.
    BpfCode(BpfSymbol),
    /// The ring was (nearly) full, or damaged: from `time` on records of this CPU may be missing.
    Gap,
    /// So many records did not fit into the ring. A [`SidebandKind::Gap`] goes before.
    Lost {
        /// How many.
        count: u64,
    },
}

/// A sideband record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidebandEvent {
    /// When it happened.
    pub time: MonotonicNs,
    /// The process.
    pub pid: Pid,
    /// The thread.
    pub tid: Tid,
    /// What happened.
    pub kind: SidebandKind,
}

/// Bytes of one CPU's ring, at most and at least; see the design's bound on all rings together.
const MOST_RING_BYTES: usize = 512 << 10;
const LEAST_RING_BYTES: usize = 32 << 10;
/// A record is smaller than this: a mapping's has 64 bytes, a path of at most `PATH_MAX` bytes, and the
/// trailer (`perf_event_mmap_event` in linux/kernel/events/core.c).
const MOST_RECORD_BYTES: u64 = 4096 + 256;
/// `data_head` and `data_tail` in `struct perf_event_mmap_page`, in words.
const DATA_HEAD: usize = 1024 / 8;
const DATA_TAIL: usize = 1032 / 8;

/// The sideband rings of all CPUs.
pub struct Sideband {
    rings: Vec<Ring>,
}

/// The sideband of one CPU.
struct Ring {
    event: PerfEvent,
    memory: Mapped,
    /// The time of the last record that was read.
    last: MonotonicNs,
}

impl Sideband {
    /// Opens one ring a CPU. All together have at most `most_bytes`, each at least 32 KiB; they are
    /// halved while the kernel refuses (memlock limit).
    pub(super) fn open(cpus: &[u32], most_bytes: usize) -> Result<Self, KernelError> {
        let page_bytes = rustix::param::page_size();
        let mut ring_bytes = MOST_RING_BYTES;
        while ring_bytes > LEAST_RING_BYTES.max(page_bytes) && ring_bytes * cpus.len() > most_bytes {
            ring_bytes /= 2;
        }
        let mut rings = Vec::with_capacity(cpus.len());
        for cpu in cpus {
            let event = PerfEvent::sideband(*cpu)?;
            let ring = loop {
                match Mapped::new(event.fd(), page_bytes + ring_bytes) {
                    Ok(ring) => break ring,
                    Err(refused) if refused.kind() == io::ErrorKind::PermissionDenied && ring_bytes > page_bytes => {
                        ring_bytes /= 2;
                    }
                    Err(source) => return Err(KernelError::System { what: "mmap of a perf ring", source }),
                }
            };
            event.enable()?;
            rings.push(Ring { event, memory: ring, last: MonotonicNs(0) });
        }
        Ok(Self { rings })
    }

    /// The descriptors to wait on.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.rings.iter().map(|ring| ring.event.fd().as_fd())
    }

    /// Bytes of all rings.
    #[must_use]
    pub fn ring_bytes(&self) -> usize {
        self.rings.iter().map(|ring| ring.memory.length_words() * 8).sum()
    }

    /// Whether records wait to be taken.
    #[must_use]
    pub fn has_records(&self) -> bool {
        let word = |ring: &Ring, index| ring.memory.word(index).map(|word| word.load(Ordering::Acquire));
        self.rings.iter().any(|ring| word(ring, DATA_HEAD) != word(ring, DATA_TAIL))
    }

    /// Takes what waits in all rings; in order within each CPU only.
    pub fn drain(&mut self, into: &mut Vec<SidebandEvent>) {
        for ring in &mut self.rings {
            drain_ring(ring, into);
        }
    }
}

/// Takes what waits in one ring.
///
/// The kernel tells of a loss only with the next record that fits. But nothing is lost from a ring with
/// room for the largest record, and only we make room: a ring that is found fuller than that, before
/// we read or after, may have lost something since it got so full.
fn drain_ring(ring: &mut Ring, into: &mut Vec<SidebandEvent>) {
    let memory = &ring.memory;
    let first = rustix::param::page_size() / 8;
    let size = memory.length_words() - first;
    let (Some(head), Some(tail)) = (memory.word(DATA_HEAD), memory.word(DATA_TAIL)) else { return };
    // Acquire pairs with the kernel's write barrier before `data_head`; the release below says that
    // we have read what is before the new tail.
    let end = head.load(Ordering::Acquire);
    let begin = tail.load(Ordering::Relaxed);
    let full_from = begin + (size as u64 * 8).saturating_sub(MOST_RECORD_BYTES);
    let word = |position: u64| memory.load(first + (position / 8) as usize % size);
    let gap = |time| SidebandEvent { time, pid: Pid(0), tid: Tid(0), kind: SidebandKind::Gap };
    let mut record = Vec::with_capacity(64);
    let (mut at, mut told) = (begin, false);
    while at < end {
        let length = (word(at) >> 48) as usize;
        if length < 8 || length as u64 > end - at {
            // Not as the kernel writes it: as if the rest were lost.
            into.push(gap(ring.last));
            break;
        }
        record.clear();
        record.extend((0..length.div_ceil(8) as u64).flat_map(|index| word(at + index * 8).to_ne_bytes()));
        at += length as u64;
        let event = decode(&record);
        let lost = event.as_ref().is_some_and(|event| matches!(event.kind, SidebandKind::Lost { .. }));
        if (at > full_from || lost) && !told {
            told = true;
            into.push(gap(ring.last));
        }
        ring.last = record_time(&record).unwrap_or(ring.last);
        into.extend(event);
    }
    if head.load(Ordering::Acquire) > full_from && !told {
        into.push(gap(ring.last));
    }
    tail.store(end, Ordering::Release);
}

/// When any record was written, whatever its kind: in its trailer.
fn record_time(record: &[u8]) -> Option<MonotonicNs> {
    whole(record, record.len().checked_sub(TRAILER_BYTES)? + 8).map(MonotonicNs)
}

const RECORD_LOST: u32 = 2;
const RECORD_COMM: u32 = 3;
const RECORD_EXIT: u32 = 4;
const RECORD_FORK: u32 = 7;
const RECORD_MMAP2: u32 = 10;
const RECORD_KSYMBOL: u32 = 17;
/// `PERF_RECORD_KSYMBOL_TYPE_BPF`.
const KSYMBOL_TYPE_BPF: u32 = 1;
const MISC_COMM_EXEC: u16 = 1 << 13;
const PROT_EXEC: u32 = 4;
/// The trailer of every record: pid, tid, time, cpu, reserved.
const TRAILER_BYTES: usize = 24;

/// Decodes one record; `None` for kinds that we do not use and for what is too short.
fn decode(record: &[u8]) -> Option<SidebandEvent> {
    let kind = half(record, 0)?;
    let misc = (half(record, 4)? & 0xffff) as u16;
    let body_end = record.len().checked_sub(TRAILER_BYTES)?;
    let time = record_time(record)?;
    let body = record.get(8..body_end)?;
    let (pid, tid) = (Pid(half(body, 0)?), Tid(half(body, 4)?));
    let event = |pid, tid, kind| Some(SidebandEvent { time, pid, tid, kind });
    match kind {
        RECORD_MMAP2 => {
            if half(body, 56)? & PROT_EXEC == 0 {
                return None;
            }
            event(pid, tid, SidebandKind::Mapped(mapping(body)?))
        }
        RECORD_COMM => {
            let comm = String::from_utf8_lossy(until_nul(body.get(8..)?)).into_owned();
            let exec = misc & MISC_COMM_EXEC != 0;
            event(pid, tid, if exec { SidebandKind::Exec { comm } } else { SidebandKind::Renamed { comm } })
        }
        // pid, ppid, tid, ptid
        RECORD_FORK => event(pid, Tid(half(body, 8)?), SidebandKind::Forked { parent: Pid(half(body, 4)?) }),
        RECORD_EXIT => event(pid, Tid(half(body, 8)?), SidebandKind::Exited),
        RECORD_KSYMBOL => event(Pid(0), Tid(0), SidebandKind::BpfCode(bpf_symbol(body)?)),
        RECORD_LOST => event(Pid(0), Tid(0), SidebandKind::Lost { count: whole(body, 8)? }),
        _ => None,
    }
}

fn mapping(body: &[u8]) -> Option<Mapping> {
    let (start, length) = (whole(body, 8)?, whole(body, 16)?);
    Some(Mapping {
        start: VirtualAddress(start),
        end: VirtualAddress(start.checked_add(length)?),
        file_offset: FileOffset(whole(body, 24)?),
        file: FileId {
            device_major: half(body, 32)?,
            device_minor: half(body, 36)?,
            inode: whole(body, 40)?,
            generation: whole(body, 48)?,
        },
        path: OsString::from_vec(until_nul(body.get(64..)?).to_vec()),
    })
}

/// Address, length, type and flags of 16 bits each, name.
fn bpf_symbol(body: &[u8]) -> Option<BpfSymbol> {
    let (start, length) = (whole(body, 0)?, half(body, 8)?);
    if half(body, 12)? & 0xffff != KSYMBOL_TYPE_BPF || length == 0 {
        return None;
    }
    let (start, end) = (VirtualAddress(start), VirtualAddress(start.checked_add(length.into())?));
    let name = String::from_utf8_lossy(until_nul(body.get(16..)?)).into_owned();
    (!name.is_empty()).then_some(BpfSymbol { start, end, name })
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn whole(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u32, misc: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.extend(misc.to_ne_bytes());
        bytes.extend(body);
        for word in [7 | 8 << 32, 55, 1] {
            bytes.extend(u64::to_ne_bytes(word));
        }
        bytes
    }

    fn mmap2(prot: u32) -> Vec<u8> {
        let mut body = Vec::new();
        for word in [7 | 8 << 32, 0x1000, 0x2000, 0x3000, 8 | 1 << 32, 42, 9, u64::from(prot)] {
            body.extend(u64::to_ne_bytes(word));
        }
        body.extend(b"/lib/a.so\0\0\0\0\0\0\0");
        record(RECORD_MMAP2, 0, &body)
    }

    #[test]
    fn executable_mappings_are_decoded_and_others_skipped() {
        let event = decode(&mmap2(5)).unwrap();
        assert_eq!((event.time, event.pid, event.tid), (MonotonicNs(55), Pid(7), Tid(8)));
        let file = FileId { device_major: 8, device_minor: 1, inode: 42, generation: 9 };
        let path = OsString::from("/lib/a.so");
        let (start, end, file_offset) = (VirtualAddress(0x1000), VirtualAddress(0x3000), FileOffset(0x3000));
        assert_eq!(event.kind, SidebandKind::Mapped(Mapping { start, end, file_offset, file, path }));
        assert_eq!(decode(&mmap2(3)), None);
    }

    #[test]
    fn exec_is_told_from_a_new_name() {
        let mut body = (7 | 8u64 << 32).to_ne_bytes().to_vec();
        body.extend(b"sleep\0\0\0");
        let comm = "sleep".to_owned();
        let kind = |misc| decode(&record(RECORD_COMM, misc, &body)).unwrap().kind;
        assert_eq!(kind(u32::from(MISC_COMM_EXEC)), SidebandKind::Exec { comm: comm.clone() });
        assert_eq!(kind(0), SidebandKind::Renamed { comm });
    }

    #[test]
    fn bpf_code_is_told_by_name() {
        let symbol = |kind: u32| {
            let mut body = 0xffff_ffff_c000_1000_u64.to_ne_bytes().to_vec();
            body.extend(0x80_u32.to_ne_bytes());
            body.extend((kind | 1 << 16).to_ne_bytes());
            body.extend(b"bpf_prog_0123_x\0");
            decode(&record(RECORD_KSYMBOL, 0, &body)).map(|event| event.kind)
        };
        let (start, end) = (VirtualAddress(0xffff_ffff_c000_1000), VirtualAddress(0xffff_ffff_c000_1080));
        let name = "bpf_prog_0123_x".to_owned();
        assert_eq!(symbol(KSYMBOL_TYPE_BPF), Some(SidebandKind::BpfCode(BpfSymbol { start, end, name })));
        assert_eq!(symbol(2), None);
    }

    #[test]
    fn cut_records_are_no_events() {
        let whole = mmap2(5);
        for cut in 0..64 {
            assert_eq!(decode(&whole[..cut]), None);
        }
    }
}
