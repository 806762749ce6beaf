//! aarch64: code without CFI, by its instructions (Arm Architecture Reference Manual, C4.1; all have 4 bytes).
//!
//! Where a function returns, the return address is in x30 and sp is at the CFA. So it is at all instructions
//! from which a path leads there, or straight on from one of these, without a change of x29, x30 or sp: that
//! is all of most functions that call nothing. The frame pointer is followed only behind the instructions that set it up; they also say
//! how far its record is below the CFA. The rest is cut.

use crate::bytes::u32_at;
use profiler_common::row::{BASE_FP, BY_FRAME_POINTER, FP_SAVED, RA_FROM_BASE, RA_IN_LR, Rule};
use std::collections::BTreeMap;

const WORD_BYTES: usize = 4;
/// How often all code is gone through for paths; the vDSO's `clock_gettime` needs 3.
const MOST_PASSES: usize = 8;
/// Instructions between the first that takes stack and the one that sets x29, at most; seen: 12.
const MOST_IN_PROLOGUE: usize = 32;
/// Functions begin at such addresses.
const ALIGNMENT: u64 = 16;

/// No frame: the return address is in x30.
const NO_FRAME: Rule = Rule::aarch64(RA_IN_LR, 0, 0);

/// Where the code goes behind an instruction, as the distance in instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flow {
    /// To the next one.
    On,
    /// To the next one or elsewhere.
    OnOr(i64),
    /// Elsewhere.
    To(i64),
    /// It is not known where.
    Away,
    /// To the caller.
    Return,
}

fn flow(word: u32) -> Flow {
    let distance = |bits: u32, at: u32| i64::from((word << (32 - bits - at)).cast_signed() >> (32 - bits));
    match word {
        _ if word >> 26 == 0x05 => Flow::To(distance(26, 0)),
        _ if word & 0xff00_0010 == 0x5400_0000 || word & 0x7e00_0000 == 0x3400_0000 => Flow::OnOr(distance(19, 5)),
        _ if word & 0x7e00_0000 == 0x3600_0000 => Flow::OnOr(distance(14, 5)),
        // ret, retaa, retab.
        0xd65f_03c0 | 0xd65f_0bff | 0xd65f_0fff => Flow::Return,
        // br, ret to another register; udf; brk.
        _ if word & 0xfe00_0000 == 0xd600_0000 && word >> 21 & 7 != 1 => Flow::Away,
        _ if word >> 16 == 0 || word & 0xffe0_001f == 0xd420_0000 => Flow::Away,
        _ => Flow::On,
    }
}

/// Whether x29, x30 or sp is perhaps changed. Of what is no load or calculation it says more than there is.
fn changes_frame(word: u32) -> bool {
    let (to, second, base) = (word & 31, word >> 10 & 31, word >> 5 & 31);
    let calls = word >> 26 == 0x25 || word & 0xfe00_0000 == 0xd600_0000 && word >> 21 & 7 == 1;
    let pair = word & 0x3a00_0000 == 0x2800_0000;
    let writes_back = pair && word >> 23 & 1 == 1
        || word & 0x3b20_0400 == 0x3800_0400
        || word & 0xbe80_0000 == 0x0c80_0000
        || word >> 24 == 0xd9;
    let calculates_sp = word & 0x3f00_0000 == 0x1100_0000
        || word & 0x3fe0_0000 == 0x0b20_0000
        || word & 0x1f80_0000 == 0x1200_0000 && word >> 29 & 3 != 3;
    calls
        || matches!(to, 29 | 30)
        || pair && matches!(second, 29 | 30)
        || base == 31 && writes_back
        || to == 31 && calculates_sp
}

/// How many bytes of stack an instruction takes: sub sp, sp, #n; or a store with sp written back.
fn takes_bytes(word: u32) -> Option<i64> {
    let immediate = i64::from(word >> 10 & 0xfff);
    if word & 0xff80_03ff == 0xd100_03ff {
        return Some(if word >> 22 & 1 == 1 { immediate << 12 } else { immediate });
    }
    // stp of two x or d registers; str of one: [sp, #-n]!.
    let pair = matches!(word & 0xffc0_03e0, 0xa980_03e0 | 0x6d80_03e0);
    let single = matches!(word & 0xffe0_0fe0, 0xf800_0fe0 | 0xfc00_0fe0);
    let taken = match (pair, single) {
        (true, _) => -(i64::from((word << 10).cast_signed() >> 25) * 8),
        (_, true) => -i64::from((word << 11).cast_signed() >> 23),
        _ => return None,
    };
    (taken > 0).then_some(taken)
}

/// stp x29, x30, [sp, #n]: n, which is 0 when sp is written back.
fn record_at(word: u32) -> Option<i64> {
    match word & 0xffc0_7fff {
        0xa980_7bfd => Some(0),
        0xa900_7bfd => Some(i64::from((word << 10).cast_signed() >> 25) * 8),
        _ => None,
    }
}

/// How a function sets up its frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Prologue {
    /// Instructions up to the one that stores x29 and x30, and to the one that sets x29, both included.
    stored: usize,
    set: usize,
    /// The distance from sp to the CFA, and from sp to the record.
    taken: i64,
    record: i64,
    /// The stack was taken in more than one piece.
    in_pieces: bool,
}

impl Prologue {
    /// The one at the start of `words`.
    fn find(words: &[u32]) -> Option<Self> {
        let mut taken = takes_bytes(*words.first()?)?;
        let (mut record, mut in_pieces) = (None, false);
        for (at, &word) in words.iter().enumerate().take(MOST_IN_PROLOGUE) {
            if let Some((stored, record)) = record {
                // add x29, sp, #n.
                if word & 0xffc0_03ff == 0x9100_03fd && i64::from(word >> 10 & 0xfff) == record {
                    return Some(Self { stored, set: at + 1, taken, record, in_pieces });
                }
            }
            let more = takes_bytes(word).filter(|_| at > 0 && record.is_none());
            taken += more.unwrap_or(0);
            in_pieces |= more.is_some();
            match record_at(word) {
                Some(place) if record.is_none() => record = Some((at + 1, place)),
                _ if at > 0 && more.is_none() && changes_frame(word) || flow(word) != Flow::On => return None,
                _ => {}
            }
        }
        None
    }

    /// The rules from the second instruction on, by the instruction before which they end, and the rule of the
    /// function from then on; `None` where one can't say so.
    fn rules(&self) -> Option<([(usize, Rule); 2], Rule)> {
        let by_8 = |bytes: i64| i16::try_from(bytes / 8).ok().filter(|_| bytes % 8 == 0 && bytes >= 0);
        let record = i8::try_from(by_8(self.record + 8)?).ok()?;
        let taken = by_8(self.taken)?;
        let saved = FP_SAVED | RA_FROM_BASE;
        let taking = if self.in_pieces { Rule::NO_FRAME_POINTER } else { Rule::aarch64(RA_IN_LR, 0, taken) };
        let steps = [(self.stored, taking), (self.set, Rule::aarch64(saved, record, taken))];
        Some((steps, Rule::aarch64(saved | BASE_FP | BY_FRAME_POINTER, 1, by_8(self.taken - self.record)?)))
    }
}

/// The functions' prologues by where they start.
fn prologues(words: &[u32]) -> BTreeMap<usize, Prologue> {
    let mut found = BTreeMap::new();
    let mut at = 0;
    while let Some(rest) = words.get(at..).filter(|rest| !rest.is_empty()) {
        let prologue = Prologue::find(rest);
        found.extend(prologue.map(|prologue| (at, prologue)));
        at += prologue.map_or(1, |prologue| prologue.set);
    }
    found
}

/// For each instruction whether there is no frame at it: from a return or a prologue on.
fn without_frame(words: &[u32], prologues: &BTreeMap<usize, Prologue>) -> Vec<bool> {
    let is_one = |(at, word): (usize, &u32)| flow(*word) == Flow::Return || prologues.contains_key(&at);
    let mut without: Vec<bool> = words.iter().enumerate().map(is_one).collect();
    for _ in 0..MOST_PASSES {
        let mut changed = false;
        for step in 0..2 * words.len() {
            // Backwards, then forwards.
            let at = if step < words.len() { words.len() - 1 - step } else { step - words.len() };
            let Some(&word) = words.get(at) else { break };
            if changes_frame(word) {
                continue;
            }
            let flow = flow(word);
            let is = |place: usize| without.get(place) == Some(&true);
            let elsewhere = match flow {
                Flow::OnOr(distance) | Flow::To(distance) => {
                    isize::try_from(distance).ok().and_then(|distance| at.checked_add_signed(distance))
                }
                _ => None,
            };
            let on = matches!(flow, Flow::On | Flow::OnOr(_)).then_some(at + 1);
            if !is(at) && !on.into_iter().chain(elsewhere).any(is) {
                continue;
            }
            // What a branch goes to is not told by it: that may be a number among the code.
            for place in [Some(at), on].into_iter().flatten() {
                if let Some(without) = without.get_mut(place).filter(|without| !**without) {
                    *without = true;
                    changed = true;
                }
            }
        }
        if !changed {
            break;
        }
    }
    without
}

/// Says of `code`, which is at `start`, up to which address which rule holds, in ascending order. `known` gives
/// the length in bytes and the rule of code that is known by its bytes.
pub(crate) fn rules<E>(
    start: u64,
    code: &[u8],
    known: impl Fn(&[u8]) -> Option<(usize, Rule)>,
    mut cover: impl FnMut(u64, Rule) -> Result<(), E>,
) -> Result<(), E> {
    let before = usize::try_from(start.wrapping_neg() % WORD_BYTES as u64).unwrap_or_default();
    let aligned = code.get(before..).unwrap_or_default();
    let words: Vec<u32> = (0..aligned.len() / WORD_BYTES).filter_map(|at| u32_at(aligned, at * WORD_BYTES)).collect();
    let prologues = prologues(&words);
    let without = without_frame(&words, &prologues);
    let address = |at: usize| start.saturating_add((before + at * WORD_BYTES) as u64);
    let nothing = Rule::NO_FRAME_POINTER;
    let (mut current, mut left, mut at) = (nothing, false, 0);
    cover(address(0).min(start.saturating_add(code.len() as u64)), nothing)?;
    let known_at = |at: usize| known(aligned.get(at.checked_mul(WORD_BYTES)?..)?);
    while let Some(&word) = words.get(at) {
        if let Some((bytes, rule)) = known_at(at) {
            at += bytes / WORD_BYTES;
            cover(address(at), rule)?;
            continue;
        }
        let prologue = prologues.get(&at);
        if let Some((steps, framed)) = prologue.and_then(|prologue| prologue.rules()) {
            cover(address(at + 1), NO_FRAME)?;
            for (end, rule) in steps {
                cover(address(at + end), rule)?;
            }
            at += prologue.map_or(1, |prologue| prologue.set);
            (current, left) = (framed, false);
            continue;
        }
        let rule = match without.get(at) {
            Some(true) => NO_FRAME,
            _ if left => nothing,
            _ => current,
        };
        at += 1;
        // What is called returns to the first byte of known code, and what is looked up is the byte before.
        cover(address(at) - u64::from(known_at(at).is_some()), rule)?;
        // ldp x29, x30, from sp.
        left |= matches!(word & 0xffc0_7fff, 0xa8c0_7bfd | 0xa940_7bfd);
        if matches!(flow(word), Flow::To(_) | Flow::Away | Flow::Return) {
            let ends = left && address(at).is_multiple_of(ALIGNMENT);
            let begins = words.get(at).is_some_and(|word| takes_bytes(*word).is_some());
            if ends || begins {
                current = nothing;
            }
            left = false;
        }
    }
    cover(start.saturating_add(code.len() as u64), nothing)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOP: u32 = 0xd503_201f;
    const CALL: u32 = 0x9400_0010;
    const RET: u32 = 0xd65f_03c0;
    /// stp x29, x30, [sp, #-32]!; mov x29, sp; ldp x29, x30, [sp], #32.
    const PUSH: u32 = 0xa9be_7bfd;
    const SET: u32 = 0x9100_03fd;
    const POP: u32 = 0xa8c2_7bfd;

    fn in_lr(words: i16) -> Rule {
        Rule::aarch64(RA_IN_LR, 0, words)
    }

    fn stored(at: i8, words: i16) -> Rule {
        Rule::aarch64(FP_SAVED | RA_FROM_BASE, at, words)
    }

    fn framed(words: i16) -> Rule {
        Rule::aarch64(FP_SAVED | RA_FROM_BASE | BASE_FP | BY_FRAME_POINTER, 1, words)
    }

    const CUT: Rule = Rule::NO_FRAME_POINTER;

    /// The rule of each instruction.
    fn each(start: u64, words: &[u32]) -> Vec<Rule> {
        let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut covered = Vec::new();
        rules(
            start,
            &code,
            |_| None,
            |until, rule| {
                while start + 4 * (covered.len() as u64) < until {
                    covered.push(rule);
                }
                Ok::<_, ()>(())
            },
        )
        .unwrap();
        assert_eq!(covered.len(), words.len());
        covered
    }

    #[test]
    fn a_function_with_a_frame_says_where_its_record_is() {
        let words = [NOP, PUSH, NOP, SET, CALL, NOP, POP, RET, NOP];
        let expected = [in_lr(0), in_lr(0), stored(1, 4), stored(1, 4), framed(4), framed(4), framed(4), in_lr(0)];
        assert_eq!(each(0x1008, &words)[..8], expected);
        // sub sp, sp, #0x1000; sub sp, sp, #64; stp x29, x30, [sp, #48]; add x29, sp, #48.
        let clang = [0xd101_03ff, NOP, 0xa903_7bfd, 0x9100_c3fd, CALL, NOP];
        assert_eq!(each(0, &clang), [in_lr(0), in_lr(8), in_lr(8), stored(7, 8), framed(2), framed(2)]);
        // Before it sub sp, sp, #1, lsl #12.
        let twice = [&[0xd140_07ff][..], &clang].concat();
        assert_eq!(each(0, &twice), [in_lr(0), CUT, CUT, CUT, stored(7, 520), framed(514), framed(514)]);
        // stp d9, d8, [sp, #-32]!; stp x29, x30, [sp, #16]; add x29, sp, #16.
        assert_eq!(each(0, &[0x6dbe_23e9, 0xa901_7bfd, 0x9100_43fd, CALL])[3], framed(2));
        assert_eq!(each(0, &[PUSH, NOP, CALL]), [CUT; 3], "x29 is not set");
        assert_eq!(each(0, &[PUSH, 0x9100_43fd, CALL]), [CUT; 3], "x29 is set to another place");
    }

    #[test]
    fn behind_an_early_return_the_frame_goes_on_unless_a_function_can_begin_there() {
        let words = [PUSH, SET, POP, RET, CALL];
        assert_eq!(each(8, &words)[4], framed(4));
        assert_eq!(each(0, &words)[4], CUT);
        // sub sp, sp, #16.
        assert_eq!(each(8, &[PUSH, SET, POP, RET, 0xd100_43ff, CALL])[4..], [CUT, CUT]);
        // ldp x29, x30, [sp]; add sp, sp, #32: how far sp is from the CFA in between is not looked at.
        let other = [PUSH, SET, 0xa940_7bfd, 0x9100_83ff, RET];
        assert_eq!(each(0, &other)[2..], [framed(4), CUT, in_lr(0)]);
    }

    #[test]
    fn code_from_which_a_path_leads_to_a_return_has_no_frame() {
        // cbz x0, 3 on; mov x0, x1; b 2 on; cmp x1, #1; ret.
        let words = [0xb400_0060, 0xaa01_03e0, 0x1400_0002, 0xf100_043f, RET];
        assert_eq!(each(0, &words), [in_lr(0); 5]);
        // sub sp, sp, #16; str x0, [sp]; add sp, sp, #16; ret.
        assert_eq!(each(0, &[0xd100_43ff, 0xf900_03e0, 0x9100_43ff, RET]), [CUT, CUT, CUT, in_lr(0)]);
        // str x30, [sp, #-16]!; bl; ldr x30, [sp], #16; ret: x29 is another function's.
        assert_eq!(each(0, &[0xf81f_0ffe, CALL, 0xf841_07fe, RET]), [CUT, CUT, CUT, in_lr(0)]);
        // br x16; ret x1; udf; b to where no code is.
        for last in [0xd61f_0200, 0xd65f_0020, 0, 0x1500_0000] {
            assert_eq!(each(0, &[NOP, last]), [CUT; 2], "{last:#x}");
        }
    }

    #[test]
    fn instructions_that_change_the_frame() {
        let changes = [
            CALL,
            0xd63f_0020, // blr x1
            0x9100_43ff, // add sp, sp, #16
            0x8b24_63ff, // add sp, sp, x4
            0x9240_ec1f, // and sp, x0, #...
            0x9100_001f, // mov sp, x0
            0xf841_07e0, // ldr x0, [sp], #16
            0xa8c1_07e0, // ldp x0, x1, [sp], #16
            0x4cdf_7fe0, // ld1 {v0.2d}, [sp], #16
            0xa940_77fc, // ldp x28, x29, [sp]
            0xf940_07fe, // ldr x30, [sp, #8]
            0xaa01_03fd, // mov x29, x1
        ];
        for word in changes {
            assert!(changes_frame(word), "{word:#x}");
        }
        // cmp x0, #1; tst x0, #1; stp x0, x1, [sp]; svc #0; str xzr, [x0], #8.
        for word in [0xf100_041f, 0xf240_001f, 0xa900_07e0, 0xd400_0001, 0xf800_841f, NOP] {
            assert!(!changes_frame(word), "{word:#x}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_code_is_covered_to_its_end(start in 0u64..64, code: Vec<u8>) {
            let mut end = 0;
            rules(start, &code, |_| None, |until, _rule| {
                assert!(until >= end);
                end = until;
                Ok::<_, ()>(())
            }).unwrap();
            proptest::prop_assert_eq!(end, start + code.len() as u64);
        }
    }
}
