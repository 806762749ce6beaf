//! Names, files and lines from all the places where toolchains and distributions leave them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use common::{Scratch, open, run, symbol, worker};
use profiler_agent::debug_files::Place;
use profiler_agent::worker::{FileKey, Frame, Reply, Role, Worker};
use profiler_common::address::Svma;
use profiler_common::row::Rule;

/// `hidden` is no function that other files see, and `inner` is inlined into it.
const PROGRAM: &str = r"
static volatile int sum;
static inline __attribute__((always_inline)) int inner(int n) { sum += n; return sum; }
static __attribute__((noinline)) int hidden(int n) { return inner(n) * 3; }
int main(int argc, char **argv) { (void)argv; return hidden(argc); }
";

/// A program and where `hidden` is in it.
struct Program {
    scratch: Scratch,
    file: PathBuf,
    hidden: Svma,
}

impl Program {
    fn new(name: &str, arguments: &[&str]) -> Self {
        Self::of(name, PROGRAM, arguments)
    }

    fn of(name: &str, source: &str, arguments: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let file = scratch.compile("program.c", source, &[&["-O2"], arguments].concat());
        let (_, hidden) = symbol(&file, &[], |name| name == "hidden");
        Self { scratch, file, hidden }
    }

    fn objcopy(&self, arguments: &[&str]) {
        run(Command::new("objcopy").args(arguments).arg(&self.file));
    }

    /// Moves what a stripped program does not need to another file beside it.
    fn separate(&self, debug: &str) -> PathBuf {
        let debug = self.scratch.0.join(debug);
        fs::create_dir_all(debug.parent().unwrap()).unwrap();
        run(Command::new("objcopy").arg("--only-keep-debug").args([&self.file, &debug]));
        run(Command::new("strip").arg(&self.file));
        debug
    }

    fn place(&self) -> Place {
        Place { path: self.file.to_str().unwrap().to_owned(), root: None }
    }

    /// The same, as a container has it whose root directory is the scratch folder.
    fn contained(&self) -> Place {
        let name = self.file.file_name().unwrap().to_str().unwrap();
        Place { path: format!("/{name}"), root: Some(open(&self.scratch.0)) }
    }

    async fn found(&self, place: Place) -> Vec<Frame> {
        found(&mut worker(Role::Symbols), &open(&self.file), place, self.hidden).await
    }

    /// `hidden` and what is inlined into it, with lines.
    async fn is_known(&self, place: Place) {
        assert_known(&self.found(place).await);
    }

    async fn is_unknown(&self, place: Place) {
        let found = self.found(place).await;
        assert!(found.iter().all(|frame| frame.name.is_empty()), "{found:?}");
    }
}

fn assert_known(found: &[Frame]) {
    let seen: Vec<_> = found.iter().map(|frame| (frame.name.as_str(), frame.line, frame.inlined)).collect();
    assert!(matches!(seen[..], [("inner", 3, true), ("hidden", 4, false)]), "{found:?}");
    assert!(found.iter().all(|frame| frame.file.ends_with("/program.c")), "{found:?}");
}

async fn found(worker: &mut Worker, file: &Arc<OwnedFd>, place: Place, address: Svma) -> Vec<Frame> {
    assert!(worker.request_symbols(FileKey(1), file, place, &[address]));
    let Reply::Symbols { result: Ok(mut answer), .. } = worker.next_reply().await else { panic!("no symbols") };
    assert_eq!(worker.restarts(), 0);
    answer.pop().unwrap().1
}

#[tokio::test]
async fn compressed_debug_sections() {
    for how in ["zlib", "zlib-gnu", "zstd"] {
        let program = Program::new(how, &["-g"]);
        program.objcopy(&[&format!("--compress-debug-sections={how}")]);
        let sections = run(Command::new("readelf").arg("-SW").arg(&program.file));
        let is_compressed = if how == "zlib-gnu" { ".zdebug_info" } else { "MSC" };
        assert!(sections.contains(is_compressed) || sections.contains("  C  "), "{how}: {sections}");
        program.is_known(program.place()).await;
    }
}

#[tokio::test]
async fn debug_links_lead_to_the_places_that_debuggers_know() {
    for (number, place) in
        ["program.debug", ".debug/program.debug", "usr/lib/debug/program.debug"].into_iter().enumerate()
    {
        let program = Program::new(&format!("link-{number}"), &["-g", "-Wl,--build-id=none"]);
        let debug = program.separate(place);
        program.objcopy(&[&format!("--add-gnu-debuglink={}", debug.display())]);
        program.is_known(program.contained()).await;
        if !place.starts_with("usr") {
            program.is_known(program.place()).await;
        }
        // Another file of that name: its names are not this program's.
        let mut bytes = fs::read(&debug).unwrap();
        bytes.push(0);
        fs::write(&debug, bytes).unwrap();
        program.is_unknown(program.contained()).await;
        program.is_unknown(program.place()).await;
    }
}

#[tokio::test]
async fn a_debug_file_has_the_build_id_of_its_program() {
    let id = "0123456789abcdef";
    let program = Program::new("build-id", &["-g", &format!("-Wl,--build-id=0x{id}")]);
    let debug = program.separate("usr/lib/debug/.build-id/01/23456789abcdef.debug");
    program.is_known(program.contained()).await;
    program.is_unknown(program.place()).await;
    let other = Program::new("build-id-other", &["-g", "-Wl,--build-id=0xffff"]);
    fs::copy(&other.file, &debug).unwrap();
    program.is_unknown(program.contained()).await;
}

/// Whatever has the name: only a regular file is opened, and none beyond a link that the program's owner made.
#[tokio::test]
async fn names_of_debug_files_do_no_harm() {
    let program = Program::new("harm", &["-g", "-Wl,--build-id=none"]);
    let debug = program.separate("program.debug");
    program.objcopy(&[&format!("--add-gnu-debuglink={}", debug.display())]);
    let aside = program.scratch.0.join("aside");
    fs::rename(&debug, &aside).unwrap();
    symlink(&aside, &debug).unwrap();
    program.is_unknown(program.place()).await;
    fs::remove_file(&debug).unwrap();
    run(Command::new("mkfifo").arg(&debug));
    program.is_unknown(program.place()).await;
    fs::remove_file(&debug).unwrap();
    fs::create_dir(&debug).unwrap();
    program.is_unknown(program.place()).await;
    fs::remove_dir(&debug).unwrap();
    fs::rename(&aside, &debug).unwrap();
    program.is_known(program.place()).await;
}

/// As Fedora strips: the symbols that are not needed at run time stay, compressed, in a section.
#[tokio::test]
async fn names_of_stripped_programs_in_a_compressed_section() {
    let program = Program::new("embedded", &["-g", "-rdynamic"]);
    let names = program.scratch.0.join("names");
    run(Command::new("objcopy").args(["-S", "--keep-symbol=hidden"]).args([&program.file, &names]));
    run(Command::new("xz").arg(&names));
    run(Command::new("strip").arg(&program.file));
    let main = symbol(&program.file, &["-D"], |name| name == "main").1;
    program.is_unknown(program.place()).await;
    program.objcopy(&[&format!("--add-section=.gnu_debugdata={}.xz", names.display())]);
    assert_eq!(program.found(program.place()).await[0].name, "hidden");
    let mut worker = worker(Role::Symbols);
    let file = open(&program.file);
    assert_eq!(found(&mut worker, &file, program.place(), main).await[0].name, "main", "by .dynsym");
    // Damaged, it costs those names and nothing else.
    let mut damaged = fs::read(names.with_extension("xz")).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 8].fill(0xa5);
    fs::write(&names, damaged).unwrap();
    program.objcopy(&[&format!("--update-section=.gnu_debugdata={}", names.display())]);
    program.is_unknown(program.place()).await;
    assert_eq!(found(&mut worker, &open(&program.file), program.place(), main).await[0].name, "main");
}

/// dwz moves what two files have in common to a third one, as Debian does for the files of a package.
#[tokio::test]
async fn debug_information_shared_by_dwz() {
    let program = Program::new("dwz", &["-g"]);
    let twin = program.scratch.compile("twin.c", PROGRAM, &["-O2", "-g"]);
    let shared = program.scratch.0.join("shared");
    run(Command::new("dwz").arg("-m").arg(&shared).args(["-M", "shared"]).args([&program.file, &twin]));
    let sections = run(Command::new("readelf").args(["-SW"]).arg(&program.file));
    assert!(sections.contains(".gnu_debugaltlink"), "{sections}");
    program.is_known(program.place()).await;
    // Without it the names that were moved there are lost, or come from the symbol table.
    let found = {
        fs::rename(&shared, program.scratch.0.join("elsewhere")).unwrap();
        program.found(program.place()).await
    };
    assert_eq!(found.last().unwrap().name, "hidden", "{found:?}");
    // Where distributions put it.
    let folder = program.scratch.0.join("usr/lib/debug/.dwz");
    fs::create_dir_all(&folder).unwrap();
    fs::rename(program.scratch.0.join("elsewhere"), folder.join("shared")).unwrap();
    let link = program.scratch.0.join("link");
    let id = run(Command::new("readelf").arg("-n").arg(folder.join("shared")));
    let id = id.lines().find_map(|line| line.trim().strip_prefix("Build ID: ")).unwrap().to_owned();
    let id =
        id.as_bytes().chunks(2).map(|digits| u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap());
    fs::write(&link, [b"../../.dwz/shared\0".as_slice(), &id.collect::<Vec<_>>()].concat()).unwrap();
    program.objcopy(&[&format!("--update-section=.gnu_debugaltlink={}", link.display())]);
    program.is_known(program.contained()).await;
}

/// A library without a table, as musl is built: what its compiler knew of frames is in its debug file only. With the
/// right one the table is the one that the unstripped library gives; with another one, or none, it is not.
#[tokio::test]
async fn frames_are_told_by_a_debug_file() {
    let bare = ["-g", "-shared", "-nostdlib", "-fPIC", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"];
    for (name, compression, build_id, place) in [
        ("frames-id", "zlib", "-Wl,--build-id=0x0123456789abcdef", "usr/lib/debug/.build-id/01/23456789abcdef.debug"),
        ("frames-plain", "none", "-Wl,--build-id=0x0123456789abcdef", "usr/lib/debug/program.debug"),
        ("frames-link", "zstd", "-Wl,--build-id=none", "usr/lib/debug/program.debug"),
    ] {
        // So many that compressing makes a section smaller.
        let more = (0..200).map(|index| format!("int more_{index}(int n) {{ return hidden(n) + {index}; }}\n"));
        // What no look at the instructions can follow.
        let odd = r#"__asm__ volatile("sub %0, %%rsp\n add %0, %%rsp" : : "r"(0L)); return inner"#;
        let source = PROGRAM.replace("return inner", odd) + &more.collect::<String>();
        let program = Program::of(name, &source, &[&bare[..], &[build_id]].concat());
        program.objcopy(&[&format!("--compress-debug-sections={compression}")]);
        let mut worker = worker(Role::Tables);
        let (whole, _kept) = rules(&mut worker, &program).await;
        assert!(whole.iter().all(|rule| !rule.by_frame_pointer()), "{whole:?}");
        let debug = program.separate(place);
        if !place.contains("build-id") {
            program.objcopy(&[&format!("--add-gnu-debuglink={}", debug.display())]);
        }
        let sections = run(Command::new("readelf").arg("-SW").arg(&debug));
        let section = sections.lines().find(|line| line.contains(".debug_frame")).unwrap();
        assert_eq!(section.contains(" C "), compression != "none", "{section}");
        assert_eq!(rules(&mut worker, &program).await, (whole, false), "{name}");
        let mut describing = self::worker(Role::Describe);
        assert!(describing.request_description(FileKey(1), open(&program.file), program.contained()));
        let Reply::Description { result: Ok(described), .. } = describing.next_reply().await else { panic!() };
        assert_eq!(described.frames_file, format!("/{place}"));
        // Another one.
        let other = Program::new(&format!("{name}-other"), &[&bare[..], &["-Wl,--build-id=0xffff"]].concat());
        fs::copy(&other.file, &debug).unwrap();
        let (without, is_kept) = rules(&mut worker, &program).await;
        assert!(!is_kept, "the right one may come later");
        assert!(without.iter().any(|rule| rule.by_frame_pointer()), "{name}: {without:?}");
        assert_eq!(worker.restarts(), 0);
    }
}

/// How a function of a program is unwound, and whether that may be kept on disk.
async fn rules(worker: &mut Worker, program: &Program) -> (Vec<Rule>, bool) {
    assert!(worker.request_table(FileKey(1), open(&program.file), program.contained()));
    let Reply::Table { result: Ok(table), source, .. } = worker.next_reply().await else { panic!("no table") };
    let rules = (0..8).map(|offset| profiler_unwind::lookup(&table, Svma(program.hidden.0 + offset)).unwrap());
    (rules.collect(), source.is_some())
}

/// The first file with this extension that the compiler left beside a program.
fn left_beside(program: &Program, extension: &str) -> PathBuf {
    let mut files = fs::read_dir(&program.scratch.0).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.extension() == Some(extension.as_ref())).unwrap()
}

#[tokio::test]
async fn split_dwarf_beside_object_files() {
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        let program = Program::new(&format!("split{version}"), &["-g", "-gsplit-dwarf", version]);
        let part = left_beside(&program, "dwo");
        program.is_known(program.place()).await;
        assert_eq!(missing(&program).await, (0, String::new()));
        // One of another compilation: it has another id.
        let other = Program::new(&format!("split-other{version}"), &["-g", "-gsplit-dwarf", version, "-O1"]);
        fs::copy(left_beside(&other, "dwo"), &part).unwrap();
        let found = program.found(program.place()).await;
        assert_eq!((found.len(), found[0].name.as_str()), (1, "hidden"), "by the symbol table: {found:?}");
        assert_eq!(missing(&program).await, (1, part.file_name().unwrap().to_str().unwrap().to_owned()));
    }
}

/// How many parts of split DWARF are missing, and the name of the first one.
async fn missing(program: &Program) -> (u64, String) {
    let mut worker = worker(Role::Describe);
    assert!(worker.request_description(FileKey(1), open(&program.file), program.place()));
    let Reply::Description { result: Ok(found), .. } = worker.next_reply().await else { panic!("no description") };
    (found.missing_parts, found.missing_part.rsplit('/').next().unwrap().to_owned())
}

#[tokio::test]
async fn split_dwarf_in_a_package() {
    // The dwp of binutils 2.40 crashes on DWARF 5.
    let program = Program::new("package", &["-g", "-gsplit-dwarf", "-gdwarf-4"]);
    let package = program.scratch.0.join("program.elf.dwp");
    run(Command::new("dwp").arg("-e").arg(&program.file).arg("-o").arg(&package));
    fs::remove_file(left_beside(&program, "dwo")).unwrap();
    program.is_known(program.place()).await;
    assert_eq!(missing(&program).await.0, 0);
    fs::remove_file(package).unwrap();
    assert_eq!(missing(&program).await.0, 1);
    assert_eq!(program.found(program.place()).await.len(), 1);
}
