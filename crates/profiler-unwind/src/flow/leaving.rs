//! Whether x86_64 code has a frame that rbp points to, shown by how it leaves it.
//!
//! `leave`, and `mov %rbp, %rsp` before `pop %rbp`, take the stack down to where rbp points and the caller's rbp
//! from there. Where a way leads to that and nothing on it changes rbp, it points to the frame already. No function has
//! to be known for that, nor where it begins: V8's baseline compiler makes code in which rbp is never set, nor rsp set
//! from it, since it calls another function for the first and jumps to one for the second
//! (`BaselineOutOfLinePrologue` and `BaselineLeaveFrame`, v8/src/baseline/baseline-compiler.cc).

use std::borrow::Cow;
use std::collections::HashSet;

use iced_x86::{Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, Register};

use super::decode::{Flow, flow};
use super::effect::{Rsp, Use, effect};

/// Instructions that are looked at, at most: V8's functions of some hundred lines have more, but few ways to a
/// return are as long.
const MOST_INSTRUCTIONS: usize = 2048;
/// Pieces of code that are asked for, at most.
const MOST_PIECES: usize = 16;

/// Whether a way leads from `at` to where the frame that rbp points to is left. `code` is at `start`; of jumps out of
/// it `read` brings what is at their target, as many bytes as it likes.
pub fn leaves_by_frame_pointer((start, code): (u64, &[u8]), at: u64, read: impl FnMut(u64) -> Option<Vec<u8>>) -> bool {
    let pieces = vec![(start, Cow::Borrowed(code))];
    Walk { pieces, read, seen: HashSet::new(), factory: InstructionInfoFactory::new() }.from(at)
}

struct Walk<'a, R> {
    pieces: Vec<(u64, Cow<'a, [u8]>)>,
    read: R,
    seen: HashSet<u64>,
    factory: InstructionInfoFactory,
}

/// What an instruction shows of rbp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    /// It points to the frame.
    Frame,
    /// It does not from here on.
    Other,
    Nothing,
}

impl<R: FnMut(u64) -> Option<Vec<u8>>> Walk<'_, R> {
    fn from(mut self, at: u64) -> bool {
        let mut targets = vec![at];
        while let Some(mut at) = targets.pop() {
            while self.seen.len() < MOST_INSTRUCTIONS
                && self.seen.insert(at)
                && let Some(instruction) = self.instruction(at)
            {
                match self.shows(&instruction) {
                    Shows::Frame => return true,
                    Shows::Other => break,
                    Shows::Nothing => {}
                }
                let target = Some(instruction.near_branch_target()).filter(|target| *target != 0);
                match flow(&instruction) {
                    Flow::Next | Flow::Call => at = instruction.next_ip(),
                    Flow::Branch => {
                        targets.extend(target);
                        at = instruction.next_ip();
                    }
                    Flow::Jump => match target {
                        Some(target) => at = target,
                        None => break,
                    },
                    Flow::Return | Flow::ReturnMore | Flow::Away | Flow::Stop => break,
                }
            }
        }
        false
    }

    fn shows(&mut self, instruction: &Instruction) -> Shows {
        if flow(instruction) == Flow::Call {
            return Shows::Nothing;
        }
        let Some(effect) = effect(instruction, &mut self.factory) else { return Shows::Nothing };
        let [rbp, _rbx] = effect.uses;
        match (instruction.mnemonic(), effect.rsp) {
            (Mnemonic::Leave, Rsp::FromFrame(_)) => return Shows::Frame,
            (Mnemonic::Mov, Rsp::FromFrame(_)) if self.pops_rbp(instruction.next_ip()) => return Shows::Frame,
            _ => {}
        }
        if matches!(rbp, Use::Nothing | Use::Save(_)) { Shows::Nothing } else { Shows::Other }
    }

    fn pops_rbp(&mut self, at: u64) -> bool {
        let pops = |next: Instruction| next.mnemonic() == Mnemonic::Pop && next.op0_register() == Register::RBP;
        self.instruction(at).is_some_and(pops)
    }

    fn instruction(&mut self, at: u64) -> Option<Instruction> {
        let within = |(start, bytes): &(u64, Cow<'_, [u8]>)| {
            let offset = usize::try_from(at.checked_sub(*start)?).ok()?;
            bytes.get(offset..).filter(|rest| !rest.is_empty()).and_then(|rest| decoded(at, rest))
        };
        if let Some(instruction) = self.pieces.iter().find_map(within) {
            return Some(instruction);
        }
        if self.pieces.len() > MOST_PIECES {
            return None;
        }
        self.pieces.push((at, Cow::Owned((self.read)(at)?)));
        self.pieces.last().and_then(within)
    }
}

fn decoded(at: u64, bytes: &[u8]) -> Option<Instruction> {
    let instruction = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).decode();
    (!instruction.is_invalid()).then_some(instruction)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: u64 = 0x10_0000;
    const ELSEWHERE: u64 = CODE + 0x1000;

    fn leaves(code: &[u8], elsewhere: &[u8]) -> bool {
        let read = |at| (at == ELSEWHERE).then(|| elsewhere.to_vec());
        leaves_by_frame_pointer((CODE, code), CODE, read)
    }

    #[test]
    fn what_takes_the_stack_down_to_rbp_has_a_frame() {
        for (code, expected) in [
            // mov -8(%rbp), %rax; leave; ret
            (&[0x48, 0x8b, 0x45, 0xf8, 0xc9, 0xc3][..], true),
            // mov %rbp, %rsp; pop %rbp; ret 16
            (&[0x48, 0x89, 0xec, 0x5d, 0xc2, 16, 0], true),
            // mov %rbp, %rsp in its other encoding, and something else is popped
            (&[0x48, 0x8b, 0xe5, 0x5b, 0xc3], false),
            // call to the next instruction; je over an add of 8 to rbp; leave
            (&[0xe8, 0, 0, 0, 0, 0x74, 4, 0x48, 0x83, 0xc5, 8, 0xc9, 0xc3], true),
            // add $8, %rbp; leave
            (&[0x48, 0x83, 0xc5, 8, 0xc9, 0xc3], false),
            // push %rbp; mov %rsp, %rbp; leave: another frame
            (&[0x55, 0x48, 0x89, 0xe5, 0xc9, 0xc3], false),
            // mov -8(%rbp), %rax; pop %rbp; ret; leave
            (&[0x48, 0x8b, 0x45, 0xf8, 0x5d, 0xc3, 0xc9], false),
            // jmp *%rax; leave
            (&[0xff, 0xe0, 0xc9], false),
            // int3; leave
            (&[0xcc, 0xc9], false),
            // jmp to itself
            (&[0xeb, 0xfe], false),
            (&[0x48, 0x8b], false),
            (&[], false),
        ] {
            assert_eq!(leaves(code, &[]), expected, "{code:x?}");
        }
    }

    #[test]
    fn what_is_jumped_to_leaves_the_frame() {
        // mov %rax, -0x30(%rbp); mov $2, %ebx; jmp elsewhere
        let code = [0x48, 0x89, 0x45, 0xd0, 0xbb, 2, 0, 0, 0, 0xe9, 0xf2, 0x0f, 0, 0];
        // mov -0x18(%rbp), %r8; mov %rbp, %rsp; pop %rbp
        let leave = [0x4c, 0x8b, 0x45, 0xe8, 0x48, 0x8b, 0xe5, 0x5d];
        assert!(leaves(&code, &leave));
        // push %rbp; mov %rsp, %rbp before it
        assert!(!leaves(&code, &[&[0x55, 0x48, 0x8b, 0xec], &leave[..]].concat()));
        assert!(!leaves(&code, &[]), "what can't be read shows nothing");
    }

    #[test]
    fn ways_without_end_are_left() {
        // je to elsewhere, for ever: each piece jumps to another one.
        let mut asked = 0;
        let read = |_at| {
            asked += 1;
            Some(vec![0xe9, 0, 1, 0, 0])
        };
        assert!(!leaves_by_frame_pointer((CODE, &[0xe9, 0, 1, 0, 0]), CODE, read));
        assert_eq!(asked, MOST_PIECES);
        let long = [vec![0x90; MOST_INSTRUCTIONS], vec![0xc9]].concat();
        assert!(!leaves(&long, &[]));
        assert!(leaves(&long[1..], &[]));
    }
}
