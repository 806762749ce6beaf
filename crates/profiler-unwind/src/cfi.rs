//! Call frame information: finds the FDEs of a section, and runs their programs.

use crate::bytes::{u32_at, u64_at};
use crate::error::BuildError;
use crate::expression::{Reader, Shape, shape};
use crate::segment::Arch;
use crate::spans::Span;
use crate::state::{Cfa, Effect, Interpreter, Invalid, Parameters, Saved, State};
use crate::{aarch64, eh_return, eh_return_aarch64, x86_64};
use gimli::{
    BaseAddresses, CommonInformationEntry, FrameDescriptionEntry, LittleEndian, Register, UnwindExpression,
    UnwindOffset, UnwindSection, Vendor,
};
use profiler_common::row::Rule;
use std::ops::ControlFlow;

/// FDEs of one file: 16 bytes each while its table is built. The largest programs have a million.
const MAX_FDES: usize = 4 << 20;

/// CIEs kept parsed. A file has a handful; FDEs in address order switch among a few.
const CACHED_CIES: usize = 16;

/// Bytes of CFI that may be worked through, as a multiple of what there is. Each FDE is read once
/// and its CIE's program with it, which makes 2 to 3; more only where a file is made to cost time.
const WORK_FACTOR: u64 = 8;

/// How a row of CFI is expressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoded {
    /// By one rule.
    Rule(Rule),
    /// By two rules for each 16 bytes of x86_64 `.plt`.
    Plt {
        /// The first byte of an entry after its `push`.
        pushed_from: u8,
        /// The rule up to there.
        before: Rule,
        /// The rule from there on.
        after: Rule,
    },
    /// Not at all, for code that goes over to the frame that catches an exception.
    EhReturn,
    /// By one rule, in a function of aarch64 that perhaps goes over to such a frame.
    KeepsX0(Rule),
}

/// Why a row of CFI can't be expressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsupported {
    /// The CFA counts from another register than the stack and the frame pointer.
    CfaRegister,
    /// The CFA's offset is no multiple of 8, or too large.
    CfaOffset,
    /// The CFA is not stated, or an expression of no known shape.
    CfaExpression,
    /// The return address is not where it is expected.
    ReturnAddress,
    /// The frame pointer is not where it is expected (aarch64).
    FramePointer,
    /// A signal frame that does not look like the kernel's.
    SignalFrame,
}

/// Bytes charged for a CIE that turns out to be unreadable.
const MIN_CIE_WORK: usize = 64;

/// Why the rows of an FDE end early.
#[derive(Debug)]
pub(crate) enum RowError {
    /// The FDE, or the rest of its program, can't be read.
    Unreadable,
    /// The table can't be built.
    Build(BuildError),
}

impl From<Unreadable> for RowError {
    fn from(Unreadable: Unreadable) -> Self {
        Self::Unreadable
    }
}

impl From<BuildError> for RowError {
    fn from(error: BuildError) -> Self {
        Self::Build(error)
    }
}

/// The FDE, or the rest of its program, can't be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unreadable;

impl From<gimli::Error> for Unreadable {
    fn from(_: gimli::Error) -> Self {
        Self
    }
}

impl From<Invalid> for Unreadable {
    fn from(Invalid: Invalid) -> Self {
        Self
    }
}

/// A section of call frame information.
pub(crate) trait CfiSection<'a>: UnwindSection<Reader<'a>, Offset: UnwindOffset<usize>> {
    /// In [`Span::entry`] of its FDEs.
    const TAG: u32;
    /// Whether the 32-bit, or 64-bit, identifier of an entry says that it is a CIE.
    fn marks_cie(id: u64, wide: bool) -> bool;
    /// Whether the identifier is 64 bits wide in entries of 64-bit length.
    const WIDE_ID: bool;
}

impl<'a> CfiSection<'a> for gimli::EhFrame<Reader<'a>> {
    const TAG: u32 = 0;
    const WIDE_ID: bool = false;
    fn marks_cie(id: u64, _wide: bool) -> bool {
        id == 0
    }
}

impl<'a> CfiSection<'a> for gimli::DebugFrame<Reader<'a>> {
    const TAG: u32 = Span::DEBUG_FRAME;
    const WIDE_ID: bool = true;
    fn marks_cie(id: u64, wide: bool) -> bool {
        id == if wide { u64::MAX } else { u64::from(u32::MAX) }
    }
}

/// `.eh_frame`.
pub(crate) fn eh_frame(bytes: &[u8], arch: Arch) -> gimli::EhFrame<Reader<'_>> {
    let mut section = gimli::EhFrame::new(bytes, LittleEndian);
    section.set_address_size(8);
    section.set_vendor(vendor(arch));
    section
}

/// `.debug_frame`.
pub(crate) fn debug_frame(bytes: &[u8], arch: Arch) -> gimli::DebugFrame<Reader<'_>> {
    let mut section = gimli::DebugFrame::new(bytes, LittleEndian);
    section.set_address_size(8);
    section.set_vendor(vendor(arch));
    section
}

fn vendor(arch: Arch) -> Vendor {
    match arch {
        Arch::X86_64 => Vendor::Default,
        Arch::Aarch64 => Vendor::AArch64,
    }
}

/// The frame pointer and the column of the return address.
fn registers(arch: Arch) -> (Register, Register) {
    match arch {
        Arch::X86_64 => (x86_64::FRAME_POINTER, x86_64::RETURN_ADDRESS),
        Arch::Aarch64 => (aarch64::FRAME_POINTER, aarch64::RETURN_ADDRESS),
    }
}

/// A CIE and what all its FDEs share.
struct Cie<'a> {
    at: usize,
    entry: CommonInformationEntry<Reader<'a>>,
    parameters: Parameters,
    initial: State,
}

/// The CIEs used last, by offset, and the bytes of CFI that may still be worked through.
struct Cies<'a> {
    slots: Vec<Option<Cie<'a>>>,
    arch: Arch,
    work_left: u64,
}

impl<'a> Cies<'a> {
    fn get<S: CfiSection<'a>>(
        &mut self,
        section: &S,
        bases: &BaseAddresses,
        at: usize,
    ) -> Result<&Cie<'a>, Unreadable> {
        let index = at / 8 % CACHED_CIES;
        if self.slots.get(index).and_then(Option::as_ref).is_none_or(|cie| cie.at != at) {
            let cie = self.parse(section, bases, at)?;
            *self.slots.get_mut(index).ok_or(Unreadable)? = Some(cie);
        }
        self.slots.get(index).and_then(Option::as_ref).ok_or(Unreadable)
    }

    fn parse<S: CfiSection<'a>>(
        &mut self,
        section: &S,
        bases: &BaseAddresses,
        at: usize,
    ) -> Result<Cie<'a>, Unreadable> {
        self.charge(section.section().len().saturating_sub(at).min(MIN_CIE_WORK))?;
        let entry = section.cie_from_offset(bases, at.into())?;
        self.charge(entry.entry_len())?;
        let (frame_pointer, return_address) = registers(self.arch);
        if entry.address_size() != 8 {
            return Err(Unreadable);
        }
        let parameters = Parameters {
            code_alignment: entry.code_alignment_factor(),
            data_alignment: entry.data_alignment_factor(),
            frame_pointer,
            return_address,
            third_register: match self.arch {
                Arch::X86_64 => x86_64::BASE_REGISTER,
                Arch::Aarch64 => eh_return_aarch64::KEPT,
            },
        };
        let mut program = Interpreter::new(parameters, State::EMPTY, 0);
        let mut instructions = entry.instructions(section, bases);
        while let Some(instruction) = instructions.next()? {
            if program.execute(instruction)? != Effect::Row {
                return Err(Unreadable);
            }
        }
        Ok(Cie { at, parameters, initial: *program.state(), entry })
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Unreadable> {
        self.work_left = self.work_left.checked_sub(bytes as u64).ok_or(Unreadable)?;
        Ok(())
    }
}

/// A section with its bases and its recently used CIEs.
pub(crate) struct CallFrames<'a, S> {
    section: S,
    bytes: &'a [u8],
    bases: BaseAddresses,
    cies: Cies<'a>,
}

impl<'a, S: CfiSection<'a>> CallFrames<'a, S> {
    /// The call frame information in `section`, which consists of `bytes`.
    pub(crate) fn new(section: S, bytes: &'a [u8], bases: BaseAddresses, arch: Arch) -> Self {
        let slots = std::iter::repeat_with(|| None).take(CACHED_CIES).collect();
        let work_left = (bytes.len() as u64 + 4096) * WORK_FACTOR;
        Self { section, bytes, bases, cies: Cies { slots, arch, work_left } }
    }

    /// The addresses of the FDEs that `keep` does not turn down by start and length, in the order
    /// of the section, and the number of entries that can't be read.
    ///
    /// # Errors
    /// When there are more than [`MAX_FDES`].
    pub(crate) fn spans(&mut self, keep: impl Fn(u64, u64) -> bool) -> Result<(Vec<Span>, u64), BuildError> {
        let mut spans = Vec::new();
        let mut unreadable = 0;
        let mut at = 0;
        while at < self.bytes.len() {
            let Some(header) = entry_header::<S>(self.bytes, at) else {
                unreadable += 1;
                break;
            };
            if header.is_fde {
                match self.span(at) {
                    Ok(span) if span.length > 0 && keep(span.start, u64::from(span.length)) => spans.push(span),
                    Ok(_) => {}
                    Err(Unreadable) => unreadable += 1,
                }
            }
            if spans.len() > MAX_FDES {
                let (value, limit) = (spans.len() as u64, MAX_FDES as u64);
                return Err(BuildError::TooMany { what: "the number of FDEs", value, limit });
            }
            at = header.end;
        }
        Ok((spans, unreadable))
    }

    fn span(&mut self, at: usize) -> Result<Span, Unreadable> {
        let (fde, _) = self.fde(at)?;
        let length = u32::try_from(fde.len()).map_err(|_too_long| Unreadable)?;
        let entry = u32::try_from(at).map_err(|_too_far| Unreadable)? | S::TAG;
        Ok(Span { start: fde.initial_address(), length, entry })
    }

    fn fde(&mut self, at: usize) -> Result<(FrameDescriptionEntry<Reader<'a>>, &Cie<'a>), Unreadable> {
        let partial = self.section.partial_fde_from_offset(&self.bases, at.into())?;
        let cie = self.cies.get(&self.section, &self.bases, UnwindOffset::into(partial.cie_offset()))?;
        Ok((partial.parse(|_, _, _| Ok(cie.entry.clone()))?, cie))
    }

    /// Runs the program of the FDE that `span` names. `row` gets, for each row in ascending order,
    /// the address where it ends and how it is expressed. The last row ends with the FDE.
    ///
    /// # Errors
    /// When the program can't be read on, or `row` fails; the rows before stand.
    pub(crate) fn rows(
        &mut self,
        span: &Span,
        mut row: impl FnMut(u64, Result<Encoded, Unsupported>) -> Result<(), BuildError>,
    ) -> Result<(), RowError> {
        let at = usize::try_from(span.entry & !Span::DEBUG_FRAME).map_err(|_too_far| Unreadable)?;
        let (fde, cie) = self.fde(at)?;
        let (parameters, initial) = (cie.parameters, cie.initial);
        self.cies.charge(fde.entry_len())?;
        let mut program = Interpreter::new(parameters, initial, fde.initial_address());
        let mut row_start = fde.initial_address();
        let (mut last, mut leaves) = (None, false);
        let mut row = |end: u64, state: &State, encoded| {
            leaves = self.cies.arch == Arch::X86_64 && eh_return::is_one(last.as_ref(), leaves, state);
            last = Some(*state);
            let keeps_x0 = self.cies.arch == Arch::Aarch64 && matches!(state.third_register, Saved::Offset(_));
            row(
                end,
                match encoded {
                    _ if leaves => Ok(Encoded::EhReturn),
                    Ok(Encoded::Rule(rule)) if keeps_x0 => Ok(Encoded::KeepsX0(rule)),
                    other => other,
                },
            )
        };
        let mut instructions = fde.instructions(&self.section, &self.bases);
        while let Some(instruction) = instructions.next().map_err(Unreadable::from)? {
            let before = *program.state();
            if let Effect::Advance(address) = program.execute(instruction).map_err(Unreadable::from)? {
                if address > row_start {
                    row(address, &before, self.encode(&before, fde.cie()))?;
                }
                row_start = address;
            }
        }
        Ok(row(fde.end_address(), program.state(), self.encode(program.state(), fde.cie()))?)
    }

    fn encode(&self, state: &State, cie: &CommonInformationEntry<Reader<'a>>) -> Result<Encoded, Unsupported> {
        if cie.return_address_register() != registers(self.cies.arch).1 {
            return Err(Unsupported::ReturnAddress);
        }
        let shape_of = |expression: UnwindExpression<usize>| match expression.get(&self.section) {
            Ok(expression) => shape(expression, cie.encoding()),
            Err(_) => Shape::Unknown,
        };
        let shape_at = |saved| match saved {
            Saved::Expression(expression) => shape_of(expression),
            _ => Shape::Unknown,
        };
        let cfa = match state.cfa {
            Cfa::Unset => Shape::Unknown,
            Cfa::Register(register, offset) => Shape::Register(register, offset),
            Cfa::Expression { expression, .. } => shape_of(expression),
        };
        let signal_frame = cie.is_signal_trampoline();
        match self.cies.arch {
            Arch::X86_64 => x86_64::encode(&x86_64::Row {
                cfa,
                frame_pointer: state.frame_pointer,
                frame_pointer_at: shape_at(state.frame_pointer),
                return_address: state.return_address,
                return_address_at: shape_at(state.return_address),
                base_register: state.third_register,
                signal_frame,
            }),
            Arch::Aarch64 => aarch64::encode(cfa, state.frame_pointer, state.return_address, signal_frame),
        }
    }
}

/// The outside of an entry.
struct EntryHeader {
    is_fde: bool,
    end: usize,
}

/// The entry at `at`. One of length 0 ends the section by its definition, but linkers leave such in
/// the middle, so it counts as an entry that is no FDE. `None` when the entry is cut off.
fn entry_header<'a, S: CfiSection<'a>>(bytes: &[u8], at: usize) -> Option<EntryHeader> {
    let short = u32_at(bytes, at)?;
    let wide = short == u32::MAX;
    let (length, id_at) = if wide { (u64_at(bytes, at + 4)?, at + 12) } else { (u64::from(short), at + 4) };
    let end = id_at.checked_add(usize::try_from(length).ok()?).filter(|end| *end <= bytes.len())?;
    if length == 0 {
        return Some(EntryHeader { is_fde: false, end });
    }
    let id = if wide && S::WIDE_ID { u64_at(bytes, id_at)? } else { u64::from(u32_at(bytes, id_at)?) };
    Some(EntryHeader { is_fde: !S::marks_cie(id, wide), end })
}

/// How many of the first `bytes` belong to a section that ends with an entry of length 0 (the
/// [`ControlFlow::Break`] case), or where the first entry starts that goes on beyond `bytes`.
pub(crate) fn terminated_eh_frame(bytes: &[u8], mut at: usize) -> ControlFlow<usize, usize> {
    while let (Some(length), Some(header)) = (u32_at(bytes, at), entry_header::<gimli::EhFrame<Reader<'_>>>(bytes, at))
    {
        if length == 0 {
            return ControlFlow::Break(at);
        }
        at = header.end;
    }
    ControlFlow::Continue(at)
}
