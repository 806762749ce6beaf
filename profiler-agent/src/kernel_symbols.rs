//! Names of kernel code, from /proc/kallsyms. Resolved in the main process, which keeps CAP_SYSLOG:
//! without it every address in that file reads 0.

use blazesym::MaybeDefault;
use blazesym::symbolize::source::{Kernel, Source};
use blazesym::symbolize::{Input, Symbolizer};
use profiler_common::address::VirtualAddress;

use crate::worker::Frame;

/// The kernel's symbols, read when they are first needed.
#[derive(Default)]
pub(crate) struct KernelSymbols {
    symbolizer: Option<Symbolizer>,
}

impl KernelSymbols {
    /// The function at each address; none where the kernel tells no name.
    ///
    /// # Errors
    /// When the kernel's symbols can't be read, in a sentence.
    pub(crate) fn symbolize(&mut self, addresses: &[VirtualAddress]) -> Result<Vec<Vec<Frame>>, String> {
        if addresses.is_empty() {
            return Ok(Vec::new());
        }
        if hidden() {
            return Err("the kernel hides its symbols (kernel.kptr_restrict). Run with CAP_SYSLOG, or: \
                        sudo sysctl kernel.kptr_restrict=0"
                .to_owned());
        }
        let symbolizer = self.symbolizer.get_or_insert_with(|| {
            Symbolizer::builder().enable_code_info(false).enable_inlined_fns(false).enable_demangling(false).build()
        });
        let source = Source::Kernel(Kernel {
            kallsyms: MaybeDefault::Default,
            vmlinux: MaybeDefault::None,
            kaslr_offset: Some(0),
            debug_syms: false,
            _non_exhaustive: (),
        });
        let addresses: Vec<u64> = addresses.iter().map(|address| address.0).collect();
        let found = symbolizer.symbolize(&source, Input::AbsAddr(&addresses)).map_err(|error| error.to_string())?;
        let frames = found.iter().map(|symbolized| {
            let symbol = symbolized.as_sym();
            symbol.map(|symbol| frame(&symbol.name)).into_iter().collect()
        });
        Ok(frames.collect())
    }
}

fn frame(name: &str) -> Frame {
    Frame { name: name.to_owned(), system_name: name.to_owned(), ..Frame::default() }
}

/// Whether the addresses in /proc/kallsyms read 0 for us.
fn hidden() -> bool {
    use std::io::Read as _;
    let mut start = [0; 16];
    let read = std::fs::File::open("/proc/kallsyms").and_then(|mut file| file.read_exact(&mut start));
    // The first symbol is at address 0 on x86_64 (a per-CPU one): look further.
    read.is_err() || (start == *b"0000000000000000" && all_zero())
}

fn all_zero() -> bool {
    use std::io::{BufRead as _, BufReader};
    let Ok(file) = std::fs::File::open("/proc/kallsyms") else { return true };
    let mut lines = BufReader::new(file).lines().map_while(Result::ok);
    !lines.any(|line| line.get(..16).is_some_and(|address| address.bytes().any(|digit| digit != b'0')))
}
