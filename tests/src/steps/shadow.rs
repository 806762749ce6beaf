//! The truth about a stack: what was called and has not returned, kept by looking at each instruction.

use super::image::Image;
use super::instruction::{Kind, kind};
use super::judge::Known;
use super::tracee::CpuRegisters;

/// How a frame is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// By returning to `pc`, which was stored at `slot`.
    Call {
        /// The return address.
        pc: u64,
        /// Where it is on the stack.
        slot: u64,
    },
    /// By the system call that goes back to what a signal interrupted.
    Interrupted {
        /// Where the code was.
        pc: u64,
        /// Its stack pointer.
        sp: u64,
        /// Where the kernel wrote them.
        frame: u64,
    },
}

impl Origin {
    /// Where execution goes on.
    pub(super) fn pc(self) -> u64 {
        let (Self::Call { pc, .. } | Self::Interrupted { pc, .. }) = self;
        pc
    }

    /// The address that it keeps on the stack, below which it is gone.
    fn place(self) -> u64 {
        match self {
            Self::Call { slot, .. } => slot,
            Self::Interrupted { frame, .. } => frame,
        }
    }
}

/// A caller, and what unwinding made of it before.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) origin: Origin,
    pub(super) known: Option<Known>,
}

/// The callers on one stack, the outermost first.
#[derive(Clone, Debug, Default)]
pub(super) struct Stack {
    pub(super) callers: Vec<Caller>,
    /// What is above the callers is not known.
    pub(super) open: bool,
    /// Its highest address that was seen.
    top: u64,
    /// The stack pointer when another stack was taken.
    left_at: u64,
}

/// The stacks of a thread.
pub(super) struct Shadow {
    pub(super) stack: Stack,
    others: Vec<Stack>,
    /// The return address of the innermost call is in a register.
    popped: bool,
    /// Returns that led elsewhere than to the caller, by where they were.
    pub(super) strange_returns: Vec<u64>,
}

/// A stack pointer that moves farther than this may be on another stack.
const FAR_BYTES: u64 = 1024;
/// How far from all that is known of a stack an address is still on it.
const NEAR_BYTES: u64 = 64 << 10;

/// Where `struct ucontext` has rsp and rip, in bytes (linux/arch/x86/include/uapi/asm/sigcontext.h).
const UCONTEXT_RSP: u64 = 160;
const UCONTEXT_RIP: u64 = 168;

impl Shadow {
    /// Nothing was called yet.
    pub(super) fn new(sp: u64) -> Self {
        let stack = Stack { top: sp, ..Stack::default() };
        Self { stack, others: Vec::new(), popped: false, strange_returns: Vec::new() }
    }

    /// Takes in that the instruction `code` led from `before` to `after`.
    pub(super) fn stepped(&mut self, before: &CpuRegisters, after: &CpuRegisters, code: &[u8], image: &mut Image<'_>) {
        let kind = kind(code);
        if before.rsp == after.rsp && !self.popped && kind != Kind::Syscall {
            return;
        }
        match kind {
            Kind::Call if after.rsp == before.rsp.wrapping_sub(8) => {
                self.popped = false;
                let pc = image.word(after.rsp).unwrap_or(0);
                return self.push(Origin::Call { pc, slot: after.rsp });
            }
            // `rt_sigreturn` (linux/arch/x86/entry/syscalls/syscall_64.tbl).
            Kind::Syscall if before.rax == 15 => {
                self.stack.callers.pop_if(|caller| matches!(caller.origin, Origin::Interrupted { .. }));
            }
            Kind::Other | Kind::Syscall | Kind::Return | Kind::Pop => {
                if after.rsp.abs_diff(before.rsp) > FAR_BYTES {
                    self.change_stack(before.rsp, after.rsp, image);
                }
            }
            Kind::Call | Kind::Relative => {}
        }
        self.release(before, after, kind, image);
    }

    /// Takes in that a signal interrupted `before` and its handler begins with `after`. Returns whether
    /// that is so.
    pub(super) fn handler_begins(
        &mut self,
        before: &CpuRegisters,
        after: &CpuRegisters,
        image: &mut Image<'_>,
    ) -> bool {
        let frame = after.rsp.wrapping_add(8);
        let saved = [UCONTEXT_RSP, UCONTEXT_RIP].map(|at| image.word(frame.wrapping_add(at)));
        // A system call that begins again is two bytes before.
        let [Some(sp), Some(pc)] = saved else { return false };
        if sp != before.rsp || before.rip.wrapping_sub(pc) > 2 || after.rsp == before.rsp {
            return false;
        }
        self.push(Origin::Interrupted { pc, sp, frame });
        let pc = image.word(after.rsp).unwrap_or(0);
        self.push(Origin::Call { pc, slot: after.rsp });
        true
    }

    fn push(&mut self, origin: Origin) {
        self.stack.callers.push(Caller { origin, known: None });
    }

    /// Drops the callers whose place on the stack was given up.
    fn release(&mut self, before: &CpuRegisters, after: &CpuRegisters, kind: Kind, image: &mut Image<'_>) {
        let (slot, pc) = (before.rsp, after.rip);
        if kind == Kind::Return
            && let Some(caller) = self.stack.callers.last()
            && caller.origin != (Origin::Call { pc, slot })
        {
            self.strange_returns.push(before.rip);
        }
        while let Some(Caller { origin, .. }) = self.stack.callers.last() {
            let place = origin.place();
            if let Origin::Call { pc, slot } = *origin {
                let beside = after.rsp == slot.wrapping_add(8);
                if self.popped {
                    if after.rsp <= slot && image.word(slot) == Some(pc) {
                        self.popped = false;
                        return;
                    }
                    if after.rip != pc && after.rsp <= slot.wrapping_add(8) {
                        return;
                    }
                } else if kind == Kind::Pop && beside && after.rip != pc && image.word(slot) == Some(pc) {
                    self.popped = true;
                    return;
                }
            }
            if !self.popped && place >= after.rsp {
                return;
            }
            self.popped = false;
            self.stack.callers.pop();
        }
        self.popped = false;
    }

    /// Finds the stack that the stack pointer is on now, when it is another one.
    fn change_stack(&mut self, from: u64, to: u64, image: &Image<'_>) {
        let here = self.stack.distance(to, from);
        if here <= FAR_BYTES || here <= NEAR_BYTES && image.same_mapping(from, to) {
            return;
        }
        let nearest = self.others.iter().map(|stack| stack.distance(to, stack.left_at)).enumerate();
        let nearest = nearest.min_by_key(|(_index, distance)| *distance).filter(|(_index, far)| *far <= NEAR_BYTES);
        if nearest.is_none_or(|(_index, distance)| distance >= here) && here <= NEAR_BYTES {
            return;
        }
        let next = match nearest {
            Some((index, _distance)) => self.others.swap_remove(index),
            // The stack that the kernel made is long and may be used far down at once.
            None if image.same_mapping(from, to) => return,
            None => Stack { open: true, top: to, ..Stack::default() },
        };
        let mut left = std::mem::replace(&mut self.stack, next);
        left.left_at = from;
        self.others.push(left);
    }
}

impl Stack {
    /// How far an address is from the nearest place that is known to be on this stack, not below it.
    fn distance(&self, address: u64, pointer: u64) -> u64 {
        let places = self.callers.iter().map(|caller| caller.origin.place());
        let above = places.chain([self.top, pointer]).filter(|place| place.saturating_add(FAR_BYTES) >= address);
        above.map(|place| place.abs_diff(address)).min().unwrap_or(u64::MAX)
    }
}
