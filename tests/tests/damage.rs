//! Damaged executables: they cost their own stacks, never those of others, and never a wrong caller.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::fs;
use std::path::Path;

use object::read::elf::{FileHeader as _, SectionHeader as _};
use object::{Endianness, elf};
use spanflame_tests::system::{children, maps, wait_for};
use spanflame_tests::{Lab, Profile, Stack, from_main, lab};

const CHAIN: [&str; 13] = ["f01", "f02", "f03", "f04", "f05", "f06", "f07", "f08", "f09", "f10", "f11", "f12", "leaf"];

type Header = elf::FileHeader64<Endianness>;

/// Bytes that look like nothing, the same in every run.
fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut x = seed;
    std::iter::repeat_with(move || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        x.to_be_bytes()[0]
    })
}

/// Where a section is in the file.
fn section(bytes: &[u8], name: &str) -> std::ops::Range<usize> {
    let header = Header::parse(bytes).unwrap();
    let endian = header.endian().unwrap();
    let sections = header.sections(endian, bytes).unwrap();
    let (_, section) = sections.section_by_name(endian, name.as_bytes()).unwrap();
    let (offset, size) = section.file_range(endian).unwrap();
    usize::try_from(offset).unwrap()..usize::try_from(offset + size).unwrap()
}

fn overwrite(bytes: &mut [u8], range: std::ops::Range<usize>, with: impl Iterator<Item = u8>) {
    bytes[range].iter_mut().zip(with).for_each(|(byte, new)| *byte = new);
}

/// Records a damaged copy of `chain12` and, beside it, a whole one.
fn record_damaged(lab: &Lab, damage: impl FnOnce(&mut Vec<u8>)) -> Profile {
    let folder = tempfile::tempdir().unwrap();
    let file = lab.copy("chain12", folder.path(), "damaged");
    let mut bytes = fs::read(&file).unwrap();
    damage(&mut bytes);
    fs::write(&file, bytes).unwrap();
    let script = format!("{} 5 & {} 5 & wait", file.display(), lab.workload("chain12").display());
    let profile = lab.record(&["-F", "499"]).of(Path::new("/bin/sh"), &["-c", &script]).profile();
    profile.check_chain("chain12", &from_main(&CHAIN), 0.995);
    profile
}

/// The program's own frames of a stack, without those that have no name.
fn named(stack: &Stack) -> Vec<&str> {
    stack.user.iter().map(String::as_str).filter(|name| *name == "main" || CHAIN.contains(name)).collect()
}

/// Every stack of the damaged program is whole, or it is cut, says so, and what it shows is the end
/// of the true chain.
fn check_no_wrong_callers(profile: &Profile) {
    let whole = from_main(&CHAIN);
    let own: Vec<_> = ["main"].iter().chain(&CHAIN).copied().collect();
    let stacks = profile.of("damaged");
    let all: u64 = stacks.iter().map(|stack| stack.samples).sum();
    let cut: u64 = stacks.iter().filter(|stack| stack.incomplete.is_some()).map(|stack| stack.samples).sum();
    println!("damaged: {all} samples, {cut} cut; {:?}", profile.quality);
    assert!(all >= 200, "{all} samples of the damaged program");
    let mut odd = 0;
    for stack in stacks {
        // Start-up code of the dynamic linker is in a file of its own.
        if stack.is(&whole) || stack.user.iter().any(|name| name.starts_with("_dl_")) {
            continue;
        }
        let in_order = own.ends_with(&named(stack)) && named(stack).len() == stack.user.len();
        if stack.incomplete.is_none() || !in_order {
            println!("odd: {stack:?}");
            odd += stack.samples;
        }
    }
    assert!(odd * 200 <= all, "{odd} of {all} stacks of the damaged program are wrong");
}

#[test]
fn noise_for_unwind_tables() {
    let Some(lab) = lab() else { return };
    for seed in [1, 2] {
        let profile = record_damaged(&lab, |bytes| {
            let range = section(bytes, ".eh_frame");
            overwrite(bytes, range, noise(seed));
        });
        check_no_wrong_callers(&profile);
        assert!(profile.figure("executable_corrupt") > 0, "{:?}", profile.quality);
        assert!(profile.pprof.comments()["note"].contains("/damaged: "), "{:?}", profile.pprof.comments());
    }
}

#[test]
fn zeros_for_unwind_tables() {
    let Some(lab) = lab() else { return };
    let profile = record_damaged(&lab, |bytes| {
        let range = section(bytes, ".eh_frame");
        overwrite(bytes, range, std::iter::repeat(0));
    });
    check_no_wrong_callers(&profile);
}

/// The first record claims to be almost as long as a record can be.
#[test]
fn record_longer_than_its_section() {
    let Some(lab) = lab() else { return };
    let profile = record_damaged(&lab, |bytes| {
        let start = section(bytes, ".eh_frame").start;
        overwrite(bytes, start..start + 4, 0xffff_ffef_u32.to_le_bytes().into_iter());
    });
    check_no_wrong_callers(&profile);
}

/// The section headers lead beyond the file: the tables can still be found by the program headers,
/// the symbols can't.
#[test]
fn section_headers_beyond_the_file() {
    /// `e_shoff` in `Elf64_Ehdr` (ELF-64 object file format, version 1.5).
    const SECTION_HEADERS_AT: usize = 0x28;
    let Some(lab) = lab() else { return };
    let profile = record_damaged(&lab, |bytes| {
        overwrite(
            bytes,
            SECTION_HEADERS_AT..SECTION_HEADERS_AT + 8,
            0x00ff_ffff_ffff_fff0_u64.to_le_bytes().into_iter(),
        );
    });
    let mut samples = 0;
    for stack in profile.of("damaged") {
        assert!(named(stack).is_empty(), "names from nowhere: {stack:?}");
        samples += stack.samples;
    }
    assert!(samples >= 200, "{samples} samples of the damaged program");
    assert!(profile.pprof.comments()["note"].contains("/damaged "), "{:?}", profile.pprof.comments());
    assert!(
        profile.figure("frames_without_symbols") + profile.figure("stacks_incomplete") >= samples,
        "{:?}",
        profile.quality
    );
}

/// Names that are noise: whatever comes out, it is recorded and the others are whole.
#[test]
fn noise_for_symbols() {
    let Some(lab) = lab() else { return };
    let profile = record_damaged(&lab, |bytes| {
        let range = section(bytes, ".symtab");
        overwrite(bytes, range, noise(3));
        let range = section(bytes, ".strtab");
        overwrite(bytes, range, noise(4));
    });
    assert!(profile.of("damaged").iter().map(|stack| stack.samples).sum::<u64>() >= 200);
}

/// The file of a running program is cut to nothing once it has been read into memory.
#[test]
fn executable_cut_while_it_runs() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let library = lab.copy("libplugin.so", folder.path(), "libcut.so");
    let arguments = ["4000", library.to_str().unwrap()];
    let running = lab.record(&["-F", "499"]).of(&lab.workload("host"), &arguments);
    running.wait_until_sampling();
    // The program itself may die of it (SIGBUS), the recording may not.
    let mapped = || children(running.pid()).into_iter().any(|pid| maps(pid, "libcut.so"));
    wait_for("the library to be loaded", mapped);
    fs::File::options().write(true).open(&library).unwrap().set_len(0).unwrap();
    let ended = running.end();
    assert!([Some(0), Some(128 + 7)].contains(&ended.status.code()), "{ended:?}");
    let profile = ended.profile();
    let before = from_main(&["host_leaf"]);
    assert!(profile.share("host", &[&before]).right > 100, "what was before is whole");
}
