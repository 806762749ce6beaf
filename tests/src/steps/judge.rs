//! Unwinding at an instruction, by the profiler's rows and step, beside the truth.

use profiler_common::limits::MAX_USER_FRAMES;
use profiler_common::record::StopReason;
use profiler_common::step::{Machine, NoBarrier, Registers, step_x86_64, stop_reason};

use super::image::{Found, Image};
use super::shadow::{Caller, Origin, Stack};
use super::tally::{Finding, Tally};
use super::tracee::CpuRegisters;

/// What was found above a caller: the registers with which unwinding came there, and the verdict.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    registers: Registers,
    verdict: Verdict,
}

/// The outcome for an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The same callers, to the outermost frame.
    Equal,
    /// The same callers, up to one that says why it ends there.
    Cut {
        reason: StopReason,
        /// The address that was looked up last.
        at: u64,
    },
    /// A caller that was none, or none where there is one.
    Wrong {
        what: Finding,
        /// The address that was looked up last.
        at: u64,
        /// What was found there; 0 for nothing.
        found: u64,
        /// What had to be found; 0 for nothing.
        expected: u64,
    },
}

/// Compares all callers; with `anew` also those that were compared before.
pub(super) fn judge(
    cpu: &CpuRegisters,
    stack: &mut Stack,
    image: &mut Image<'_>,
    anew: bool,
    tally: &mut Tally,
) -> Verdict {
    let mut registers = beginning(cpu);
    let mut passed = Vec::new();
    let mut machine = Stopped { image, cpu, read: [0; 64] };
    let mut left = stack.callers.len();
    let verdict = loop {
        let looked_up = registers.lookup_pc();
        match caller(&mut registers, &mut machine) {
            Err(StopReason::Complete) if left == 0 || stack.open => break Verdict::Equal,
            Err(StopReason::Complete) => {
                let expected = stack.callers.get(left.wrapping_sub(1)).map_or(0, |caller| caller.origin.pc());
                break Verdict::Wrong { what: Finding::EndsEarly, at: looked_up, found: 0, expected };
            }
            Err(reason) => break Verdict::Cut { reason, at: looked_up },
            Ok(()) => {}
        }
        let Some(expected) = left.checked_sub(1).and_then(|index| stack.callers.get(index)) else {
            if stack.open {
                break Verdict::Equal;
            }
            break Verdict::Wrong { what: Finding::GoesOn, at: looked_up, found: registers.pc, expected: 0 };
        };
        let (pc, sp, exact) = match expected.origin {
            Origin::Call { pc, slot } => (pc, slot.wrapping_add(8), 0),
            Origin::Interrupted { pc, sp, .. } => (pc, sp, 1),
        };
        if (registers.pc, registers.exact) != (pc, exact) {
            break Verdict::Wrong { what: Finding::Caller, at: looked_up, found: registers.pc, expected: pc };
        }
        if registers.sp != sp {
            break Verdict::Wrong { what: Finding::StackPointer, at: looked_up, found: registers.sp, expected: sp };
        }
        left -= 1;
        if let Some(known) = expected.known.filter(|known| !anew && known.registers == registers) {
            break known.verdict;
        }
        passed.push(registers);
        if passed.len() > MAX_USER_FRAMES {
            break Verdict::Cut { reason: StopReason::TooDeep, at: looked_up };
        }
    };
    if passed.len() <= MAX_USER_FRAMES {
        for (caller, registers) in stack.callers.iter_mut().rev().zip(passed) {
            caller.known = Some(Known { registers, verdict });
        }
    }
    tally.count(verdict, cpu.rip, image);
    verdict
}

/// Takes for true what unwinding says here: the returns to come tell whether it was.
pub(super) fn believe(cpu: &CpuRegisters, stack: &mut Stack, image: &mut Image<'_>) {
    let mut registers = beginning(cpu);
    let mut machine = Stopped { image, cpu, read: [0; 64] };
    let mut callers = Vec::new();
    stack.open = loop {
        match caller(&mut registers, &mut machine) {
            Ok(()) if callers.len() < MAX_USER_FRAMES => {}
            Err(StopReason::Complete) => break false,
            Ok(()) | Err(_) => break true,
        }
        let Registers { pc, sp, exact, .. } = registers;
        callers.push(match exact {
            // The kernel's frame is below what it interrupted, or on another stack.
            1 => Origin::Interrupted { pc, sp, frame: sp.wrapping_sub(1) },
            _ => Origin::Call { pc, slot: sp.wrapping_sub(8) },
        });
    };
    stack.callers = callers.into_iter().rev().map(|origin| Caller { origin, known: None }).collect();
}

fn beginning(cpu: &CpuRegisters) -> Registers {
    Registers { pc: cpu.rip, sp: cpu.rsp, fp: cpu.rbp, lr: cpu.rbx, interrupted: 0, exact: 1 }
}

/// Makes a frame's registers those of its caller, as the profiler does.
fn caller(registers: &mut Registers, machine: &mut Stopped<'_, '_>) -> Result<(), StopReason> {
    let rule = match machine.image.rule(registers.lookup_pc()) {
        Found::Rule(rule) => rule,
        Found::NotCode => return Err(StopReason::NotCode),
        Found::NoTable => return Err(StopReason::NoUnwindTable),
    };
    match step_x86_64(rule.0, registers, machine) {
        0 => {}
        stop => return Err(stop_reason(stop)),
    }
    // A return address where no code is was none.
    if matches!(machine.image.rule(registers.lookup_pc()), Found::NotCode) {
        return Err(if rule.by_frame_pointer() { StopReason::NoFramePointer } else { StopReason::NotCode });
    }
    Ok(())
}

/// A stopped program as the memory to unwind in.
struct Stopped<'a, 'b> {
    image: &'a mut Image<'b>,
    cpu: &'a CpuRegisters,
    read: [u64; 64],
}

impl Machine for Stopped<'_, '_> {
    type Barrier = NoBarrier;

    fn read(&mut self, address: u64, words: u64) -> u64 {
        let Some(found) = usize::try_from(words).ok().and_then(|words| self.image.words(address, words)) else {
            return 1;
        };
        for (to, from) in self.read.iter_mut().zip(found) {
            *to = *from;
        }
        0
    }

    fn other_register(&self, index: u64) -> u64 {
        let cpu = self.cpu;
        // In the order of `OTHER_REGISTERS`.
        let others = [cpu.r11, cpu.r10, cpu.r9, cpu.r8, cpu.rax, cpu.rcx, cpu.rdx, cpu.rsi, cpu.rdi];
        usize::try_from(index).ok().and_then(|index| others.get(index)).copied().unwrap_or(0)
    }

    fn thread_pointer(&self) -> u64 {
        self.cpu.fs_base
    }

    fn word(&self, index: u64) -> u64 {
        self.read.get((index & 63) as usize).copied().unwrap_or(0)
    }
}
