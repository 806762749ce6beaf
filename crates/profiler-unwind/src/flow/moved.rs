//! Return addresses that are moved. Where callees take their arguments off the stack (V8), code pops the address that it
//! returns to, or copies it with the arguments, puts other ones in their place, and has it on top of the stack again:
//! another frame begins there. Code that leaves its caller's frame (`BaselineLeaveFrame`) has that frame from its
//! beginning, and what makes one for its caller (`BaselineOutOfLinePrologue`) pops the address and pushes it upon that.

use std::collections::{BTreeSet, HashSet};

use iced_x86::{Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};
use profiler_common::row::{BASE_RBX, BY_FRAME_POINTER, Rule, SLOT_UNKNOWN};

use super::decode::{BOUNDARY, Code, ENTRY, FILLER, FRAME_LEFT, Flow, NONE, PUSHED_BACK, Region};
use super::depth::{Depths, WORD};
use super::effect::{Base, Effect, Place, Rsp, Use, writes};
use super::solve::{Solution, falls, successors};
use crate::x86_64::other_number;

/// Instructions between a pop and the pushes of the same word, and on the way to where a caller's frame is left, at
/// most; seen: 18 and 20.
const MOST_INSTRUCTIONS: usize = 64;
/// Pops in one piece of code that are looked at, at most: V8's builtins, 3 MiB, have some 5,000.
const MOST_POPS: usize = 1 << 14;

/// Where one return address is moved.
pub(super) struct Moved {
    /// The first instruction of that.
    first: u32,
    /// From the next one to those that have it on top of the stack again.
    inside: BTreeSet<u32>,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// It is in this register meanwhile.
    In(Register),
    /// That, and a frame is made for the caller by the first two instructions behind the pop.
    FrameMade,
    /// It is copied by a loop.
    Copied,
}

/// Finds where return addresses may be moved, and marks what leaves frames.
pub(super) fn find(code: &mut Code, pieces: &[Region<'_>]) -> Vec<Moved> {
    if !code.callees_pop {
        return Vec::new();
    }
    let mut finder = Finder { pieces, factory: InstructionInfoFactory::new() };
    let moves = |index: &u32| matches!(code.effect(*index).rsp, Rsp::PopAway | Rsp::Lost);
    let candidates: Vec<u32> = (0..code.len()).filter(moves).take(MOST_POPS).collect();
    let moved: Vec<Moved> = candidates
        .into_iter()
        .filter_map(|index| finder.popped(code, index).or_else(|| finder.copied(code, index)))
        .collect();
    for moved in moved.iter().filter(|moved| moved.how != How::Copied) {
        let pushes: Vec<u32> = moved.pushes(code).collect();
        pushes.into_iter().for_each(|index| code.mark(index, PUSHED_BACK));
        if moved.first.checked_sub(1).is_some_and(|before| leaves(code, before)) {
            code.mark(moved.first, FRAME_LEFT);
        }
    }
    for entry in
        (0..code.len()).filter(|index| code.has(*index, ENTRY) && is_left_from(code, *index)).collect::<Vec<_>>()
    {
        code.unmark(entry, ENTRY);
    }
    moved
}

/// Lets frames begin where return addresses, known by `solution` to be on top of the stack before, are there again.
/// Returns whether there are any.
pub(super) fn begin(code: &mut Code, moved: &[Moved], solution: &Solution) -> bool {
    let mut any = false;
    for moved in moved.iter().filter(|moved| solution.value(moved.first) == Some(0)) {
        for behind in moved.pushes(code).map(|index| index + 1).collect::<Vec<_>>() {
            code.mark(behind, ENTRY);
            any = true;
        }
    }
    any
}

/// The rules while return addresses are moved, and in front of what goes on in a frame.
pub(super) fn rules(code: &Code, pieces: &[Region<'_>], moved: &[Moved], depths: &Depths) -> Vec<(u32, Rule)> {
    let mut rules = before_continuations(code, pieces);
    rules.extend(dropped(code));
    rules.extend(before_frames(code, moved, depths));
    for moved in moved.iter().filter(|moved| depths.at(moved.first) == Some(0)) {
        match moved.how {
            How::In(register) => {
                let rule =
                    other(register).map(|other| Rule::x86_64_ra_in_other(other, false, 0).with_rbx(SLOT_UNKNOWN));
                rules.extend(rule.into_iter().flat_map(|rule| moved.inside.iter().map(move |index| (*index, rule))));
            }
            How::FrameMade => {
                let framed = moved.inside.iter().filter(|index| **index > moved.first + 2);
                rules.extend(framed.map(|index| (*index, Rule::X86_64_FRAME_POINTER)));
            }
            // The first round copies it: nothing says which one it is.
            How::Copied => rules.extend(moved.inside.iter().map(|index| (*index, Rule::NO_FRAME_POINTER))),
        }
    }
    // Of two for one instruction the last one counts.
    rules.sort_by_key(|(index, _rule)| *index);
    rules
}

/// Who calls what makes a frame for its caller has none yet, so rbp leads over its caller: better over itself.
fn before_frames(code: &Code, moved: &[Moved], depths: &Depths) -> Vec<(u32, Rule)> {
    let made = moved.iter().filter(|moved| moved.how == How::FrameMade && depths.at(moved.first) == Some(0));
    let components: HashSet<u32> = made.filter_map(|moved| depths.component(moved.first)).collect();
    if components.is_empty() {
        return Vec::new();
    }
    let over_caller = |depth: i32| Rule::x86_64(BY_FRAME_POINTER, 0, (depth + 2 * WORD) / WORD).with_rbx(SLOT_UNKNOWN);
    let before = (0..code.len())
        .filter(|index| depths.component(*index).is_some_and(|component| components.contains(&component)));
    before.filter_map(|index| Some((index, over_caller(depths.at(index)?)))).collect()
}

/// What begins with something in a frame, behind filling, goes on in it: nothing was called there, so a return address
/// that leads there was put into that frame by hand (V8's deoptimizer).
fn before_continuations(code: &Code, pieces: &[Region<'_>]) -> Vec<(u32, Rule)> {
    if !code.callees_pop {
        return Vec::new();
    }
    let finder = Finder { pieces, factory: InstructionInfoFactory::new() };
    let begins = |index: &u32| code.has(*index, BOUNDARY) && code.has(index - 1, FILLER);
    let continuations = (1..code.len()).filter(begins).filter(|index| finder.is_in_a_frame(code, *index));
    continuations.map(|index| (index - 1, Rule::X86_64_FRAME_POINTER)).collect()
}

/// The rules behind instructions that restore the caller's rbp, `mov (%rbp), %rbp`, up to where a frame is taken off the
/// stack, and to the jump to another function from there.
fn dropped(code: &Code) -> Vec<(u32, Rule)> {
    let loads = |index: &u32| {
        let Effect { uses: [rbp, _rbx], rsp, .. } = code.effect(*index);
        *rbp == Use::Load(Place { base: Base::Rbp, offset: 0 }) && *rsp == Rsp::Deeper(0)
    };
    let loads = (0..code.len()).filter(|index| code.callees_pop && loads(index));
    loads.filter_map(|load| dropped_behind(code, load)).flatten().collect()
}

fn dropped_behind(code: &Code, load: u32) -> Option<Vec<(u32, Rule)>> {
    let behind = || load + 1..load.saturating_add(MOST_INSTRUCTIONS as u32);
    let drop = behind().find(|index| code.effect(*index).rsp != Rsp::Deeper(0))?;
    let Rsp::Deeper(bytes @ ..0) = code.effect(drop).rsp else { return None };
    let jump = behind().find(|index| code.insn(*index).is_none_or(|insn| insn.flow != Flow::Next))?;
    let insn = code.insn(jump)?;
    let leaves = insn.flow == Flow::Away || insn.flow == Flow::Jump && code.has(insn.target, ENTRY);
    let keeps = |index: u32| {
        let effect = code.effect(index);
        let stays = index == drop || effect.rsp == Rsp::Deeper(0);
        stays && effect.uses[0] == Use::Nothing && effect.store.is_none() && code.jumps_to(index).next().is_none()
    };
    let is_whole = drop < jump && leaves && bytes % WORD == 0 && (load + 1..=jump).all(keeps);
    let rule = |index| Rule::x86_64(0, 0, if index <= drop { 1 - bytes / WORD } else { 1 }).with_rbx(SLOT_UNKNOWN);
    is_whole.then(|| (load + 1..=jump).map(|index| (index, rule(index))).collect())
}

impl Moved {
    /// The instructions behind which it is on top of the stack again.
    fn pushes<'a>(&'a self, code: &'a Code) -> impl Iterator<Item = u32> + 'a {
        self.inside.iter().copied().filter(|index| falls(code, *index) && !self.inside.contains(&(index + 1)))
    }
}

/// The number in rules of a register that a call may change, or of rbx.
fn other(register: Register) -> Option<u8> {
    if register == Register::RBX {
        return Some(BASE_RBX);
    }
    // System V ABI, x86-64 supplement, figure 3.36.
    const BY_DWARF_NUMBER: [Register; 12] = [
        Register::RAX,
        Register::RDX,
        Register::RCX,
        Register::RBX,
        Register::RSI,
        Register::RDI,
        Register::RBP,
        Register::RSP,
        Register::R8,
        Register::R9,
        Register::R10,
        Register::R11,
    ];
    let number = BY_DWARF_NUMBER.iter().position(|named| *named == register)?;
    other_number(u16::try_from(number).ok()?)
}

/// Whether rbp is the caller's again behind an instruction, and rsp where the frame was: `leave`, or the
/// `pop %rbp` behind `mov %rbp, %rsp`.
fn leaves(code: &Code, index: u32) -> bool {
    let pops = matches!(code.effect(index).uses, [Use::Load(_), _]);
    let taken_down = |index: u32| code.effect(index).rsp == Rsp::FromFrame(0);
    pops && (code.effect(index).rsp == Rsp::FromFrame(8) || index.checked_sub(1).is_some_and(taken_down))
}

/// Whether a way on which rbp is not changed leads from the beginning of a function to where a frame is left: it is the
/// caller's, which goes on here.
fn is_left_from(code: &Code, entry: u32) -> bool {
    let mut seen = BTreeSet::new();
    let mut stack = vec![entry];
    while let Some(index) = stack.pop() {
        if seen.len() >= MOST_INSTRUCTIONS || !seen.insert(index) || index != entry && code.has(index, ENTRY | BOUNDARY)
        {
            continue;
        }
        let [rbp, _rbx] = code.effect(index).uses;
        if leaves(code, index) {
            return true;
        }
        if matches!(rbp, Use::Nothing | Use::Save(_)) {
            stack.extend(successors(code, index).into_iter().flatten());
        }
    }
    false
}

struct Finder<'a> {
    pieces: &'a [Region<'a>],
    factory: InstructionInfoFactory,
}

impl Finder<'_> {
    /// What a pop takes to a register from which all ways push it.
    fn popped(&mut self, code: &Code, first: u32) -> Option<Moved> {
        let pop = self.instruction(code, first).filter(|pop| pop.mnemonic() == Mnemonic::Pop)?;
        let register = pop.op0_register();
        let makes_frame = matches!(code.effect(first + 1).uses, [Use::Save(_), _])
            && code.effect(first + 1).rsp == Rsp::Deeper(WORD)
            && code.effect(first + 2).frame == Some(0);
        let mut inside = BTreeSet::new();
        let mut stack = vec![first + 1];
        while let Some(index) = stack.pop() {
            if !inside.insert(index) {
                continue;
            }
            let instruction = self.instruction(code, index)?;
            if instruction.mnemonic() == Mnemonic::Push && instruction.op0_register() == register {
                continue;
            }
            let insn = code.insn(index)?;
            let goes_on = match insn.flow {
                Flow::Next => true,
                Flow::Branch | Flow::Jump => insn.target != NONE,
                _ => false,
            };
            let frame = makes_frame && index <= first + 2;
            let keeps_rbp = frame || code.effect(index).uses[0] == Use::Nothing;
            if inside.len() > MOST_INSTRUCTIONS
                || !goes_on
                || !keeps_rbp
                || code.has(index, ENTRY)
                || writes(&instruction, register, &mut self.factory)
            {
                return None;
            }
            stack.extend(successors(code, index).into_iter().flatten());
        }
        let how = if makes_frame { How::FrameMade } else { How::In(register) };
        Some(Moved { first, inside, how }).filter(|moved| moved.is_entered_by_the_first_only(code))
    }

    /// What V8 makes room with below the arguments: the return address and the arguments are copied down, from the lowest
    /// on (`Generate_AllocateSpaceAndShiftExistingArguments`, v8/src/builtins/x64/builtins-x64.cc, and
    /// `MacroAssembler::InvokePrologue`, which has no jump).
    ///
    /// ```text
    /// mov %rsp, %from;  lea (, %count, 8), %value;  sub %value, %rsp;  xor %at, %at;  jmp to the cmp
    /// mov (%from, %at, 8), %value;  mov %value, (%rsp, %at, 8);  inc %at;  cmp %last, %at;  jle to the first mov
    /// ```
    fn copied(&self, code: &Code, first: u32) -> Option<Moved> {
        let at = |index| self.instruction(code, index);
        let (keep, count, sub) = (at(first.checked_sub(2)?)?, at(first.checked_sub(1)?)?, at(first)?);
        let (from, value) = (keep.op0_register(), sub.op1_register());
        let makes_room = moves(&keep, Mnemonic::Mov, from, Register::RSP)
            && moves(&sub, Mnemonic::Sub, Register::RSP, value)
            && count.op0_register() == value
            && value != from;
        // What is last may be calculated in between.
        let clear = first + 1 + u32::from(at(first + 1)?.mnemonic() == Mnemonic::Lea);
        let zero = at(clear)?;
        let cleared = zero.mnemonic() == Mnemonic::Xor && zero.op0_register() == zero.op1_register();
        let index = zero.op0_register().full_register();
        let jump = at(clear + 1).filter(|jump| jump.mnemonic() == Mnemonic::Jmp);
        let load = clear + 1 + u32::from(jump.is_some());
        let [store, count, compare, again] = [1, 2, 3, 4].map(|words| at(load + words));
        let (store, count, compare, again) = (store?, count?, compare?, again?);
        let is_loop = matches!(again.mnemonic(), Mnemonic::Jle | Mnemonic::Jl)
            && again.near_branch_target() == at(load)?.ip()
            && jump.is_none_or(|jump| jump.near_branch_target() == compare.ip());
        let copies = at(load).is_some_and(|load| load.op0_register() == value && loads(&load, from, index))
            && store.op1_register() == value
            && stores(&store, Register::RSP, index)
            && count.mnemonic() == Mnemonic::Inc
            && count.op0_register().full_register() == index
            && compare.mnemonic() == Mnemonic::Cmp
            && compare.op0_register().full_register() == index;
        let inside = (first + 1..=load + 4).collect();
        (makes_room && cleared && is_loop && copies)
            .then_some(Moved { first, inside, how: How::Copied })
            .filter(|moved| moved.is_entered_by_the_first_only(code))
    }

    /// Whether the instruction reads or writes below where rbp points to.
    fn is_in_a_frame(&self, code: &Code, index: u32) -> bool {
        self.instruction(code, index).is_some_and(|instruction| {
            instruction.memory_base() == Register::RBP && instruction.memory_displacement64().cast_signed() < 0
        })
    }

    fn instruction(&self, code: &Code, index: u32) -> Option<Instruction> {
        let address = self.pieces.first()?.start + u64::from(code.insn(index)?.at);
        let after = self.pieces.partition_point(|piece| piece.start <= address);
        let piece = self.pieces.get(after.checked_sub(1)?)?;
        let bytes = piece.bytes.get(usize::try_from(address - piece.start).ok()?..)?;
        Some(Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode()).filter(|found| !found.is_invalid())
    }
}

fn moves(instruction: &Instruction, mnemonic: Mnemonic, to: Register, from: Register) -> bool {
    instruction.mnemonic() == mnemonic && instruction.op0_register() == to && instruction.op1_register() == from
}

fn loads(instruction: &Instruction, base: Register, index: Register) -> bool {
    instruction.op1_kind() == OpKind::Memory && moves_word(instruction, base, index)
}

fn stores(instruction: &Instruction, base: Register, index: Register) -> bool {
    instruction.op0_kind() == OpKind::Memory && moves_word(instruction, base, index)
}

/// `mov` from or to `(base, index, 8)`.
fn moves_word(instruction: &Instruction, base: Register, index: Register) -> bool {
    instruction.mnemonic() == Mnemonic::Mov
        && (instruction.memory_base(), instruction.memory_index()) == (base, index)
        && (instruction.memory_index_scale(), instruction.memory_displacement64()) == (8, 0)
}

impl Moved {
    fn is_entered_by_the_first_only(&self, code: &Code) -> bool {
        let is_inside = |from: u32| from == self.first || self.inside.contains(&from);
        self.inside.iter().all(|index| {
            let falls_in = index.checked_sub(1).filter(|before| falls(code, *before));
            falls_in.into_iter().chain(code.jumps_to(*index)).all(is_inside)
        }) && self.pushes(code).next().is_some()
    }
}
