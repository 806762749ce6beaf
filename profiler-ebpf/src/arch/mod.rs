//! What differs between CPU architectures: one file each, the same function names in both.

#[cfg(bpf_target_arch = "x86_64")]
mod x86_64;
#[cfg(bpf_target_arch = "x86_64")]
pub(crate) use x86_64::{in_kernel_mode, is_32_bit, read_other_registers, registers, step, thread_pointer};

#[cfg(bpf_target_arch = "aarch64")]
mod aarch64;
#[cfg(bpf_target_arch = "aarch64")]
pub(crate) use aarch64::{in_kernel_mode, is_32_bit, read_other_registers, registers, step, thread_pointer};
