//! From a raw sample to one whose frames are places in files: unwinding goes on where the kernel
//! program had no table yet, and what was unwound with stale tables is unwound anew, or cut.

use profiler_common::address::{MonotonicNs, Pid, VirtualAddress};
use profiler_common::limits::MAX_USER_FRAMES;
use profiler_common::record::{FRAME_ADDRESS, FRAME_BY_FRAME_POINTER, FRAME_EXACT, Sample, SampleHeader, StopReason};
use profiler_common::row::Rule;
use profiler_common::step::{Machine, NoBarrier, Registers, stop_reason};
use profiler_model::FoundBy;

use crate::tracker::{Code, TrackedProcess, Tracker};
use crate::worker::FileKey;

/// A user frame and the code that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LocatedFrame {
    /// The address to look up: the pc, or inside the call before a return address.
    pub(crate) address: VirtualAddress,
    /// The code; `None` when nothing executable is known there.
    pub(crate) code: Option<Code>,
    /// How the step that led here was made.
    pub(crate) found_by: FoundBy,
}

/// A sample whose frames are located.
#[derive(Debug)]
pub(crate) struct LocatedSample {
    pub(crate) header: SampleHeader,
    /// Addresses to look up, leaf first.
    pub(crate) kernel_frames: Vec<VirtualAddress>,
    /// Leaf first.
    pub(crate) user_frames: Vec<LocatedFrame>,
    /// Why the user stack ends where it ends.
    pub(crate) stop: StopReason,
}

/// Locates a sample. With `give_up` it makes do with what there is.
///
/// # Errors
/// With the file whose table it has to wait for.
pub(crate) fn locate(sample: &Sample<'_>, tracker: &Tracker, give_up: bool) -> Result<LocatedSample, FileKey> {
    let header = sample.header;
    let mut frames = sample.user_frames.to_vec();
    let mut stop = header.stop;
    let process = tracker.process(header.pid);
    if let Some(process) = process {
        let stale = frames.iter().position(|frame| is_stale(process, &header, *frame));
        let begins_anew = header.whole_stack && !sample.stack.is_empty();
        if let (Some(stale), false) = (stale, begins_anew) {
            frames.truncate(stale + 1);
            stop = StopReason::MappingChanged;
        } else if stale.is_some() || stop.can_go_on() {
            if begins_anew {
                frames.truncate(1);
            }
            stop = match go_on(sample, tracker, process, &mut frames) {
                // The kernel went further, by tables that did not hold any more.
                GoneOn::Stopped(StopReason::StackCopyEnded) if stale.is_some() => StopReason::MappingChanged,
                GoneOn::Stopped(stop) => stop,
                GoneOn::NeedsTable(_file) if give_up => StopReason::NoUnwindTable,
                GoneOn::NeedsTable(file) => return Err(file),
            };
        }
    }
    Ok(located(&header, sample.kernel_frames, (frames, stop), tracker))
}

/// Unwinds a thread that stands still, in its own memory, and locates it. `header` has its registers, and
/// the reason when there is nothing to unwind. With `give_up` it makes do with what there is.
///
/// # Errors
/// With the file whose table it has to wait for.
pub(crate) fn locate_standing(
    header: SampleHeader,
    kernel_frames: &[u64],
    memory: &mut impl Machine,
    tracker: &Tracker,
    give_up: bool,
) -> Result<LocatedSample, FileKey> {
    let process = tracker.process(header.pid);
    if header.stop != StopReason::Complete {
        return Ok(located(&header, kernel_frames, (Vec::new(), header.stop), tracker));
    }
    let mut frames = vec![header.registers[0] & FRAME_ADDRESS | FRAME_EXACT];
    let stop = match process.map(|process| unwind(&header, memory, (tracker, process), &mut frames)) {
        Some(GoneOn::Stopped(stop)) => stop,
        Some(GoneOn::NeedsTable(file)) if !give_up => return Err(file),
        Some(GoneOn::NeedsTable(_)) => StopReason::NoUnwindTable,
        None => StopReason::NoTable,
    };
    Ok(located(&header, kernel_frames, (frames, stop), tracker))
}

/// Cuts a stack that was located before it was known what was mapped then: the code at a frame was another.
pub(crate) fn recheck(mut sample: LocatedSample, tracker: &Tracker) -> LocatedSample {
    let Some(process) = tracker.process(sample.header.pid) else { return sample };
    let place = |code: &Code| (code.file, code.start, code.file_offset);
    let is_stale = |frame: &LocatedFrame| {
        let now = process.mapping_at(frame.address, sample.header.time);
        now.map(place) != frame.code.as_ref().map(place)
    };
    if let Some(stale) = sample.user_frames.iter().position(is_stale) {
        sample.user_frames.truncate(stale + 1);
        sample.stop = StopReason::MappingChanged;
    }
    sample
}

/// Looks up what each frame is in.
fn located(
    header: &SampleHeader,
    kernel_frames: &[u64],
    (frames, mut stop): (Vec<u64>, StopReason),
    tracker: &Tracker,
) -> LocatedSample {
    let process = tracker.process(header.pid);
    let mut interrupted = false;
    let complete = stop == StopReason::Complete;
    let at = |depth: usize, frame: u64| {
        // What returns to a signal handler's trampoline, or to where another stack starts, was never called by it:
        // the byte before is another function's.
        let returns_to_start = match frames.get(depth + 1) {
            Some(next) => next & FRAME_EXACT != 0,
            None => complete && process.is_some_and(|process| is_start(tracker, process, header, frame)),
        };
        if returns_to_start { VirtualAddress(frame & FRAME_ADDRESS) } else { lookup_address(frame) }
    };
    let located = |(depth, frame): (usize, u64)| {
        let address = at(depth, frame);
        let found_by = found_by(frame, std::mem::replace(&mut interrupted, frame & FRAME_EXACT != 0));
        let code = process.and_then(|process| process.mapping_at(address, header.time)).copied();
        if let Some(executable) = code.and_then(|code| tracker.executable(code.file)) {
            executable.used_at(header.time);
        }
        LocatedFrame { address, code, found_by }
    };
    let mut user_frames: Vec<LocatedFrame> = frames.iter().copied().enumerate().map(located).collect();
    cut_where_its_row_does_not_hold(&frames, &mut user_frames, &mut stop, (tracker, header.pid));
    drop_what_is_no_code(&mut user_frames, &mut stop);
    if let Some(process) = process {
        cut_where_no_frame_pointer_is_kept(&frames, &mut user_frames, &mut stop, (tracker, process, header.time));
    }
    if process.is_some_and(|process| in_exec(header, process, &user_frames)) {
        user_frames.clear();
        stop = StopReason::NoUserStack;
    }
    let kernel_frames = kernel_frames.iter().enumerate();
    let kernel_frames =
        kernel_frames.map(|(depth, pc)| VirtualAddress(pc.wrapping_sub(u64::from(depth > 0)))).collect();
    LocatedSample { header: *header, kernel_frames, user_frames, stop }
}

/// Whether the outermost frame is at the very start of the code where stacks end: nothing called it. The rows have
/// that start one byte before (`profiler_unwind`, of `makecontext`).
fn is_start(tracker: &Tracker, process: &TrackedProcess, header: &SampleHeader, frame: u64) -> bool {
    let ends = |before: u64| {
        let address = VirtualAddress((frame & FRAME_ADDRESS).wrapping_sub(before));
        rule_at(tracker, process, address, header.time).is_ok_and(|rule| rule == Rule::END)
    };
    frame & FRAME_EXACT == 0 && ends(0) && ends(1) && !ends(2)
}

/// How a frame was found, from one that was `interrupted` or had called.
const fn found_by(frame: u64, interrupted: bool) -> FoundBy {
    match (frame & FRAME_BY_FRAME_POINTER != 0, interrupted) {
        (false, _) => FoundBy::Cfi,
        (true, false) => FoundBy::FramePointer,
        (true, true) => FoundBy::FramePointerOfInterrupted,
    }
}

fn lookup_address(frame: u64) -> VirtualAddress {
    VirtualAddress((frame & FRAME_ADDRESS).wrapping_sub(u64::from(frame & FRAME_EXACT == 0)))
}

fn is_stale(process: &TrackedProcess, header: &SampleHeader, frame: u64) -> bool {
    process.replaced_since(header.generation, lookup_address(frame), header.time)
}

/// How long after its record an exec may go on; mapping the new program takes the longest. Seen: 10 ms, and
/// ten times that on emulated machines.
const EXEC_NS: u64 = 200_000_000;

/// Whether a sample hit the end of an exec, of which the kernel program does not know: the new program is
/// mapped, and the registers are still the old one's, so there is no user stack. It was unwound by a table
/// that the kernel had before the exec and forgets at its end; or, without one, its pc is in no code of the
/// new program. Whatever else ends a stack is told as it is.
fn in_exec(header: &SampleHeader, process: &TrackedProcess, frames: &[LocatedFrame]) -> bool {
    let began = process.image_at(header.time);
    if !header.kernel_mode || process.last_exec().is_none_or(|last| last < began) || header.time < began {
        return false;
    }
    match header.generation {
        0 => matches!(frames, [frame] if frame.code.is_none()) && header.time.0 - began.0 < EXEC_NS,
        generation => process.was_published_before(generation, began),
    }
}

/// A return address where no code is was none: a wrong caller is worse than a cut.
fn drop_what_is_no_code(frames: &mut Vec<LocatedFrame>, stop: &mut StopReason) {
    while frames.len() > 1
        && let Some(last) = frames.last()
        && last.code.is_none()
    {
        *stop = if last.found_by.frame_pointer() { StopReason::NoFramePointer } else { StopReason::NotCode };
        frames.pop();
    }
}

/// Code that one row unwinds, in its calls, may be interrupted elsewhere.
fn cut_where_its_row_does_not_hold(
    frames: &[u64],
    located: &mut Vec<LocatedFrame>,
    stop: &mut StopReason,
    (tracker, pid): (&Tracker, Pid),
) {
    let wrong = frames.iter().zip(located.iter()).position(|(frame, located)| {
        let code = located.code.filter(|_| frame & FRAME_EXACT != 0);
        code.is_some_and(|code| !tracker.is_unwound_at(pid, &code, located.address))
    });
    if let Some(last) = wrong {
        located.truncate(last + 1);
        *stop = StopReason::UnsupportedCfi;
    }
}

/// From generated code that keeps no frame pointer, the frame pointer leads to a caller further up.
fn cut_where_no_frame_pointer_is_kept(
    frames: &[u64],
    located: &mut Vec<LocatedFrame>,
    stop: &mut StopReason,
    (tracker, process, time): (&Tracker, &TrackedProcess, MonotonicNs),
) {
    let is_lost = |(depth, (raw, frame)): (usize, (&u64, &LocatedFrame))| {
        let goes_on = match located.get(depth + 1) {
            Some(next) => next.found_by.frame_pointer(),
            None => *stop == StopReason::Complete,
        };
        let code = frame.code.filter(|_| goes_on)?;
        let generated = tracker.executable(code.file)?.is_unwound_by_frame_pointer(code.file);
        let at = VirtualAddress(raw & FRAME_ADDRESS);
        (generated && !process.keeps_frame_pointers(&code, at, time)).then_some(depth)
    };
    if let Some(last) = frames.iter().zip(located.iter()).enumerate().find_map(is_lost) {
        located.truncate(last + 1);
        *stop = StopReason::NoFramePointer;
    }
}

enum GoneOn {
    Stopped(StopReason),
    NeedsTable(FileKey),
}

/// Unwinds in the stack copy: from where the kernel program stopped, or from the first frame with a whole stack.
fn go_on(sample: &Sample<'_>, tracker: &Tracker, process: &TrackedProcess, frames: &mut Vec<u64>) -> GoneOn {
    let mut stack = StackCopy { sample, read: [0; 64], ended: false };
    match unwind(&sample.header, &mut stack, (tracker, process), frames) {
        GoneOn::Stopped(stop) => GoneOn::Stopped(why_stopped(stop, stack.ended)),
        needs_table => needs_table,
    }
}

/// Why unwinding stopped in a stack copy that had to be longer for it, or not. The step over an outermost frame reads
/// in vain, perhaps from beyond the copy.
fn why_stopped(stop: StopReason, copy_ended: bool) -> StopReason {
    match stop {
        StopReason::UnreadableStack if copy_ended => StopReason::StackCopyEnded,
        stop => stop,
    }
}

/// Unwinds from the last of `frames`, whose registers the header has.
fn unwind(
    header: &SampleHeader,
    stack: &mut impl Machine,
    (tracker, process): (&Tracker, &TrackedProcess),
    frames: &mut Vec<u64>,
) -> GoneOn {
    let [pc, sp, fp, lr] = header.registers;
    let exact = frames.last().map_or(1, |frame| u64::from(frame & FRAME_EXACT != 0));
    let interrupted = u64::from(frames.iter().skip(1).any(|frame| frame & FRAME_EXACT != 0));
    let mut registers = Registers { pc, sp, fp, lr, interrupted, exact };
    while frames.len() < MAX_USER_FRAMES {
        let rule = match rule_at(tracker, process, VirtualAddress(registers.lookup_pc()), header.time) {
            Ok(rule) => rule,
            Err(stopped) => return stopped,
        };
        match step(rule.0, &mut registers, stack) {
            0 => {}
            stop => return GoneOn::Stopped(stop_reason(stop)),
        }
        let how = if rule.by_frame_pointer() { FRAME_BY_FRAME_POINTER } else { 0 };
        frames.push(registers.pc & FRAME_ADDRESS | registers.exact << 63 | how);
    }
    GoneOn::Stopped(StopReason::TooDeep)
}

fn rule_at(
    tracker: &Tracker,
    process: &TrackedProcess,
    address: VirtualAddress,
    time: MonotonicNs,
) -> Result<Rule, GoneOn> {
    let code = process.mapping_at(address, time).ok_or(GoneOn::Stopped(StopReason::NotCode))?;
    let missing = || GoneOn::Stopped(StopReason::NoUnwindTable);
    let executable = tracker.executable(code.file).ok_or_else(missing)?;
    if executable.is_awaited() {
        return Err(GoneOn::NeedsTable(code.file));
    }
    let svma = address.in_file(executable.bias(code.start, code.file_offset));
    executable.rule(svma, tracker.tables()).ok_or_else(missing)
}

#[cfg(target_arch = "x86_64")]
fn step(rule: u64, registers: &mut Registers, stack: &mut impl Machine) -> u64 {
    profiler_common::step::step_x86_64(rule, registers, stack)
}

#[cfg(target_arch = "aarch64")]
fn step(rule: u64, registers: &mut Registers, stack: &mut impl Machine) -> u64 {
    profiler_common::step::step_aarch64(rule, registers, stack, crate::kernel::POINTER_AUTH_MASK)
}

/// The stack that came with a sample, as the memory to unwind in.
struct StackCopy<'a> {
    sample: &'a Sample<'a>,
    read: [u64; 64],
    /// A read went beyond what the copy had room for.
    ended: bool,
}

impl Machine for StackCopy<'_> {
    type Barrier = NoBarrier;

    fn read(&mut self, address: u64, words: u64) -> u64 {
        match usize::try_from(words).ok().and_then(|words| self.sample.stack_words(address, words)) {
            Some(found) => {
                for (to, from) in self.read.iter_mut().zip(found) {
                    *to = *from;
                }
                0
            }
            None => {
                let last = address.saturating_add(words.saturating_sub(1).saturating_mul(8));
                self.ended = self.ended || self.sample.stack_copy_ended(last);
                1
            }
        }
    }

    fn other_register(&self, index: u64) -> u64 {
        usize::try_from(index).ok().and_then(|index| self.sample.other_registers.get(index)).copied().unwrap_or(0)
    }

    /// What it leads to is not in the copy.
    fn thread_pointer(&self) -> u64 {
        0
    }

    fn word(&self, index: u64) -> u64 {
        self.read.get((index & 63) as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use profiler_common::address::{Cpu, Tid};

    use super::*;

    const EXEC: MonotonicNs = MonotonicNs(1_000_000_000);

    /// A process that became another program, with tables of before, of after its record, and of none.
    fn process() -> TrackedProcess {
        let mut process = TrackedProcess::new(Pid(1), Arc::from("p"), MonotonicNs(0));
        process.published(1, MonotonicNs(EXEC.0 - 5));
        process.exec(EXEC);
        process.published(2, MonotonicNs(EXEC.0 + 5));
        process
    }

    fn found(kernel_mode: bool, time_ns: u64, generation: u32, frames: usize) -> bool {
        let frame = LocatedFrame { address: VirtualAddress(0x1000), code: None, found_by: FoundBy::Cfi };
        let header = SampleHeader {
            time: MonotonicNs(time_ns),
            pid: Pid(1),
            tid: Tid(1),
            cpu: Cpu(0),
            generation,
            comm: [0; 16],
            kernel_mode,
            whole_stack: false,
            stop: StopReason::NoRange,
            registers: [0; 4],
        };
        in_exec(&header, &process(), &vec![frame; frames])
    }

    #[test]
    fn only_what_could_not_be_read_is_cut_by_the_end_of_the_copy() {
        assert_eq!(why_stopped(StopReason::UnreadableStack, true), StopReason::StackCopyEnded);
        for (stop, copy_ended) in
            [(StopReason::Complete, true), (StopReason::UnsupportedCfi, true), (StopReason::UnreadableStack, false)]
        {
            assert_eq!(why_stopped(stop, copy_ended), stop);
        }
    }

    #[test]
    fn only_what_an_exec_takes_away_counts_as_one() {
        let (before, after) = (EXEC.0 - 1, EXEC.0 + 1_000_000);
        assert!(found(true, after, 1, 1) && found(true, after, 1, 3), "by the old program's table");
        assert!(found(true, after, 0, 1), "without a table, and the pc is in no code");
        assert!(!found(true, after, 2, 1), "by a table that the kernel was given since then");
        assert!(!found(true, after, 0, 2), "a caller was found");
        assert!(!found(true, EXEC.0 + EXEC_NS, 0, 1), "long after");
        assert!(!found(true, before, 1, 1) && !found(true, before, 0, 1), "before");
        assert!(!found(false, after, 1, 1) && !found(false, after, 0, 1), "user mode");
    }
}
