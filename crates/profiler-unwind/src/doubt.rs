//! CFI that says nothing of the registers that a function pushes: glibc's own `__mpn_addmul_1` and the like, which
//! print and read numbers with a decimal point (glibc/sysdeps/x86_64/addmul_1.S, up to 2.40 or so).

use crate::elf::Elf;
use crate::flow::{Analysis, Known, Region, Starts};
use crate::read::{ReadAt, read_bytes};
use crate::segment::Arch;
use crate::spans::Span;
use profiler_common::address::Svma;
use profiler_common::row::Rule;
use std::ops::RangeInclusive;

/// Bytes of functions that are looked at; seen: 235.
const BYTES: RangeInclusive<u32> = 64..=2048;

/// What the code of a function does to the stack, where it is known at each instruction that this differs from what
/// its CFI says: that it has no frame anywhere.
pub(crate) fn rules(file: &impl ReadAt, elf: &Elf, span: &Span) -> Option<Vec<Known>> {
    if elf.arch != Arch::X86_64 || !BYTES.contains(&span.length) {
        return None;
    }
    let (offset, left) = elf.in_file(Svma(span.start)).filter(|(_offset, left)| *left >= u64::from(span.length))?;
    let length = u64::from(span.length).min(left);
    let bytes = read_bytes(file, "code that CFI says has no frame", offset, length, u64::from(*BYTES.end())).ok()?;
    if !bytes.windows(2).any(pops_and_returns) {
        return None;
    }
    let starts = Starts { entries: vec![span.start], boundaries: vec![span.start] };
    let analysis = Analysis::new(&[Region::new(span.start, &bytes)], &starts);
    let known: Vec<Known> = analysis.known(span.start, span.end()).collect();
    let whole = known.first().is_some_and(|first| first.start == span.start && first.rule == NO_FRAME)
        && known.last().is_some_and(|last| last.end == span.end())
        && known.is_sorted_by(|one, next| one.end == next.start);
    (whole && known.len() > 1).then_some(known)
}

/// What the CFI says.
const NO_FRAME: Rule = Rule::x86_64(0, 0, 1);

/// pop of a register; ret.
fn pops_and_returns(bytes: &[u8]) -> bool {
    matches!(bytes, [0x58..=0x5f, 0xc3])
}
