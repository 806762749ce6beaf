//! Small ELF files with hand-made call frame information.

/// Where the code of every file made here starts.
pub(crate) const CODE: u64 = 0x40_1000;
/// Where the code stands in the file.
pub(crate) const CODE_AT: u64 = 0x1000;
/// `e_machine` of x86_64.
pub(crate) const X86_64: u16 = 62;
/// `e_machine` of aarch64.
pub(crate) const AARCH64: u16 = 183;

/// CFI instructions (DWARF 5, section 7.24).
pub(crate) mod op {
    pub(crate) const NOP: u8 = 0;
    pub(crate) const UNDEFINED: u8 = 0x07;
    pub(crate) const SAME_VALUE: u8 = 0x08;
    pub(crate) const REGISTER: u8 = 0x09;
    pub(crate) const REMEMBER_STATE: u8 = 0x0a;
    pub(crate) const RESTORE_STATE: u8 = 0x0b;
    pub(crate) const DEF_CFA: u8 = 0x0c;
    pub(crate) const DEF_CFA_REGISTER: u8 = 0x0d;
    pub(crate) const DEF_CFA_OFFSET: u8 = 0x0e;
    pub(crate) const DEF_CFA_EXPRESSION: u8 = 0x0f;
    pub(crate) const EXPRESSION: u8 = 0x10;
    pub(crate) const DEF_CFA_OFFSET_SF: u8 = 0x13;
    pub(crate) const NEGATE_RA_STATE: u8 = 0x2d;
    pub(crate) const BREG6: u8 = 0x76;
    pub(crate) const BREG7: u8 = 0x77;
    pub(crate) const DEREF: u8 = 0x06;
    pub(crate) const PLUS_UCONST: u8 = 0x23;

    /// `DW_CFA_advance_loc`, by less than 64.
    pub(crate) fn advance(delta: u8) -> u8 {
        0x40 | delta
    }

    /// `DW_CFA_offset`: register at CFA - 8 x `words`, with a data alignment of -8.
    pub(crate) fn offset(register: u8, words: u8) -> [u8; 2] {
        [0x80 | register, words]
    }

    /// `DW_CFA_restore`.
    pub(crate) fn restore(register: u8) -> u8 {
        0xc0 | register
    }
}

/// The initial instructions of every compiler's CIE: CFA = rsp + 8, return address at CFA - 8.
pub(crate) const X86_64_INITIAL: &[u8] = &[op::DEF_CFA, 7, 8, 0x80 | 16, 1];
/// CFA = sp.
pub(crate) const AARCH64_INITIAL: &[u8] = &[op::DEF_CFA, 31, 0];

/// Call frame information under construction.
#[derive(Clone)]
pub(crate) struct Cfi {
    pub(crate) bytes: Vec<u8>,
    cie_at: usize,
    debug_frame: bool,
}

impl Cfi {
    /// `.eh_frame` with addresses of 8 bytes.
    pub(crate) fn eh_frame() -> Self {
        Self { bytes: Vec::new(), cie_at: 0, debug_frame: false }
    }

    /// `.debug_frame`.
    pub(crate) fn debug_frame() -> Self {
        Self { debug_frame: true, ..Self::eh_frame() }
    }

    /// A CIE for the FDEs that follow. `augmentation` is put between `z` and `R`.
    pub(crate) fn cie(mut self, augmentation: &str, return_address: u8, instructions: &[u8]) -> Self {
        self.cie_at = self.bytes.len();
        let id = if self.debug_frame { u32::MAX } else { 0 };
        let mut body = id.to_le_bytes().to_vec();
        if self.debug_frame {
            body.extend([3, 0, 1, 0x78, return_address]);
        } else {
            body.push(1);
            body.extend(format!("zR{augmentation}\0").bytes());
            // Alignments 1 and -8; one byte of augmentation data: absolute pointers.
            body.extend([1, 0x78, return_address, 1, 0]);
        }
        body.extend(instructions);
        self.entry(body)
    }

    /// An FDE for `length` bytes of code, `start` bytes into the code.
    pub(crate) fn fde(self, start: u64, length: u64, instructions: &[u8]) -> Self {
        let back = self.bytes.len() + 4 - self.cie_at;
        let cie = if self.debug_frame { self.cie_at as u32 } else { back as u32 };
        let mut body = cie.to_le_bytes().to_vec();
        body.extend(CODE.wrapping_add(start).to_le_bytes());
        body.extend(length.to_le_bytes());
        if !self.debug_frame {
            body.push(0);
        }
        body.extend(instructions);
        self.entry(body)
    }

    fn entry(mut self, mut body: Vec<u8>) -> Self {
        body.resize((body.len() + 4).next_multiple_of(8) - 4, op::NOP);
        self.bytes.extend((body.len() as u32).to_le_bytes());
        self.bytes.extend(body);
        self
    }
}

/// A file of one executable segment and some sections.
#[derive(Clone)]
pub(crate) struct ElfFile {
    pub(crate) machine: u16,
    /// `e_entry`; 0 for most libraries.
    pub(crate) entry: u64,
    /// A program with a fixed address, by its type.
    pub(crate) program: bool,
    pub(crate) code: Vec<u8>,
    pub(crate) notes: Vec<u8>,
    /// Tags and values of `.dynamic`.
    pub(crate) dynamic: Vec<[u64; 2]>,
    /// Name, offset into the code for sections of code, and contents for others.
    pub(crate) sections: Vec<(&'static str, SectionBody)>,
}

#[derive(Clone)]
pub(crate) enum SectionBody {
    /// Part of the code: start and length, in bytes.
    Code(u64, u64),
    /// Bytes of its own.
    Bytes(Vec<u8>),
}

impl ElfFile {
    /// A file with `code_bytes` bytes of code.
    pub(crate) fn new(machine: u16, code_bytes: usize) -> Self {
        Self {
            machine,
            entry: 0,
            program: false,
            code: vec![0x90; code_bytes],
            notes: Vec::new(),
            dynamic: Vec::new(),
            sections: Vec::new(),
        }
    }

    /// Adds `.eh_frame` or `.debug_frame`.
    pub(crate) fn cfi(mut self, cfi: &Cfi) -> Self {
        let name = if cfi.debug_frame { ".debug_frame" } else { ".eh_frame" };
        self.sections.push((name, SectionBody::Bytes(cfi.bytes.clone())));
        self
    }

    /// Adds functions by name, whether others may call them, and offset into the code: `.symtab` and the names.
    pub(crate) fn functions(mut self, functions: &[(&str, bool, u64)]) -> Self {
        let (mut symbols, mut names) = (Vec::new(), vec![0]);
        for (name, global, start) in functions {
            symbols.extend((names.len() as u32).to_le_bytes());
            symbols.extend([if *global { 0x12 } else { 0x02 }, 0, 1, 0]);
            symbols.extend((CODE + start).to_le_bytes().into_iter().chain([0; 8]));
            names.extend(name.bytes().chain([0]));
        }
        self.sections.push((".symtab", SectionBody::Bytes(symbols)));
        self.sections.push((".strtab", SectionBody::Bytes(names)));
        self
    }

    /// Adds a section that is part of the code.
    pub(crate) fn code_section(mut self, name: &'static str, start: u64, length: u64) -> Self {
        self.sections.push((name, SectionBody::Code(start, length)));
        self
    }

    /// The bytes of the file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = vec![0; CODE_AT as usize];
        file.extend(&self.code);
        let notes_at = file.len() as u64;
        file.extend(&self.notes);
        let dynamic_at = file.len() as u64;
        file.extend(self.dynamic.iter().flatten().flat_map(|word| word.to_le_bytes()));
        let dynamic_bytes = file.len() as u64 - dynamic_at;
        let mut names = vec![0];
        let mut headers = vec![[0u8; 64]];
        for (name, body) in &self.sections {
            let (address, at, length) = match body {
                SectionBody::Code(start, length) => (CODE + start, CODE_AT + start, *length),
                SectionBody::Bytes(bytes) => {
                    let at = file.len() as u64;
                    file.extend(bytes);
                    (0, at, bytes.len() as u64)
                }
            };
            headers.push(section_header(names.len() as u32, address, at, length));
            if *name == ".symtab" {
                let link = headers.len() as u32;
                headers[link as usize - 1][40..44].copy_from_slice(&link.to_le_bytes());
            }
            names.extend(name.bytes().chain([0]));
        }
        let mut names_header = section_header(0, 0, file.len() as u64, names.len() as u64);
        names_header[4] = 3;
        headers.push(names_header);
        file.extend(names);
        file.resize(file.len().next_multiple_of(8), 0);
        let headers_at = file.len() as u64;
        file.extend(headers.iter().flatten());
        let code_bytes = self.code.len() as u64;
        file[64..120].copy_from_slice(&program_header(1, 5, CODE_AT, CODE, code_bytes));
        file[120..176].copy_from_slice(&program_header(4, 4, notes_at, 0, self.notes.len() as u64));
        file[176..232].copy_from_slice(&program_header(2, 4, dynamic_at, 0, dynamic_bytes));
        file[..64].copy_from_slice(&elf_header(self.machine, headers_at, headers.len() as u16));
        file[16] = if self.program { 2 } else { 3 };
        file[24..32].copy_from_slice(&self.entry.to_le_bytes());
        file
    }
}

fn elf_header(machine: u16, section_headers_at: u64, section_headers: u16) -> [u8; 64] {
    let mut header = [0; 64];
    header[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    header[16..18].copy_from_slice(&3u16.to_le_bytes());
    header[18..20].copy_from_slice(&machine.to_le_bytes());
    header[32..40].copy_from_slice(&64u64.to_le_bytes());
    header[40..48].copy_from_slice(&section_headers_at.to_le_bytes());
    for (at, value) in [(54, 56), (56, 3), (58, 64), (60, section_headers), (62, section_headers - 1)] {
        header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    header
}

fn program_header(kind: u32, flags: u32, at: u64, address: u64, length: u64) -> [u8; 56] {
    let mut header = [0; 56];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[4..8].copy_from_slice(&flags.to_le_bytes());
    for (index, value) in [at, address, address, length, length, 4].into_iter().enumerate() {
        header[8 + 8 * index..16 + 8 * index].copy_from_slice(&value.to_le_bytes());
    }
    header
}

fn section_header(name: u32, address: u64, at: u64, length: u64) -> [u8; 64] {
    let mut header = [0; 64];
    header[..4].copy_from_slice(&name.to_le_bytes());
    header[4..8].copy_from_slice(&1u32.to_le_bytes());
    for (place, value) in [(16, address), (24, at), (32, length)] {
        header[place..place + 8].copy_from_slice(&value.to_le_bytes());
    }
    header
}
