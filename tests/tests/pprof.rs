//! The pprof: what stands in it agrees with the files and with the other outputs, and Go's tool
//! reads it.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use spanflame_tests::system::output;
use spanflame_tests::{lab, parse};

/// The build id that `readelf -n` finds.
fn build_id(file: &Path) -> String {
    let notes = output(Command::new("readelf").arg("-n").arg(file));
    let id = notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: "));
    id.unwrap().trim().to_owned()
}

/// The C library that a program of here uses.
fn libc(program: &Path) -> std::path::PathBuf {
    let libraries = output(Command::new("ldd").arg(program));
    let line = libraries.lines().find(|line| line.trim().starts_with("libc.so.6")).unwrap();
    line.split_whitespace().nth(2).unwrap().into()
}

#[test]
fn mappings_and_times() {
    let Some(lab) = lab() else { return };
    let nanos = |time: SystemTime| i64::try_from(time.duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
    let program = lab.workload("chain12");
    let before = nanos(SystemTime::now());
    let profile = lab.record(&["-F", "499"]).of(&program, &["3"]).profile();
    let after = nanos(SystemTime::now());
    let pprof = &profile.pprof;

    for file in [program.clone(), libc(&program)] {
        let name = file.file_name().unwrap().to_str().unwrap();
        let mapping = pprof.mapping(name).unwrap_or_else(|| panic!("no mapping of {name}"));
        assert_eq!(pprof.text(mapping.build_id), build_id(&file), "{name}");
        assert!(mapping.memory_start < mapping.memory_limit && mapping.has_functions, "{mapping:?}");
    }
    assert!(pprof.text(pprof.0.mapping[0].filename).ends_with("/chain12"), "the main program comes first");

    let message = &pprof.0;
    assert!(before <= message.time_nanos && message.time_nanos <= after);
    assert!((2_000_000_000..=after - before).contains(&message.duration_nanos), "{}", message.duration_nanos);
    assert_eq!(message.period, 1_000_000_000 / 499);
    assert_eq!(
        message.period_type.map(|kind| (pprof.text(kind.r#type), pprof.text(kind.unit))),
        Some(("cpu", "nanoseconds"))
    );
    let types: Vec<_> =
        message.sample_type.iter().map(|kind| (pprof.text(kind.r#type), pprof.text(kind.unit))).collect();
    assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
    for sample in &message.sample {
        assert_eq!(sample.value[1], sample.value[0] * message.period);
    }
}

/// Addresses are in their mappings, and where the file says the functions are.
#[test]
fn addresses() {
    let Some(lab) = lab() else { return };
    for name in ["chain12", "chain12-no-pie", "cart"] {
        let program = lab.workload(name);
        let profile = lab.record(&["-F", "499"]).of(&program, &[if name == "cart" { "2000" } else { "2" }]).profile();
        let pprof = &profile.pprof;
        for location in pprof.0.location.iter().filter(|location| location.mapping_id != 0) {
            let mapping = pprof.0.mapping.iter().find(|mapping| mapping.id == location.mapping_id).unwrap();
            let range = mapping.memory_start..mapping.memory_limit;
            assert!(range.contains(&location.address), "{location:?} {mapping:?}");
        }
        // Offset in the file of a hot address, by pprof's own rule; it must be in a function that has
        // this name in the file, by the program headers that readelf shows.
        let (function, mangled) = if name == "cart" { ("cart::serve", "serve") } else { ("leaf", "leaf") };
        let id = pprof.function(function).unwrap_or_else(|| panic!("no {function} in {name}")).id;
        let location = pprof.0.location.iter().find(|location| location.line.iter().any(|line| line.function_id == id));
        let location = location.unwrap();
        let mapping = pprof.0.mapping.iter().find(|mapping| mapping.id == location.mapping_id).unwrap();
        let offset = location.address - mapping.memory_start + mapping.file_offset;
        let found = function_at_offset(&std::fs::read(&program).unwrap(), offset);
        assert!(found.as_deref().is_some_and(|found| found.contains(mangled)), "{name}: {offset:#x} is in {found:?}");
    }
}

/// Each of many processes has a program at another address; the profile has it once.
#[test]
fn processes_share_mappings_and_locations() {
    let Some(lab) = lab() else { return };
    let script = format!("for life in $(seq 30); do {} 30; done", lab.workload("brief").display());
    let profile = lab.record(&["-F", "499"]).of(Path::new("/bin/sh"), &["-c", &script]).profile();
    let message = &profile.pprof.0;
    let labels = message.sample.iter().map(|sample| profile.pprof.labels(sample));
    let pids: BTreeSet<String> = labels.filter(|all| all["comm"] == "brief").map(|all| all["pid"].clone()).collect();
    assert!(pids.len() >= 20, "{pids:?}");
    let mappings = message.mapping.iter().map(|mapping| (profile.pprof.text(mapping.filename), mapping.file_offset));
    assert_eq!(mappings.collect::<BTreeSet<_>>().len(), message.mapping.len(), "{:?}", message.mapping);
    let leaf = profile.pprof.function("leaf").unwrap().id;
    let leaves = message.location.iter().filter(|at| at.line.iter().any(|line| line.function_id == leaf));
    let addresses: Vec<u64> = leaves.map(|location| location.address).collect();
    assert!(addresses.len() < 40, "{} locations for some instructions: {addresses:x?}", addresses.len());
}

/// The name in the file's symbol table of the function at an offset in the file.
fn function_at_offset(bytes: &[u8], offset: u64) -> Option<String> {
    use object::read::elf::{FileHeader as _, ProgramHeader as _, Sym as _};
    use object::{Endianness, elf};
    let header = elf::FileHeader64::<Endianness>::parse(bytes).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, bytes).ok()?.iter();
    let mut loaded = segments.filter(|segment| segment.p_type(endian) == elf::PT_LOAD);
    let segment = loaded.find(|segment| {
        let start = segment.p_offset(endian);
        (start..start + segment.p_filesz(endian)).contains(&offset)
    })?;
    let address = offset - segment.p_offset(endian) + segment.p_vaddr(endian);
    let sections = header.sections(endian, bytes).ok()?;
    let symbols = sections.symbols(endian, bytes, elf::SHT_SYMTAB).ok()?;
    let symbol = symbols.iter().find(|symbol| {
        let start = symbol.st_value(endian);
        symbol.st_type() == elf::STT_FUNC && (start..start + symbol.st_size(endian)).contains(&address)
    })?;
    let name = symbol.name(endian, symbols.strings()).ok()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

#[test]
fn labels() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&["-F", "499"]).of(&lab.workload("threads"), &["1000"]).profile();
    let mut seen = BTreeSet::new();
    for sample in &profile.pprof.0.sample {
        let labels = profile.pprof.labels(sample);
        let number = |key: &str| labels[key].parse::<u32>().unwrap_or_else(|_| panic!("{key} of {labels:?}"));
        assert!(number("cpu") < 4096 && number("pid") > 0, "{labels:?}");
        assert_eq!(labels["comm"], "threads");
        let main = number("pid") == number("tid");
        assert!(!main || labels["thread"] == "threads", "{labels:?}");
        seen.insert(labels["thread"].clone());
    }
    assert!(seen.contains("mill") && seen.contains("pot"), "{seen:?}");
}

/// Names for people, and those of the file beside them.
#[test]
fn mangled_names_are_kept() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&["-F", "499"]).of(&lab.workload("shop"), &["1500"]).profile();
    let name = "shop::tax::Flat<unsigned long, 7>::apply(unsigned long) const";
    let function = profile.pprof.function(name).expect("the demangled name");
    assert_eq!(profile.pprof.text(function.system_name), "_ZNK4shop3tax4FlatImLi7EE5applyEm");
}

/// Source files and lines, for each inlined function too.
#[test]
fn source_lines() {
    let Some(lab) = lab() else { return };
    let profile = lab.record(&["-F", "499"]).of(&lab.workload("inlined"), &["2000"]).profile();
    let pprof = &profile.pprof;
    for name in ["outer", "middle", "inner"] {
        let function = pprof.function(name).unwrap_or_else(|| panic!("no {name}"));
        assert!(pprof.text(function.filename).ends_with("inlined.c"), "{name} in {}", pprof.text(function.filename));
    }
    let three =
        pprof.0.location.iter().find(|location| location.line.len() == 3).expect("three functions at an address");
    assert!(three.line.iter().all(|line| (1..60).contains(&line.line)), "{three:?}");
    assert_ne!(three.line[0].line, three.line[2].line, "each has its own line");
}

/// `go tool pprof` comes to the same figures.
#[test]
fn go_reads_it() {
    let Some(lab) = lab() else { return };
    if Command::new("go").arg("version").output().is_err() {
        println!("go is not installed: only the rest of this file looks at the pprof");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (pprof, folded) = (folder.path().join("x.pb.gz"), folder.path().join("x.folded"));
    let arguments = ["record", "-F", "499", "-o", pprof.to_str().unwrap(), "-o", folded.to_str().unwrap(), "--"];
    let mut command = Command::new(lab.program());
    let _printed = output(command.args(arguments).arg(lab.workload("chain12")).arg("2"));
    let all: u64 = parse(&std::fs::read_to_string(folded).unwrap()).iter().map(|stack| stack.samples).sum();

    let go = |mode: &str| {
        let mut command = Command::new("go");
        command.args(["tool", "pprof", mode, "-sample_index=samples", "-symbolize=none"]).arg(&pprof);
        output(command.env("HOME", folder.path()).env("GOFLAGS", "-mod=mod"))
    };
    let top = go("-top");
    assert!(top.contains(&format!("of {all} total")) || top.contains(&format!(", {all} total")), "{all} in\n{top}");
    let leaf = top.lines().find(|line| line.ends_with(" leaf")).unwrap_or_else(|| panic!("no leaf in\n{top}"));
    assert!(leaf.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 10 > all * 9, "{leaf}");
    let raw = go("-raw");
    assert!(raw.contains("PeriodType: cpu nanoseconds") && raw.contains("chain12"), "{raw}");
}
