//! A kernel object must hold no call between BPF functions: Linux 5.10 refuses tail calls beside
//! them, and the compiler makes them unasked (a zeroed array becomes a call of `memset`).

use anyhow::{Context as _, Result, bail};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionFlags, elf};

/// Bytes of one BPF instruction slot (RFC 9669, section 3).
pub(super) const SLOT_BYTES: usize = 8;
/// `BPF_JMP | BPF_CALL` (RFC 9669, section 4.3).
const OPCODE_CALL: u8 = 0x85;
/// `BPF_LD | BPF_IMM | BPF_DW`, which takes two slots (RFC 9669, section 5.4).
pub(super) const OPCODE_LOAD_64: u8 = 0x18;
/// `src_reg` of a call of a BPF function (`BPF_PSEUDO_CALL` in linux/bpf.h).
const PSEUDO_CALL: u8 = 1;

/// Fails when a program holds a call of a BPF function, and names it.
pub(super) fn check(object: &[u8]) -> Result<()> {
    let file = ElfFile64::<Endianness>::parse(object).context("reading it as ELF")?;
    let mut found = Vec::new();
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else { continue };
        if sh_flags & u64::from(elf::SHF_EXECINSTR) == 0 {
            continue;
        }
        // `.text` holds functions, which are loaded only when a program calls them.
        let name = section.name().unwrap_or("?");
        if name.starts_with(".text") {
            continue;
        }
        let code = section.data().with_context(|| format!("reading section {name}"))?;
        for offset in hidden_calls(code) {
            let callee = section.relocations().find(|(at, _)| *at == offset as u64).and_then(|(_, relocation)| {
                let RelocationTarget::Symbol(index) = relocation.target() else { return None };
                file.symbol_by_index(index).ok()?.name().ok().map(str::to_owned)
            });
            found.push(format!("{name}+{offset:#x} calls {}", callee.as_deref().unwrap_or("a function")));
        }
    }
    if !found.is_empty() {
        bail!("holds hidden sub-programs, which Linux 5.10 refuses beside tail calls: {}", found.join(", "));
    }
    Ok(())
}

/// The offsets of all calls that are not calls of helpers: of BPF functions, and those that a
/// loader still has to resolve (`call -1`).
fn hidden_calls(code: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut offset = 0;
    while let Some(&[opcode, registers, _, _, ref immediate @ ..]) = code.get(offset..offset + SLOT_BYTES) {
        let unresolved = immediate == [0xff; 4];
        if opcode == OPCODE_CALL && (registers >> 4 == PSEUDO_CALL || unresolved) {
            found.push(offset);
        }
        offset += if opcode == OPCODE_LOAD_64 { 2 * SLOT_BYTES } else { SLOT_BYTES };
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELPER: [u8; 8] = [0x85, 0, 0, 0, 14, 0, 0, 0];
    const FUNCTION: [u8; 8] = [0x85, 0x10, 0, 0, 3, 0, 0, 0];
    const UNRESOLVED: [u8; 8] = [0x85, 0x10, 0, 0, 0xff, 0xff, 0xff, 0xff];
    const UNRESOLVED_PLAIN: [u8; 8] = [0x85, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn helper_calls_are_fine() {
        assert_eq!(hidden_calls(&[HELPER, EXIT].concat()), [0; 0]);
    }

    #[test]
    fn function_calls_are_found() {
        assert_eq!(hidden_calls(&[HELPER, FUNCTION, UNRESOLVED, UNRESOLVED_PLAIN, EXIT].concat()), [8, 16, 24]);
    }

    #[test]
    fn the_second_half_of_a_long_load_is_no_instruction() {
        let load = [OPCODE_LOAD_64, 0, 0, 0, 1, 0, 0, 0];
        assert_eq!(hidden_calls(&[load, FUNCTION, FUNCTION].concat()), [16]);
    }

    #[test]
    fn a_cut_instruction_ends_the_search() {
        assert_eq!(hidden_calls(&FUNCTION[..7]), [0; 0]);
        assert_eq!(hidden_calls(&[]), [0; 0]);
    }

    #[test]
    fn the_committed_object_is_clean_and_a_changed_one_is_not() {
        let mut object = std::fs::read(crate::ebpf::object_path("x86_64")).unwrap();
        check(&object).unwrap();
        let call = object.windows(4).position(|window| window == [OPCODE_CALL, 0, 0, 0]).unwrap();
        object[call + 1] = PSEUDO_CALL << 4;
        let error = check(&object).unwrap_err().to_string();
        assert!(error.contains("hidden sub-programs"), "{error}");
        assert!(check(&object[..100]).is_err());
    }
}
