//! What can go wrong between us and the kernel, with what to do about it.

use std::io;

/// A failure of a kernel interface.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file of the kernel could not be read.
    #[error("cannot read {path}: {source}. Are /proc and /sys mounted?")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file of the kernel says something that we do not understand.
    #[error("cannot understand {path}: it says {found:?}. Please report this, with what `uname -a` says")]
    Unexpected {
        /// The file.
        path: String,
        /// Its contents.
        found: String,
    },
    /// The kernel has no type information.
    #[error(
        "this kernel has no BTF type information (/sys/kernel/btf/vmlinux): {source}. \
         Spanflame needs Linux 5.10 or later built with CONFIG_DEBUG_INFO_BTF=y, as distribution kernels are"
    )]
    NoBtf {
        /// Why.
        source: io::Error,
    },
    /// The kernel's type information is damaged or lacks what we need.
    #[error("cannot use /sys/kernel/btf/vmlinux: {0}. Please report this, with what `uname -a` says")]
    BadBtf(String),
    /// The BPF JIT is off.
    #[error(
        "the BPF JIT is off (net.core.bpf_jit_enable=0), and an interpreted sampling program can crash the \
         kernel (seen on 6.12). Run: sudo sysctl net.core.bpf_jit_enable=1"
    )]
    JitOff,
    /// A program was loaded but not compiled.
    #[error(
        "the kernel did not compile program `{program}` (BPF JIT); an interpreted sampling program can crash it. \
         Check: sysctl net.core.bpf_jit_enable"
    )]
    NotJited {
        /// The program.
        program: &'static str,
    },
    /// The object, a map or a program could not be loaded.
    #[error("{}", cannot_load(.what, .message))]
    Load {
        /// Which one.
        what: String,
        /// The error, shortened: the verifier's log alone can have megabytes.
        message: String,
    },
    /// A perf event could not be opened.
    #[error("cannot open perf events on CPU {cpu}: {source} (perf_event_paranoid={paranoid}){}", perf_hint(.source))]
    PerfEvent {
        /// The CPU.
        cpu: u32,
        /// `kernel.perf_event_paranoid`.
        paranoid: String,
        /// Why.
        source: io::Error,
    },
    /// A system call on something that we hold failed.
    #[error("{what} failed: {source}. Is there memory left, and are the limits high enough (ulimit -l -n)?")]
    System {
        /// The operation and its object.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A BPF map operation failed.
    #[error(
        "cannot use BPF map {map}: {message}. Is there memory left, and are the limits high enough (ulimit -l -n)?"
    )]
    Map {
        /// The map.
        map: &'static str,
        /// Why.
        message: String,
    },
    /// The rate is over what the kernel allows.
    #[error(
        "{requested_hz} Hz is over what this kernel allows (kernel.perf_event_max_sample_rate={max_hz}). \
         Use -F {max_hz} or less, or: sudo sysctl kernel.perf_event_max_sample_rate={requested_hz}"
    )]
    RateTooHigh {
        /// What was asked for.
        requested_hz: u32,
        /// What is allowed.
        max_hz: u32,
    },
    /// Not in the initial pid namespace.
    #[error(
        "this is not the initial pid namespace: the kernel's process ids would be taken for other processes. \
         Run spanflame on the host, or in a container with the host's pid namespace (docker: --pid=host, \
         Kubernetes: hostPID: true)"
    )]
    PidNamespace,
    /// An architecture without kernel programs.
    #[error("no kernel programs for this CPU architecture; x86_64 and aarch64 have them")]
    Architecture,
}

impl KernelError {
    /// Whether it says "not permitted or not supported here" rather than "failed".
    #[must_use]
    pub fn is_environment(&self) -> bool {
        match self {
            Self::NoBtf { .. } | Self::JitOff | Self::NotJited { .. } | Self::PidNamespace | Self::Architecture => true,
            Self::PerfEvent { source, .. } | Self::System { source, .. } | Self::Read { source, .. } => {
                matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported)
                    || source.raw_os_error() == Some(libc::ENOENT)
            }
            Self::Load { message, .. } | Self::Map { message, .. } => is_permission(message),
            Self::BadBtf(_) | Self::Unexpected { .. } | Self::RateTooHigh { .. } => false,
        }
    }
}

/// That it is not permitted is all there is to say of any object; EACCES may also be the verifier's.
fn cannot_load(what: &str, message: &str) -> String {
    let hint = permission_hint(message);
    if message.contains("Operation not permitted") {
        format!("cannot load kernel programs: not permitted (EPERM){hint}")
    } else {
        format!("cannot load the BPF {what}: {message}{hint}")
    }
}

fn is_permission(message: &str) -> bool {
    message.contains("Operation not permitted") || message.contains("Permission denied")
}

fn permission_hint(message: &str) -> &'static str {
    if is_permission(message) {
        ". Run as root, or with CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH, CAP_CHECKPOINT_RESTORE \
         and CAP_SYSLOG"
    } else {
        ""
    }
}

fn perf_hint(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::PermissionDenied {
        ". Run as root, or with CAP_PERFMON and: sudo sysctl kernel.perf_event_paranoid=2"
    } else {
        ""
    }
}

/// The first lines of a message: enough to know, short enough to read.
pub(super) fn shorten(message: &str) -> String {
    const MOST_BYTES: usize = 600;
    let mut end = message.len().min(MOST_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let mut text: String = message[..end].lines().take(4).collect::<Vec<_>>().join(" | ");
    if text.len() < message.trim_end().len() {
        text.push_str(" ...");
    }
    text
}

/// A chain of errors in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    shorten(&text)
}
