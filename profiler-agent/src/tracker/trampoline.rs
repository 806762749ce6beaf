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
/// In the call and behind it. Before and behind these instructions it is wrong: see [`has_its_row`].
pub(super) const RULE: Rule = Rule::x86_64(0, 0, 2);

/// Whether memory of a process begins with such code. The next copy follows at once (3.12), 16 bytes after the first
/// (3.13), or behind unwind information (`-X perf_jit`).
pub(super) fn is_at(pid: Pid, start: VirtualAddress) -> bool {
    cfg!(target_arch = "x86_64")
        && read::<{ ENDBR64.len() + CODE.len() }>(pid, start).is_some_and(|bytes| is_copy(&bytes))
}

/// Whether a thread that was interrupted at `pc`, in such code, had its stack as [`RULE`] says.
pub(super) fn has_its_row(pid: Pid, pc: VirtualAddress) -> bool {
    let (call, add) = (&CODE[4..6], &CODE[6..10]);
    read::<4>(pid, pc).is_some_and(|bytes| bytes.starts_with(call) || bytes == add)
}

fn read<const N: usize>(pid: Pid, at: VirtualAddress) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
    memory.read_exact_at(&mut bytes, at.0).ok()?;
    Some(bytes)
}

fn is_copy(bytes: &[u8]) -> bool {
    bytes.strip_prefix(&ENDBR64).unwrap_or(bytes).starts_with(&CODE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_known_and_where_its_row_holds() {
        assert!(is_copy(&CODE) && is_copy(&[ENDBR64.as_slice(), &CODE].concat()));
        let mut other = CODE;
        other[5] = 0xd7;
        assert!(!is_copy(&other) && !is_copy(&CODE[..10]) && !is_copy(&[]));
        let us = Pid(std::process::id());
        let code = [CODE, CODE].concat();
        let at = |offset: usize| VirtualAddress(code.as_ptr() as u64 + offset as u64);
        assert!(is_at(us, at(0)) == cfg!(target_arch = "x86_64") && !is_at(us, at(1)) && !is_at(us, VirtualAddress(0)));
        let holds = [0, 4, 6, 10].map(|offset| has_its_row(us, at(offset)));
        assert_eq!(holds, [false, true, true, false], "sub, call, add, ret");
        assert!(!has_its_row(us, VirtualAddress(0)));
    }
}
