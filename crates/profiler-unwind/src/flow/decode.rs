//! Machine code as far as it moves the stack pointer, or saves and changes rbp and rbx: its instructions, and the
//! ways from one to another.

use super::effect::{Effect, NOTHING, Rsp, Use, effect};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind};

/// No instruction.
pub(super) const NONE: u32 = u32::MAX;

/// Where execution goes on behind an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// With the next one.
    Next,
    /// With the next one, if what is called returns.
    Call,
    /// With the target or the next one.
    Branch,
    /// With the target.
    Jump,
    /// With the caller.
    Return,
    /// With the caller, and arguments are taken off the stack as well: the caller has another depth then.
    ReturnMore,
    /// Somewhere: a jump to a computed address.
    Away,
    /// Nowhere: the end of execution, or no instruction.
    Stop,
}

/// A function is known to begin here: the return address is on top of the stack.
pub(super) const ENTRY: u8 = 1 << 0;
/// Something begins here: what is called before it need not return to it.
pub(super) const BOUNDARY: u8 = 1 << 1;
/// Nothing but space between code.
pub(super) const FILLER: u8 = 1 << 2;

/// It calls something that does not return.
pub(super) const NEVER: u8 = 1 << 3;
/// It calls something of which more is known than that it may return.
pub(super) const RETURNS: u8 = 1 << 4;

/// It belongs to a function with an aligned frame that is known as a whole.
pub(super) const REALIGNED: u8 = 1 << 5;

/// It may push a return address that was popped before ([`super::moved`]).
pub(super) const PUSHED_BACK: u8 = 1 << 6;
/// A frame was left: the return address is on top of the stack.
pub(super) const FRAME_LEFT: u8 = 1 << 7;

/// One instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Insn {
    /// Its first byte, counted from the start of the code.
    pub(super) at: u32,
    pub(super) length: u8,
    pub(super) flow: Flow,
    pub(super) flags: u8,
    /// The index of the instruction to which it jumps, or that it calls, or [`NONE`].
    pub(super) target: u32,
    /// The index of its effect; 0 for none.
    effect: u32,
}

const NO_INSN: Insn = Insn { at: 0, length: 1, flow: Flow::Stop, flags: 0, target: NONE, effect: 0 };

/// Code and its address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region<'a> {
    pub(crate) start: u64,
    pub(crate) bytes: &'a [u8],
    /// Callees are known to take their arguments off the stack.
    pub(crate) callees_pop: bool,
}

impl<'a> Region<'a> {
    pub(crate) const fn new(start: u64, bytes: &'a [u8]) -> Self {
        Self { start, bytes, callees_pop: false }
    }
}

/// In [`Code::calls`]: the address of what is called is at that address.
const IN_MEMORY: u64 = 1 << 63;

/// So many returns that take arguments off the stack, at least, and such a part of all: a tenth and more of V8's do,
/// none of what compilers of C make.
const POPPING_RETURNS: usize = 16;
const POPPING_PART: usize = 20;

/// The longest loop that pushes, in instructions.
const LOOP_INSTRUCTIONS: u32 = 32;

/// The instructions of a piece of code, one after the other.
pub(super) struct Code {
    pub(super) insns: Vec<Insn>,
    effects: Vec<Effect>,
    /// Jumps by target: (target, where from), sorted.
    jumps: Vec<(u32, u32)>,
    /// Calls by what is called, as far as that is the same for the same number: (number, where from), sorted.
    pub(super) calls: Vec<(u64, u32)>,
    /// What is called here takes its arguments off the stack (V8): what rsp is behind a call is not what it was.
    pub(super) callees_pop: bool,
    /// Addresses in the code that instructions load, as offsets, sorted.
    pub(super) pointed: Vec<u32>,
}

impl Code {
    /// Decodes some pieces of code; offsets are from `base`. Others may call `entries`, something begins at
    /// `boundaries`: offsets, sorted.
    pub(super) fn decode(base: u64, pieces: &[Region<'_>], entries: &[u32], boundaries: &[u32]) -> Self {
        let mut marks: Vec<u32> = entries.iter().chain(boundaries).copied().collect();
        marks.sort_unstable();
        let mut code = Self::sweep(base, pieces, &marks);
        let mut called = code.link();
        // What is called and was taken for a part of another instruction is decoded from there.
        let is_inside = |at: u32| {
            let after = pieces.partition_point(|piece| piece.start <= base + u64::from(at));
            let piece = after.checked_sub(1).and_then(|index| pieces.get(index));
            piece.is_some_and(|piece| base + u64::from(at) - piece.start < piece.bytes.len() as u64)
        };
        if called.iter().any(|at| is_inside(*at) && code.index(*at).is_none()) {
            marks.extend(called.iter().filter(|at| is_inside(**at)));
            marks.sort_unstable();
            // Two of them would take twice the memory.
            drop(code);
            code = Self::sweep(base, pieces, &marks);
            called = code.link();
        }
        code.lose_loops();
        for (offsets, flags) in [(boundaries, BOUNDARY), (entries, ENTRY | BOUNDARY), (&called, ENTRY | BOUNDARY)] {
            for index in offsets.iter().filter_map(|at| code.index(*at)).collect::<Vec<_>>() {
                // What jumps lead to may be a part of another function.
                let entry = if flags == BOUNDARY && code.jumps_to(index).next().is_none() { ENTRY } else { 0 };
                code.mark(index, flags | entry);
            }
        }
        code
    }

    /// Decodes one instruction after the other; none reaches over a mark.
    fn sweep(base: u64, pieces: &[Region<'_>], marks: &[u32]) -> Self {
        let mut code = Self {
            insns: Vec::new(),
            effects: vec![NOTHING],
            jumps: Vec::new(),
            calls: Vec::new(),
            callees_pop: false,
            pointed: Vec::new(),
        };
        let (mut returns, mut popping) = (0, 0);
        let mut factory = InstructionInfoFactory::new();
        let mut marks = marks.iter().copied().peekable();
        for piece in pieces {
            let start = (piece.start - base) as usize;
            let mut flags = BOUNDARY;
            let mut at = 0;
            while let Some(rest) = piece.bytes.get(at..).filter(|rest| !rest.is_empty()) {
                while marks.next_if(|mark| *mark as usize <= start + at).is_some() {}
                let room = marks.peek().map_or(rest.len(), |mark| (*mark as usize - start - at).min(rest.len()));
                let bytes = rest.get(..room).unwrap_or(rest);
                let Read { mut insn, effect, callee, pointed } = read(base, start + at, bytes, &mut factory);
                code.calls.extend(callee.map(|callee| (callee, code.insns.len() as u32)));
                code.pointed.extend(pointed);
                if let Some(effect) = effect {
                    insn.effect = code.effects.len() as u32;
                    code.effects.push(effect);
                }
                returns += usize::from(matches!(insn.flow, Flow::Return | Flow::ReturnMore));
                popping += usize::from(insn.flow == Flow::ReturnMore && pops_some_words(bytes));
                at += usize::from(insn.length);
                insn.flags |= std::mem::take(&mut flags);
                code.insns.push(insn);
            }
            code.insns.push(Insn { at: (start + at) as u32, length: 0, ..NO_INSN });
        }
        code.pointed.sort_unstable();
        code.pointed.dedup();
        let many = popping >= POPPING_RETURNS && popping >= returns / POPPING_PART;
        code.callees_pop = many || pieces.iter().any(|piece| piece.callees_pop);
        if code.callees_pop {
            // Taking a word off the stack is a pop, too, and one to rbx may be of the return address.
            let popping = |effect: &&mut Effect| effect.rsp == Rsp::Deeper(-8) && effect.uses[0] == Use::Nothing;
            code.effects.iter_mut().filter(popping).for_each(|effect| effect.rsp = Rsp::PopAway);
        } else {
            // To who is called it is an argument like any other.
            for effect in code.effects.iter_mut().filter(|effect| matches!(effect.rsp, Rsp::PushAgain(_))) {
                effect.rsp = Rsp::Deeper(8);
            }
        }
        code
    }

    /// Turns the targets of jumps and calls from offsets into indices; returns those of calls, sorted.
    fn link(&mut self) -> Vec<u32> {
        let mut called = Vec::new();
        for index in 0..self.insns.len() {
            let Some(insn) = self.insns.get(index).copied().filter(|insn| insn.target != NONE) else { continue };
            if insn.flow == Flow::Call {
                called.push(insn.target);
            }
            let target = self.index(insn.target).unwrap_or(NONE);
            if let Some(insn) = self.insns.get_mut(index) {
                insn.target = target;
            }
            if target != NONE && insn.flow != Flow::Call {
                self.jumps.push((target, index as u32));
            }
        }
        self.jumps.sort_unstable();
        self.calls.sort_unstable();
        called.sort_unstable();
        called.dedup();
        called
    }

    /// How often a loop pushes is not known, so neither is the stack pointer in it.
    fn lose_loops(&mut self) {
        for at in 0..self.jumps.len() {
            let Some((first, last)) = self.jumps.get(at).copied().filter(|(first, last)| first <= last) else {
                continue;
            };
            let inside = first..=last;
            let stays = |index: u32| {
                self.insn(index).is_some_and(|insn| matches!(insn.flow, Flow::Next | Flow::Branch) || index == last)
            };
            if last - first >= LOOP_INSTRUCTIONS || !inside.clone().all(stays) {
                continue;
            }
            let pushed = inside.clone().map(|index| self.effect(index).rsp.bytes());
            if pushed.sum::<Option<i32>>().is_none_or(|bytes| bytes == 0) {
                continue;
            }
            for index in inside {
                let effect = self.insn(index).map_or(0, |insn| insn.effect) as usize;
                let effect = self.effects.get_mut(effect).filter(|effect| effect.rsp != Rsp::Deeper(0));
                effect.into_iter().for_each(|effect| effect.rsp = Rsp::Lost);
            }
        }
    }

    /// The index of the instruction that begins at an offset.
    pub(super) fn index(&self, at: u32) -> Option<u32> {
        self.insns.binary_search_by_key(&at, |insn| insn.at).ok().map(|index| index as u32)
    }

    pub(super) fn len(&self) -> u32 {
        self.insns.len() as u32
    }

    pub(super) fn insn(&self, index: u32) -> Option<&Insn> {
        self.insns.get(index as usize)
    }

    pub(super) fn effect(&self, index: u32) -> &Effect {
        let effect = self.insn(index).and_then(|insn| self.effects.get(insn.effect as usize));
        effect.unwrap_or(&NOTHING)
    }

    pub(super) fn mark(&mut self, index: u32, flag: u8) {
        if let Some(insn) = self.insns.get_mut(index as usize) {
            insn.flags |= flag;
        }
    }

    pub(super) fn unmark(&mut self, index: u32, flag: u8) {
        if let Some(insn) = self.insns.get_mut(index as usize) {
            insn.flags &= !flag;
        }
    }

    pub(super) fn has(&self, index: u32, flag: u8) -> bool {
        self.insn(index).is_some_and(|insn| insn.flags & flag != 0)
    }

    /// Where jumps to an instruction are.
    pub(super) fn jumps_to(&self, index: u32) -> impl Iterator<Item = u32> {
        let first = self.jumps.partition_point(|(target, _from)| *target < index);
        let jumps = self.jumps.get(first..).unwrap_or_default();
        jumps.iter().take_while(move |(target, _from)| *target == index).map(|(_target, from)| *from)
    }
}

/// What one instruction says.
struct Read {
    /// Its target is an offset.
    insn: Insn,
    effect: Option<Effect>,
    /// What it calls, as in [`Code::calls`].
    callee: Option<u64>,
    /// The address that it loads, as an offset.
    pointed: Option<u32>,
}

/// The instruction at the start of `bytes`, which are at `start + at`. Offsets are from `start`.
fn read(start: u64, at: usize, bytes: &[u8], factory: &mut InstructionInfoFactory) -> Read {
    let mut insn = Insn { at: at as u32, flags: FILLER, ..NO_INSN };
    let alone = |insn| Read { insn, effect: None, callee: None, pointed: None };
    // Linkers leave zeros between sections.
    if bytes.starts_with(&[0, 0]) {
        insn.length = 2;
        return alone(insn);
    }
    let ip = start.wrapping_add(at as u64);
    let mut decoder = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        insn.flags = 0;
        return alone(insn);
    }
    insn.length = instruction.len() as u8;
    insn.flow = flow(&instruction);
    insn.flags = if matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3) { FILLER } else { 0 };
    let mut callee = None;
    if insn.flow == Flow::Call && instruction.is_ip_rel_memory_operand() {
        callee = Some(instruction.ip_rel_memory_address() | IN_MEMORY);
    }
    if instruction.op0_kind() == OpKind::NearBranch64 {
        let target = instruction.near_branch_target();
        if insn.flow == Flow::Call
            && target == ip.wrapping_add(instruction.len() as u64)
            && pops(bytes, instruction.len())
        {
            // The way to learn one's own address.
            insn.flow = Flow::Next;
            return Read { effect: Some(Effect { rsp: Rsp::Deeper(8), ..NOTHING }), ..alone(insn) };
        }
        callee = (insn.flow == Flow::Call).then_some(target);
        insn.target = offset(start, target).unwrap_or(NONE);
    }
    let moves = matches!(insn.flow, Flow::Next | Flow::Branch | Flow::Jump);
    let effect = moves.then(|| effect(&instruction, factory)).flatten();
    Read { insn, effect, callee, pointed: pointed(&instruction).and_then(|address| offset(start, address)) }
}

fn offset(start: u64, address: u64) -> Option<u32> {
    address.checked_sub(start).and_then(|offset| u32::try_from(offset).ok())
}

/// The address that an instruction loads, or stores: `lea disp32(%rip)`, in programs with a fixed address also
/// `mov $imm32`.
fn pointed(instruction: &Instruction) -> Option<u64> {
    match (instruction.mnemonic(), instruction.op1_kind()) {
        (Mnemonic::Lea, OpKind::Memory) => {
            instruction.is_ip_rel_memory_operand().then(|| instruction.ip_rel_memory_address())
        }
        (Mnemonic::Mov, OpKind::Immediate32 | OpKind::Immediate32to64) => Some(instruction.immediate(1)),
        _ => None,
    }
}

/// Whether `ret n` takes as many bytes off the stack as arguments have: 31 words at most. Data that was taken for code
/// has other numbers.
fn pops_some_words(bytes: &[u8]) -> bool {
    matches!(bytes, [0xc2, low, 0, ..] if *low > 0 && low.is_multiple_of(8))
}

/// Whether `pop` of a register is at an offset.
fn pops(bytes: &[u8], at: usize) -> bool {
    matches!(bytes.get(at..).unwrap_or_default(), [0x58..=0x5f, ..] | [0x41, 0x58..=0x5f, ..])
}

pub(super) fn flow(instruction: &Instruction) -> Flow {
    match (instruction.flow_control(), instruction.mnemonic()) {
        (_, Mnemonic::Syscall) => Flow::Next,
        (_, Mnemonic::Hlt) => Flow::Stop,
        (FlowControl::Next | FlowControl::XbeginXabortXend, _) => Flow::Next,
        (FlowControl::Call | FlowControl::IndirectCall, Mnemonic::Call) => Flow::Call,
        (FlowControl::ConditionalBranch, _) => Flow::Branch,
        (FlowControl::UnconditionalBranch, Mnemonic::Jmp) => Flow::Jump,
        (FlowControl::Return, Mnemonic::Ret) if instruction.op_count() == 0 => Flow::Return,
        (FlowControl::Return, Mnemonic::Ret) => Flow::ReturnMore,
        (FlowControl::IndirectBranch, _) => Flow::Away,
        _ => Flow::Stop,
    }
}
