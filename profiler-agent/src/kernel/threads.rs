//! The threads of processes, whether they run or not: the file of the iterator over all threads.

use std::io::Read as _;

use aya::Btf;
use aya::programs::Iter;

use super::error::chain;
use super::load::{load_error, program};
use super::programs::ProgramFigures;
use super::{KernelError, Sampling};
use crate::clock::thread_cpu_time;

/// The name of the program.
const PROGRAM: &str = "threads";

/// All records of one look, at most: about 200,000 threads.
const MOST_BYTES: u64 = 256 << 20;

/// Loads the iterator. `bpf_iter_task` is there since 5.8.
pub(super) fn load(ebpf: &mut aya::Ebpf) -> Result<ProgramFigures, KernelError> {
    let btf = Btf::from_sys_fs().map_err(load_error(PROGRAM))?;
    let iterator: &mut Iter = program(ebpf, PROGRAM)?;
    let started = thread_cpu_time();
    iterator.load("task", &btf).map_err(load_error(PROGRAM))?;
    Ok(ProgramFigures::new(
        PROGRAM,
        thread_cpu_time().saturating_sub(started),
        &iterator.info().map_err(load_error(PROGRAM))?,
    ))
}

impl Sampling {
    /// The records (`profiler_common::thread`) of all threads of the followed processes, as they are now,
    /// one behind the other.
    ///
    /// # Errors
    /// When the kernel refuses, or the programs were loaded without the iterator.
    pub fn threads(&mut self) -> Result<Vec<u64>, KernelError> {
        let iterator: &mut Iter = program(self.ebpf_mut(), PROGRAM)?;
        let link = iterator.attach().map_err(load_error(PROGRAM))?;
        let link = iterator.take_link(link).map_err(load_error(PROGRAM))?;
        let file = link.into_file().map_err(load_error(PROGRAM))?;
        let mut bytes = Vec::new();
        let read = file.take(MOST_BYTES).read_to_end(&mut bytes);
        read.map_err(|error| KernelError::Load { what: "iterator over threads".to_owned(), message: chain(&error) })?;
        let (words, _incomplete) = bytes.as_chunks::<8>();
        Ok(words.iter().map(|word| u64::from_ne_bytes(*word)).collect())
    }
}
