//! Functions that align their frames to more than 16 bytes, as gcc makes them: r10 points to the CFA while the stack is
//! aligned, the return address is pushed again, and rbp points to the aligned frame, in which r10 is kept (gcc's
//! dynamic realign argument pointer, gcc/config/i386/i386.cc).
//!
//! ```text
//! lea 8(%rsp), %r10;  and $-32, %rsp;  push -8(%r10);  push %rbp;  mov %rsp, %rbp;  push %r10;  ...
//! mov -8(%rbp), %r10;  leave;  lea -8(%r10), %rsp;  ret
//! ```

use std::collections::HashMap;

use super::decode::{Code, ENTRY, Flow, NONE, REALIGNED, RETURNS, Region};
use super::depth::{Depths, goes_on};
use super::effect::{Base, Rsp, immediate};
use crate::x86_64::other_number;
use iced_x86::{Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use profiler_common::row::{BASE_FP, FP_AT_FP, Rule, SLOT_UNKNOWN, STORED_AT_BY_8};

/// `lea disp8(%rsp), %r10`, without the displacement.
const POINT: &[u8] = &[0x4c, 0x8d, 0x54, 0x24];
/// The DWARF number of r10.
const R10: u16 = 10;
/// Instructions of a function that are looked at. What is not proven by then is not known.
const MOST_INSTRUCTIONS: usize = 1 << 14;
/// How often all instructions of a piece of code are looked at, together.
const MOST_ROUNDS: usize = 4;
const WORD: i32 = 8;

/// How far a function has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// r10 points to the CFA.
    Pointed,
    /// The stack is aligned.
    Aligned,
    /// The return address is pushed again.
    Pushed,
    /// rbp is pushed.
    Saved,
    /// rbp points to the frame; so many bytes are pushed below it.
    Framed(i32),
    /// r10 is kept so many bytes below where rbp points to.
    Body {
        kept: i32,
        /// Where rsp is, in bytes below rbp.
        top: Option<i32>,
        /// r10 points to the CFA again.
        loaded: bool,
    },
    /// That, and rbp is the caller's again.
    Restored,
    /// The return address is on top of the stack.
    Back,
}

impl State {
    fn rule(self) -> Option<Rule> {
        let by_r10 = || Some(Rule::x86_64_other(other_number(R10)?, 0, 0));
        match self {
            Self::Pointed | Self::Aligned | Self::Pushed | Self::Saved => by_r10(),
            Self::Framed(_) => None,
            Self::Body { kept, .. } => {
                let at = Some(-kept / WORD).filter(|at| STORED_AT_BY_8.contains(at))?;
                Some(Rule::x86_64_stored(BASE_FP | FP_AT_FP, 0, at, 0))
            }
            Self::Restored => by_r10(),
            Self::Back => Some(Rule::x86_64(0, 0, 1)),
        }
        .map(|rule| {
            if matches!(self, Self::Body { .. } | Self::Restored | Self::Back) {
                rule.with_rbx(SLOT_UNKNOWN)
            } else {
                rule
            }
        })
    }

    /// What holds where two ways meet, if something does.
    fn meet(self, other: Self) -> Option<Self> {
        match (self, other) {
            (
                Self::Body { kept, top, loaded },
                Self::Body { kept: kept_there, top: top_there, loaded: loaded_there },
            ) if kept == kept_there => {
                Some(Self::Body { kept, top: top.filter(|_| top == top_there), loaded: loaded && loaded_there })
            }
            _ => (self == other).then_some(self),
        }
    }
}

/// The rules of such functions, by instruction.
#[derive(Default)]
pub(super) struct Realigned(HashMap<u32, Option<Rule>>);

impl Realigned {
    /// Finds them, and marks their instructions.
    pub(super) fn find(code: &mut Code, depths: &Depths, pieces: &[Region<'_>]) -> Self {
        let mut found = Self::default();
        let Some(base) = pieces.first().map(|piece| piece.start) else { return found };
        let mut left = code.len() as usize * MOST_ROUNDS;
        for index in 0..code.len() {
            let Some(bytes) = bytes_of(code, base, pieces, index).filter(|bytes| bytes.starts_with(POINT)) else {
                continue;
            };
            let above = bytes.get(POINT.len()).map(|byte| i32::from(*byte));
            if depths.at(index).map(|depth| depth + WORD) != above
                || code.insn(index).is_none_or(|insn| insn.length != 5)
            {
                continue;
            }
            let mut walk = Walk {
                code,
                base,
                pieces,
                factory: InstructionInfoFactory::new(),
                states: HashMap::new(),
                edges: Vec::new(),
            };
            let proven = walk.go(index + 1, &mut left).map(|()| walk.proven(index + 1));
            let rules = proven.filter(|proven| proven.iter().all(|(index, _rule)| !found.0.contains_key(index)));
            for (index, rule) in rules.into_iter().flatten() {
                code.mark(index, REALIGNED);
                found.0.insert(index, rule);
            }
        }
        found
    }

    pub(super) fn rule(&self, index: u32) -> Option<Rule> {
        self.0.get(&index).copied().flatten()
    }
}

fn bytes_of<'a>(code: &Code, base: u64, pieces: &[Region<'a>], index: u32) -> Option<&'a [u8]> {
    let insn = code.insn(index)?;
    let address = base + u64::from(insn.at);
    let after = pieces.partition_point(|piece| piece.start <= address);
    let piece = pieces.get(after.checked_sub(1)?)?;
    let at = usize::try_from(address - piece.start).ok()?;
    piece.bytes.get(at..at.checked_add(usize::from(insn.length))?)
}

/// All ways through one function.
struct Walk<'a> {
    code: &'a Code,
    base: u64,
    pieces: &'a [Region<'a>],
    factory: InstructionInfoFactory,
    /// Before each instruction.
    states: HashMap<u32, State>,
    /// From where to where, and whether it is known that this is a way.
    edges: Vec<(u32, u32, bool)>,
}

impl Walk<'_> {
    /// Goes all ways from the instruction behind the first one. `None` when something contradicts.
    fn go(&mut self, first: u32, left: &mut usize) -> Option<()> {
        self.states.insert(first, State::Pointed);
        let mut stack = vec![first];
        while let Some(index) = stack.pop() {
            *left = left.checked_sub(1)?;
            if self.states.len() > MOST_INSTRUCTIONS {
                return None;
            }
            let state = *self.states.get(&index)?;
            let insn = *self.code.insn(index)?;
            let bytes = bytes_of(self.code, self.base, self.pieces, index)?;
            let instruction = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
            let after = self.step(index, state, &instruction)?;
            let straight = !matches!(state, State::Body { .. });
            let next = |to: u32, sure: bool| (to < self.code.len() && !self.code.has(to, ENTRY)).then_some((to, sure));
            let ways = match (insn.flow, state) {
                (Flow::Next, _) => [Some(next(index + 1, true)?), None],
                (Flow::Return | Flow::ReturnMore | Flow::Jump | Flow::Away, State::Back) => [None, None],
                (Flow::Away | Flow::Stop, State::Body { .. }) => [None, None],
                (Flow::Jump, State::Body { .. }) if insn.target == NONE => [None, None],
                (Flow::Jump, State::Body { .. }) => [Some(next(insn.target, true)?), None],
                (Flow::Branch, State::Body { .. }) if insn.target == NONE => [Some(next(index + 1, true)?), None],
                (Flow::Branch, State::Body { .. }) => [Some(next(index + 1, true)?), Some(next(insn.target, true)?)],
                (Flow::Call, State::Body { .. }) if goes_on(self.code, index) => {
                    [next(index + 1, self.code.has(index, RETURNS)), None]
                }
                (Flow::Call, State::Body { .. }) => [None, None],
                _ => return None,
            };
            if straight && index != first && self.code.jumps_to(index).next().is_some() {
                return None;
            }
            for (to, sure) in ways.into_iter().flatten() {
                self.edges.push((index, to, sure));
                let met = self.states.get(&to).map_or(Some(after), |known| known.meet(after))?;
                if self.states.insert(to, met) != Some(met) {
                    stack.push(to);
                }
            }
        }
        Some(())
    }

    /// The state behind an instruction.
    fn step(&mut self, index: u32, state: State, instruction: &Instruction) -> Option<State> {
        let [rsp, rbp, r10] =
            [Register::RSP, Register::RBP, Register::R10].map(|register| self.writes(instruction, register));
        let is = |mnemonic, register| {
            instruction.mnemonic() == mnemonic
                && instruction.op0_kind() == OpKind::Register
                && instruction.op0_register() == register
        };
        let from = |base: Register| {
            let plain = instruction.memory_base() == base && instruction.memory_index() == Register::None;
            let is_memory = (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory);
            let offset = i32::try_from(instruction.memory_displacement64().cast_signed()).ok()?;
            (plain && is_memory && instruction.segment_prefix() == Register::None).then_some(offset)
        };
        let nothing = !rsp && !rbp && !r10;
        match state {
            State::Pointed if is(Mnemonic::And, Register::RSP) => {
                let mask = i64::from(immediate(instruction)?).wrapping_neg();
                (mask.cast_unsigned().is_power_of_two()).then_some(State::Aligned)
            }
            State::Aligned if instruction.mnemonic() == Mnemonic::Push && from(Register::R10) == Some(-8) => {
                Some(State::Pushed)
            }
            State::Pushed if is(Mnemonic::Push, Register::RBP) => Some(State::Saved),
            State::Saved if is(Mnemonic::Mov, Register::RBP) && instruction.op1_kind() == OpKind::Register => {
                (instruction.op1_register() == Register::RSP).then_some(State::Framed(0))
            }
            State::Framed(below) if is(Mnemonic::Push, Register::R10) => {
                Some(State::Body { kept: below + WORD, top: Some(below + WORD), loaded: false })
            }
            State::Framed(below)
                if instruction.mnemonic() == Mnemonic::Push && instruction.op0_kind() == OpKind::Register =>
            {
                (instruction.stack_pointer_increment() == -WORD && below < 16 * WORD)
                    .then_some(State::Framed(below + WORD))
            }
            State::Restored if is(Mnemonic::Lea, Register::RSP) => {
                (from(Register::R10) == Some(-8)).then_some(State::Back)
            }
            State::Back => (!rbp && (!rsp || instruction.mnemonic() == Mnemonic::Ret)).then_some(state),
            State::Body { kept, top, loaded } => {
                if self.overwrites(index, kept) {
                    return None;
                }
                if rbp {
                    let back =
                        is(Mnemonic::Pop, Register::RBP) && top == Some(0) || instruction.mnemonic() == Mnemonic::Leave;
                    return (back && loaded).then_some(State::Restored);
                }
                let calls = self.code.insn(index).is_some_and(|insn| insn.flow == Flow::Call);
                let pops = is(Mnemonic::Pop, Register::R10) && top == Some(kept);
                let loads = is(Mnemonic::Mov, Register::R10) && from(Register::RBP) == Some(-kept);
                let loaded = pops || loads || loaded && !r10 && !calls;
                let top = match self.code.effect(index).rsp {
                    Rsp::FromFrame(bytes) => Some(-bytes),
                    rsp => top.zip(rsp.bytes()).and_then(|(top, bytes)| top.checked_add(bytes)),
                };
                top.is_none_or(|top| top >= 0).then_some(State::Body { kept, top, loaded })
            }
            _ => nothing.then_some(state),
        }
    }

    /// Whether an instruction stores over r10, rbp or the return address in the frame.
    fn overwrites(&self, index: u32, kept: i32) -> bool {
        let store = self.code.effect(index).store.filter(|(place, _bytes)| place.base == Base::Rbp);
        store.is_some_and(|(place, bytes)| {
            let end = place.offset.saturating_add_unsigned(bytes);
            [(-kept, WORD), (0, 2 * WORD)].iter().any(|(from, length)| place.offset < from + length && end > *from)
        })
    }

    fn writes(&mut self, instruction: &Instruction, register: Register) -> bool {
        self.factory.info(instruction).used_registers().iter().any(|used| {
            used.register().full_register() == register
                && !matches!(
                    used.access(),
                    OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None
                )
        })
    }

    /// The rules of what certainly belongs to the function: what ways lead to that have no call which need not return,
    /// and what leads to its end.
    fn proven(&self, first: u32) -> Vec<(u32, Option<Rule>)> {
        let ends =
            self.states.iter().filter(|(_index, state)| **state == State::Restored).map(|(index, _state)| *index);
        let reaching = closure(ends.collect(), self.edges.iter().map(|(from, to, _sure)| (*to, *from)));
        let reached =
            closure(vec![first], self.edges.iter().filter(|(.., sure)| *sure).map(|(from, to, _sure)| (*from, *to)));
        let is_proven = |index: &u32| reached.contains(index) || reaching.contains(index);
        let states = self.states.iter().filter(|(index, _state)| is_proven(index));
        states.map(|(index, state)| (*index, state.rule())).collect()
    }
}

/// All that edges lead to.
fn closure(mut stack: Vec<u32>, edges: impl Iterator<Item = (u32, u32)>) -> std::collections::HashSet<u32> {
    let mut edges: Vec<(u32, u32)> = edges.collect();
    edges.sort_unstable();
    let mut all = std::collections::HashSet::new();
    while let Some(index) = stack.pop() {
        if all.insert(index) {
            let first = edges.partition_point(|(from, _to)| *from < index);
            let ways = edges.get(first..).unwrap_or_default().iter().take_while(|(from, _to)| *from == index);
            stack.extend(ways.map(|(_from, to)| *to));
        }
    }
    all
}
