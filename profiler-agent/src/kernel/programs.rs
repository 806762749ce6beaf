//! What the verifier and the JIT made of each program.

use std::time::Duration;

use aya::programs::ProgramInfo;
use serde::Serialize;

use super::{Kernel, KernelError, LoadOptions};

/// The figures of one loaded program.
#[derive(Clone, Debug, Serialize)]
pub struct ProgramFigures {
    /// Its name.
    pub program: &'static str,
    /// Instructions that the verifier went through; `None` before 5.16, which does not say.
    pub verified_instructions: Option<u32>,
    /// Bytes of machine code; 0: not compiled.
    pub jited_bytes: u32,
    /// CPU time to load it, in us.
    pub load_us: u64,
}

impl ProgramFigures {
    pub(super) fn new(program: &'static str, load: Duration, info: &ProgramInfo) -> Self {
        Self {
            program,
            verified_instructions: info.verified_instruction_count(),
            jited_bytes: info.size_jitted(),
            load_us: u64::try_from(load.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

/// Loads every program once and says what the kernel made of it.
///
/// # Errors
/// When one can't be loaded.
pub fn verifier_report() -> Result<Vec<ProgramFigures>, KernelError> {
    let options = LoadOptions {
        sample_all: true,
        follow_children: true,
        frequency_hz: 99,
        row_chunks: 1,
        ring_bytes: 1 << 16,
        sideband_bytes: 64 << 10,
        unwind: true,
        whole_stack: false,
        threads: true,
    };
    Ok(Kernel::load(&options)?.figures)
}
