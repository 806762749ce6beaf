//! From CFI to rules on x86_64. Register numbers: System V ABI, x86-64 supplement, figure 3.36.

use crate::cfi::{Encoded, Unsupported};
use crate::expression::Shape;
use crate::state::Saved;
use gimli::Register;
use profiler_common::row::{
    BASE_FP, BASE_RBX, FP_AT_FP, MAX_ADDED_BY_8, MAX_CFA_OFFSET_BY_8, MAX_SLOT, MIN_CFA_OFFSET_BY_8, OTHER_REGISTERS,
    RBX, Rule, SLOT_UNKNOWN, STORED_AT_BY_8,
};

/// rbp.
pub(crate) const FRAME_POINTER: Register = Register(6);
/// rsp.
pub(crate) const STACK_POINTER: Register = Register(7);
/// rbx.
pub(crate) const BASE_REGISTER: Register = Register(RBX);
/// The column of the return address.
pub(crate) const RETURN_ADDRESS: Register = Register(16);

/// rbp, rsp and rip in the `struct sigcontext_64` of a signal frame, in bytes from rsp
/// (linux/arch/x86/include/uapi/asm/sigcontext.h, after 40 bytes of `struct ucontext`).
const SIGNAL_RBP: i64 = 120;
const SIGNAL_RSP: i64 = 160;
const SIGNAL_RIP: i64 = 168;

/// A row of CFI whose expressions are already recognized.
pub(crate) struct Row {
    pub(crate) cfa: Shape,
    pub(crate) frame_pointer: Saved,
    /// What `frame_pointer` computes when it is an expression.
    pub(crate) frame_pointer_at: Shape,
    pub(crate) return_address: Saved,
    /// What `return_address` computes when it is an expression.
    pub(crate) return_address_at: Shape,
    pub(crate) base_register: Saved,
    /// The CIE's augmentation has an `S`.
    pub(crate) signal_frame: bool,
}

/// The rule that does what a row of CFI says.
pub(crate) fn encode(row: &Row) -> Result<Encoded, Unsupported> {
    if row.return_address == Saved::Undefined {
        return Ok(Encoded::Rule(Rule::END));
    }
    if row.signal_frame {
        return signal(row);
    }
    let rbx_slot = match (row.return_address, slot(row.base_register)) {
        // Nothing is read of the stack then.
        (Saved::Register(_), 2..) => SLOT_UNKNOWN,
        (_, slot) => slot,
    };
    Ok(match step(row)? {
        Encoded::Rule(rule) => Encoded::Rule(rule.with_rbx(rbx_slot)),
        other @ (Encoded::Plt { .. } | Encoded::EhReturn | Encoded::KeepsX0(_)) => other,
    })
}

/// The rule without what it says of rbx.
fn step(row: &Row) -> Result<Encoded, Unsupported> {
    let slot = slot(row.frame_pointer);
    match (row.return_address, row.cfa) {
        (Saved::Offset(-8), _) => {}
        (Saved::Register(Register(number)), Shape::Register(STACK_POINTER, offset)) => {
            let (other, offset) = other_register(number, offset_by_8(offset)?).ok_or(Unsupported::ReturnAddress)?;
            let fp_unknown = match slot {
                0 => false,
                SLOT_UNKNOWN => true,
                _ => return Err(Unsupported::ReturnAddress),
            };
            return Ok(Encoded::Rule(Rule::x86_64_ra_in_other(other, fp_unknown, offset)));
        }
        _ => return Err(Unsupported::ReturnAddress),
    }
    match row.cfa {
        Shape::Register(BASE_REGISTER, offset) => {
            let offset = other_offset(offset_by_8(offset)?).ok_or(Unsupported::CfaOffset)?;
            Ok(Encoded::Rule(Rule::x86_64_other(BASE_RBX, slot, offset)))
        }
        Shape::Register(Register(number), offset) if OTHER_REGISTERS.contains(&number) => {
            let (other, offset) = other_register(number, offset_by_8(offset)?).ok_or(Unsupported::CfaOffset)?;
            Ok(Encoded::Rule(Rule::x86_64_other(other, slot, offset)))
        }
        Shape::Register(register, offset) => {
            Ok(Encoded::Rule(Rule::x86_64(base(register)?, slot, offset_by_8(offset)?)))
        }
        Shape::Plt { register: STACK_POINTER, pushed_from } => {
            Ok(Encoded::Plt { pushed_from, before: Rule::x86_64(0, slot, 1), after: Rule::x86_64(0, slot, 2) })
        }
        Shape::Stored { register, offset, index, added } => {
            let flags = base(register)?;
            let at = Some(offset_by_8(offset)?).filter(|at| STORED_AT_BY_8.contains(at));
            let (at, added) = (at.ok_or(Unsupported::CfaOffset)?, added_by_8(added).ok_or(Unsupported::CfaExpression)?);
            let at_frame_pointer = row.frame_pointer_at == Shape::Register(FRAME_POINTER, 0);
            let (flags, slot) = if at_frame_pointer { (flags | FP_AT_FP, 0) } else { (flags, slot) };
            let rule = Rule::x86_64_stored(flags, slot, at, added);
            Ok(Encoded::Rule(match index {
                Some(index) => rule.indexed_by(other_number(index.0).ok_or(Unsupported::CfaExpression)?),
                None => rule,
            }))
        }
        Shape::Plt { .. } | Shape::Unknown => Err(Unsupported::CfaExpression),
    }
}

/// What is added to a stored word, in bytes, as the field of a rule.
fn added_by_8(added: u64) -> Option<u8> {
    let words = added.is_multiple_of(8).then_some(added / 8)?;
    u8::try_from(words).ok().filter(|words| *words <= MAX_ADDED_BY_8)
}

/// Where the kernel leaves the registers of the interrupted code, and nothing else.
fn signal(row: &Row) -> Result<Encoded, Unsupported> {
    let stored = |offset| Shape::Register(STACK_POINTER, offset);
    let as_kernel_writes = row.cfa
        == Shape::Stored { register: STACK_POINTER, offset: SIGNAL_RSP, index: None, added: 0 }
        && row.return_address_at == stored(SIGNAL_RIP)
        && row.frame_pointer_at == stored(SIGNAL_RBP);
    if as_kernel_writes { Ok(Encoded::Rule(Rule::X86_64_SIGNAL)) } else { Err(Unsupported::SignalFrame) }
}

/// The number of a register that is neither rsp nor rbp, and an offset that fits beside it.
fn other_register(number: u16, offset_by_8: i32) -> Option<(u8, i32)> {
    Some((other_number(number)?, other_offset(offset_by_8)?))
}

/// The number in rules of a register by its DWARF number.
pub(crate) fn other_number(number: u16) -> Option<u8> {
    u8::try_from(OTHER_REGISTERS.iter().position(|other| *other == number)?).ok()
}

/// An offset that fits beside the number of a register.
fn other_offset(offset_by_8: i32) -> Option<i32> {
    const OFFSETS: std::ops::Range<i32> = -(1 << 13)..1 << 13;
    OFFSETS.contains(&offset_by_8).then_some(offset_by_8)
}

fn base(register: Register) -> Result<u8, Unsupported> {
    match register {
        STACK_POINTER => Ok(0),
        FRAME_POINTER => Ok(BASE_FP),
        _ => Err(Unsupported::CfaRegister),
    }
}

/// An offset in bytes as the field of a rule.
fn offset_by_8(offset: i64) -> Result<i32, Unsupported> {
    if offset % 8 != 0 {
        return Err(Unsupported::CfaOffset);
    }
    i32::try_from(offset / 8)
        .ok()
        .filter(|offset| (MIN_CFA_OFFSET_BY_8..=MAX_CFA_OFFSET_BY_8).contains(offset))
        .ok_or(Unsupported::CfaOffset)
}

/// The slot of a register of the caller: rbp, rbx.
fn slot(register: Saved) -> u8 {
    match register {
        Saved::Unset | Saved::SameValue => 0,
        Saved::Offset(offset) if offset % 8 == 0 => match u8::try_from(offset / -8) {
            Ok(slot @ 2..=MAX_SLOT) => slot,
            _ => SLOT_UNKNOWN,
        },
        Saved::Offset(_) | Saved::Undefined | Saved::Expression(_) | Saved::Register(_) | Saved::Computed => {
            SLOT_UNKNOWN
        }
    }
}
