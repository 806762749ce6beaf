//! Code of a file that has no call frame information: where it is, and what its instructions tell.

use profiler_common::address::Svma;

use crate::bare;
use crate::elf::Elf;
use crate::error::BuildError;
use crate::flow::{Analysis, Region};
use crate::plt::Plt;
use crate::read::{ReadAt, read_bytes};
use crate::segment::Arch;
use crate::spans::Span;
use crate::starts;

/// Code is aligned to this many bytes. A shorter hole up to such an address is padding.
pub(crate) const CODE_ALIGNMENT: u64 = 16;

/// What no span and no PLT covers of the executable segments, but for filling.
fn holes(elf: &Elf, plts: &[Plt], spans: &[Span]) -> Vec<[u64; 2]> {
    let mut covered: Vec<[u64; 2]> = spans.iter().map(|span| [span.start, span.end()]).collect();
    covered.extend(plts.iter().map(|plt| [plt.start, plt.end]));
    covered.sort_unstable();
    let mut holes = Vec::new();
    for segment in elf.executable() {
        let (start, end) = (segment.svma.0, segment.end().0);
        let first = covered.partition_point(|[_start, covered_to]| *covered_to <= start);
        let inside = covered.get(first..).unwrap_or_default().iter().take_while(|[from, _to]| *from < end);
        let mut at = start;
        for [from, to] in inside.copied().chain([[end, end]]) {
            if from > at && (at == start || from == end || from > at.next_multiple_of(CODE_ALIGNMENT)) {
                holes.push([at, from]);
            }
            at = at.max(to);
        }
    }
    holes
}

/// Looks at the code without CFI of a file, as much of it as is looked at.
pub(crate) fn analyze(file: &impl ReadAt, elf: &Elf, plts: &[Plt], spans: &[Span]) -> Result<Analysis, BuildError> {
    let mut left = bare::BUDGET_BYTES;
    if elf.arch != Arch::X86_64 {
        return Ok(Analysis::default());
    }
    let mut regions: Vec<(u64, Vec<u8>)> = Vec::new();
    for [start, end] in holes(elf, plts, spans) {
        let Some((offset, in_file)) = elf.in_file(Svma(start)) else { continue };
        let length = in_file.min(end - start).min(left);
        left = left.saturating_sub(length.max(bare::MIN_COST_BYTES));
        let bytes = read_bytes(file, "code without call frame information", offset, length, length)?;
        regions.push((start, bytes));
    }
    if regions.is_empty() {
        return Ok(Analysis::default());
    }
    let regions: Vec<_> = regions.iter().map(|(start, bytes)| Region::new(*start, bytes)).collect();
    Ok(Analysis::new(&regions, &starts::read(file, elf, &regions)))
}
