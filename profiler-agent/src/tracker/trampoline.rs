//! The code that CPython makes for each Python function with `-X perf`: it calls the interpreter, and on
//! x86_64 keeps no frame pointer (`_Py_trampoline_func_start` in cpython/Python/asm_trampoline.S, 3.12 to
//! 3.14). So it has a table of its own, and is known by its bytes.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use profiler_common::address::{Pid, VirtualAddress};
use profiler_common::row::Rule;

/// `sub $8, %rsp; call *%rcx; add $8, %rsp; ret`.
const CODE: [u8; 11] = [0x48, 0x83, 0xec, 0x08, 0xff, 0xd1, 0x48, 0x83, 0xc4, 0x08, 0xc3];
/// `endbr64`, in front of it in builds for CET.
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
/// From one copy to the next in 3.13 (cpython/Python/perf_trampoline.c); in 3.12 one follows on the other.
const STRIDE_BYTES: usize = 16;

/// In the call. The instructions before and behind it are not told apart: they are two of thousands.
pub(super) const RULE: Rule = Rule::x86_64(0, 0, 2);

/// Whether memory of a process begins with such code.
pub(super) fn is_at(pid: Pid, start: VirtualAddress) -> bool {
    let mut bytes = [0; 2 * STRIDE_BYTES];
    let memory = File::open(format!("/proc/{pid}/mem"));
    cfg!(target_arch = "x86_64")
        && memory.and_then(|memory| memory.read_exact_at(&mut bytes, start.0)).is_ok()
        && are_copies(&bytes)
}

fn are_copies(bytes: &[u8; 2 * STRIDE_BYTES]) -> bool {
    let length_of_copy = |bytes: &[u8]| {
        let code = bytes.strip_prefix(&ENDBR64).unwrap_or(bytes);
        code.starts_with(&CODE).then_some(bytes.len() - code.len() + CODE.len())
    };
    let Some(length) = length_of_copy(bytes) else { return false };
    [length, STRIDE_BYTES].iter().any(|at| bytes.get(*at..).and_then(length_of_copy).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_copies_are_known_and_nothing_else() {
        let mut plain = [0; 2 * STRIDE_BYTES];
        let mut with_cet = plain;
        for start in [0, STRIDE_BYTES] {
            plain[start..start + CODE.len()].copy_from_slice(&CODE);
            with_cet[start..start + 4].copy_from_slice(&ENDBR64);
            with_cet[start + 4..start + 4 + CODE.len()].copy_from_slice(&CODE);
        }
        assert!(are_copies(&plain) && are_copies(&with_cet));
        let mut without_gaps = [0; 2 * STRIDE_BYTES];
        without_gaps[..22].copy_from_slice(&[CODE, CODE].concat());
        assert!(are_copies(&without_gaps));
        plain[STRIDE_BYTES + 4] = 0x90;
        assert!(!are_copies(&plain) && !are_copies(&[0; 2 * STRIDE_BYTES]));
        let us = Pid(std::process::id());
        assert!(!is_at(us, VirtualAddress(0)) && !is_at(us, VirtualAddress(CODE.as_ptr() as u64)));
    }
}
