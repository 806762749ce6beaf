//! A second opinion on stacks: the call frame information of the mapped files, evaluated by gimli on
//! the registers and the stack that a sample began with.
//!
//! Nothing of the profiler's own unwinding is used here, and no register is left out but those that the
//! record does not have: r12 to r15.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileExt as _;

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, EvaluationResult, LittleEndian, Location, Register,
    RegisterRule, UnwindContext, UnwindExpression, UnwindSection as _, Value,
};
use object::{Object as _, ObjectSection as _, ObjectSegment as _};
use profiler_common::record::{FRAME_ADDRESS, FRAME_EXACT, Sample};
use profiler_common::row::{OTHER_REGISTERS, RBX};

/// rbp, rsp and the return address (System V ABI, x86-64 supplement, figure 3.36).
const RBP: Register = Register(6);
const RSP: Register = Register(7);
const RETURN_ADDRESS: Register = Register(16);

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// The files that a process has mapped.
#[derive(Debug)]
pub struct Modules(Vec<Module>);

#[derive(Debug)]
struct Module {
    start: u64,
    end: u64,
    /// What is added to the file's addresses.
    bias: u64,
    path: String,
    bytes: std::rc::Rc<Vec<u8>>,
}

impl Modules {
    /// Reads what `pid` has mapped now.
    ///
    /// # Panics
    /// When it can't be read.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("reading the maps of a program");
        let mut files = HashMap::new();
        Self(maps.lines().filter_map(|line| module(pid, line, &mut files)).collect())
    }

    fn at(&self, address: u64) -> Option<&Module> {
        self.0.iter().find(|module| (module.start..module.end).contains(&address))
    }

    /// The file at an address, for messages.
    #[must_use]
    pub fn name(&self, address: u64) -> String {
        match self.at(address) {
            Some(module) => format!("{}+{:#x}", module.path, address.wrapping_sub(module.bias)),
            None => format!("{address:#x}"),
        }
    }
}

/// An executable mapping of an ELF file, or the vDSO.
fn module(pid: u32, line: &str, files: &mut HashMap<String, std::rc::Rc<Vec<u8>>>) -> Option<Module> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [range, permissions, offset, _device, _inode, path] = *fields.as_slice() else { return None };
    let hex = |digits| u64::from_str_radix(digits, 16).ok();
    let (start, end) = range.split_once('-').and_then(|(start, end)| Some((hex(start)?, hex(end)?)))?;
    if permissions.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let offset = hex(offset)?;
    if path == "[vdso]" {
        let mut bytes = vec![0; usize::try_from(end - start).ok()?];
        fs::File::open(format!("/proc/{pid}/mem")).ok()?.read_exact_at(&mut bytes, start).ok()?;
        return Some(Module { start, end, bias: start, path: path.to_owned(), bytes: bytes.into() });
    }
    if !files.contains_key(path) {
        files.insert(path.to_owned(), fs::read(path).ok()?.into());
    }
    let bytes = std::rc::Rc::clone(files.get(path)?);
    let elf = object::File::parse(bytes.as_slice()).ok()?;
    let segment = elf.segments().find(|segment| {
        let (at, size) = segment.file_range();
        at < offset + (end - start) && offset < at + size && segment.flags().is_executable()
    })?;
    let (at, _size) = segment.file_range();
    let bias = start.wrapping_sub(offset).wrapping_sub(segment.address().wrapping_sub(at));
    Some(Module { start, end, bias, path: path.to_owned(), bytes })
}

trait Executable {
    fn is_executable(&self) -> bool;
}

impl Executable for object::SegmentFlags {
    fn is_executable(&self) -> bool {
        matches!(self, object::SegmentFlags::Elf { p_flags } if p_flags & object::elf::PF_X != 0)
    }
}

/// Why the reference ends where it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The outermost frame.
    Outermost,
    /// It can't know more: no call frame information there, the end of the stack copy, a register
    /// that is not in the record.
    Unknown(&'static str),
}

/// The frames of a sample, leaf first, as in the record: an address, and whether the code was there.
#[must_use]
pub fn unwind(sample: &Sample<'_>, modules: &Modules) -> (Vec<(u64, bool)>, End) {
    let [pc, sp, fp, rbx] = sample.header.registers;
    let mut registers: HashMap<u16, u64> =
        OTHER_REGISTERS.iter().zip(sample.other_registers).map(|(number, value)| (*number, *value)).collect();
    registers.extend([(RBP.0, fp), (RSP.0, sp), (RBX, rbx)]);
    let mut frame = Frame { pc, exact: true, registers };
    let memory = Memory { sample };
    let mut frames = vec![(pc, true)];
    loop {
        match frame.caller(&memory, modules) {
            Ok(caller) => frame = caller,
            Err(end) => return (frames, end),
        }
        frames.push((frame.pc, frame.exact));
    }
}

/// The frames that the kernel program found, in the same form.
#[must_use]
pub fn frames(sample: &Sample<'_>) -> Vec<(u64, bool)> {
    sample.user_frames.iter().map(|frame| (frame & FRAME_ADDRESS, frame & FRAME_EXACT != 0)).collect()
}

struct Memory<'a> {
    sample: &'a Sample<'a>,
}

impl Memory<'_> {
    fn word(&self, address: u64) -> Result<u64, End> {
        let words = self.sample.stack_words(address, 1);
        words.and_then(|words| words.first().copied()).ok_or(End::Unknown("the end of the stack copy"))
    }
}

struct Frame {
    pc: u64,
    exact: bool,
    /// By DWARF number; those that are known.
    registers: HashMap<u16, u64>,
}

impl Frame {
    fn caller(&self, memory: &Memory<'_>, modules: &Modules) -> Result<Self, End> {
        let lookup = self.pc - u64::from(!self.exact);
        let module = modules.at(lookup).ok_or(End::Unknown("no file there"))?;
        let elf = object::File::parse(module.bytes.as_slice()).ok().ok_or(End::Unknown("no ELF file"))?;
        let frames = elf.section_by_name(".eh_frame").ok_or(End::Unknown("no .eh_frame"))?;
        let section = EhFrame::new(frames.data().ok().ok_or(End::Unknown("no .eh_frame"))?, LittleEndian);
        let bases = BaseAddresses::default()
            .set_eh_frame(frames.address())
            .set_text(elf.section_by_name(".text").map_or(0, |text| text.address()));
        let svma = lookup.wrapping_sub(module.bias);
        let index = elf.section_by_name(".eh_frame_hdr").ok_or(End::Unknown("no .eh_frame_hdr"))?;
        let bases = bases.set_eh_frame_hdr(index.address());
        let index = EhFrameHdr::new(index.data().ok().ok_or(End::Unknown("no .eh_frame_hdr"))?, LittleEndian);
        let index = index.parse(&bases, 8).ok().ok_or(End::Unknown("no .eh_frame_hdr"))?;
        let fde = index
            .table()
            .and_then(|table| table.fde_for_address(&section, &bases, svma, EhFrame::cie_from_offset).ok())
            .ok_or(End::Unknown("no call frame information"))?;
        let mut context = UnwindContext::new();
        let row = fde
            .unwind_info_for_address(&section, &bases, &mut context, svma)
            .ok()
            .ok_or(End::Unknown("call frame information that gimli refuses"))?;
        let evaluate = |expression: &UnwindExpression<usize>, cfa: Option<u64>| {
            self.evaluate(expression, cfa, &section, fde.cie().encoding(), memory)
        };
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => self.register(*register)?.wrapping_add_signed(*offset),
            CfaRule::Expression(expression) => evaluate(expression, None)?,
        };
        let saved = |register: Register| match row.register(register) {
            RegisterRule::SameValue => self.register(register),
            RegisterRule::Offset(offset) => memory.word(cfa.wrapping_add_signed(offset)),
            RegisterRule::ValOffset(offset) => Ok(cfa.wrapping_add_signed(offset)),
            RegisterRule::Register(other) => self.register(other),
            RegisterRule::Expression(expression) => memory.word(evaluate(&expression, Some(cfa))?),
            RegisterRule::ValExpression(expression) => evaluate(&expression, Some(cfa)),
            _ => Err(End::Unknown("a register that is not saved")),
        };
        let pc = match row.register(RETURN_ADDRESS) {
            RegisterRule::Undefined => return Err(End::Outermost),
            _ => saved(RETURN_ADDRESS)?,
        };
        if pc == 0 {
            return Err(End::Outermost);
        }
        let exact = fde.is_signal_trampoline();
        // Registers without a rule stay as they are: what a call may change is of no use any more, but
        // nothing well-formed uses it.
        let mut registers = self.registers.clone();
        for (register, _rule) in row.registers() {
            match saved(*register) {
                Ok(value) => registers.insert(register.0, value),
                Err(_) => registers.remove(&register.0),
            };
        }
        if !row.registers().any(|(register, _rule)| *register == RSP) {
            registers.insert(RSP.0, cfa);
        }
        Ok(Self { pc, exact, registers })
    }

    fn register(&self, register: Register) -> Result<u64, End> {
        if register == RETURN_ADDRESS {
            return Ok(self.pc);
        }
        self.registers.get(&register.0).copied().ok_or(End::Unknown("a register that the record does not have"))
    }

    fn evaluate(
        &self,
        expression: &UnwindExpression<usize>,
        cfa: Option<u64>,
        section: &EhFrame<Slice<'_>>,
        encoding: gimli::Encoding,
        memory: &Memory<'_>,
    ) -> Result<u64, End> {
        const REFUSED: End = End::Unknown("an expression that gimli refuses");
        let mut evaluation = expression.get(section).ok().ok_or(REFUSED)?.evaluation(encoding);
        if let Some(cfa) = cfa {
            evaluation.set_initial_value(cfa);
        }
        let mut state = evaluation.evaluate().ok().ok_or(REFUSED)?;
        loop {
            state = match state {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresRegister { register, .. } => {
                    evaluation.resume_with_register(Value::Generic(self.register(register)?)).ok().ok_or(REFUSED)?
                }
                EvaluationResult::RequiresMemory { address, .. } => {
                    evaluation.resume_with_memory(Value::Generic(memory.word(address)?)).ok().ok_or(REFUSED)?
                }
                _ => return Err(REFUSED),
            }
        }
        match evaluation.as_result().first().map(|piece| piece.location) {
            Some(Location::Address { address }) => Ok(address),
            _ => Err(REFUSED),
        }
    }
}
