//! Offsets of members in the kernel's structures, from its BTF type information.
//!
//! Rust BPF programs have no CO-RE relocations, so the offsets are looked up here and written into
//! the object as constants. Format: linux/Documentation/bpf/btf.rst.

use super::KernelError;

/// The running kernel's types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
/// Anonymous structs in structs: the kernel's own nest two or three deep.
const MAX_NESTING: u32 = 8;

/// A parsed BTF blob.
pub struct Btf {
    strings: Vec<u8>,
    types: Vec<u8>,
    /// Where each type begins in `types`, by type id; id 0 is `void`.
    offsets: Vec<u32>,
}

impl Btf {
    /// The running kernel's.
    ///
    /// # Errors
    /// When the kernel has none, or it can't be understood.
    pub fn of_kernel() -> Result<Self, KernelError> {
        let bytes = std::fs::read(VMLINUX).map_err(|source| KernelError::NoBtf { source })?;
        Self::parse(&bytes).map_err(|what| KernelError::BadBtf(what.to_owned()))
    }

    /// Parses a blob of native byte order.
    ///
    /// # Errors
    /// With what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.get(..2) != Some(&MAGIC.to_ne_bytes()) {
            return Err("no BTF magic at its start");
        }
        let field = |at| half(bytes, at).map(|value| value as usize).ok_or("header cut short");
        let header = field(4)?;
        let section = |offset: usize, length: usize| {
            let start = header.checked_add(offset)?;
            bytes.get(start..start.checked_add(length)?)
        };
        let types = section(field(8)?, field(12)?).ok_or("type section beyond the end")?;
        let strings = section(field(16)?, field(20)?).ok_or("string section beyond the end")?;
        let mut offsets = vec![0];
        let mut at = 0;
        while at < types.len() {
            offsets.push(u32::try_from(at).map_err(|_too_big| "type section over 4 GiB")?);
            at += 12 + extra_bytes(half(types, at + 4).ok_or("a type is cut short")?)?;
        }
        Ok(Self { strings: strings.to_vec(), types: types.to_vec(), offsets })
    }

    /// The offset in bytes of `struct_name.member`, also when the member is in an anonymous struct
    /// or union.
    ///
    /// # Errors
    /// When there is no such member.
    pub fn member_offset_bytes(&self, struct_name: &str, member: &str) -> Result<u64, KernelError> {
        (1..self.offsets.len())
            .filter(|id| self.kind(*id) == Some(KIND_STRUCT) && self.name_is(self.word(*id, 0), struct_name))
            .find_map(|id| self.member_bits(id, member, 0))
            .map(|bits| u64::from(bits / 8))
            .ok_or_else(|| KernelError::BadBtf(format!("struct {struct_name} has no member {member}")))
    }

    /// The size in bytes of a structure.
    ///
    /// # Errors
    /// When there is no such structure.
    pub fn size_bytes(&self, struct_name: &str) -> Result<u64, KernelError> {
        (1..self.offsets.len())
            .filter(|id| self.kind(*id) == Some(KIND_STRUCT) && self.name_is(self.word(*id, 0), struct_name))
            .find_map(|id| self.word(id, 8))
            .map(u64::from)
            .ok_or_else(|| KernelError::BadBtf(format!("no struct {struct_name}")))
    }

    fn member_bits(&self, id: usize, member: &str, depth: u32) -> Option<u32> {
        if depth > MAX_NESTING || !matches!(self.kind(id), Some(KIND_STRUCT | KIND_UNION)) {
            return None;
        }
        let info = self.word(id, 4)?;
        let count = (info & 0xffff) as usize;
        for index in 0..count {
            let at = 12 + index * 12;
            let (name, type_id, offset) = (self.word(id, at)?, self.word(id, at + 4)?, self.word(id, at + 8)?);
            // With the kind flag the upper byte is the size of a bit field.
            let bits = if info >> 31 != 0 { offset & 0x00ff_ffff } else { offset };
            if name != 0 {
                if self.name_is(Some(name), member) {
                    return Some(bits);
                }
            } else if let Some(inner) = self.member_bits(type_id as usize, member, depth + 1) {
                return bits.checked_add(inner);
            }
        }
        None
    }

    fn word(&self, id: usize, at: usize) -> Option<u32> {
        half(&self.types, *self.offsets.get(id)? as usize + at)
    }

    fn kind(&self, id: usize) -> Option<u32> {
        self.word(id, 4).map(|info| info >> 24 & 0x1f)
    }

    fn name_is(&self, offset: Option<u32>, wanted: &str) -> bool {
        offset
            .and_then(|offset| self.strings.get(offset as usize..))
            .is_some_and(|rest| rest.strip_prefix(wanted.as_bytes()).is_some_and(|after| after.first() == Some(&0)))
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Bytes that follow the 12 common ones of a type with this `info`.
fn extra_bytes(info: u32) -> Result<usize, &'static str> {
    let count = (info & 0xffff) as usize;
    Ok(match info >> 24 & 0x1f {
        2 | 7..=12 | 16 | 18 => 0,
        1 | 14 | 17 => 4,
        3 => 12,
        4 | 5 | 15 | 19 => count * 12,
        6 | 13 => count * 8,
        _ => return Err("a kind of type that this version does not know"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct task { int a; struct { int b; int c; }; }` as BTF.
    fn blob() -> Vec<u8> {
        let strings = b"\0int\0task\0a\0b\0c\0";
        let types: &[u32] = &[
            1,
            1 << 24,
            4,
            32, // 1: int
            5,
            4 << 24 | 2,
            12,
            /**/ 10,
            1,
            0,
            /**/ 0,
            3,
            32, // 2: task
            0,
            4 << 24 | 2,
            8,
            /**/ 12,
            1,
            0,
            /**/ 14,
            1,
            32, // 3: anonymous
        ];
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_of_anonymous_structs_are_found() {
        let btf = Btf::parse(&blob()).unwrap();
        assert_eq!(btf.member_offset_bytes("task", "a").unwrap(), 0);
        assert_eq!(btf.member_offset_bytes("task", "c").unwrap(), 8);
        assert_eq!(btf.size_bytes("task").unwrap(), 12);
        assert!(btf.member_offset_bytes("task", "d").is_err());
        assert!(btf.member_offset_bytes("tas", "a").is_err());
    }

    #[test]
    fn damage_is_an_error() {
        let whole = blob();
        for cut in 0..whole.len() {
            // No panic; whether a shorter blob still parses depends on where it was cut.
            if let Ok(btf) = Btf::parse(&whole[..cut]) {
                drop(btf.member_offset_bytes("task", "c"));
            }
        }
        let mut wrong = whole;
        wrong[0] ^= 1;
        assert!(Btf::parse(&wrong).is_err());
    }

    #[test]
    fn the_running_kernel_has_what_the_programs_need() {
        let btf = Btf::of_kernel().unwrap();
        assert!(btf.member_offset_bytes("task_struct", "tgid").unwrap() > 0);
        assert!(btf.member_offset_bytes("signal_struct", "live").unwrap() > 0);
    }
}
