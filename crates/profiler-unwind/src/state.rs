//! What a call frame program says about one row: the CFA, the frame pointer, the return address.
//!
//! DWARF 5, section 6.4. Of all registers only three matter for unwinding, so a row is three rules
//! instead of one per register, and, unlike in a table of registers, "not mentioned" and "undefined"
//! stay apart: the first means unchanged (or in the link register), the second the outermost frame.

use gimli::{CallFrameInstruction, Register, UnwindExpression};

/// Rows that a program may have remembered at once (`DW_CFA_remember_state`). Compilers nest a few.
const MAX_REMEMBERED: usize = 256;

/// How to compute the CFA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cfa {
    /// Not stated yet.
    Unset,
    /// A register plus an offset in bytes.
    Register(Register, i64),
    /// The value of an expression.
    Expression {
        expression: UnwindExpression<usize>,
        /// Register and offset before it. DWARF has no instruction that goes back to them, but
        /// hand-written assembly (libgcrypt) and libgcc's unwinder do.
        before: Option<(Register, i64)>,
    },
}

/// Where the caller's value of a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Saved {
    /// Not mentioned.
    Unset,
    /// Can't be recovered.
    Undefined,
    /// Unchanged.
    SameValue,
    /// In memory, at the CFA plus this offset in bytes.
    Offset(i64),
    /// In memory, at the address that the expression gives.
    Expression(UnwindExpression<usize>),
    /// In another register.
    Register(Register),
    /// Computed.
    Computed,
}

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) cfa: Cfa,
    pub(crate) frame_pointer: Saved,
    pub(crate) return_address: Saved,
    /// x86_64: rbx; aarch64: x0.
    pub(crate) third_register: Saved,
}

impl State {
    pub(crate) const EMPTY: Self = Self {
        cfa: Cfa::Unset,
        frame_pointer: Saved::Unset,
        return_address: Saved::Unset,
        third_register: Saved::Unset,
    };
}

/// What all instructions of a program share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameters {
    pub(crate) code_alignment: u64,
    pub(crate) data_alignment: i64,
    pub(crate) frame_pointer: Register,
    pub(crate) return_address: Register,
    /// x86_64: rbx, from which a CFA may count; aarch64: x0, which few functions keep.
    pub(crate) third_register: Register,
}

/// The program does something that DWARF does not allow, or more than we follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Invalid;

/// What an instruction does to the location counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It stays; the row changed.
    Row,
    /// The row is complete up to this address.
    Advance(u64),
}

/// A program that runs.
#[derive(Debug)]
pub(crate) struct Interpreter {
    parameters: Parameters,
    initial: State,
    state: State,
    remembered: Vec<State>,
    location: u64,
}

impl Interpreter {
    /// A program that starts at `location` with the row that the CIE gives.
    pub(crate) fn new(parameters: Parameters, initial: State, location: u64) -> Self {
        Self { parameters, initial, state: initial, remembered: Vec::new(), location }
    }

    /// The row as it stands.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Executes one instruction. With [`Effect::Advance`] the row is still the one before it.
    pub(crate) fn execute(&mut self, instruction: CallFrameInstruction<usize>) -> Result<Effect, Invalid> {
        use CallFrameInstruction as I;
        let data = |factored: i64| factored.wrapping_mul(self.parameters.data_alignment);
        match instruction {
            I::SetLoc { address } => return self.advance_to(Some(address)),
            I::AdvanceLoc { delta } => {
                let distance = u64::from(delta).checked_mul(self.parameters.code_alignment).ok_or(Invalid)?;
                return self.advance_to(self.location.checked_add(distance));
            }
            I::DefCfa { register, offset } => self.state.cfa = Cfa::Register(register, offset.cast_signed()),
            I::DefCfaSf { register, factored_offset } => {
                self.state.cfa = Cfa::Register(register, data(factored_offset));
            }
            I::DefCfaRegister { register } => self.state.cfa = Cfa::Register(register, self.cfa_register()?.1),
            I::DefCfaOffset { offset } => {
                self.state.cfa = Cfa::Register(self.cfa_register()?.0, offset.cast_signed());
            }
            I::DefCfaOffsetSf { factored_offset } => {
                self.state.cfa = Cfa::Register(self.cfa_register()?.0, data(factored_offset));
            }
            I::DefCfaExpression { expression } => {
                self.state.cfa = Cfa::Expression { expression, before: self.cfa_register().ok() };
            }
            I::Undefined { register } => self.save(register, Saved::Undefined),
            I::SameValue { register } => self.save(register, Saved::SameValue),
            I::Offset { register, factored_offset } => {
                self.save(register, Saved::Offset(data(factored_offset.cast_signed())));
            }
            I::OffsetExtendedSf { register, factored_offset } => {
                self.save(register, Saved::Offset(data(factored_offset)));
            }
            I::Expression { register, expression } => self.save(register, Saved::Expression(expression)),
            I::ValOffset { register, .. } | I::ValOffsetSf { register, .. } | I::ValExpression { register, .. } => {
                self.save(register, Saved::Computed)
            }
            I::Register { dest_register, src_register } => self.save(dest_register, Saved::Register(src_register)),
            I::Restore { register } => self.restore(register),
            I::RememberState if self.remembered.len() == MAX_REMEMBERED => return Err(Invalid),
            I::RememberState => self.remembered.push(self.state),
            I::RestoreState => self.state = self.remembered.pop().ok_or(Invalid)?,
            // Argument sizes matter to exceptions only; a signed return address is masked anyway.
            I::ArgsSize { .. } | I::NegateRaState | I::Nop => {}
        }
        Ok(Effect::Row)
    }

    fn advance_to(&mut self, address: Option<u64>) -> Result<Effect, Invalid> {
        self.location = address.filter(|address| *address >= self.location).ok_or(Invalid)?;
        Ok(Effect::Advance(self.location))
    }

    fn cfa_register(&self) -> Result<(Register, i64), Invalid> {
        match self.state.cfa {
            Cfa::Register(register, offset) => Ok((register, offset)),
            Cfa::Expression { before, .. } => before.ok_or(Invalid),
            Cfa::Unset => Err(Invalid),
        }
    }

    fn save(&mut self, register: Register, saved: Saved) {
        if register == self.parameters.frame_pointer {
            self.state.frame_pointer = saved;
        } else if register == self.parameters.return_address {
            self.state.return_address = saved;
        } else if register == self.parameters.third_register {
            self.state.third_register = saved;
        }
    }

    fn restore(&mut self, register: Register) {
        if register == self.parameters.frame_pointer {
            self.state.frame_pointer = self.initial.frame_pointer;
        } else if register == self.parameters.return_address {
            self.state.return_address = self.initial.return_address;
        } else if register == self.parameters.third_register {
            self.state.third_register = self.initial.third_register;
        }
    }
}
