//! What single instructions do to the stack pointer, to rbp and rbx, and to the stack.

use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

/// Frames are smaller than this many bytes; larger numbers are none of frames.
pub(super) const MOST_BYTES: i32 = 1 << 28;

/// What a place on the stack is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    Rsp,
    Rbp,
}

/// A place on the stack: so many bytes above a register, as it is before the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) base: Base,
    pub(super) offset: i32,
}

/// What an instruction does to the stack pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rsp {
    /// So many bytes are added to the depth of the stack.
    Deeper(i32),
    /// The word so many bytes above it is pushed. Where that is the return address, another frame begins: it is
    /// how arguments are put on the stack before a jump to another function (V8).
    PushAgain(i32),
    /// A word is popped, to another register than rbp and rbx.
    PopAway,
    /// It is set to rbp and so many bytes.
    FromFrame(i32),
    /// Something that is not known here.
    Lost,
}

impl Rsp {
    /// How many bytes are added to the depth of the stack, if that is known.
    pub(super) fn bytes(self) -> Option<i32> {
        match self {
            Self::Deeper(bytes) => Some(bytes),
            Self::PushAgain(_) => Some(8),
            Self::PopAway => Some(-8),
            Self::FromFrame(_) | Self::Lost => None,
        }
    }
}

/// What an instruction does to rbp or rbx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Nothing,
    /// Stores it.
    Save(Place),
    /// Loads it from the stack.
    Load(Place),
    /// Sets it to anything.
    Write,
}

/// What an instruction does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effect {
    pub(super) rsp: Rsp,
    /// rbp is set to rsp, as it is before, and so many bytes.
    pub(super) frame: Option<i32>,
    /// What is done to rbp and to rbx.
    pub(super) uses: [Use; 2],
    /// So many bytes are stored in this place on the stack.
    pub(super) store: Option<(Place, u32)>,
}

pub(super) const NOTHING: Effect = Effect { rsp: Rsp::Deeper(0), frame: None, uses: [Use::Nothing; 2], store: None };

/// The registers of [`Effect::uses`].
const REGISTERS: [Register; 2] = [Register::RBP, Register::RBX];

/// What an instruction does; `None` when that is nothing.
pub(super) fn effect(instruction: &Instruction, factory: &mut InstructionInfoFactory) -> Option<Effect> {
    let mut effect = NOTHING;
    effect.rsp = rsp(instruction, factory);
    for (use_, register) in effect.uses.iter_mut().zip(REGISTERS) {
        *use_ = use_of(instruction, register, factory);
    }
    effect.store = store(instruction, factory);
    if is_enter(instruction) {
        effect.frame = Some(-8);
    }
    if instruction.op0_kind() == OpKind::Register && instruction.op0_register() == Register::RBP {
        effect.frame = match instruction.mnemonic() {
            Mnemonic::Mov if instruction.op1_kind() == OpKind::Register => {
                (instruction.op1_register() == Register::RSP).then_some(0)
            }
            Mnemonic::Lea => place(instruction).filter(|place| place.base == Base::Rsp).map(|place| place.offset),
            _ => None,
        };
    }
    let nothing = effect.rsp == Rsp::Deeper(0) && effect.uses == [Use::Nothing; 2] && effect.store.is_none();
    (!nothing).then_some(effect)
}

/// The place that the memory operand of an instruction names, if that is one on the stack.
fn place(instruction: &Instruction) -> Option<Place> {
    let base = match instruction.memory_base() {
        Register::RSP => Base::Rsp,
        Register::RBP => Base::Rbp,
        _ => return None,
    };
    if instruction.memory_index() != Register::None || instruction.segment_prefix() != Register::None {
        return None;
    }
    let offset = small(instruction.memory_displacement64().cast_signed())?;
    Some(Place { base, offset })
}

/// A number of bytes of a frame.
fn small(bytes: i64) -> Option<i32> {
    i32::try_from(bytes).ok().filter(|bytes| bytes.unsigned_abs() < MOST_BYTES.unsigned_abs())
}

fn rsp(instruction: &Instruction, factory: &mut InstructionInfoFactory) -> Rsp {
    let first = register(instruction, 0);
    match instruction.mnemonic() {
        Mnemonic::Push if instruction.op0_kind() == OpKind::Memory && instruction.stack_pointer_increment() == -8 => {
            let again = place(instruction).filter(|place| place.base == Base::Rsp);
            return again.map_or(Rsp::Deeper(8), |place| Rsp::PushAgain(place.offset));
        }
        Mnemonic::Pop if first.is_gpr64() && first != Register::RSP && !REGISTERS.contains(&first) => {
            return Rsp::PopAway;
        }
        Mnemonic::Leave => return if instruction.len() == 1 { Rsp::FromFrame(8) } else { Rsp::Lost },
        Mnemonic::Enter if is_enter(instruction) => return Rsp::Deeper(-instruction.stack_pointer_increment()),
        Mnemonic::Enter => return Rsp::Lost,
        Mnemonic::Push | Mnemonic::Pushfq | Mnemonic::Pop | Mnemonic::Popfq
            if first.full_register() != Register::RSP || instruction.mnemonic() == Mnemonic::Push =>
        {
            return Rsp::Deeper(-instruction.stack_pointer_increment());
        }
        Mnemonic::Sub | Mnemonic::Add if first == Register::RSP => {
            if let Some(bytes) = immediate(instruction) {
                return Rsp::Deeper(if instruction.mnemonic() == Mnemonic::Sub { bytes } else { -bytes });
            }
            return Rsp::Lost;
        }
        Mnemonic::Lea if first == Register::RSP => {
            return match place(instruction) {
                Some(Place { base: Base::Rsp, offset }) => Rsp::Deeper(offset.wrapping_neg()),
                Some(Place { base: Base::Rbp, offset }) => Rsp::FromFrame(offset),
                None => Rsp::Lost,
            };
        }
        Mnemonic::Mov if first == Register::RSP => {
            let from_rbp = instruction.op1_kind() == OpKind::Register && instruction.op1_register() == Register::RBP;
            return if from_rbp { Rsp::FromFrame(0) } else { Rsp::Lost };
        }
        _ => {}
    }
    if writes(instruction, Register::RSP, factory) { Rsp::Lost } else { Rsp::Deeper(0) }
}

/// `enter $bytes, $0`: push %rbp; mov %rsp, %rbp; sub $bytes, %rsp.
fn is_enter(instruction: &Instruction) -> bool {
    instruction.code() == Code::Enterq_imm16_imm8 && instruction.immediate8_2nd() == 0
}

/// The register that is an operand of an instruction, if one is.
fn register(instruction: &Instruction, operand: u32) -> Register {
    if operand < instruction.op_count() && instruction.op_kind(operand) == OpKind::Register {
        instruction.op_register(operand)
    } else {
        Register::None
    }
}

pub(super) fn immediate(instruction: &Instruction) -> Option<i32> {
    match instruction.op1_kind() {
        OpKind::Immediate8to32 | OpKind::Immediate8to64 | OpKind::Immediate32to64 => {
            let bytes = instruction.immediate(1).cast_signed();
            small(bytes)
        }
        _ => None,
    }
}

pub(super) fn writes(instruction: &Instruction, register: Register, factory: &mut InstructionInfoFactory) -> bool {
    let info = factory.info(instruction);
    info.used_registers().iter().any(|used| {
        used.register().full_register() == register
            && matches!(
                used.access(),
                OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            )
    })
}

fn use_of(instruction: &Instruction, register: Register, factory: &mut InstructionInfoFactory) -> Use {
    let on_top = |offset| Place { base: Base::Rsp, offset };
    match instruction.mnemonic() {
        Mnemonic::Push if self::register(instruction, 0) == register => return Use::Save(on_top(-8)),
        Mnemonic::Pop if self::register(instruction, 0) == register => return Use::Load(on_top(0)),
        Mnemonic::Enter if is_enter(instruction) && register == Register::RBP => return Use::Save(on_top(-8)),
        Mnemonic::Leave if register == Register::RBP => return Use::Load(Place { base: Base::Rbp, offset: 0 }),
        Mnemonic::Mov if self::register(instruction, 1) == register && instruction.op0_kind() == OpKind::Memory => {
            return place(instruction).map_or(Use::Nothing, Use::Save);
        }
        Mnemonic::Mov if self::register(instruction, 0) == register && instruction.op1_kind() == OpKind::Memory => {
            return place(instruction).map_or(Use::Write, Use::Load);
        }
        _ => {}
    }
    if writes(instruction, register, factory) { Use::Write } else { Use::Nothing }
}

/// What an instruction stores on the stack by rsp or rbp.
fn store(instruction: &Instruction, factory: &mut InstructionInfoFactory) -> Option<(Place, u32)> {
    if let pushed @ 1.. = -instruction.stack_pointer_increment() {
        return Some((Place { base: Base::Rsp, offset: -pushed }, pushed.cast_unsigned()));
    }
    // A barrier: lock orl $0, (%rsp).
    if matches!(instruction.mnemonic(), Mnemonic::Or | Mnemonic::Add) && immediate(instruction) == Some(0) {
        return None;
    }
    let place = place(instruction)?;
    let size = instruction.memory_size();
    let info = factory.info(instruction);
    let stores = (0..instruction.op_count()).any(|index| {
        instruction.op_kind(index) == OpKind::Memory
            && matches!(
                info.op_access(index),
                OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            )
    });
    stores.then(|| (place, size.size().max(1) as u32))
}
