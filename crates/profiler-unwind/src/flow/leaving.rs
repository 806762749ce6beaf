//! Whether x86_64 code has a frame that rbp points to, shown by how it leaves it.
//!
//! `leave`, and `mov %rbp, %rsp` before `pop %rbp`, take the stack down to where rbp points and the caller's rbp
//! from there. Where a way leads to that and nothing on it changes rbp, it points to the frame already. But what seems to
//! be a way may lead behind a call that does not return, into whatever is there: where another way returns and has left
//! no frame, there is none. No function has to be known for that, nor where it begins: V8's baseline compiler makes code in which rbp is never set, nor rsp set
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

/// Whether a way leads from `at` to where the frame that rbp points to is left, and none to a return without that.
/// `code` is at `start`; of jumps out of it `read` brings what is at their target, as many bytes as it likes, if that
/// is code.
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
    /// It does not: it is returned to the caller, or the caller's rbp is taken from somewhere else.
    NoFrame,
    /// It does not from here on.
    Other,
    Nothing,
}

impl<R: FnMut(u64) -> Option<Vec<u8>>> Walk<'_, R> {
    fn from(mut self, at: u64) -> bool {
        let mut targets = vec![at];
        let mut found = false;
        while let Some(target) = targets.pop() {
            match self.follow(target, &mut targets) {
                Shows::Frame => found = true,
                Shows::NoFrame => return false,
                Shows::Other | Shows::Nothing => {}
            }
        }
        found
    }

    /// Goes on from `at` as long as there is one way, and adds where else branches lead. What is walked through to the
    /// end of a piece ends there: a call that does not return may be the last of the code.
    fn follow(&mut self, mut at: u64, targets: &mut Vec<u64>) -> Shows {
        let Some(mut piece) = self.piece_with(at) else { return Shows::Nothing };
        while self.seen.len() < MOST_INSTRUCTIONS
            && !self.seen.contains(&at)
            && let Some(instruction) = self.instruction(piece, at)
        {
            self.seen.insert(at);
            let shows = self.shows(piece, &instruction);
            if shows != Shows::Nothing {
                return shows;
            }
            let target = Some(instruction.near_branch_target()).filter(|target| *target != 0);
            match flow(&instruction) {
                Flow::Next | Flow::Call => at = instruction.next_ip(),
                Flow::Branch => {
                    targets.extend(target);
                    at = instruction.next_ip();
                }
                Flow::Jump => match target.and_then(|target| Some((target, self.piece_with(target)?))) {
                    Some(jump) => (at, piece) = jump,
                    None => break,
                },
                Flow::Return | Flow::ReturnMore | Flow::Away | Flow::Stop => break,
            }
        }
        Shows::Nothing
    }

    fn shows(&mut self, piece: usize, instruction: &Instruction) -> Shows {
        match flow(instruction) {
            Flow::Call => return Shows::Nothing,
            Flow::Return | Flow::ReturnMore => return Shows::NoFrame,
            _ => {}
        }
        if pops_rbp(instruction) {
            return Shows::NoFrame;
        }
        let Some(effect) = effect(instruction, &mut self.factory) else { return Shows::Nothing };
        let [rbp, _rbx] = effect.uses;
        let next = || self.instruction(piece, instruction.next_ip());
        match (instruction.mnemonic(), effect.rsp) {
            (Mnemonic::Leave, Rsp::FromFrame(_)) => return Shows::Frame,
            (Mnemonic::Mov, Rsp::FromFrame(_)) if next().is_some_and(|next| pops_rbp(&next)) => return Shows::Frame,
            _ => {}
        }
        if matches!(rbp, Use::Nothing | Use::Save(_)) { Shows::Nothing } else { Shows::Other }
    }

    /// The piece that holds the instruction at `at`; it is brought if there is none.
    fn piece_with(&mut self, at: u64) -> Option<usize> {
        if let Some(piece) = (0..self.pieces.len()).find(|piece| self.instruction(*piece, at).is_some()) {
            return Some(piece);
        }
        if self.pieces.len() > MOST_PIECES {
            return None;
        }
        self.pieces.push((at, Cow::Owned((self.read)(at)?)));
        Some(self.pieces.len() - 1)
    }

    fn instruction(&self, piece: usize, at: u64) -> Option<Instruction> {
        let (start, bytes) = self.pieces.get(piece)?;
        let offset = usize::try_from(at.checked_sub(*start)?).ok()?;
        bytes.get(offset..).filter(|rest| !rest.is_empty()).and_then(|rest| decoded(at, rest))
    }
}

fn pops_rbp(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Pop && instruction.op0_register() == Register::RBP
}

fn decoded(at: u64, bytes: &[u8]) -> Option<Instruction> {
    /// `add %al, (%rax)`, which no compiler makes: nothing was written there.
    const EMPTY: [u8; 2] = [0; 2];
    let instruction = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).decode();
    (!instruction.is_invalid() && !bytes.starts_with(&EMPTY)).then_some(instruction)
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
            // jne over a ret; leave; and the other way round
            (&[0x75, 1, 0xc3, 0xc9, 0xc3], false),
            (&[0x75, 2, 0xc9, 0xc3, 0xc2, 8, 0], false),
            // jne over a pop of rbp; leave
            (&[0x75, 2, 0x5d, 0xc3, 0xc9, 0xc3], false),
            // jne over a leave; leave
            (&[0x75, 2, 0xc9, 0xc3, 0xc9, 0xc3], true),
            // a call; leave: it returns, or does not, and then something is in between.
            (&[0xff, 0xd0, 0xc9, 0xc3], true),
            (&[0xff, 0xd0, 0xcc, 0xc9, 0xc3], false),
            (&[0xff, 0xd0, 0, 0, 0xc9, 0xc3], false),
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
    fn the_end_of_the_code_is_left_by_jumps_only() {
        // jne to elsewhere; call *%rax, with nops behind it.
        let code = [0x0f, 0x85, 0xfa, 0x0f, 0, 0, 0xff, 0xd0, 0x90, 0x90];
        let mut asked = Vec::new();
        let mut leaves = |code: &[u8]| {
            asked.clear();
            let read = |at| {
                asked.push(at);
                Some(vec![0xc9, 0xc3])
            };
            (leaves_by_frame_pointer((CODE, code), CODE, read), asked.clone())
        };
        assert_eq!(leaves(&code[6..]), (false, vec![]));
        assert_eq!(leaves(&code), (true, vec![ELSEWHERE]));
    }

    /// Frameless code in front of constants: call; add $8, %rsp; ret, and a function with a call that does not return.
    #[test]
    fn what_returns_without_leaving_a_frame_has_none() {
        let caller = [0xe8, 5, 0, 0, 0, 0x48, 0x83, 0xc4, 8, 0xc3];
        // dec %rdi; jne to it; test %rsi, %rsi; jne over the ret; ret; call *%rax; 201.
        let callee = [0x48, 0xff, 0xcf, 0x75, 0xfb, 0x48, 0x85, 0xf6, 0x75, 1, 0xc3, 0xff, 0xd0, 201];
        for code in [&caller[..], &callee] {
            assert!(!leaves(code, &[]), "{code:x?}");
        }
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
