//! What the kernel starts to run a program: the interpreter of a script, the loader of an ELF file. When
//! it is missing, the kernel says only that there is "no such file", and people look at the program.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// `BINPRM_BUF_SIZE` (linux/include/uapi/linux/binfmts.h): what the kernel looks at.
const MOST_LINE_BYTES: usize = 256;

/// `PATH_MAX`, which the kernel allows a loader's path (linux/fs/binfmt_elf.c).
const MOST_PATH_BYTES: usize = 4096;

/// Program headers that are looked at; real programs have about a dozen.
const MOST_HEADERS: u64 = 128;

/// `e_machine` of what this CPU runs by itself. What runs others may look for their loaders elsewhere.
const NATIVE: &[u16] = if cfg!(target_arch = "x86_64") { &[62, 3] } else { &[183] };

/// What is not there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MissingInterpreter {
    /// That of a script.
    #[error("its first line asks for the interpreter {}, which does not exist. {}", .0.display(), script_hint(.0))]
    Script(PathBuf),
    /// That of an ELF file.
    #[error(
        "it needs the loader {}, which does not exist. Install the C library that it was built for, or run it in its \
         container", .0.display()
    )]
    Loader(PathBuf),
}

fn script_hint(interpreter: &Path) -> &'static str {
    if interpreter.as_os_str().as_bytes().ends_with(b"\r") {
        "Its lines end in CR LF; take the CRs away: sed -i 's/\\r$//'"
    } else {
        "Install it, or change that line"
    }
}

/// The interpreter of `program`, if that names one which does not exist.
pub(crate) fn missing(program: &Path) -> Option<MissingInterpreter> {
    let file = File::open(program).ok().filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()))?;
    let head = read(&file, 0, MOST_LINE_BYTES)?;
    let missing = match head.strip_prefix(b"#!") {
        Some(line) => MissingInterpreter::Script(of_line(line)?),
        None => MissingInterpreter::Loader(of_elf(&file, &head)?),
    };
    let (MissingInterpreter::Script(path) | MissingInterpreter::Loader(path)) = &missing;
    let is_missing = path.metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    is_missing.then_some(missing)
}

/// The first word behind `#!` (linux/fs/binfmt_script.c).
fn of_line(line: &[u8]) -> Option<PathBuf> {
    let line = line.split(|byte| matches!(byte, b'\n' | 0)).next()?;
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let word = line.split(is_blank).find(|word| !word.is_empty())?;
    Some(PathBuf::from(OsStr::from_bytes(word)))
}

/// `PT_INTERP` of a little-endian ELF file for this CPU.
fn of_elf(file: &File, head: &[u8]) -> Option<PathBuf> {
    // Where the headers' place, size and number are, and the place and size of what they tell of (ELF
    // specification, `Elf32_Ehdr`, `Elf64_Ehdr`, `Elf32_Phdr`, `Elf64_Phdr`).
    let wide = match head.get(..6)? {
        b"\x7fELF\x01\x01" => false,
        b"\x7fELF\x02\x01" => true,
        _ => return None,
    };
    const PT_INTERP: u64 = 3;
    let (table, size, number, offset_at, length_at) = if wide { (32, 54, 56, 8, 32) } else { (28, 42, 44, 4, 16) };
    let word_bytes = if wide { 8 } else { 4 };
    if !NATIVE.contains(&u16::try_from(unsigned(head, 18, 2)?).ok()?) {
        return None;
    }
    let (first, size) = (unsigned(head, table, word_bytes)?, unsigned(head, size, 2)?);
    for index in 0..unsigned(head, number, 2)?.min(MOST_HEADERS) {
        let header = read(file, first.checked_add(index * size)?, 56)?;
        if unsigned(&header, 0, 4)? == PT_INTERP {
            let length = usize::try_from(unsigned(&header, length_at, word_bytes)?).ok()?.min(MOST_PATH_BYTES);
            let path = read(file, unsigned(&header, offset_at, word_bytes)?, length)?;
            let path = path.split(|byte| *byte == 0).next().filter(|path| !path.is_empty())?;
            return Some(PathBuf::from(OsStr::from_bytes(path)));
        }
    }
    None
}

/// Up to that many bytes.
fn read(file: &File, offset: u64, most_bytes: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; most_bytes];
    let length = file.read_at(&mut bytes, offset).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

/// A little-endian number of up to 8 bytes.
fn unsigned(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(length)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn missing_of(contents: &[u8]) -> Option<MissingInterpreter> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), contents).unwrap();
        missing(file.path())
    }

    #[test]
    fn scripts() {
        let script = |path: &str| Some(MissingInterpreter::Script(path.into()));
        assert_eq!(missing_of(b"#!/bin/sh\ntrue\n"), None);
        assert_eq!(missing_of(b"#! \t/no/such -e x\n"), script("/no/such"));
        assert_eq!(missing_of(b"#!/no/such"), script("/no/such"));
        assert_eq!(missing_of(b"#!/bin/sh\r\ntrue\r\n"), script("/bin/sh\r"));
        assert!(missing_of(b"#!/bin/sh\r\n").unwrap().to_string().contains("CR LF"));
        for none in [b"".as_slice(), b"#!", b"#! \n/no/such", b"true\n", b"\x7fELF\x02\x01"] {
            assert_eq!(missing_of(none), None);
        }
    }

    /// This program itself, with another loader of the same length.
    #[test]
    fn loaders() {
        let mut program = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(missing_of(&program), None);
        let path = of_elf(&File::open("/proc/self/exe").unwrap(), &program[..MOST_LINE_BYTES]).unwrap();
        let bytes = path.as_os_str().as_bytes();
        let at = program.windows(bytes.len()).position(|window| window == bytes).unwrap();
        program[at + bytes.len() - 1] = b'X';
        let Some(MissingInterpreter::Loader(missing)) = missing_of(&program) else { panic!("{path:?} is not missed") };
        assert!(missing.as_os_str().as_bytes().ends_with(b"X"));
    }

    proptest! {
        #[test]
        fn no_contents_make_it_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 64..300),
            wide in 0_u8..2,
            start in prop::sample::select(vec![b"#!".as_slice(), b"\x7fELF"]),
        ) {
            bytes[..start.len()].copy_from_slice(start);
            if start.len() == 4 {
                bytes[4] = 1 + wide;
                bytes[5] = 1;
                bytes[18..20].copy_from_slice(&NATIVE[0].to_le_bytes());
            }
            let _may_be_anything = missing_of(&bytes);
        }
    }
}
