//! Whether code that was generated at run time keeps frame pointers: only then does one lead to its caller.
//! V8, HotSpot, .NET and CPython's trampolines set them up, or, as V8's baseline compiler, leave frames by them;
//! PCRE2, LuaJIT and PostgreSQL's LLVM use the register for something else, which often is the frame pointer of a
//! function far up the stack: its callers would stand where the callers in between belong.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
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
    memory: File,
    from: u64,
    code: Vec<u8>,
}

impl Nearby {
    fn read(pid: Pid, mapping: &CodeMapping, at: VirtualAddress) -> io::Result<Self> {
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let from = mapping.start.0.max(at.0.saturating_sub(NEAR_BYTES)) & !3;
        let until = mapping.end.0.min(at.0.saturating_add(NEAR_BYTES));
        let code = read(&memory, from, usize::try_from(until.saturating_sub(from)).unwrap_or(0))?;
        // The memory of a process that has ended has no bytes (`mem_rw` in linux/fs/proc/base.c).
        if code.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(Self { memory, from, code }) }
    }

    /// `end_of_code` says where the code ends that is at an address, if there is some.
    #[cfg(target_arch = "x86_64")]
    fn keeps_frame_pointers(
        &self,
        at: VirtualAddress,
        end_of_code: impl Fn(VirtualAddress) -> Option<VirtualAddress>,
    ) -> bool {
        let elsewhere = |target| {
            let bytes = end_of_code(VirtualAddress(target))?.0.saturating_sub(target).min(ELSEWHERE_BYTES);
            read(&self.memory, target, bytes as usize).ok()
        };
        sets_up_a_frame(&self.code)
            || profiler_unwind::leaves_by_frame_pointer((self.from, &self.code), at.0, elsewhere)
    }

    #[cfg(target_arch = "aarch64")]
    fn keeps_frame_pointers(
        &self,
        _at: VirtualAddress,
        _end_of_code: impl Fn(VirtualAddress) -> Option<VirtualAddress>,
    ) -> bool {
        sets_up_a_frame(&self.code)
    }
}

/// What is there of so many bytes, up to the first page that is not.
fn read(memory: &File, from: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut code = vec![0; bytes];
    let length = memory.read_at(&mut code, from)?;
    code.truncate(length);
    Ok(code)
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
