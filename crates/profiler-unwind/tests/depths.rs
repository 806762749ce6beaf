//! What code does to the stack pointer, against the call frame information of code that has some: the rows of
//! files as if they had none must be those of the same files, or say that they do not know.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails where one of its steps does")]

use std::fmt;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use object::elf::{PT_GNU_EH_FRAME, SHT_NOBITS};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, ObjectSegment as _};
use profiler_common::address::Svma;
use profiler_common::row::{BASE_FP, BASE_OTHER, DEREF, FP_AT_FP, Rule, SLOT_UNKNOWN};
use profiler_unwind::{UnwindTable, build, function_starts, lookup};

/// What many programs have; those that are there are looked at.
const FILES: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/lib64/ld-linux-x86-64.so.2",
    "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
    "/usr/lib/x86_64-linux-gnu/libcrypto.so.3",
    "/bin/bash",
];

/// The least share of instructions whose CFA is found. In C++ the blocks that catch are led to by tables alone.
const LEAST: f64 = 0.85;

/// The same file as if it had no call frame information.
fn without_cfi(bytes: &[u8]) -> Vec<u8> {
    let mut stripped = bytes.to_vec();
    let elf = ElfFile64::<Endianness>::parse(bytes).unwrap();
    let header = elf.elf_header();
    let endian = elf.endian();
    let program_headers = header.e_phoff.get(endian) as usize;
    for at in (0..usize::from(header.e_phnum.get(endian))).map(|index| program_headers + index * 56) {
        if bytes[at..at + 4] == PT_GNU_EH_FRAME.to_le_bytes() {
            stripped[at..at + 4].fill(0);
        }
    }
    let section_headers = header.e_shoff.get(endian) as usize;
    for section in elf.sections().filter(|section| matches!(section.name(), Ok(".eh_frame" | ".debug_frame"))) {
        let at = section_headers + section.index().0 * 64 + 4;
        stripped[at..at + 4].copy_from_slice(&SHT_NOBITS.to_le_bytes());
    }
    stripped
}

#[derive(Debug, Default)]
struct Tally {
    instructions: u64,
    /// The CFA is what the CFI says.
    equal: u64,
    /// It counts from rsp, and the CFI from rbp.
    by_rsp: u64,
    /// It counts from rbp, and the CFI from rsp: it can't be told whether rbp is there.
    by_rbp: u64,
    /// Of those in aligned frames, which the CFI says by other registers or expressions.
    aligned: u64,
    /// It is found, and the CFI is wrong.
    cfi_wrong: u64,
    /// It is found, but not where rbp is.
    rbp_unknown: u64,
    wrong: Vec<String>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |count: u64| count as f64 * 100.0 / self.instructions as f64;
        let (equal, by_rsp, rbp) = (share(self.equal), share(self.by_rsp), share(self.rbp_unknown));
        write!(
            f,
            "{} instructions: {equal:.2}% equal, {by_rsp:.2}% by rsp, {} by rbp, {} in aligned frames, ",
            self.instructions, self.by_rbp, self.aligned
        )?;
        write!(f, "{rbp:.2}% without rbp, {} where the CFI is wrong, {} wrong", self.cfi_wrong, self.wrong.len())
    }
}

/// Whether a rule counts from rsp or rbp, and no guess.
fn is_plain(rule: Rule) -> bool {
    rule.flags() & !BASE_FP == 0
}

/// Whether a rule is one of those for frames that are aligned to more than the stack is.
fn is_of_aligned_frame(rule: Rule) -> bool {
    matches!(rule.flags(), BASE_OTHER) || rule.flags() == DEREF | BASE_FP | FP_AT_FP
}

struct Files<'a> {
    bytes: &'a Vec<u8>,
    with: UnwindTable,
    without: UnwindTable,
}

impl Files<'_> {
    fn compare(&self, instruction: &Instruction, tally: &mut Tally) {
        let at = Svma(instruction.ip());
        let [Some(cfi), Some(found)] = [lookup(&self.with, at), lookup(&self.without, at)] else { return };
        // What an aligned frame is left by may be said in two ways.
        if is_of_aligned_frame(found) && (is_of_aligned_frame(cfi) || is_plain(cfi)) {
            Self::compare_aligned(at, [found, cfi], tally);
        }
        if !is_plain(cfi) {
            return;
        }
        tally.instructions += 1;
        if !is_plain(found) {
            return;
        }
        let by_rsp = cfi.flags() == 0;
        let [ours, theirs] = [found, cfi].map(Rule::x86_64_cfa_offset_by_8);
        if found.flags() != cfi.flags() {
            *if by_rsp { &mut tally.by_rbp } else { &mut tally.by_rsp } += 1;
        } else if ours == theirs {
            tally.equal += 1;
        } else if self.is_cfi_wrong(instruction, [found, cfi]) {
            tally.cfi_wrong += 1;
            return;
        } else {
            tally.wrong.push(format!("{:#x}: CFA at {ours} words instead of {theirs}", at.0));
            return;
        }
        let [ours, theirs] = [found, cfi].map(Rule::x86_64_slot);
        // Below rsp is what was popped: it is in the register again.
        let popped = ours == 0 && by_rsp && i32::from(theirs) > cfi.x86_64_cfa_offset_by_8();
        if ours == SLOT_UNKNOWN {
            tally.rbp_unknown += 1;
        } else if ours != theirs && !popped && theirs != SLOT_UNKNOWN {
            tally.wrong.push(format!("{:#x}: rbp at {ours} words instead of {theirs}", at.0));
        }
    }

    /// Where r10 is loaded from the frame again, CFI counts from r10, and can't say where rbp is.
    fn compare_aligned(at: Svma, [found, cfi]: [Rule; 2], tally: &mut Tally) {
        let by_frame = found.flags() & DEREF != 0 && cfi.flags() == BASE_OTHER;
        let same_cfa = found.flags() == cfi.flags() && found.x86_64_cfa_offset_by_8() == cfi.x86_64_cfa_offset_by_8();
        let same_rbp = [SLOT_UNKNOWN, found.x86_64_slot()].contains(&cfi.x86_64_slot());
        if by_frame || same_cfa && same_rbp {
            tally.aligned += 1;
        } else {
            tally.wrong.push(format!("{:#x}: {found:?} instead of {cfi:?}", at.0));
        }
    }

    /// Whether what the CFI says of an instruction can't be: another place of the return address than on top of
    /// the stack when it is popped, or no frame in all of a function that has one (GMP's assembly in glibc).
    fn is_cfi_wrong(&self, instruction: &Instruction, [found, cfi]: [Rule; 2]) -> bool {
        let frameless = |rule: Rule| rule.x86_64_cfa_offset_by_8() == 1;
        if instruction.flow_control() == FlowControl::Return {
            return frameless(found);
        }
        let start = function_starts(self.bytes, &[Svma(instruction.ip())]).unwrap()[0];
        let at_start = start.and_then(|start| lookup(&self.without, start));
        frameless(cfi) && start != Some(Svma(instruction.ip())) && at_start.is_some_and(frameless)
    }
}

fn compare(bytes: &Vec<u8>) -> Tally {
    let files = Files { bytes, with: build(bytes).unwrap(), without: build(&without_cfi(bytes)).unwrap() };
    let elf = object::File::parse(bytes.as_slice()).unwrap();
    let mut tally = Tally::default();
    for segment in files.with.segments.iter().filter(|segment| segment.executable) {
        let data = elf.segments().find(|other| other.address() == segment.svma.0).unwrap().data().unwrap();
        let mut decoder = Decoder::with_ip(64, data, segment.svma.0, DecoderOptions::NONE);
        let mut went = false;
        while decoder.can_decode() {
            let instruction = decoder.decode();
            // Nothing gets to what fills the space behind code.
            let filling = matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3) || instruction.is_invalid();
            if went && filling {
                continue;
            }
            let flow = instruction.flow_control();
            went = !matches!(flow, FlowControl::Next | FlowControl::ConditionalBranch)
                || instruction.mnemonic() == Mnemonic::Hlt;
            files.compare(&instruction, &mut tally);
        }
    }
    tally
}

/// `SPANFLAME_DEPTHS` names files of your own.
#[test]
fn code_says_what_its_call_frame_information_says() {
    let own = std::env::var("SPANFLAME_DEPTHS").unwrap_or_default();
    let own: Vec<&str> = own.split(' ').filter(|path| !path.is_empty()).collect();
    let mut wrong = 0;
    for path in if own.is_empty() { &FILES[..] } else { &own[..] } {
        let Ok(bytes) = std::fs::read(path) else {
            println!("skipped {path}: not on this machine");
            continue;
        };
        let tally = compare(&bytes);
        println!("{path}: {tally}");
        tally.wrong.iter().take(20).for_each(|line| println!("  {line}"));
        wrong += tally.wrong.len();
        assert!(tally.by_rbp == 0 || !own.is_empty(), "{path}: rbp is asked where rsp is known");
        let share = (tally.equal + tally.by_rsp) as f64 / tally.instructions as f64;
        assert!(share >= LEAST || !own.is_empty(), "{path}: {share} of the instructions");
        assert!(tally.cfi_wrong * 1000 < tally.instructions, "{path}: is so much of its CFI wrong?");
    }
    assert_eq!(wrong, 0, "wrong rows");
}
