//! How much of its stack each program of an object uses, read from its instructions. The kernel
//! tells it to nobody but readers of the verifier's log.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

use super::calls::{OPCODE_LOAD_64, SLOT_BYTES};

/// The frame pointer: the end of the stack (RFC 9669, section 2.1).
const R10: u8 = 10;
/// Instruction classes are the low three bits (RFC 9669, section 3.1).
const CLASS: u8 = 0x07;
const CLASS_LDX: u8 = 0x01;
const CLASS_ST: u8 = 0x02;
const CLASS_STX: u8 = 0x03;
/// `dst = src` and `dst += imm`, 64 bits wide (RFC 9669, section 4.1).
const OPCODE_MOVE: u8 = 0xbf;
const OPCODE_ADD: u8 = 0x07;

/// The program's name to the bytes of stack that it uses at most.
pub(crate) fn depths(object: &[u8]) -> Result<BTreeMap<String, u64>> {
    let file = ElfFile64::<Endianness>::parse(object).context("reading it as ELF")?;
    let mut depths = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.is_global() && symbol.kind() == SymbolKind::Text) {
        let Some(section) = symbol.section_index() else { continue };
        let name = symbol.name().context("reading the name of a program")?;
        let code = file.section_by_index(section)?.data_range(symbol.address(), symbol.size())?;
        depths.insert(name.to_owned(), depth(code.with_context(|| format!("`{name}` lies outside its section"))?));
    }
    Ok(depths)
}

/// The deepest offset from r10 that is read, written, or made a pointer of.
fn depth(code: &[u8]) -> u64 {
    // Registers that hold r10 itself, until their next `+=`.
    let mut copies = [false; 16];
    let mut deepest = 0_i64;
    let mut at = 0;
    while let Some(&[opcode, registers, low, high, a, b, c, d]) = code.get(at..at + SLOT_BYTES) {
        let (destination, source) = (registers & 0xf, registers >> 4);
        let offset = i64::from(i16::from_le_bytes([low, high]));
        match (opcode, opcode & CLASS) {
            (OPCODE_MOVE, _) => copies[usize::from(destination)] = source == R10,
            (OPCODE_ADD, _) if std::mem::take(&mut copies[usize::from(destination)]) => {
                deepest = deepest.min(i64::from(i32::from_le_bytes([a, b, c, d])));
            }
            (_, CLASS_LDX) if source == R10 => deepest = deepest.min(offset),
            (_, CLASS_ST | CLASS_STX) if destination == R10 => deepest = deepest.min(offset),
            _ => {}
        }
        at += if opcode == OPCODE_LOAD_64 { 2 * SLOT_BYTES } else { SLOT_BYTES };
    }
    deepest.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE_AT_8: [u8; 8] = [0x7b, 0x1a, 0xf8, 0xff, 0, 0, 0, 0];
    const LOAD_AT_40: [u8; 8] = [0x79, 0xa1, 0xd8, 0xff, 0, 0, 0, 0];
    const STORE_ELSEWHERE: [u8; 8] = [0x7b, 0x12, 0x00, 0xff, 0, 0, 0, 0];
    const R2_IS_R10: [u8; 8] = [0xbf, 0xa2, 0, 0, 0, 0, 0, 0];
    const R2_MINUS_64: [u8; 8] = [0x07, 0x02, 0, 0, 0xc0, 0xff, 0xff, 0xff];

    #[test]
    fn the_deepest_use_counts() {
        assert_eq!(depth(&[STORE_ELSEWHERE, R2_MINUS_64].concat()), 0);
        assert_eq!(depth(&[STORE_AT_8, LOAD_AT_40, STORE_AT_8].concat()), 40);
        assert_eq!(depth(&[R2_IS_R10, STORE_AT_8, R2_MINUS_64, R2_MINUS_64].concat()), 64);
        assert_eq!(depth(&[]), 0);
    }

    #[test]
    fn programs_of_the_committed_object_fit_the_kernels_stack() {
        let object = std::fs::read(crate::ebpf::object_path("x86_64")).unwrap();
        let depths = depths(&object).unwrap();
        // MAX_BPF_STACK in linux/filter.h.
        assert!(!depths.is_empty() && depths.values().all(|bytes| *bytes <= 512), "{depths:?}");
    }
}
