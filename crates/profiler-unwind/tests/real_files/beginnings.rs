//! Where programs, loaders and the start files of C begin: stacks end there, and every instruction has its row.

use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{Endianness, Object, ObjectSection, ObjectSegment, ObjectSymbol};
use profiler_common::address::Svma;
use profiler_common::row::Rule;
use profiler_unwind::{Arch, build, lookup};

/// How many bytes from the entry point on end stacks, and the code there.
fn beginning(bytes: &Vec<u8>) -> (usize, Vec<u8>) {
    const MOST: u64 = 128;
    let elf = object::File::parse(bytes.as_slice()).unwrap();
    let (table, entry) = (build(bytes).unwrap(), elf.entry());
    let ended = (0..MOST).take_while(|at| lookup(&table, Svma(entry + at)) == Some(Rule::END)).count();
    let segment =
        elf.segments().find(|segment| (segment.address()..segment.address() + segment.size()).contains(&entry));
    let code =
        segment.map(|segment| segment.data().unwrap()[usize::try_from(entry - segment.address()).unwrap()..].to_vec());
    (ended, code.unwrap_or_default())
}

/// The path of the loader that a program asks for.
fn interpreter(path: &str) -> Option<String> {
    let bytes = std::fs::read(path).unwrap();
    let elf = ElfFile64::<Endianness>::parse(bytes.as_slice()).unwrap();
    let endian = elf.endian();
    let path = elf.elf_program_headers().iter().find_map(|header| header.interpreter(endian, elf.data()).ok()?)?;
    Some(String::from_utf8(path.to_vec()).unwrap())
}

/// glibc's loader leaves its beginning by `jmp *%r12`, musl's by its first call; aarch64's by a branch.
#[test]
fn loaders_begin_at_their_entry_points() {
    let own = interpreter("/proc/self/exe");
    let Some(own) = own else {
        println!("skipped: a static program has no loader");
        return;
    };
    for path in [own.as_str(), "/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"] {
        let Ok(bytes) = std::fs::read(path) else {
            println!("skipped {path}: not on this machine");
            continue;
        };
        let (ended, code) = beginning(&bytes);
        println!("{path}: {ended} bytes");
        assert!((1..=code.len()).contains(&ended), "{path}: {ended}");
        match (object::File::parse(&*bytes).unwrap().architecture(), path.contains("musl")) {
            (object::Architecture::X86_64, false) => {
                let jump = code.windows(3).position(|bytes| bytes == [0x41, 0xff, 0xe4]).unwrap();
                assert_eq!(ended, jump + 3, "{path}");
            }
            (object::Architecture::X86_64, true) => assert_eq!(code[ended - 5], 0xe8, "{path}"),
            (_, _) => assert_eq!(ended % 4, 0, "{path}"),
        }
    }
}

/// Older linkers stated the start of `.text` as the entry point of libraries, where a function is that
/// has callers.
#[test]
fn libraries_begin_nowhere() {
    let mut checked = 0;
    for folder in ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"] {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.filter(|entry| entry.file_name().to_string_lossy().contains(".so"));
        for path in names.map(|entry| entry.path()).filter(|path| path.is_file() && !path.is_symlink()) {
            let path = path.display().to_string();
            if checked < 10 && states_start_of_text(&path) {
                assert_eq!(beginning(&std::fs::read(&path).unwrap()).0, 0, "{path}");
                checked += 1;
            }
        }
    }
    if checked == 0 {
        println!("skipped: no library of a linker that stated the start of its code");
    }
}

/// Whether a file is a library that can't be run and has an entry point all the same.
fn states_start_of_text(path: &str) -> bool {
    let file = std::fs::File::open(path).unwrap();
    let cache = object::ReadCache::new(file);
    let Ok(elf) = ElfFile64::<Endianness, _>::parse(&cache) else { return false };
    let text = elf.section_by_name(".text").map(|section| section.address());
    text == Some(elf.entry()) && interpreter(path).is_none()
}

/// `_init` and `_fini` as objdump shows them: what the return address is above rsp, in words.
#[test]
fn start_files_are_unwound_at_every_instruction() {
    let mut checked = 0;
    let libraries = ["/usr/lib/x86_64-linux-gnu/libpcre2-8.so.0", "/usr/lib/x86_64-linux-gnu/libselinux.so.1"];
    for path in ["/proc/self/exe"].into_iter().chain(libraries) {
        let Ok(bytes) = std::fs::read(path) else {
            println!("skipped {path}: not on this machine");
            continue;
        };
        let table = build(&bytes).unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        for name in [".init", ".fini"] {
            let Some(section) = elf.section_by_name(name) else {
                println!("skipped {path}: no {name}");
                continue;
            };
            let code = section.data().unwrap();
            let find = |what: [u8; 4]| code.windows(4).position(|bytes| bytes == what);
            let (Some(sub_at), Some(add_at)) = (find([0x48, 0x83, 0xec, 0x08]), find([0x48, 0x83, 0xc4, 0x08])) else {
                println!("skipped {path}: its {name} is not that of glibc for x86_64");
                continue;
            };
            for at in 0..code.len() {
                let words = if (sub_at + 4..add_at + 4).contains(&at) { 2 } else { 1 };
                let found = lookup(&table, Svma(section.address() + at as u64));
                assert_eq!(found, Some(Rule::x86_64(0, 0, words)), "{path} {name} at {at}");
                checked += 1;
            }
        }
    }
    println!("{checked} addresses");
    // crti.o is linked into this program, too.
    assert!(checked > 0 || !cfg!(all(target_arch = "x86_64", target_env = "gnu")));
}

#[test]
fn no_code_of_the_start_files_is_cut() {
    const FUNCTIONS: [&str; 6] =
        ["_init", "_fini", "deregister_tm_clones", "register_tm_clones", "__do_global_dtors_aux", "frame_dummy"];
    let path = "/proc/self/exe";
    let bytes = std::fs::read(path).unwrap();
    let table = build(&bytes).unwrap();
    if table.arch != Arch::X86_64 {
        return;
    }
    let elf = object::File::parse(&*bytes).unwrap();
    let mut checked = 0;
    for symbol in elf.symbols().filter(|symbol| symbol.name().is_ok_and(|name| FUNCTIONS.contains(&name))) {
        let rule = lookup(&table, Svma(symbol.address()));
        assert_eq!(rule, Some(Rule::x86_64(0, 0, 1)), "{path}: {}", symbol.name().unwrap());
        checked += 1;
    }
    assert!(checked == 0 || checked == FUNCTIONS.len(), "{checked} of them: is the program linked by gcc?");
}
