//! The unwind table of a file, and how it is built.

use crate::bare;
use crate::cfi::{CallFrames, CfiSection, Encoded, RowError, Unsupported, debug_frame, eh_frame};
use crate::contexts;
use crate::doubt;
use crate::elf::Elf;
use crate::entry;
use crate::error::BuildError;
use crate::flow::{Analysis, Known};
use crate::go::{self, GoRows};
use crate::holes::{self, CODE_ALIGNMENT};
use crate::plt::{self, Plt};
use crate::read::{ReadAt, read_bytes};
use crate::section::{self, Loaded};
use crate::segment::{Arch, Segment};
use crate::spans::{self, Span};
use crate::tiles::Tiles;
use crate::{eh_return, eh_return_aarch64};
use profiler_common::address::Svma;
use profiler_common::row::{Row, Rule};
use std::ops::Range;

/// How to unwind the addresses `[start, end)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The first address.
    pub start: Svma,
    /// The address after the last one; at most [`Row::MAX_PC_OFFSET`] above `start`.
    pub end: Svma,
    /// 1 to [`profiler_common::limits::MAX_SEARCHED`] rows in ascending order, the first at offset
    /// 0, each at another offset below `end - start`. Neighbours have different rules.
    pub rows: Vec<Row>,
}

/// What of a file's call frame information did not become rows that unwind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// Sections that are there but can't be used: compressed, or their headers can't be read.
    pub sections_unusable: u64,
    /// Entries of which not even the addresses can be read. Their code counts as not covered.
    pub fdes_unreadable: u64,
    /// FDEs whose program can't be read to its end. The rest of their code is cut.
    pub fdes_cut: u64,
    /// Rows of CFI read, before equal neighbours are merged.
    pub cfi_rows: u64,
    /// Rows whose CFA counts from another register than the stack and the frame pointer.
    pub cfa_register: u64,
    /// Rows whose CFA offset is no multiple of 8 or does not fit the rule.
    pub cfa_offset: u64,
    /// Rows whose CFA is an expression of no known shape, or not stated.
    pub cfa_expression: u64,
    /// Rows whose return address is not where it is expected.
    pub return_address: u64,
    /// aarch64: rows whose frame pointer is not where it is expected.
    pub frame_pointer: u64,
    /// Signal frames that do not look like the kernel's.
    pub signal_frame: u64,
    /// Bytes of code of which no table tells, and of what fills the space between.
    pub bare_bytes: u64,
}

impl Problems {
    /// Rows of CFI that a rule can't express.
    #[must_use]
    pub const fn unsupported_rows(&self) -> u64 {
        self.cfa_register
            + self.cfa_offset
            + self.cfa_expression
            + self.return_address
            + self.frame_pointer
            + self.signal_frame
    }

    /// Sections and entries of call frame information that can't be read: the file is damaged.
    #[must_use]
    pub const fn unreadable(&self) -> u64 {
        self.sections_unusable + self.fdes_unreadable + self.fdes_cut
    }

    fn count(&mut self, cause: Unsupported) {
        *match cause {
            Unsupported::CfaRegister => &mut self.cfa_register,
            Unsupported::CfaOffset => &mut self.cfa_offset,
            Unsupported::CfaExpression => &mut self.cfa_expression,
            Unsupported::ReturnAddress => &mut self.return_address,
            Unsupported::FramePointer => &mut self.frame_pointer,
            Unsupported::SignalFrame => &mut self.signal_frame,
        } += 1;
    }
}

/// How to unwind the code of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwindTable {
    /// Its architecture: which meaning the rules have.
    pub arch: Arch,
    /// Its GNU build id: 1 to 64 bytes, as a rule 20.
    pub build_id: Option<Vec<u8>>,
    /// Its loadable segments, in ascending order of addresses.
    pub segments: Vec<Segment>,
    /// Together they cover the memory of the executable segments, each address once, in ascending
    /// order.
    pub parts: Vec<Part>,
    /// What could not be expressed.
    pub problems: Problems,
}

impl UnwindTable {
    /// The number of rows in all parts.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.parts.iter().map(|part| part.rows.len()).sum()
    }
}

/// Builds the unwind table of an ELF file for x86_64 or aarch64.
///
/// Of the file it reads the headers, the notes, the call frame information (256 MiB at most), and a
/// little code that has none.
///
/// # Errors
/// When the file is no such ELF file, a piece can't be read, or a bound is exceeded.
pub fn build(file: &impl ReadAt) -> Result<UnwindTable, BuildError> {
    build_with(file, &mut |_build_id| None)
}

/// As [`build`], with what `elsewhere` has.
///
/// # Errors
/// As [`build`].
pub fn build_with(file: &impl ReadAt, elsewhere: Elsewhere<'_>) -> Result<UnwindTable, BuildError> {
    let mut parts = Vec::new();
    let table = build_into(file, elsewhere, &mut |part| parts.push(part))?;
    Ok(UnwindTable { parts, ..table })
}

/// What gives the contents of a `.debug_frame` that can't be read in the file itself: it is compressed, or in a
/// debug file. It gets the file's build id, and is asked when the file tells of less than half of its code.
pub type Elsewhere<'a> = &'a mut dyn FnMut(Option<&[u8]>) -> Option<Vec<u8>>;

/// As [`build_with`], but `sink` gets the parts, each as soon as it is complete; the table that is returned has
/// none. So no more than one part is in memory here.
///
/// # Errors
/// As [`build`]; then the parts that `sink` got are no table.
pub fn build_into(
    file: &impl ReadAt,
    elsewhere: Elsewhere<'_>,
    sink: &mut dyn FnMut(Part),
) -> Result<UnwindTable, BuildError> {
    let elf = Elf::read(file)?;
    let eh_frame_bytes = section::read_eh_frame(file, &elf)?;
    let plts = Plt::read_all(file, &elf);
    let module = go::find(file, &elf)?;
    let mut builder = Builder {
        file,
        elf: &elf,
        plts: &plts,
        entry: beginning(file, &elf),
        tiles: Tiles::new(sink),
        problems: Problems::default(),
        bare_left_bytes: bare::BUDGET_BYTES,
        analysis: Analysis::default(),
    };
    builder.problems.sections_unusable =
        u64::from(elf.sections_unreadable) + u64::from(elf.eh_frame.is_some_and(|section| section.compressed));
    let bases = |loaded: &Loaded| gimli::BaseAddresses::default().set_eh_frame(loaded.svma.0).set_text(elf.text.0);
    let mut eh_frame = CallFrames::new(
        eh_frame(&eh_frame_bytes.bytes, elf.arch),
        &eh_frame_bytes.bytes,
        bases(&eh_frame_bytes),
        elf.arch,
    );
    let go = module.as_ref().map(|module| GoRows::new(file, &elf, module));
    let upper = builder.spans(&mut eh_frame)?;
    let middle = go.as_ref().map(GoRows::spans).unwrap_or_default();
    let spans = spans::overlay(upper, middle);

    let mut debug_frame_bytes = section::read_debug_frame(file, &elf)?;
    if debug_frame_bytes.bytes.is_empty() && tells_little(&elf, &spans) {
        let found = elsewhere(elf.build_id.as_deref()).filter(|bytes| bytes.len() as u64 <= section::MAX_SECTION_BYTES);
        debug_frame_bytes.bytes = found.unwrap_or_default();
    }
    let unusable = debug_frame_bytes.bytes.is_empty() && elf.debug_frame.is_some_and(|section| section.compressed);
    builder.problems.sections_unusable += u64::from(module.is_none() && unusable);
    let mut debug_frame = CallFrames::new(
        debug_frame(&debug_frame_bytes.bytes, elf.arch),
        &debug_frame_bytes.bytes,
        bases(&debug_frame_bytes),
        elf.arch,
    );
    let lower = builder.spans(&mut debug_frame)?;
    let mut sources = Sources { eh_frame, debug_frame, go };
    let spans = spans::overlay(spans, lower);
    builder.analysis = holes::analyze(file, &elf, builder.plts, &spans)?;
    builder.cover_segments(&mut sources, &spans)?;
    let problems = builder.problems;
    builder.tiles.finish();
    Ok(UnwindTable { arch: elf.arch, build_id: elf.build_id, segments: elf.segments, parts: Vec::new(), problems })
}

/// The rule for the code at `svma`; `None` outside the executable segments.
#[must_use]
pub fn lookup(table: &UnwindTable, svma: Svma) -> Option<Rule> {
    let after = table.parts.partition_point(|part| part.start <= svma);
    let part = table.parts.get(after.checked_sub(1)?).filter(|part| svma < part.end)?;
    let key = Row::search_key(svma.0 - part.start.0);
    let after = part.rows.partition_point(|row| row.0 <= key);
    part.rows.get(after.checked_sub(1)?).map(|row| row.rule())
}

/// Whether these are less than half of the code: compilers make tables for all of it or for none, and the rest is
/// assembly.
fn tells_little(elf: &Elf, spans: &[Span]) -> bool {
    let code_bytes: u64 = elf.executable().map(|segment| segment.file_size_bytes).fold(0, u64::saturating_add);
    let covered_bytes: u64 = spans.iter().map(|span| u64::from(span.length)).sum();
    covered_bytes < code_bytes / 2
}

/// Where a program begins, if one does in this file and can be read.
fn beginning(file: &impl ReadAt, elf: &Elf) -> Range<u64> {
    let start = elf.entry.0;
    let Some((offset, left)) = elf.in_file(elf.entry).filter(|_| start != 0) else { return 0..0 };
    let code = read_bytes(file, "the entry point", offset, left.min(entry::MOST_BYTES), entry::MOST_BYTES);
    let length = entry::length(elf.arch, elf.is_program, &code.unwrap_or_default());
    start..start.saturating_add(length as u64)
}

/// The sections that [`Span::entry`] can name.
struct Sources<'a, F> {
    eh_frame: CallFrames<'a, gimli::EhFrame<crate::expression::Reader<'a>>>,
    debug_frame: CallFrames<'a, gimli::DebugFrame<crate::expression::Reader<'a>>>,
    go: Option<GoRows<'a, F>>,
}

struct Builder<'a, F> {
    file: &'a F,
    elf: &'a Elf,
    plts: &'a [Plt],
    /// Where a program begins.
    entry: Range<u64>,
    tiles: Tiles<'a>,
    problems: Problems,
    /// Bytes of code without CFI that may still be read.
    bare_left_bytes: u64,
    /// What is known of code without CFI.
    analysis: Analysis,
}

impl<F: ReadAt> Builder<'_, F> {
    /// The FDEs of a section for code of this file. Linkers leave some at address 0 for functions
    /// that they dropped.
    fn spans<'a>(&mut self, frames: &mut CallFrames<'a, impl CfiSection<'a>>) -> Result<Vec<Span>, BuildError> {
        let executable: Vec<Segment> = self.elf.executable().copied().collect();
        let (spans, unreadable) = frames.spans(|start, length| {
            let after = executable.partition_point(|segment| segment.svma.0 <= start);
            let segment = after.checked_sub(1).and_then(|index| executable.get(index));
            segment.is_some_and(|segment| start.checked_add(length).is_some_and(|end| end <= segment.end().0))
        })?;
        self.problems.fdes_unreadable += unreadable;
        Ok(spans::disjoint(spans))
    }

    fn cover_segments(&mut self, sources: &mut Sources<'_, F>, spans: &[Span]) -> Result<(), BuildError> {
        let elf = self.elf;
        let mut spans = spans.iter().peekable();
        for segment in elf.executable() {
            self.tiles.start_at(segment.svma.0);
            while let Some(span) = spans.next_if(|span| span.start < segment.end().0) {
                self.cover_hole(span.start)?;
                if contexts::is_start(self.file, elf, span) {
                    // What returns there looks up the byte before, be it padding or another function's.
                    self.tiles.take_back(span.start.saturating_sub(1));
                    self.tiles.cover(span.end(), Rule::END)?;
                }
                if self.entry.contains(&span.start) && entry::lands(self.file, elf) {
                    // CFI says so behind that instruction only.
                    self.tiles.cover((span.start + entry::LANDING_BYTES).min(span.end()), Rule::END)?;
                }
                self.cover_span(sources, span)?;
            }
            // Nothing follows that would need padding, but a short `_fini` may be there.
            self.cover_gap(segment.end().0)?;
        }
        Ok(())
    }

    /// Covers the addresses of `span`, which start where the covered ones end, by its FDE.
    fn cover_span(&mut self, sources: &mut Sources<'_, F>, span: &Span) -> Result<(), BuildError> {
        if span.entry & (Span::GO | Span::DEBUG_FRAME) == Span::GO
            && let Some(go) = &mut sources.go
        {
            return self.cover_go(go, span);
        }
        let (file, elf, tiles, problems) = (self.file, self.elf, &mut self.tiles, &mut self.problems);
        let rows_before = problems.cfi_rows;
        let mut overwritten: Option<Vec<[u64; 2]>> = None;
        let row = |end: u64, encoded: Result<Encoded, Unsupported>| {
            let until = end.min(span.end());
            if until <= tiles.covered_to() {
                return Ok(());
            }
            problems.cfi_rows += 1;
            if matches!(encoded, Ok(Encoded::KeepsX0(_))) && overwritten.is_none() {
                let places = eh_return_aarch64::overwritten(file, elf, span);
                if !places.is_empty() {
                    problems.count(Unsupported::ReturnAddress);
                }
                overwritten = Some(places);
            }
            match encoded {
                Ok(Encoded::Rule(rule) | Encoded::KeepsX0(rule)) => {
                    for &[from, to] in overwritten.iter().flatten() {
                        tiles.cover(from.min(until), rule)?;
                        tiles.cover(to.min(until), Rule::UNSUPPORTED)?;
                    }
                    tiles.cover(until, rule)
                }
                Ok(Encoded::Plt { pushed_from, before, after }) => {
                    plt::cover_entries(tiles, until, pushed_from, [before, after])
                }
                Ok(Encoded::EhReturn) => {
                    tiles.take_back(eh_return::overwritten_from(file, elf, span.start, tiles.covered_to()));
                    problems.count(Unsupported::ReturnAddress);
                    tiles.cover(until, Rule::UNSUPPORTED)
                }
                Err(cause) => {
                    problems.count(cause);
                    tiles.cover(until, Rule::UNSUPPORTED)
                }
            }
        };
        let result = if span.entry & Span::DEBUG_FRAME == 0 {
            sources.eh_frame.rows(span, row)
        } else {
            sources.debug_frame.rows(span, row)
        };
        match result {
            // A long function without a frame of its own.
            Ok(()) if problems.cfi_rows == rows_before + 1 && tiles.last_rule() == Some(contexts::called(elf.arch)) => {
                if let Some([from, to]) = contexts::on_other_stack(file, elf, span) {
                    tiles.take_back(from);
                    tiles.cover(to, Rule::UNSUPPORTED)?;
                    tiles.cover(span.end(), contexts::called(elf.arch))?;
                } else if let Some(known) = doubt::rules(file, elf, span) {
                    tiles.take_back(span.start);
                    for Known { end, rule, .. } in known {
                        tiles.cover(end, rule)?;
                    }
                }
            }
            Ok(()) if elf.arch == Arch::X86_64 && tiles.last_rule().is_some_and(contexts::is_of_new_thread) => {
                if let Some([from, to]) = contexts::thread_start(file, elf, span) {
                    tiles.take_back(from);
                    tiles.cover(to, Rule::END)?;
                    tiles.cover(span.end(), contexts::called(elf.arch))?;
                }
            }
            Ok(()) => {}
            Err(RowError::Unreadable) => self.problems.fdes_cut += 1,
            Err(RowError::Build(error)) => return Err(error),
        }
        self.tiles.cover(span.end(), Rule::UNSUPPORTED)
    }

    /// Covers the addresses of `span`, which start where the covered ones end, by Go's table.
    fn cover_go(&mut self, go: &mut GoRows<'_, F>, span: &Span) -> Result<(), BuildError> {
        match go.rules(span) {
            Some(rules) => {
                for (until, rule) in rules {
                    self.tiles.cover(until.min(span.end()), rule)?;
                }
            }
            None => self.problems.fdes_cut += 1,
        }
        self.tiles.cover(span.end(), Rule::UNSUPPORTED)
    }

    /// Covers up to `until` where no FDE does.
    fn cover_hole(&mut self, until: u64) -> Result<(), BuildError> {
        let start = self.tiles.covered_to();
        if let Some(rule) = self.tiles.last_rule()
            && until <= start.next_multiple_of(CODE_ALIGNMENT)
        {
            return self.tiles.cover(until, rule);
        }
        self.cover_gap(until)
    }

    /// Covers up to `until` where no FDE does and what is there is no padding.
    fn cover_gap(&mut self, until: u64) -> Result<(), BuildError> {
        let start = self.tiles.covered_to();
        let (plts, arch) = (self.plts, self.elf.arch);
        let first = plts.partition_point(|plt| plt.end <= start);
        for plt in plts.iter().skip(first).take_while(|plt| plt.start < until) {
            self.cover_unknown(plt.start)?;
            plt.cover(&mut self.tiles, until, arch)?;
        }
        self.cover_unknown(until)
    }

    /// Covers up to `until`, code without CFI. Where a program begins is the end of its stacks.
    fn cover_unknown(&mut self, until: u64) -> Result<(), BuildError> {
        let Range { start, end } = self.entry;
        if start < end && (self.tiles.covered_to()..until).contains(&start) {
            self.cover_nameless(start)?;
            self.tiles.cover(end.min(until), Rule::END)?;
        }
        self.cover_nameless(until)
    }

    fn cover_nameless(&mut self, until: u64) -> Result<(), BuildError> {
        let start = self.tiles.covered_to();
        if start >= until {
            return Ok(());
        }
        self.problems.bare_bytes += until - start;
        if let Some((offset, left)) = self.elf.in_file(Svma(start)) {
            let length = left.min(until - start).min(self.bare_left_bytes);
            self.bare_left_bytes = self.bare_left_bytes.saturating_sub(length.max(bare::MIN_COST_BYTES));
            let what = "code without call frame information";
            let code = read_bytes(self.file, what, offset, length, bare::BUDGET_BYTES)?;
            bare::rules(self.elf.arch, start, &code, &self.analysis, |until, rule| self.tiles.cover(until, rule))?;
        }
        let by_frame_pointer = match self.elf.arch {
            Arch::X86_64 => Rule::X86_64_FRAME_POINTER,
            Arch::Aarch64 => Rule::AARCH64_FRAME_POINTER,
        };
        self.tiles.cover(until, by_frame_pointer)
    }
}
