//! Rules for Go's functions.
//!
//! The table says at every instruction how far rsp is below where it was at the function's call. What it
//! does not say is read from the code: whether rbp is saved, and where the stack is switched.

use super::find::Module;
use super::goroutine::{self, Path};
use super::pclntab::{FLAG_SP_WRITE, FLAG_TOP_FRAME, Function, Values};
use crate::elf::Elf;
use crate::read::{ReadAt, read_bytes};
use crate::segment::Arch;
use crate::spans::Span;
use profiler_common::address::Svma;
use profiler_common::row::{
    BASE_FP, FP_SAVED, MAX_CFA_OFFSET_BY_8, OTHER_STACK, RA_FROM_BASE, RA_IN_LR, Rule, SLOT_UNKNOWN,
};

/// Code that is read at once.
const BLOCK_BYTES: u64 = 256 << 10;
/// Code of a function that is looked at for where it sets rsp. The longest of those have 1 KiB.
const MAX_SWITCH_BYTES: u64 = 4096;
/// Functions are aligned to this many bytes at most; shorter holes are filled.
const CODE_ALIGNMENT: u32 = 64;
/// Values of the table that may be looked at, as a multiple of its bytes. Functions may share what they
/// have in common; 2 are enough for real programs.
const WORK_FACTOR: u64 = 8;

/// Functions at which stacks begin that do not say so by a flag. `mcall` never returns. Nor do those that put a
/// goroutine aside and choose another one, also below `morestack`.
const OUTERMOST: [&[u8]; 8] = [
    b"runtime.mcall",
    b"runtime.goschedImpl",
    b"runtime.preemptPark",
    b"runtime.schedule",
    b"_rt0_amd64",
    b"_rt0_amd64_linux",
    b"_rt0_arm64",
    b"_rt0_arm64_linux",
];
/// Signal handlers say that they are outermost, but the kernel's frame leads on.
const SIGNAL_HANDLERS: &[u8] = b"runtime.sig";
/// The signal's return trampoline of programs without cgo: `runtime.sigreturn`, and
/// `runtime.sigreturn__sigaction` since 1.21.
const SIGNAL_RETURNS: [&[u8]; 2] = [b"runtime.sigreturn", b"runtime.sigreturn__sigaction"];
/// On aarch64 a signal that puts the call of one of these into a thread's way pushes x30 first, so that there are two
/// more words (`pushCall` and `preparePanic` in go/src/runtime/signal_arm64.go).
const PUT_IN: [&[u8]; 3] = [b"runtime.asyncPreempt", b"runtime.sigpanic", b"runtime.sigpanic0"];
const PUT_IN_WORDS: i16 = 2;
/// Functions that set rsp are the runtime's, and this one.
const SWITCHES: [&[u8]; 2] = [b"runtime.", b"time.now"];

/// The CFA is where rbp says, be it on another stack: goroutines have their own, and the runtime and C
/// run on the thread's.
const BY_RBP: Rule = Rule::x86_64(BASE_FP | OTHER_STACK, 2, 2).with_rbx(SLOT_UNKNOWN);

/// Until where a rule holds, in bytes from the function's start.
pub(super) type Until = (u32, Rule);

/// The rules of a module's functions.
pub(crate) struct GoRows<'a, F> {
    module: &'a Module,
    code: Code<'a, F>,
    work_left: u64,
    /// From a thread to its goroutine, when it was looked for.
    path: Option<Option<Path>>,
}

impl<'a, F: ReadAt> GoRows<'a, F> {
    pub(crate) fn new(file: &'a F, elf: &'a Elf, module: &'a Module) -> Self {
        let work_left = module.size_bytes().saturating_mul(WORK_FACTOR);
        Self { module, code: Code { file, elf, start: 0, bytes: Vec::new() }, work_left, path: None }
    }

    /// The functions that Go compiled, in ascending order.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let Some(table) = self.module.table() else { return Vec::new() };
        let code_end = table.code_end().unwrap_or_default();
        let span = |index: usize| {
            let function = table.function(index).filter(|function| function.end <= code_end)?;
            table.stack_depths(&function)?;
            let start = self.module.code.0.checked_add(function.start.into())?;
            let entry = u32::try_from(index).ok().filter(|index| *index < Span::GO)? | Span::GO;
            Some(Span { start, length: function.end - function.start, entry })
        };
        let mut spans: Vec<Span> = (0..table.function_count()).filter_map(span).collect();
        let mut free_from = 0;
        spans.retain(|span| {
            let apart = span.start >= free_from;
            if apart {
                free_from = span.end();
            }
            apart
        });
        spans
    }

    /// The rules of a function, by the address where they end; `None` when it can't be read. The
    /// last one may end before the function does.
    pub(crate) fn rules(&mut self, span: &Span) -> Option<Vec<(u64, Rule)>> {
        let table = self.module.table()?;
        let function = table.function((span.entry & !Span::GO) as usize)?;
        let start = self.module.code.0.checked_add(function.start.into())?;
        let name = table.name(&function).unwrap_or_default();
        let depths = table.stack_depths(&function)?;
        let mut rules = match self.code.elf.arch {
            Arch::X86_64 => self.x86_64(&function, name, start, depths)?,
            Arch::Aarch64 => self.aarch64(&function, name, depths)?,
        };
        let length = function.end - function.start;
        let next = table.function((span.entry & !Span::GO) as usize + 1);
        let before_trampoline = next.and_then(|next| table.name(&next)).is_some_and(is_signal_return);
        if let Some(last) = rules.last_mut().filter(|(until, _rule)| length - until < CODE_ALIGNMENT) {
            last.0 = length;
        }
        if let Some(&(until, rule)) = rules.last().filter(|_| before_trampoline && self.code.elf.arch == Arch::X86_64) {
            // A handler returns to its first byte, and what is looked up is the byte before.
            rules.pop();
            rules.extend([(until.min(length - 1), rule), (length, Rule::X86_64_SIGNAL)]);
        }
        Some(rules.into_iter().map(|(until, rule)| (start + u64::from(until), rule)).collect())
    }

    /// The table's values, as pieces `start..end` with the same depth.
    fn pieces(&mut self, function: &Function, depths: Values<'_>) -> Option<Vec<(u32, u32, i32)>> {
        let length = function.end - function.start;
        let mut pieces = Vec::new();
        let mut start = 0;
        for (end, depth) in depths {
            self.work_left = self.work_left.checked_sub(1)?;
            pieces.push((start, end.min(length), depth));
            start = end;
            if end >= length {
                break;
            }
        }
        Some(pieces)
    }

    fn x86_64(&mut self, function: &Function, name: &[u8], start: u64, depths: Values<'_>) -> Option<Vec<Until>> {
        let length = function.end - function.start;
        if is_outermost(function, name) && name != OUTERMOST[0] {
            return Some(vec![(length, Rule::END)]);
        }
        if is_signal_return(name) {
            return Some(vec![(length, Rule::X86_64_SIGNAL)]);
        }
        let pieces = self.pieces(function, depths)?;
        let mut rules = Vec::with_capacity(pieces.len() + 1);
        let mut saved = false;
        for (from, until, depth) in pieces {
            if depth > 0 && !saved {
                let save = self.code.save_bytes(start.checked_add(from.into())?, depth);
                saved = save.is_some();
                if let Some(bytes) = save.filter(|bytes| *bytes > 0) {
                    rules.push(((from + bytes).min(until), by_rsp(depth, 0)));
                }
            }
            let slot = match depth {
                0 => 0,
                _ if saved => 2,
                _ => SLOT_UNKNOWN,
            };
            rules.push((until, by_rsp(depth, slot)));
        }
        if function.flags & FLAG_SP_WRITE == 0 {
            return Some(rules);
        }
        let path = if saved { None } else { self.path() };
        let code = self.code.at(start, MAX_SWITCH_BYTES.min(length.into()));
        if let Some(rules) = goroutine::rules(name, code, path).filter(|_| !saved) {
            return Some(rules);
        }
        let switch = sets_rsp(code).and_then(|at| u32::try_from(at).ok()).unwrap_or(0);
        let rule = match name {
            name if name == OUTERMOST[0] => Rule::END,
            name if saved && SWITCHES.iter().any(|prefix| name.starts_with(prefix)) => BY_RBP,
            _ => Rule::UNSUPPORTED,
        };
        Some(switched(&rules, code, switch, rule))
    }

    /// What leads from a thread to its goroutine.
    fn path(&mut self) -> Option<Path> {
        if let Some(path) = self.path {
            return path;
        }
        let table = self.module.table()?;
        let mut functions = (0..table.function_count()).filter_map(|index| table.function(index));
        let function = functions.find(|function| table.name(function) == Some(goroutine::SYSTEMSTACK));
        let path = function.and_then(|function| {
            let start = self.module.code.0.checked_add(function.start.into())?;
            let length = MAX_SWITCH_BYTES.min((function.end - function.start).into());
            Path::of_systemstack(self.code.at(start, length))
        });
        self.path = Some(path);
        path
    }

    /// Go on aarch64: the return address is at sp, and the caller's frame pointer below.
    fn aarch64(&mut self, function: &Function, name: &[u8], depths: Values<'_>) -> Option<Vec<Until>> {
        let length = function.end - function.start;
        if is_outermost(function, name) {
            return Some(vec![(length, Rule::END)]);
        }
        if is_signal_return(name) {
            return Some(vec![(length, Rule::AARCH64_SIGNAL)]);
        }
        let unknown = function.flags & FLAG_SP_WRITE != 0;
        let pushed = if PUT_IN.contains(&name) { PUT_IN_WORDS } else { 0 };
        let mut rules = Vec::new();
        let mut framed = false;
        for (from, until, depth) in self.pieces(function, depths)? {
            let by_8 = i16::try_from(depth / 8).ok().filter(|_| depth % 16 == 0 && depth >= 0 && !unknown);
            let Some(by_8) = by_8.and_then(|by_8| by_8.checked_add(pushed)) else {
                rules.push((until, Rule::UNSUPPORTED));
                continue;
            };
            if depth == 0 {
                rules.push((until, Rule::aarch64(RA_IN_LR, 0, pushed)));
                continue;
            }
            if !framed {
                // str x30, [sp, #-n]! comes before x29 is saved.
                rules.push(((from + 4).min(until), Rule::aarch64(RA_FROM_BASE, 0, by_8)));
                framed = true;
            }
            rules.push((until, Rule::aarch64(FP_SAVED | RA_FROM_BASE, 0, by_8)));
        }
        Some(rules)
    }
}

/// Whether a function of that name is what signal handlers return to.
pub(super) fn is_signal_return(name: &[u8]) -> bool {
    SIGNAL_RETURNS.contains(&name)
}

fn is_outermost(function: &Function, name: &[u8]) -> bool {
    let flagged = function.flags & FLAG_TOP_FRAME != 0 && !name.starts_with(SIGNAL_HANDLERS);
    flagged || OUTERMOST.contains(&name)
}

fn by_rsp(depth: i32, slot: u8) -> Rule {
    let words = (depth / 8).saturating_add(1);
    if depth >= 0 && depth % 8 == 0 && words <= MAX_CFA_OFFSET_BY_8 {
        Rule::x86_64(0, slot, words).with_rbx(SLOT_UNKNOWN)
    } else {
        Rule::UNSUPPORTED
    }
}

/// `rules` with `rule` from `switch` on; where the function has no frame of its own, `BY_RBP` can't hold.
/// What does not reach beyond the rule before it is without effect.
fn switched(rules: &[Until], code: &[u8], switch: u32, rule: Rule) -> Vec<Until> {
    let frameless = |(_until, by_rsp): &Until| by_rsp.x86_64_cfa_offset_by_8() == 1;
    let mut result = Vec::with_capacity(rules.len() * 3);
    let mut start = 0;
    for (index, &(until, by_rsp)) in rules.iter().enumerate() {
        if start < switch {
            result.push((until.min(switch), by_rsp));
        }
        if rule != BY_RBP {
            result.push((until, rule));
        } else if !frameless(&(until, by_rsp)) {
            let ends = rules.get(index + 1).is_some_and(frameless);
            let restored_bytes = if ends { restored_bytes(code, until) } else { 0 };
            result.push((until.saturating_sub(restored_bytes), rule));
        }
        result.push((until, by_rsp));
        start = until;
    }
    result
}

/// Bytes of the instruction that gives the stack back before `end`, when rbp is the caller's before it
/// (up to Go 1.20): mov disp(%rsp), %rbp; add $n, %rsp.
fn restored_bytes(code: &[u8], end: u32) -> u32 {
    let before = code.get(..end as usize).unwrap_or_default();
    match before {
        [.., 0x48, 0x8b, 0x6c, 0x24, _, 0x48, 0x83, 0xc4, _] => 4,
        [.., 0x48, 0x8b, 0xac, 0x24, _, _, _, _, 0x48, 0x81, 0xc4, _, _, _, _] => 7,
        _ => 0,
    }
}

/// Where the first instruction may be that sets rsp from memory or a register, or aligns it.
pub(super) fn sets_rsp(code: &[u8]) -> Option<usize> {
    (0..code.len()).find(|at| match code.get(*at..).unwrap_or_default() {
        // mov memory or register, %rsp; not mov %rbp, %rsp's like with a displacement of rsp itself.
        [0x48 | 0x49, 0x8b, modrm, ..] => modrm & 0x38 == 0x20,
        // mov register, %rsp.
        [0x48 | 0x4c, 0x89, modrm, ..] => modrm & 0xc7 == 0xc4,
        // and or sub with an immediate number.
        [0x48, 0x83 | 0x81, 0xe4 | 0xec, ..] => *at > SAVE_END_BYTES,
        _ => false,
    })
}

/// A function's own `sub $n, %rsp` is before here: it follows at most a check of the stack's limit.
const SAVE_END_BYTES: usize = 32;

/// The program's code, a block at a time.
struct Code<'a, F> {
    file: &'a F,
    elf: &'a Elf,
    start: u64,
    bytes: Vec<u8>,
}

impl<F: ReadAt> Code<'_, F> {
    /// The bytes from `start` on; fewer, or none, where they are not in the file.
    fn at(&mut self, start: u64, length: u64) -> &[u8] {
        let have = self.start..self.start.saturating_add(self.bytes.len() as u64);
        if !have.contains(&start) || start.saturating_add(length) > have.end {
            self.start = start;
            let place = self.elf.in_file(Svma(start));
            let read = place.and_then(|(offset, left)| {
                let length = left.min(BLOCK_BYTES.max(length));
                read_bytes(self.file, "Go's code", offset, length, length).ok()
            });
            self.bytes = read.unwrap_or_default();
        }
        let from = usize::try_from(start - self.start).unwrap_or(usize::MAX);
        let rest = self.bytes.get(from..).unwrap_or_default();
        rest.get(..usize::try_from(length).unwrap_or(usize::MAX)).unwrap_or(rest)
    }

    /// When the stack is `depth` deep from `address` on, and rbp is saved just below the return address:
    /// how many bytes of code later it is.
    fn save_bytes(&mut self, address: u64, depth: i32) -> Option<u32> {
        let code = self.at(address.checked_sub(1)?, 9);
        match *code {
            // push %rbp | mov %rsp, %rbp
            [0x55, 0x48, 0x89, 0xe5, ..] if depth == 8 => Some(0),
            // mov %rbp, disp(%rsp), up to Go 1.20
            [_, 0x48, 0x89, 0x6c, 0x24, to, ..] if i32::from(to) == depth - 8 => Some(5),
            [_, 0x48, 0x89, 0x2c, 0x24, ..] if depth == 8 => Some(4),
            [_, 0x48, 0x89, 0xac, 0x24, a, b, c, d] if i32::from_le_bytes([a, b, c, d]) == depth - 8 => Some(8),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_that_set_rsp_are_found() {
        assert_eq!(sets_rsp(&[0x90, 0x48, 0x8b, 0x62, 0x38]), Some(1), "mov 0x38(%rdx), %rsp");
        assert_eq!(sets_rsp(&[0x48, 0x8b, 0x6c, 0x24, 8, 0x48, 0x89, 0xdc]), Some(5), "mov %rbx, %rsp");
        assert_eq!(sets_rsp(&[0x4c, 0x89, 0xe4]), Some(0), "mov %r12, %rsp");
        assert_eq!(sets_rsp(&[0x48, 0x89, 0xe5, 0x49, 0x8b, 0x66, 0x38]), Some(3), "mov 0x38(%r14), %rsp");
        assert_eq!(sets_rsp(&[0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x10]), None);
    }

    #[test]
    fn rbp_counts_from_the_switch_until_it_is_given_back() {
        let (none, own) = (by_rsp(0, 0), by_rsp(24, 2));
        let code = [[0x90; 41].as_slice(), &[0x48, 0x8b, 0x6c, 0x24, 0x10, 0x48, 0x83, 0xc4, 0x18, 0xc3]].concat();
        let rules = switched(&[(4, none), (50, own), (51, none)], &code, 20, BY_RBP);
        let at = |pc: u32| rules.iter().find(|(until, _)| pc < *until).map(|(_, rule)| *rule);
        assert_eq!([0, 10, 20, 45, 46, 49, 50].map(at), [none, own, BY_RBP, BY_RBP, own, own, none].map(Some));
    }
}
