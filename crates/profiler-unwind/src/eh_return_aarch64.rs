//! aarch64: the functions that go over to the frame that catches an exception, as in `eh_return.rs`.
//!
//! CFI shows that they keep x0, which holds what the catching frame is given (`EH_RETURN_DATA_REGNO`,
//! gcc/config/aarch64/aarch64.h): no other compiled function says where its caller's x0 is. The code has
//! the one addition of a register to sp (`aarch64_expand_epilogue`, gcc/config/aarch64/aarch64.cc), and the
//! comparison that comes before `uw_install_context` in gcc/libgcc/unwind.inc. Looked at: libgcc of gcc 10,
//! 12, 14 and 16.

use crate::bytes::u32_at;
use crate::elf::Elf;
use crate::read::{ReadAt, read_bytes};
use crate::spans::Span;
use gimli::Register;
use profiler_common::address::Svma;

/// x0.
pub(crate) const KEPT: Register = Register(0);

/// Bytes of code that are looked at; the longest seen have 440.
const MOST_BYTES: u64 = 4096;
/// The bytes of an instruction.
const WORD_BYTES: usize = 4;

/// Instructions by the bits that tell them: the mask, and what is left.
type Kind = (u32, u32);

/// add sp, sp, xN.
const GO_OVER: Kind = (0xffe0_ffff, 0x8b20_63ff);
/// ldp x29, x30, \[sp\]: with which the epilogue begins.
const RESTORE: Kind = (!0, 0xa940_7bfd);
/// cmp wN, #7 (`_URC_INSTALL_CONTEXT`).
const IS_INSTALL: Kind = (0xffff_fc1f, 0x7100_1c1f);
/// b.eq, b.ne.
const IF_EQUAL: Kind = (0xff00_001f, 0x5400_0000);
const IF_NOT: Kind = (0xff00_001f, 0x5400_0001);

/// From where to where in a function that keeps x0 what CFI says of the caller may not be true, in
/// ascending order of their starts: from where the saved registers are written over up to its end, and where
/// it leaves. None in other functions than those above; all addresses where that can't be seen.
pub(crate) fn overwritten(file: &impl ReadAt, elf: &Elf, span: &Span) -> Vec<[u64; 2]> {
    let code = || {
        let (offset, left) = elf.in_file(Svma(span.start))?;
        let length = u64::from(span.length).min(left).min(MOST_BYTES);
        read_bytes(file, "code that catches exceptions", offset, length, MOST_BYTES).ok()
    };
    let length = usize::try_from(span.length).unwrap_or(usize::MAX);
    let address = |at: usize| span.start.saturating_add(at as u64);
    let places = in_code(&code().unwrap_or_default(), length);
    places.into_iter().map(|place| place.map(address)).collect()
}

/// The same in bytes from the start of the function, which has `length`.
fn in_code(code: &[u8], length: usize) -> Vec<[usize; 2]> {
    let words = code.len() / WORD_BYTES;
    let is =
        |index: usize, (mask, rest): Kind| u32_at(code, index * WORD_BYTES).is_some_and(|word| word & mask == rest);
    let Some(go_over) = (0..words).find(|at| is(*at, GO_OVER)) else { return Vec::new() };
    let restore = (0..go_over).rev().find(|at| is(*at, RESTORE));
    let install = (0..words).filter(|at| is(*at, IS_INSTALL)).find_map(|at| {
        let branch = at + 1;
        match u32_at(code, branch * WORD_BYTES)? {
            _ if is(branch, IF_NOT) => Some(branch + 1),
            word if is(branch, IF_EQUAL) => branch.checked_add_signed(distance(word)),
            _ => None,
        }
    });
    let (Some(restore), Some(install)) = (restore, install.filter(|at| at * WORD_BYTES < length)) else {
        return vec![[0, length]];
    };
    // Behind the addition is one more instruction, that leaves.
    let (restore, gone, install) = (restore * WORD_BYTES, (go_over + 2) * WORD_BYTES, install * WORD_BYTES);
    if install < restore { vec![[install, gone]] } else { vec![[restore, gone], [install, length]] }
}

/// How far a conditional branch goes, in instructions.
fn distance(branch: u32) -> isize {
    (branch.cast_signed() << 8 >> 13) as isize
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOP: u32 = 0xd503_201f;
    const CALL: u32 = 0x9400_0000;
    const COMPARE: u32 = 0x7100_1c5f;
    const NOT_EQUAL: u32 = 0x5400_0041;
    const LEAVE: [u32; 4] = [0xa940_7bfd, 0x9100_43ff, 0x8b24_63ff, 0xd65f_03c0];

    fn places(words: &[&[u32]]) -> Vec<[usize; 2]> {
        let code: Vec<u8> = words.concat().iter().flat_map(|word| word.to_le_bytes()).collect();
        in_code(&code, code.len())
    }

    #[test]
    fn from_the_comparison_to_the_end_and_where_it_leaves() {
        let not_equal = [COMPARE, NOT_EQUAL];
        assert_eq!(places(&[&[NOP], &not_equal, &[CALL, CALL], &LEAVE, &[CALL]]), [[12, 36]], "_Unwind_Resume");
        assert_eq!(places(&[&[NOP], &LEAVE, &[CALL], &not_equal, &[CALL, CALL]]), [[4, 20], [32, 40]]);
        // To the instruction behind `LEAVE` and the one behind that.
        for (branch, from) in [(0x5400_00c0, 32), (0x54ff_ffe0, 4)] {
            let expected = if from < 12 { vec![[4, 28]] } else { vec![[12, 28], [32, 36]] };
            assert_eq!(places(&[&[NOP, COMPARE, branch], &LEAVE, &[CALL, CALL]]), expected, "{branch:#x}");
        }
    }

    #[test]
    fn all_of_it_where_the_comparison_is_not_seen() {
        assert_eq!(places(&[&[NOP, CALL], &LEAVE]), [[0, 24]]);
        assert_eq!(places(&[&[COMPARE, NOP, CALL], &LEAVE]), [[0, 28]]);
        assert_eq!(places(&[&[COMPARE, NOT_EQUAL], &LEAVE[1..]]), [[0, 20]], "an epilogue of another shape");
        // It goes to before the function, or behind it.
        for branch in [0x54ff_ff80, 0x5400_0100] {
            assert_eq!(places(&[&[COMPARE, branch], &LEAVE]), [[0, 24]], "{branch:#x}");
        }
    }

    #[test]
    fn nothing_in_a_function_that_does_not_go_over() {
        assert!(places(&[&[COMPARE, NOT_EQUAL, CALL], &LEAVE[..2], &LEAVE[3..]]).is_empty());
        assert!(places(&[]).is_empty());
    }
}
