//! x86_64 code without CFI, unwound by what its instructions do to the stack pointer.

mod decode;
mod depth;
mod effect;
mod frame;
mod leaving;
mod lost;
mod moved;
mod pointed;
mod realigned;
mod returns;
mod saved;
mod solve;

pub(crate) use decode::Region;
use decode::{BOUNDARY, Code, FILLER};
use depth::{Depths, WORD};
use effect::Rsp;
use frame::Frames;
pub use leaving::leaves_by_frame_pointer;
use profiler_common::row::{BASE_FP, MAX_CFA_OFFSET_BY_8, Rule, SLOT_UNKNOWN};
use realigned::Realigned;
use saved::SavedRegister;
use solve::falls;

/// Code that is looked at in one piece: what there is in memory meanwhile is some 20 times as much.
const PIECE_BYTES: usize = 1 << 20;

/// Code further apart than this many bytes is not looked at in one piece.
const MOST_APART: u64 = 1 << 31;

/// Addresses `[start, end)` and their rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) rule: Rule,
}

/// Where functions begin, in ascending order.
#[derive(Debug, Default)]
pub(crate) struct Starts {
    /// Those that others may call.
    pub(crate) entries: Vec<u64>,
    /// Those of one file, among them parts of functions that jumps lead to.
    pub(crate) boundaries: Vec<u64>,
}

/// An instruction begins at this byte.
pub(crate) const BEGINS: u8 = 1 << 0;
/// So does a function, or a part of one.
pub(crate) const BEGINS_FUNCTION: u8 = 1 << 1;
/// rbp is set here to a stack pointer that is not known.
pub(crate) const ODD_FRAME: u8 = 1 << 2;
/// The instruction before it moves the stack pointer and goes on here.
pub(crate) const MOVED: u8 = 1 << 3;

/// What is known of some code.
#[derive(Debug, Default)]
pub(crate) struct Analysis {
    /// Pieces in ascending order.
    known: Vec<Known>,
    /// For the bytes from there on, what begins at each.
    marks: Vec<(u64, Vec<u8>)>,
}

impl Analysis {
    /// Looks at pieces of code, in ascending order, that do not touch each other.
    pub(crate) fn new(regions: &[Region<'_>], starts: &Starts) -> Self {
        let mut analysis = Self::default();
        let mut pieces: Vec<Region<'_>> = Vec::new();
        for mut region in regions.iter().copied() {
            loop {
                let base = pieces.first().map_or(region.start, |first| first.start);
                let room = PIECE_BYTES.saturating_sub(pieces.iter().map(|piece| piece.bytes.len()).sum());
                let reaches = region.start.saturating_sub(base) < MOST_APART;
                if reaches && region.bytes.len() <= room {
                    pieces.push(region);
                    break;
                }
                let rest = pieces.is_empty().then(|| {
                    let (piece, rest) = split(region, starts);
                    pieces.push(piece);
                    rest
                });
                let callees_pop = analysis.add(&std::mem::take(&mut pieces), starts);
                // The rest was made by the same compiler.
                region = rest.map_or(region, |rest| Region { callees_pop, ..rest });
            }
        }
        analysis.add(&pieces, starts);
        analysis
    }

    /// What is known of the code from `start` to `end`, in ascending order.
    pub(crate) fn known(&self, start: u64, end: u64) -> impl Iterator<Item = Known> {
        let first = self.known.partition_point(|known| known.end <= start);
        self.known.get(first..).unwrap_or_default().iter().take_while(move |known| known.start < end).copied()
    }

    /// What begins at a byte.
    pub(crate) fn marks(&self, address: u64) -> u8 {
        let after = self.marks.partition_point(|(from, _marks)| *from <= address);
        let piece = after.checked_sub(1).and_then(|index| self.marks.get(index));
        let mark = piece.and_then(|(from, marks)| marks.get(usize::try_from(address - from).ok()?));
        mark.copied().unwrap_or(0)
    }

    /// Returns whether callees take their arguments off the stack there.
    fn add(&mut self, pieces: &[Region<'_>], starts: &Starts) -> bool {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { return false };
        let end = last.start.saturating_add(last.bytes.len() as u64);
        let [entries, boundaries] = [&starts.entries, &starts.boundaries].map(|all| offsets(first.start, end, all));
        let mut code = Code::decode(first.start, pieces, &entries, &boundaries);
        let moved = moved::find(&mut code, pieces);
        let mut depths = Depths::solve(&mut code, &moved);
        let realigned = Realigned::find(&mut code, &depths, pieces);
        let frames = Frames::solve(&code, &mut depths);
        let [rbp, rbx] = [0, 1].map(|register| SavedRegister::solve(&code, &depths, &frames, register));
        let mut moved = moved::rules(&code, pieces, &moved, &depths).into_iter().peekable();
        for index in 0..code.len() {
            let Some(insn) = code.insn(index) else { continue };
            let mut of_moved = None;
            while let Some((_index, rule)) = moved.next_if(|(at, _rule)| *at <= index) {
                of_moved = Some(rule);
            }
            let start = first.start + u64::from(insn.at);
            // Where the caller's rbp is not known, a step by the frame pointer leads further, if there is one.
            let counted = || base(&code, &depths, &frames, index).filter(|_base| rbp.slot(index) != SLOT_UNKNOWN);
            let counted = || {
                counted().map(|(flags, offset)| Rule::x86_64(flags, rbp.slot(index), offset).with_rbx(rbx.slot(index)))
            };
            let rule = of_moved.or_else(|| realigned.rule(index)).or_else(counted);
            self.push(
                Known { start, end: start + u64::from(insn.length), rule: Rule::END },
                rule,
                code.has(index, FILLER),
            );
        }
        for piece in pieces {
            self.marks.push((piece.start, vec![0; piece.bytes.len()]));
        }
        for index in 0..code.len() {
            let Some(insn) = code.insn(index) else { continue };
            let mut marks = BEGINS;
            if code.has(index, BOUNDARY) {
                marks |= BEGINS_FUNCTION;
            }
            if code.effect(index).frame.is_some() && depths.is_lost(index) {
                marks |= ODD_FRAME;
            }
            let before = index.checked_sub(1).filter(|before| falls(&code, *before));
            if before.is_some_and(|before| code.effect(before).rsp != Rsp::Deeper(0)) {
                marks |= MOVED;
            }
            self.mark(first.start + u64::from(insn.at), marks);
        }
        code.callees_pop
    }

    /// Adds an instruction with its rule; filling goes on with what is before it.
    fn push(&mut self, piece: Known, rule: Option<Rule>, filler: bool) {
        let last = self.known.last_mut().filter(|last| last.end == piece.start);
        match (last, rule) {
            (Some(last), Some(rule)) if last.rule == rule => last.end = piece.end,
            (Some(last), None) if filler => last.end = piece.end,
            (_, Some(rule)) => self.known.push(Known { rule, ..piece }),
            (_, None) => {}
        }
    }

    fn mark(&mut self, address: u64, marks: u8) {
        let after = self.marks.partition_point(|(from, _marks)| *from <= address);
        if let Some((from, bytes)) = after.checked_sub(1).and_then(|index| self.marks.get_mut(index))
            && let Some(byte) = usize::try_from(address - *from).ok().and_then(|at| bytes.get_mut(at))
        {
            *byte = marks;
        }
    }
}

/// Cuts off what is looked at in one piece, where a function begins if that is known.
fn split<'a>(region: Region<'a>, starts: &Starts) -> (Region<'a>, Region<'a>) {
    let most = region.start.saturating_add(PIECE_BYTES as u64);
    let after = starts.boundaries.partition_point(|entry| *entry <= most);
    let last = after.checked_sub(1).and_then(|index| starts.boundaries.get(index));
    let length = last.and_then(|last| usize::try_from(last.checked_sub(region.start)?).ok());
    let length = length.filter(|length| *length >= PIECE_BYTES / 2).unwrap_or(PIECE_BYTES);
    let (bytes, rest) = region.bytes.split_at(length.min(region.bytes.len()));
    let start = region.start.saturating_add(bytes.len() as u64);
    (Region { bytes, ..region }, Region { start, bytes: rest, ..region })
}

/// From what the CFA counts before an instruction, and how many words. From rbp where rsp is lost, and where what was
/// called may have taken its arguments off the stack. Elsewhere rbp may be anything: what was known of it once need not
/// hold along all ways.
fn base(code: &Code, depths: &Depths, frames: &Frames, index: u32) -> Option<(u8, i32)> {
    let (flags, below) = match (frames.at(index), depths.at(index)) {
        (Some(below), Some(_)) if code.callees_pop => (BASE_FP, below),
        (_, Some(depth)) => (0, depth.checked_add(WORD)?),
        (Some(below), None) if depths.is_lost(index) || depths.is_blank(index) => (BASE_FP, below),
        _ => return None,
    };
    (below % WORD == 0 && below / WORD <= MAX_CFA_OFFSET_BY_8).then_some((flags, below / WORD))
}

/// The addresses within a piece of code, as offsets.
fn offsets(start: u64, end: u64, addresses: &[u64]) -> Vec<u32> {
    let first = addresses.partition_point(|address| *address < start);
    let inside = addresses.get(first..).unwrap_or_default().iter().take_while(|address| **address < end);
    inside.filter_map(|address| u32::try_from(address - start).ok()).collect()
}
