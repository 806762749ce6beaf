//! Loading and attaching the kernel programs.

use std::os::fd::AsFd as _;

use aya::EbpfLoader;
use aya::maps::{MapData, PerCpuArray, ProgramArray, RingBuf};
use aya::programs::{PerfEvent as PerfProgram, ProgramFd, ProgramType, RawTracePoint};
use aya::sys::{BpfHelper, is_helper_supported};
use profiler_common::settings::Setting;

use super::btf::Btf;
use super::counters::Counters;
use super::error::chain;
use super::perf_event::PerfEvent;
use super::programs::ProgramFigures;
use super::records::Records;
use super::sideband::Sideband;
use super::tables::{Followed, Tables, map_error, take};
use super::{KernelError, cpu_numbers, online_cpus, threads};
use crate::clock::thread_cpu_time;

/// The kernel programs for this CPU architecture, as `cargo xtask ebpf` built them.
#[cfg(target_arch = "x86_64")]
pub(super) static OBJECT: Option<&[u8]> =
    Some(aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/ebpf/spanflame.x86_64.o")));
/// The kernel programs for this CPU architecture, as `cargo xtask ebpf` built them.
#[cfg(target_arch = "aarch64")]
pub(super) static OBJECT: Option<&[u8]> =
    Some(aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/ebpf/spanflame.aarch64.o")));
/// No kernel programs for this CPU architecture.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) static OBJECT: Option<&[u8]> = None;

/// `THREAD_SIZE - sizeof(struct pt_regs)` for kernels before 5.15, which have no `bpf_task_pt_regs`
/// and no padding above the registers: 16 KiB stacks (no KASAN), and 168 and 336 bytes of registers.
const STACK_TO_PT_REGS: u64 = 16384 - if cfg!(target_arch = "aarch64") { 336 } else { 168 };

/// aarch64: the bits of a user return address that pointer authentication may use (bits 48 to 54).
/// On kernels with 52-bit user addresses the mask is smaller (0x70_0000_0000_0000), but addresses
/// above 48 bits are only handed out to who asks for them, so masking them too changes no address of
/// code. On a CPU without pointer authentication these bits are 0.
pub(crate) const POINTER_AUTH_MASK: u64 = if cfg!(target_arch = "aarch64") { 0x007f_0000_0000_0000 } else { 0 };

/// How to load the programs.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Sample every process, not only the followed ones.
    pub sample_all: bool,
    /// Follow children of followed processes.
    pub follow_children: bool,
    /// Samples a second on each CPU.
    pub frequency_hz: u32,
    /// Chunks of 4 MiB for unwind rows.
    pub row_chunks: u32,
    /// Bytes of the ring buffer of samples; a power of two.
    pub ring_bytes: u32,
    /// Bytes of the sideband rings of all CPUs together, at most.
    pub sideband_bytes: usize,
    /// Unwind user stacks; without it a sample costs all but that.
    pub unwind: bool,
    /// Records carry what is needed to check their unwinding.
    pub whole_stack: bool,
    /// Load the iterator over threads, too, where the kernel has it.
    pub threads: bool,
}

/// The loaded kernel side.
pub struct Kernel {
    /// Samples as they come.
    pub records: Records,
    /// Mappings, exec, fork and exit as they come.
    pub sideband: Sideband,
    /// What the unwinder reads.
    pub tables: Tables,
    /// The processes to sample.
    pub followed: Followed,
    /// What the programs count.
    pub counters: Counters,
    /// The clocks and what they run.
    pub sampling: Sampling,
    /// What the verifier and the JIT made of each program.
    pub figures: Vec<ProgramFigures>,
    /// Why there is no iterator over threads ([`Sampling::threads`]) though it was asked for.
    pub without_threads: Option<KernelError>,
}

/// The clocks of all CPUs and the attached programs; dropping it detaches everything.
pub struct Sampling {
    clocks: Vec<PerfEvent>,
    // Held for what they keep attached: the array of programs, the tracepoints.
    _tail_calls: ProgramArray<MapData>,
    ebpf: aya::Ebpf,
}

impl Sampling {
    /// Starts the clocks of all CPUs.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn start(&self) -> Result<(), KernelError> {
        self.clocks.iter().try_for_each(PerfEvent::enable)
    }

    pub(super) fn ebpf_mut(&mut self) -> &mut aya::Ebpf {
        &mut self.ebpf
    }

    /// Stops the clocks of all CPUs.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn stop(&self) -> Result<(), KernelError> {
        self.clocks.iter().try_for_each(PerfEvent::disable)
    }
}

impl Kernel {
    /// Loads the programs and attaches all but the sampling: that waits for [`Sampling::start`].
    ///
    /// # Errors
    /// With what the kernel refused, and what to do.
    pub fn load(options: &LoadOptions) -> Result<Self, KernelError> {
        raise_memlock();
        let cpus = online_cpus()?;
        let mut ebpf = load_object(options)?;
        let mut figures = Vec::new();
        attach_tracepoints(&mut ebpf, &mut figures)?;
        let programs = load_sampling_programs(&mut ebpf, &mut figures)?;
        let mut clocks = Vec::with_capacity(cpus.len());
        for cpu in &cpus {
            let clock = PerfEvent::cpu_clock(*cpu, options.frequency_hz)?;
            clock.set_program(programs.sample.as_fd())?;
            clocks.push(clock);
        }
        let without_threads = match options.threads.then(|| threads::load(&mut ebpf)) {
            Some(Ok(figure)) => {
                figures.push(figure);
                None
            }
            Some(Err(error)) => Some(error),
            None => None,
        };
        let sideband = Sideband::open(&cpus, options.sideband_bytes)?;
        let records = RingBuf::try_from(take(&mut ebpf, "RECORDS")?).map_err(map_error("RECORDS"))?;
        let counters = PerCpuArray::try_from(take(&mut ebpf, "COUNTERS")?).map_err(map_error("COUNTERS"))?;
        Ok(Self {
            records: Records::new(records),
            sideband,
            tables: Tables::new(&mut ebpf, options.row_chunks)?,
            followed: Followed::new(&mut ebpf)?,
            counters: Counters::new(counters),
            sampling: Sampling { clocks, _tail_calls: programs.tail_calls, ebpf },
            figures,
            without_threads,
        })
    }
}

/// Before 5.11 maps count against the memlock limit. That it can't be raised is no reason to stop:
/// newer kernels charge the cgroup instead, and on older ones loading says what is missing.
fn raise_memlock() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let _refused = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}

fn load_object(options: &LoadOptions) -> Result<aya::Ebpf, KernelError> {
    let object = OBJECT.ok_or(KernelError::Architecture)?;
    let settings = settings(options)?;
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for (setting, value) in &settings {
        loader.override_global(setting.symbol(), value, false);
    }
    loader.map_max_entries("ROWS", options.row_chunks);
    loader.map_max_entries("RECORDS", options.ring_bytes);
    loader.map_max_entries("SCRATCH", cpu_numbers()?);
    loader.load(object).map_err(|error| KernelError::Load { what: "object".to_owned(), message: chain(&error) })
}

fn settings(options: &LoadOptions) -> Result<Vec<(Setting, u64)>, KernelError> {
    let btf = Btf::of_kernel()?;
    let has_task_pt_regs = is_helper_supported(ProgramType::PerfEvent, BpfHelper::BPF_FUNC_task_pt_regs)
        .map_err(|error| KernelError::Load { what: "helper probe".to_owned(), message: chain(&error) })?;
    let task = |member| btf.member_offset_bytes("task_struct", member);
    Ok(vec![
        (Setting::SAMPLE_ALL, u64::from(options.sample_all)),
        (Setting::FOLLOW_CHILDREN, u64::from(options.follow_children)),
        (Setting::HAS_TASK_PT_REGS, u64::from(has_task_pt_regs)),
        (Setting::TASK_STACK, task("stack")?),
        (Setting::TASK_MM, task("mm")?),
        (Setting::MM_END_CODE, btf.member_offset_bytes("mm_struct", "end_code")?),
        (Setting::TASK_TGID, task("tgid")?),
        (Setting::TASK_PID, task("pid")?),
        (Setting::TASK_COMM, task("comm")?),
        (Setting::TASK_NVCSW, task("nvcsw")?),
        (Setting::TASK_NIVCSW, task("nivcsw")?),
        // Without CONFIG_SMP there is none.
        (Setting::TASK_ON_CPU, task("on_cpu").unwrap_or(0)),
        (Setting::TASK_FSBASE, fsbase_offset_bytes(&btf)?),
        (Setting::TASK_SIGNAL, task("signal")?),
        (Setting::SIGNAL_LIVE, btf.member_offset_bytes("signal_struct", "live")?),
        (Setting::STACK_TO_PT_REGS, STACK_TO_PT_REGS),
        (Setting::POINTER_AUTH_MASK, POINTER_AUTH_MASK),
        (Setting::WAKE_UP_BYTES, u64::from(options.ring_bytes) / 4),
        (Setting::UNWIND, u64::from(options.unwind)),
        (Setting::WHOLE_STACK, u64::from(options.whole_stack)),
    ])
}

/// Where `task_struct` has the base of fs; 0 where the architecture has none.
fn fsbase_offset_bytes(btf: &Btf) -> Result<u64, KernelError> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(0);
    }
    Ok(btf.member_offset_bytes("task_struct", "thread")? + btf.member_offset_bytes("thread_struct", "fsbase")?)
}

fn attach_tracepoints(ebpf: &mut aya::Ebpf, figures: &mut Vec<ProgramFigures>) -> Result<(), KernelError> {
    for (name, tracepoint) in
        [("fork", "sched_process_fork"), ("exec", "sched_process_exec"), ("exit", "sched_process_exit")]
    {
        let program: &mut RawTracePoint = program(ebpf, name)?;
        let started = thread_cpu_time();
        program.load().map_err(load_error(name))?;
        figures.push(ProgramFigures::new(
            name,
            thread_cpu_time().saturating_sub(started),
            &program.info().map_err(load_error(name))?,
        ));
        program.attach(tracepoint).map_err(load_error(name))?;
    }
    Ok(())
}

/// Loads the sampler and its unwinder, and links the one to the other before anything runs.
fn load_sampling_programs(
    ebpf: &mut aya::Ebpf,
    figures: &mut Vec<ProgramFigures>,
) -> Result<SamplingPrograms, KernelError> {
    let mut load = |name| {
        let program: &mut PerfProgram = program(ebpf, name)?;
        let started = thread_cpu_time();
        program.load().map_err(load_error(name))?;
        let figure = ProgramFigures::new(
            name,
            thread_cpu_time().saturating_sub(started),
            &program.info().map_err(load_error(name))?,
        );
        if figure.jited_bytes == 0 {
            return Err(KernelError::NotJited { program: name });
        }
        figures.push(figure);
        let fd = program.fd().map_err(load_error(name))?;
        fd.try_clone().map_err(|source| KernelError::System { what: "dup of a program", source })
    };
    let sample = load("sample")?;
    let unwind = load("unwind")?;
    let mut tail_calls = ProgramArray::try_from(take(ebpf, "PROGRAMS")?).map_err(map_error("PROGRAMS"))?;
    tail_calls.set(0, &unwind, 0).map_err(map_error("PROGRAMS"))?;
    Ok(SamplingPrograms { sample, tail_calls })
}

struct SamplingPrograms {
    sample: ProgramFd,
    /// The kernel empties an array of programs when its last descriptor is closed.
    tail_calls: ProgramArray<MapData>,
}

pub(super) fn program<'a, P>(ebpf: &'a mut aya::Ebpf, name: &'static str) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| KernelError::Load { what: format!("program {name}"), message: "not in the object".to_owned() })
}

pub(super) fn load_error<E: std::error::Error>(program: &'static str) -> impl Fn(E) -> KernelError {
    move |error| KernelError::Load { what: format!("program {program}"), message: chain(&error) }
}
