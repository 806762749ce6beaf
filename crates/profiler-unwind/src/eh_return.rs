//! x86_64: the functions that go over to the frame that catches an exception (gcc's
//! `__builtin_eh_return`, in `_Unwind_RaiseException` and `_Unwind_Resume` of libgcc).
//!
//! Before they go, `uw_install_context_1` (gcc/libgcc/unwind-dw2.c) writes the registers of the frame
//! to go to over the saved ones of its caller, return address included. What CFI says of that caller is
//! from then on not true, and when the stack pointer is there the return address is no return address
//! but where to go on. So stacks are cut from that call on.

use crate::bytes::u32_at;
use crate::elf::Elf;
use crate::read::{ReadAt, read_bytes};
use crate::state::{Cfa, Saved, State};
use crate::x86_64::{FRAME_POINTER, STACK_POINTER};
use gimli::Register;
use profiler_common::address::Svma;

/// rcx, which holds the new stack pointer (`EH_RETURN_STACKADJ_RTX`, gcc/config/i386/i386.h).
const NEW_STACK_POINTER: Register = Register(2);

/// Bytes of code that are looked at before the new stack pointer is in place: the second call has been
/// seen 128 bytes before it.
const BEFORE_BYTES: u64 = 256;
/// From `uw_install_context_1` to `_Unwind_DebugHook`, which is called behind it, in bytes; seen: 24.
const BETWEEN_BYTES: usize = 64;
/// The length of `call rel32`, and its first byte.
const CALL_BYTES: usize = 5;
const CALL: u8 = 0xe8;

/// Whether a row is one of `__builtin_eh_return`: behind one with a frame pointer the CFA counts from
/// rcx, then from the stack pointer that was set to it. `went`: the row before is one.
pub(crate) fn is_one(before: Option<&State>, went: bool, row: &State) -> bool {
    let restored = matches!(row.frame_pointer, Saved::Unset | Saved::SameValue);
    let in_frame =
        |before: &State| before.cfa == Cfa::Register(FRAME_POINTER, 16) && before.frame_pointer == Saved::Offset(-16);
    restored
        && match row.cfa {
            Cfa::Register(NEW_STACK_POINTER, 8) => before.is_some_and(in_frame),
            Cfa::Register(STACK_POINTER, 0 | 8) => went,
            _ => false,
        }
}

/// From where on, at the latest, what CFI says of the caller is not true, in the code from `function` up to
/// `row`, the first of the rows above: where `uw_install_context_1` is called. Where that can't be seen, all
/// the code counts in which it has been.
pub(crate) fn overwritten_from(file: &impl ReadAt, elf: &Elf, function: u64, row: u64) -> u64 {
    let start = function.max(row.saturating_sub(BEFORE_BYTES));
    let call = || {
        let (offset, left) = elf.in_file(Svma(start))?;
        let length = left.min(row.checked_sub(start)?);
        let code = read_bytes(file, "code that catches exceptions", offset, length, BEFORE_BYTES).ok()?;
        let executable = |svma: u64| elf.executable().any(|segment| (segment.svma.0..segment.end().0).contains(&svma));
        last_pair_of_calls(&code, |target| executable(start.wrapping_add(target)))
    };
    start + call().unwrap_or(0) as u64
}

/// The first of the last two calls in `code` that are close to one another. `is_code` says whether code
/// is so many bytes behind the start of `code`, modulo 2^64.
fn last_pair_of_calls(code: &[u8], is_code: impl Fn(u64) -> bool) -> Option<usize> {
    let is_call = |at: usize| {
        let distance = u32_at(code, at + 1).filter(|_| code.get(at) == Some(&CALL));
        let target = |distance: u32| ((at + CALL_BYTES) as u64).wrapping_add_signed(i64::from(distance.cast_signed()));
        distance.is_some_and(|distance| is_code(target(distance)))
    };
    let second = (0..code.len()).rev().find(|at| is_call(*at))?;
    let end = (second + 1).checked_sub(CALL_BYTES)?;
    (end.saturating_sub(BETWEEN_BYTES)..end).rev().find(|at| is_call(*at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cfa: u16, offset: i64, frame_pointer: Saved) -> State {
        State { cfa: Cfa::Register(Register(cfa), offset), frame_pointer, ..State::EMPTY }
    }

    #[test]
    fn rows_are_told_from_those_of_other_code() {
        let in_frame = row(6, 16, Saved::Offset(-16));
        let leaving = row(2, 8, Saved::Unset);
        assert!(is_one(Some(&in_frame), false, &leaving));
        for gone in [row(7, 8, Saved::Unset), row(7, 0, Saved::SameValue)] {
            assert!(is_one(Some(&leaving), true, &gone));
            assert!(!is_one(Some(&in_frame), false, &gone), "the end of any function");
        }
        assert!(!is_one(Some(&leaving), true, &in_frame));
        let aligned = row(7, 8, Saved::Unset);
        assert!(!is_one(Some(&aligned), false, &leaving), "OpenSSL keeps its caller's stack pointer so");
        assert!(!is_one(None, false, &leaving));
    }

    #[test]
    fn the_last_two_calls_that_go_to_code() {
        let call = |distance: i32| [[CALL].as_slice(), &distance.to_le_bytes()].concat();
        // Byte 20 calls, 30 does not, 40 calls; code is below 1000.
        let mut code = vec![0x90; 60];
        for (at, distance) in [(20, 0), (30, 5000), (40, -45)] {
            code.splice(at..at + CALL_BYTES, call(distance));
        }
        assert_eq!(last_pair_of_calls(&code, |target| target < 1000), Some(20));
        assert_eq!(last_pair_of_calls(&code[..44], |target| target < 1000), None, "half a call");
        assert_eq!(last_pair_of_calls(&[&code[..40], &[0x90; 40], &code[40..]].concat(), |_| true), Some(30));
        assert_eq!(last_pair_of_calls(&[], |_| true), None);
    }
}
