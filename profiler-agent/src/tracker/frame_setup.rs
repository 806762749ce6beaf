//! Whether code that was generated at run time keeps frame pointers: only then does one lead to its caller.
//! V8, HotSpot, .NET and CPython's trampolines set them up, or, as V8's baseline compiler, leave frames by them;
//! PCRE2, LuaJIT and PostgreSQL's LLVM use the register for something else, which often is the frame pointer of a
//! function far up the stack: its callers would stand where the callers in between belong.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use profiler_common::address::{MonotonicNs, Pid, VirtualAddress};

use super::process::{CodeMapping, Process};

/// How far around an address a function that sets up a frame pointer is looked for, each way: generated
/// functions are seldom larger, and all that one compiler makes are alike.
const NEAR_BYTES: u64 = 32 << 10;
/// Where nothing was found, nothing is looked for again before this time has passed: perhaps the code was not
/// written yet. In as long a time a process is looked at a few times only.
const PAUSE_NS: u64 = 100_000_000;
const MOST_LOOKS: u32 = 16;
/// Bytes that are read where generated code jumps out of that; V8's builtin that leaves a frame has 83.
#[cfg(target_arch = "x86_64")]
const ELSEWHERE_BYTES: u64 = 256;
/// Mappings of one process that are remembered, at most.
const MOST: usize = 4096;

/// What is known of a process's generated code.
#[derive(Debug, Default)]
pub(super) struct FrameSetups(RefCell<Looks>);

#[derive(Debug, Default)]
struct Looks {
    /// By the mapping's first address, and since when it was there.
    seen: HashMap<(VirtualAddress, MonotonicNs), Seen>,
    /// What was found last, in whatever mapping; nobody knows before.
    last: Option<bool>,
    /// When the count began.
    since: MonotonicNs,
    count: u32,
}

#[derive(Clone, Copy, Debug)]
enum Seen {
    Setup,
    /// None, when the code was looked at at that time.
    Nothing(MonotonicNs),
}

impl FrameSetups {
    /// Whether the generated code of `mapping`, one of `process`, keeps frame pointers near `at`, where it goes on, as far
    /// as can be told at `now`.
    /// Where a process has too many mappings to look at each, what was found last holds. It is believed of one that
    /// ended before it was looked at, or may not be read.
    pub(super) fn has(&self, process: &Process, mapping: &CodeMapping, at: VirtualAddress, now: MonotonicNs) -> bool {
        let looks = &mut *self.0.borrow_mut();
        let key = (mapping.start, mapping.since);
        match looks.seen.get(&key) {
            Some(Seen::Setup) => return true,
            Some(Seen::Nothing(at)) if now.0.saturating_sub(at.0) < PAUSE_NS => return false,
            _ => {}
        }
        if !looks.may_look(now) {
            return looks.last.unwrap_or(true);
        }
        let nearby = Nearby::read(process.pid, mapping, at);
        let end_of_code = |target| process.mapping_at(target, now).map(|mapping| mapping.end);
        let found = nearby.map_or(looks.last, |nearby| Some(nearby.keeps_frame_pointers(at, end_of_code)));
        looks.last = found;
        if let Some(found) = found.filter(|_| looks.seen.len() < MOST || looks.seen.contains_key(&key)) {
            looks.seen.insert(key, if found { Seen::Setup } else { Seen::Nothing(now) });
        }
        found.unwrap_or(true)
    }

    /// The process runs another program.
    pub(super) fn forget(&mut self) {
        *self.0.get_mut() = Looks::default();
    }
}

impl Looks {
    fn may_look(&mut self, now: MonotonicNs) -> bool {
        if now.0.saturating_sub(self.since.0) >= PAUSE_NS {
            (self.since, self.count) = (now, 0);
        }
        self.count = self.count.saturating_add(1);
        self.count <= MOST_LOOKS
    }
}

/// The code around an address.
struct Nearby {
    #[cfg(target_arch = "x86_64")]
    memory: Memory,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Nearby {
    fn read(pid: Pid, mapping: &CodeMapping, at: VirtualAddress) -> io::Result<Self> {
        let memory = Memory::open(pid)?;
        let from = mapping.start.0.max(at.0.saturating_sub(NEAR_BYTES)) & !3;
        let until = mapping.end.0.min(at.0.saturating_add(NEAR_BYTES));
        let pieces = memory.pieces(from, until)?;
        Ok(Self {
            #[cfg(target_arch = "x86_64")]
            memory,
            pieces,
        })
    }

    /// `end_of_code` says where the code ends that is at an address, if there is some.
    #[cfg(target_arch = "x86_64")]
    fn keeps_frame_pointers(
        &self,
        at: VirtualAddress,
        end_of_code: impl Fn(VirtualAddress) -> Option<VirtualAddress>,
    ) -> bool {
        let elsewhere = |target| {
            let until = end_of_code(VirtualAddress(target))?.0.min(target.saturating_add(ELSEWHERE_BYTES));
            let first = self.memory.pieces(target, until).ok()?.into_iter().next();
            first.filter(|(from, _code)| *from == target).map(|(_from, code)| code)
        };
        let leaves = |(from, code): &(u64, Vec<u8>)| {
            (*from..from.saturating_add(code.len() as u64)).contains(&at.0)
                && profiler_unwind::leaves_by_frame_pointer((*from, code), at.0, elsewhere)
        };
        self.set_up_frames() || self.pieces.iter().any(leaves)
    }

    #[cfg(target_arch = "aarch64")]
    fn keeps_frame_pointers(
        &self,
        _at: VirtualAddress,
        _end_of_code: impl Fn(VirtualAddress) -> Option<VirtualAddress>,
    ) -> bool {
        self.set_up_frames()
    }

    fn set_up_frames(&self) -> bool {
        self.pieces.iter().any(|(_from, code)| sets_up_a_frame(code))
    }
}

/// A process's memory. Only pages that are there are read: for others the kernel would wait for whoever has to bring
/// them, without end where that is a file system in user space (FUSE) that does not answer.
struct Memory {
    bytes: File,
    pages: File,
}

impl Memory {
    fn open(pid: Pid) -> io::Result<Self> {
        let open = |name| File::open(format!("/proc/{pid}/{name}"));
        Ok(Self { bytes: open("mem")?, pages: open("pagemap")? })
    }

    /// What is there of `[from, until)`, in ascending order, and where each piece begins.
    fn pieces(&self, from: u64, until: u64) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let present = self.present(from, until)?;
        present.into_iter().map(|range| Ok((range.start, self.read(range)?))).collect()
    }

    /// Pages that are there, as far as they belong to `[from, until)`; those next to each other are one range.
    fn present(&self, from: u64, until: u64) -> io::Result<Vec<Range<u64>>> {
        /// 64 bits for each page, of which the highest one says that it is there
        /// (linux/Documentation/admin-guide/mm/pagemap.rst).
        const ENTRY_BYTES: u64 = 8;
        const PRESENT: u64 = 1 << 63;
        let page_bytes = rustix::param::page_size() as u64;
        let first = from / page_bytes;
        let count = until.div_ceil(page_bytes).saturating_sub(first);
        let mut entries = vec![0; usize::try_from(count * ENTRY_BYTES).unwrap_or(0)];
        let length = self.pages.read_at(&mut entries, first * ENTRY_BYTES)?;
        // A process that has ended has no pages (`pagemap_read` in linux/fs/proc/task_mmu.c).
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        entries.truncate(length);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (page, _entry) in
            (first..).zip(entries.as_chunks().0).filter(|(_page, entry)| u64::from_ne_bytes(**entry) & PRESENT != 0)
        {
            let (start, end) = ((page * page_bytes).max(from), (page + 1).saturating_mul(page_bytes).min(until));
            match ranges.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end = end,
                None => ranges.push(start..end),
            }
        }
        Ok(ranges)
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let mut code = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
        let length = self.bytes.read_at(&mut code, range.start)?;
        // Nor has it bytes (`mem_rw` in linux/fs/proc/base.c).
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        code.truncate(length);
        Ok(code)
    }
}

/// `push %rbp` and, as the next instruction, `mov %rsp, %rbp` in either encoding; or, behind what else is saved,
/// `lea X(%rsp), %rbp` (.NET).
#[cfg(target_arch = "x86_64")]
fn sets_up_a_frame(code: &[u8]) -> bool {
    const PUSH_RBP: u8 = 0x55;
    /// Seven pushes of up to two bytes, `sub $X, %rsp`, and what .NET puts in between.
    const BETWEEN_BYTES: usize = 24;
    let moves =
        code.windows(4).any(|bytes| matches!(bytes, [PUSH_RBP, 0x48, 0x89, 0xe5] | [PUSH_RBP, 0x48, 0x8b, 0xec]));
    moves
        || code.windows(4).enumerate().any(|(at, bytes)| {
            matches!(bytes, [0x48, 0x8d, 0x2c | 0x6c | 0xac, 0x24])
                && code[at.saturating_sub(BETWEEN_BYTES)..at].contains(&PUSH_RBP)
        })
}

/// `mov x29, sp` or `add x29, sp, #X`.
#[cfg(target_arch = "aarch64")]
fn sets_up_a_frame(code: &[u8]) -> bool {
    // Arm Architecture Reference Manual, "ADD (immediate)": shift and immediate are bits 10 to 22.
    let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes) & !(0x1fff << 10);
    code.as_chunks().0.iter().any(|bytes| word(bytes) == 0x9100_03fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_looked_at_a_few_times_only() {
        let mut looks = Looks::default();
        let mut may_look = |time_ns: u64| (0..100).filter(|_| looks.may_look(MonotonicNs(time_ns))).count();
        let start = 7 * PAUSE_NS;
        let counts = [start, start + PAUSE_NS - 1, start + PAUSE_NS].map(&mut may_look);
        assert_eq!(counts, [MOST_LOOKS as usize, 0, MOST_LOOKS as usize]);
    }

    #[test]
    fn pages_that_are_not_there_are_not_read() {
        /// So far apart that no huge page holds both, and so much that it is mapped for this test only.
        const APART: usize = 32 << 20;
        let page_bytes = rustix::param::page_size();
        let mut zeroes = vec![0_u8; 3 * APART];
        let touched = zeroes.as_ptr().addr().next_multiple_of(page_bytes) - zeroes.as_ptr().addr() + APART;
        std::hint::black_box(&mut zeroes)[touched + 5] = 7;
        let memory = Memory::open(Pid(std::process::id())).unwrap();
        let first = zeroes.as_ptr().addr() as u64 + touched as u64;
        let page = memory.pieces(first + 5, first + page_bytes as u64).unwrap();
        let [(from, bytes)] = page.as_slice() else { panic!("{} pieces", page.len()) };
        assert_eq!((*from, bytes.len(), bytes[0], bytes[1]), (first + 5, page_bytes - 5, 7, 0));
        let other = first + APART as u64;
        assert_eq!(memory.pieces(other, other + 2 * page_bytes as u64).unwrap(), []);
        // What is not there parts what is.
        std::hint::black_box(&mut zeroes)[touched + APART] = 8;
        let both = memory.present(first, other + 1).unwrap();
        assert_eq!((both.first().unwrap().start, both.last().unwrap()), (first, &(other..other + 1)));
        assert!(both.len() >= 2);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn what_sets_up_a_frame_pointer_is_known() {
        for (code, expected) in [
            (&[0x90, 0x55, 0x48, 0x89, 0xe5, 0xc3][..], true),
            (&[0x55, 0x48, 0x8b, 0xec], true),
            // push rbp; push r15; push rbx; sub $24, rsp; lea 40(rsp), rbp
            (&[0x55, 0x41, 0x57, 0x53, 0x48, 0x83, 0xec, 0x18, 0x48, 0x8d, 0x6c, 0x24, 0x28], true),
            // The same without saving what was there.
            (&[0x41, 0x57, 0x53, 0x48, 0x83, 0xec, 0x18, 0x48, 0x8d, 0x6c, 0x24, 0x28], false),
            // push rbp; push rbx; mov rdi, rbp
            (&[0x55, 0x53, 0x48, 0x89, 0xfd], false),
            // sub $8, rsp; call *rdi; add $8, rsp; ret
            (&[0x48, 0x83, 0xec, 0x08, 0xff, 0xd7, 0x48, 0x83, 0xc4, 0x08, 0xc3], false),
            (&[0x55], false),
            (&[], false),
        ] {
            assert_eq!(sets_up_a_frame(code), expected, "{code:x?}");
        }
    }

    #[cfg(target_arch = "aarch64")]
    #[test]
    fn what_sets_up_a_frame_pointer_is_known() {
        let code = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        for (words, expected) in [
            (&[0xa9bf_7bfd, 0x9100_03fd][..], true),
            (&[0xa9bf_7bfd, 0x9100_43fd], true),
            (&[0xf81f_0ffe, 0x9100_03fc, 0x9100_0bff], false),
            (&[], false),
        ] {
            assert_eq!(sets_up_a_frame(&code(words)), expected, "{words:x?}");
        }
    }
}
