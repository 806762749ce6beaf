//! From CFI to rules on aarch64. Register numbers: DWARF for the Arm 64-bit Architecture, 4.1.

use crate::cfi::{Encoded, Unsupported};
use crate::expression::Shape;
use crate::state::Saved;
use gimli::Register;
use profiler_common::row::{BASE_FP, FP_SAVED, RA_FROM_BASE, RA_IN_LR, Rule};

/// x29.
pub(crate) const FRAME_POINTER: Register = Register(29);
/// x30, the link register.
pub(crate) const RETURN_ADDRESS: Register = Register(30);
/// sp.
const STACK_POINTER: Register = Register(31);

/// The rule that does what a row of CFI says.
pub(crate) fn encode(
    cfa: Shape,
    frame_pointer: Saved,
    return_address: Saved,
    signal_frame: bool,
) -> Result<Encoded, Unsupported> {
    if return_address == Saved::Undefined {
        return Ok(Encoded::Rule(Rule::END));
    }
    if signal_frame {
        return Ok(Encoded::Rule(Rule::AARCH64_SIGNAL));
    }
    let (base, cfa_offset) = match cfa {
        Shape::Register(STACK_POINTER, offset) => (0, offset),
        Shape::Register(FRAME_POINTER, offset) => (BASE_FP, offset),
        Shape::Register(..) => return Err(Unsupported::CfaRegister),
        Shape::Stored { .. } | Shape::Plt { .. } | Shape::Unknown => return Err(Unsupported::CfaExpression),
    };
    let cfa_offset_by_8 = offset_by_8(cfa_offset)?;
    let unchanged = matches!(frame_pointer, Saved::Unset | Saved::SameValue);
    let (flags, slot) = match return_address {
        Saved::Unset | Saved::SameValue if unchanged => (RA_IN_LR, 0),
        Saved::Unset | Saved::SameValue => return Err(Unsupported::FramePointer),
        Saved::Offset(offset) => {
            let fp_saved = match frame_pointer {
                Saved::Offset(fp_offset) if offset.checked_sub(8) == Some(fp_offset) => FP_SAVED,
                _ if unchanged => 0,
                _ => return Err(Unsupported::FramePointer),
            };
            let (origin, slot) = return_address_slot(cfa_offset, offset).ok_or(Unsupported::ReturnAddress)?;
            (fp_saved | origin, slot)
        }
        Saved::Undefined | Saved::Expression(_) | Saved::Register(_) | Saved::Computed => {
            return Err(Unsupported::ReturnAddress);
        }
    };
    Ok(Encoded::Rule(Rule::aarch64(base | flags, slot, cfa_offset_by_8)))
}

/// The flag that names the origin, and the slot counted from it: the CFA, or the base register when
/// only that is near enough.
fn return_address_slot(cfa_offset: i64, offset: i64) -> Option<(u8, i8)> {
    if offset % 8 != 0 {
        return None;
    }
    let slot = |offset: i64| i8::try_from(offset / 8).ok();
    let from_base = || Some((RA_FROM_BASE, slot(cfa_offset.checked_add(offset)?)?));
    slot(offset).map(|slot| (0, slot)).or_else(from_base)
}

/// An offset in bytes as the field of a rule.
fn offset_by_8(offset: i64) -> Result<i16, Unsupported> {
    if offset % 8 != 0 {
        return Err(Unsupported::CfaOffset);
    }
    i16::try_from(offset / 8).map_err(|_too_far| Unsupported::CfaOffset)
}
