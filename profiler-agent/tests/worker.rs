//! The worker with real children and real files: what they answer, what they may do, and what a bad
//! file or a lost child costs.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Scratch, open, run, symbol, worker};
use profiler_agent::debug_files::Place;
use profiler_agent::worker::{
    Description, FileError, FileKey, Frame, GeneratedNames, MAX_ADDRESSES, MAX_REPLY_BYTES, MapKey, Meaning,
    QUEUE_REQUESTS, Question, Reply, Role, Worker, WorkerFailure,
};
use profiler_common::address::{MonotonicNs, Svma, VirtualAddress};
use rustix::process::{Pid, Signal};

const PROGRAM: &str = r#"
static int sum;
static inline __attribute__((always_inline)) void inner(int n) {
    sum += n;
    __asm__ volatile(".globl spot\nspot: nop");
}
__attribute__((noinline)) int outer(int n) {
    inner(n);
    return sum;
}
int main(int argc, char **argv) { (void)argv; return outer(argc); }
"#;

const CPP_PROGRAM: &str = r"
namespace space { struct Thing { __attribute__((noinline)) int twice(int n) { return n * 2 + seed; } int seed; }; }
int main(int argc, char **) { space::Thing thing{argc}; return thing.twice(argc); }
";

async fn symbols(worker: &mut Worker, path: &Path, addresses: &[Svma]) -> Result<Vec<(Svma, Vec<Frame>)>, FileError> {
    assert!(worker.request_symbols(FileKey(7), &open(path), Place::default(), addresses));
    symbols_reply(worker, FileKey(7)).await
}

async fn symbols_reply(worker: &mut Worker, expected: FileKey) -> Result<Vec<(Svma, Vec<Frame>)>, FileError> {
    match worker.next_reply().await {
        Reply::Symbols { key, result, .. } if key == expected => result,
        other => panic!("{other:?}"),
    }
}

/// The functions at one address of a file.
async fn frames(path: &Path, address: Svma) -> Vec<Frame> {
    let answer = symbols(&mut worker(Role::Symbols), path, &[address]).await.unwrap();
    let [(answered, frames)] = answer.try_into().unwrap();
    assert_eq!(answered, address);
    frames
}

async fn table(worker: &mut Worker, file: Arc<OwnedFd>) -> Result<profiler_unwind::UnwindTable, FileError> {
    assert!(worker.request_table(FileKey(3), file, Place::default()));
    match worker.next_reply().await {
        Reply::Table { key: FileKey(3), result, .. } => result,
        other => panic!("{other:?}"),
    }
}

/// The system's C library.
fn libc_path() -> PathBuf {
    run(Command::new("gcc").arg("-print-file-name=libc.so.6")).trim_end().into()
}

fn signal(worker: &Worker, signal: Signal) -> Pid {
    let pid = Pid::from_raw(worker.child_id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
    pid
}

#[tokio::test]
async fn inlined_functions_come_innermost_first_with_their_lines() {
    let scratch = Scratch::new("inline");
    let file = scratch.compile("inline.c", PROGRAM, &["-O2", "-g"]);
    let found = frames(&file, symbol(&file, &[], |name| name == "spot").1).await;
    let expected = [("inner", 5, true), ("outer", 8, false)];
    let seen: Vec<_> = found.iter().map(|frame| (frame.name.as_str(), frame.line, frame.inlined)).collect();
    assert_eq!(seen, expected, "{found:?}");
    assert!(found.iter().all(|frame| Path::new(&frame.file) == scratch.0.join("inline.c")), "{found:?}");
}

#[tokio::test]
async fn cpp_and_rust_names_come_in_both_forms() {
    let scratch = Scratch::new("names");
    let file = scratch.compile("names.cc", CPP_PROGRAM, &["-O1", "-g0"]);
    let (mangled, address) = symbol(&file, &[], |name| name.contains("twice"));
    let found = frames(&file, address).await;
    assert_eq!(found[0].name, "space::Thing::twice(int)");
    assert_eq!(found[0].system_name, mangled);
    assert_eq!((found[0].file.as_str(), found[0].line), ("", 0), "there is no DWARF");

    let file = std::env::current_exe().unwrap();
    let (mangled, address) = symbol(&file, &[], |name| name.contains("symbol_to_find"));
    assert_eq!(symbol_to_find(2), 6);
    let found = frames(&file, address).await;
    assert_eq!(found.last().unwrap().name, "worker::symbol_to_find");
    assert_eq!(found.last().unwrap().system_name, mangled);
    assert!(found.last().unwrap().file.ends_with("tests/worker.rs"));
}

#[inline(never)]
fn symbol_to_find(n: u32) -> u32 {
    std::hint::black_box(n) * 3
}

/// Hand-written assembly: a label inside a function, two names for it, and code that does not say how long it is.
const ASSEMBLY: &str = r#"
__asm__(".globl __plain, plain, label, endless, _endless\n"
        ".type __plain, @function\n .type plain, @function\n"
        "__plain: plain: nop\n nop\n"
        "label: nop\n nop\n"
        ".size __plain, . - __plain\n .size plain, . - plain\n"
        "_endless: endless: nop\n nop\n .fill 5000, 1, 0x90");
"#;

#[tokio::test]
async fn code_is_in_the_function_that_holds_it_under_its_plainest_name() {
    let scratch = Scratch::new("plain");
    let file = scratch.compile("plain.c", ASSEMBLY, &["-O1", "-shared", "-nostdlib"]);
    let at = |wanted: &str| symbol(&file, &[], |name| name == wanted).1.0;
    let (plain, label, endless) = (at("plain"), at("label"), at("endless"));
    let asked = [plain, label, label + 1, endless, endless + 1, endless + 4095, endless + 4096].map(Svma);
    let mut worker = worker(Role::Symbols);
    for expected in [
        ["plain", "plain", "plain", "endless", "endless", "endless", ""],
        // Stripped: in `.dynsym`, what comes next can be something else.
        ["plain", "plain", "", "endless", "", "", ""],
    ] {
        let answer = symbols(&mut worker, &file, &asked).await.unwrap();
        let names: Vec<_> = answer.iter().map(|(_, frames)| frames.last().map_or("", |frame| &frame.name)).collect();
        assert_eq!(names, expected);
        run(Command::new("strip").arg(&file));
    }
}

/// As in the C library: the name in the debug information is one that only its makers know.
#[tokio::test]
async fn a_function_with_debug_information_has_the_name_that_users_call() {
    const LIBRARY: &str = "
        __attribute__((noinline)) int __GI___pick(int n) { return n * 3; }
        extern int pick(int) __attribute__((alias(\"__GI___pick\")));
        __attribute__((noinline)) int kept(int n) { return n * 5; }
        extern int _kept(int) __attribute__((alias(\"kept\")));
    ";
    let scratch = Scratch::new("users");
    let file = scratch.compile("users.c", LIBRARY, &["-O1", "-g", "-shared", "-nostdlib", "-fPIC"]);
    let asked = ["pick", "kept"].map(|name| symbol(&file, &[], |known| known == name).1);
    let answer = symbols(&mut worker(Role::Symbols), &file, &asked).await.unwrap();
    let seen: Vec<_> = answer.iter().map(|(_, frames)| (frames[0].name.as_str(), frames[0].line)).collect();
    assert_eq!(seen, [("pick", 2), ("kept", 4)]);
}

#[tokio::test]
async fn a_stripped_library_is_known_by_its_dynamic_symbols() {
    let libc = libc_path();
    let (_, malloc) = symbol(&libc, &["-D"], |name| name.split('@').next() == Some("malloc"));
    let mut worker = worker(Role::Symbols);
    let answer = symbols(&mut worker, &libc, &[Svma(malloc.0 + 1), Svma(1), Svma(u64::MAX), malloc]).await.unwrap();
    assert!(answer[0].1.last().unwrap().name.contains("malloc"), "{answer:?}");
    assert_eq!((&answer[1].1, &answer[2].1), (&vec![], &vec![]), "nothing is there");
    assert_eq!(answer[3].1.last().unwrap().name, answer[0].1.last().unwrap().name);
}

#[tokio::test]
async fn a_table_is_the_one_that_the_library_builds() {
    let mut worker = worker(Role::Tables);
    for path in [libc_path(), std::env::current_exe().unwrap()] {
        let expected = profiler_unwind::build(&fs::read(&path).unwrap()).unwrap();
        assert!(!expected.parts.is_empty());
        assert_eq!(table(&mut worker, open(&path)).await.unwrap(), expected);
    }
    assert_eq!(worker.restarts(), 0);
}

#[tokio::test]
async fn files_that_are_none_cost_an_error_and_nothing_more() {
    let scratch = Scratch::new("bad");
    let good = scratch.compile("good.c", PROGRAM, &["-O2", "-g"]);
    let bytes = fs::read(&good).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = scratch.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let empty = write("empty", b"");
    let text = write("text", b"#!/bin/sh\n");
    let cut = write("cut", &bytes[..bytes.len() / 2]);
    let stub = write("stub", &bytes[..80]);
    let garbage = write("garbage", &[&bytes[..64], &[0xff; 4096]].concat());
    let mut symbolizer = worker(Role::Symbols);
    let mut tables = worker(Role::Tables);
    for (path, expected) in [(&empty, FileError::NotElf), (&text, FileError::NotElf)] {
        assert_eq!(symbols(&mut symbolizer, path, &[Svma(0)]).await, Err(expected.clone()));
        assert_eq!(table(&mut tables, open(path)).await, Err(expected));
    }
    let unreadable = FileError::Unreadable("not a regular file".to_owned());
    assert_eq!(symbols(&mut symbolizer, &scratch.0, &[Svma(0)]).await, Err(unreadable.clone()));
    assert_eq!(table(&mut tables, open(&scratch.0)).await, Err(unreadable.clone()));
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    assert_eq!(table(&mut tables, Arc::new(pipe)).await, Err(unreadable));
    for path in [&cut, &garbage] {
        let answer = symbols(&mut symbolizer, path, &[Svma(0x1000)]).await;
        assert!(matches!(answer, Err(FileError::Corrupt(_))), "{}: {answer:?}", path.display());
    }
    let answer = table(&mut tables, open(&stub)).await;
    assert!(matches!(answer, Err(FileError::Corrupt(_))), "{answer:?}");
    assert!(symbols(&mut symbolizer, &good, &[Svma(0x1000)]).await.is_ok());
    assert!(table(&mut tables, open(&good)).await.is_ok());
    assert_eq!((symbolizer.restarts(), tables.restarts()), (0, 0));
}

/// The file is rewritten under one path and descriptor number: what was parsed before must not show.
#[tokio::test]
async fn nothing_of_an_old_file_is_left() {
    let scratch = Scratch::new("stale");
    let mut worker = worker(Role::Symbols);
    for name in ["first", "second", "third"] {
        let source = format!("int {name}(void) {{ return 1; }}\nint main(void) {{ return {name}(); }}");
        let file = scratch.compile("same.c", &source, &["-O0"]);
        let (_, address) = symbol(&file, &[], |symbol| symbol == name);
        let answer = symbols(&mut worker, &file, &[address]).await.unwrap();
        assert_eq!(answer[0].1[0].name, name);
    }
    let files = (0..40).map(|index| {
        let name = format!("function_{index}");
        let file = scratch.compile(&format!("{index}.c"), &format!("int {name}(void) {{ return 1; }}"), &["-shared"]);
        let (_, address) = symbol(&file, &[], |symbol| symbol == name);
        (name, file, address)
    });
    let files: Vec<_> = files.collect();
    for (name, file, address) in files.iter().chain(files.iter().rev()) {
        let answer = symbols(&mut worker, file, &[*address]).await.unwrap();
        assert_eq!(&answer[0].1[0].name, name);
    }
    let descriptors = fs::read_dir(format!("/proc/{}/fd", worker.child_id().unwrap())).unwrap().count();
    assert!(descriptors <= 40, "{descriptors} descriptors for 43 files");
}

/// A debug link names a pipe beside the program: who opens it hangs.
#[tokio::test]
async fn links_in_files_are_not_followed() {
    let scratch = Scratch::new("link");
    let file = scratch.compile("linked.c", PROGRAM, &["-O2"]);
    let linked = scratch.0.join("linked.debug");
    fs::copy(&file, &linked).unwrap();
    run(Command::new("objcopy").arg("--add-gnu-debuglink").arg(&linked).arg(&file));
    fs::remove_file(&linked).unwrap();
    run(Command::new("mkfifo").arg(&linked));
    let (_, outer) = symbol(&file, &[], |name| name == "outer");
    let found = tokio::time::timeout(Duration::from_secs(20), frames(&file, outer)).await.unwrap();
    assert_eq!(found[0].name, "outer");
}

#[tokio::test]
async fn a_lost_child_costs_one_request() {
    let scratch = Scratch::new("lost");
    let file = scratch.compile("lost.c", PROGRAM, &["-O2", "-g"]);
    let (_, outer) = symbol(&file, &[], |name| name == "outer");
    let mut worker = worker(Role::Symbols);
    signal(&worker, Signal::STOP);
    for key in 0..4 {
        assert!(worker.request_symbols(FileKey(key), &open(&file), Place::default(), &[outer]));
    }
    // Cancelled with the request at the child, which can't answer.
    assert!(tokio::time::timeout(Duration::from_millis(200), worker.next_reply()).await.is_err());
    signal(&worker, Signal::KILL);
    let crashed = symbols_reply(&mut worker, FileKey(0)).await;
    assert_eq!(crashed, Err(FileError::Worker(WorkerFailure::Crashed("signal: 9 (SIGKILL)".to_owned()))));
    assert_eq!(symbols_reply(&mut worker, FileKey(1)).await.unwrap()[0].1[1].name, "outer");
    assert_eq!((worker.restarts(), worker.pending()), (1, 2));

    // Killed with nothing to do: no request pays for it.
    let pid = signal(&worker, Signal::KILL);
    gone(pid);
    assert!(symbols_reply(&mut worker, FileKey(2)).await.is_ok());
    assert_eq!(worker.restarts(), 2);

    // A child that does not answer in time; the clock runs ahead once nothing else can happen.
    signal(&worker, Signal::STOP);
    assert!(tokio::time::timeout(Duration::from_millis(200), worker.next_reply()).await.is_err());
    assert!(worker.request_symbols(FileKey(4), &open(&file), Place::default(), &[outer]));
    tokio::time::pause();
    let late = symbols_reply(&mut worker, FileKey(3)).await;
    assert_eq!(late, Err(FileError::Worker(WorkerFailure::TimedOut(Role::Symbols.time_limit()))));
    tokio::time::resume();
    assert!(symbols_reply(&mut worker, FileKey(4)).await.is_ok());
    assert_eq!((worker.restarts(), worker.pending()), (3, 0));
}

#[tokio::test]
async fn a_child_that_uses_too_much_cpu_time_costs_that_file() {
    let mut worker = worker(Role::Tables);
    assert!(table(&mut worker, open(libc_path())).await.is_ok());
    signal(&worker, Signal::STOP);
    assert!(worker.request_table(FileKey(7), open(libc_path()), Place::default()));
    assert!(tokio::time::timeout(Duration::from_millis(200), worker.next_reply()).await.is_err());
    // What the kernel sends; it is there before the child can go on.
    signal(&worker, Signal::XCPU);
    signal(&worker, Signal::CONT);
    let result = Err(FileError::Worker(WorkerFailure::OutOfCpuTime(Role::Tables.cpu_limit())));
    let Reply::Table { key, result: replied, .. } = worker.next_reply().await else { panic!("no table") };
    assert_eq!((key, replied), (FileKey(7), result));
    assert_eq!(worker.restarts(), 1);
    assert!(table(&mut worker, open(libc_path())).await.is_ok());
}

/// The types of sections with symbols, `SHT_SYMTAB` and `SHT_DYNSYM`.
const SYMTAB: u8 = 2;
const DYNSYM: u8 = 11;

/// Gives an ELF file a symbol table of `entries` empty entries, 24 bytes each, which take no disk
/// space. To read them takes a while, and the symbolizer keeps 8 bytes for each.
fn grow_symbol_table(path: &Path, kind: u8, entries: u64) {
    let mut bytes = fs::read(path).unwrap();
    let number = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    // e_shoff, e_shnum; sh_type, sh_offset and sh_size are at 4, 24 and 32.
    let (headers, count) = (number(&bytes, 0x28) as usize, usize::from(bytes[0x3c]));
    let header = (0..count).map(|index| headers + index * 64).find(|&header| bytes[header + 4] == kind).unwrap();
    let (offset, size) = (bytes.len().next_multiple_of(4096) as u64, entries * 24);
    bytes[header + 24..header + 32].copy_from_slice(&offset.to_le_bytes());
    bytes[header + 32..header + 40].copy_from_slice(&size.to_le_bytes());
    fs::write(path, bytes).unwrap();
    File::options().write(true).open(path).unwrap().set_len(offset + size).unwrap();
}

/// A file that shrinks while it is mapped: SIGBUS for whoever reads on. The child is stopped for that
/// when it has read the first MiB.
#[tokio::test]
async fn a_file_truncated_while_it_is_read_costs_that_file() {
    let scratch = Scratch::new("sigbus");
    let good = scratch.compile("good.c", PROGRAM, &["-O2", "-g"]);
    let victim = scratch.compile("victim.c", PROGRAM, &["-O2"]);
    grow_symbol_table(&victim, SYMTAB, 16 << 20);
    let mut worker = worker(Role::Symbols);
    symbols(&mut worker, &good, &[Svma(0x1000)]).await.unwrap();

    let pid = worker.child_id().unwrap();
    let file_pages = move || -> u64 {
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
        statm.split(' ').nth(2).unwrap().parse().unwrap()
    };
    let before = file_pages();
    assert!(worker.request_symbols(FileKey(0), &open(&victim), Place::default(), &[Svma(0x1000)]));
    assert!(worker.request_symbols(FileKey(1), &open(&good), Place::default(), &[Svma(0x1000)]));
    let truncate = std::thread::spawn(move || {
        let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
        while file_pages() < before + 256 {}
        rustix::process::kill_process(pid, Signal::STOP).unwrap();
        File::options().write(true).open(&victim).unwrap().set_len(4096).unwrap();
        rustix::process::kill_process(pid, Signal::CONT).unwrap();
    });
    let crashed = symbols_reply(&mut worker, FileKey(0)).await;
    truncate.join().unwrap();
    assert_eq!(crashed, Err(FileError::Worker(WorkerFailure::Crashed("signal: 7 (SIGBUS)".to_owned()))));
    assert!(symbols_reply(&mut worker, FileKey(1)).await.is_ok());
    assert_eq!(worker.restarts(), 1);
}

#[tokio::test]
async fn memory_is_bounded() {
    let scratch = Scratch::new("memory");
    let big = scratch.compile("big.c", PROGRAM, &["-O2"]);
    // 48 MiB in a few KiB.
    let names = scratch.0.join("names");
    fs::copy(&big, &names).unwrap();
    grow_symbol_table(&names, SYMTAB, 2 << 20);
    run(Command::new("xz").arg("-0").arg(&names));
    run(Command::new("strip").arg(&big));
    let section = format!("--add-section=.gnu_debugdata={}.xz", names.display());
    run(Command::new("objcopy").arg(section).arg(&big));
    let mut worker = worker(Role::Symbols);
    // More than a child may keep: it answers, and exits.
    assert!(symbols(&mut worker, &big, &[Svma(0x1000)]).await.is_ok());
    assert_eq!((worker.child_id(), worker.restarts()), (None, 0));
    // More than a file in memory may have: it goes without that table, and stays.
    run(Command::new("objcopy").arg("--update-section=.gnu_debugdata=/etc/passwd").arg(&big));
    grow_symbol_table(&big, DYNSYM, 1 << 26);
    assert!(symbols(&mut worker, &big, &[Svma(0x1000)]).await.is_ok());
    assert_eq!((worker.child_id().is_some(), worker.restarts()), (true, 0));
    // More than it may map.
    File::options().write(true).open(&big).unwrap().set_len(17 << 30).unwrap();
    let answer = symbols(&mut worker, &big, &[Svma(0x1000)]).await;
    assert!(matches!(answer, Err(FileError::Corrupt(_))), "{answer:?}");
    assert_eq!((worker.child_id().is_some(), worker.restarts()), (true, 0));
}

/// A child that a file has taken over sends a table without end, in the smallest pieces that there are.
#[tokio::test]
async fn a_table_in_too_many_pieces_is_refused() {
    const PIECE: [u8; 12] = [0, 0, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0];
    let scratch = Scratch::new("pieces");
    let (pieces, program) = (scratch.0.join("pieces"), scratch.0.join("program"));
    fs::write(&pieces, PIECE.repeat(MAX_REPLY_BYTES / PIECE.len() + 1)).unwrap();
    fs::write(&program, format!("#!/bin/sh\ncat {} >&0\n", pieces.display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    let mut worker = Worker::later(Role::Tables, &program);
    let refused = WorkerFailure::Nonsense("a table that is too long");
    assert_eq!(table(&mut worker, open(&program)).await, Err(FileError::Worker(refused)));
}

#[tokio::test]
async fn addresses_and_the_queue_are_bounded() {
    let mut worker = worker(Role::Symbols);
    let libc = open(libc_path());
    let addresses: Vec<Svma> = (0..MAX_ADDRESSES as u64 + 1).map(Svma).collect();
    assert!(!worker.request_symbols(FileKey(1), &libc, Place::default(), &addresses), "one too many");
    assert!(worker.request_symbols(FileKey(1), &libc, Place::default(), &addresses[1..]));
    assert_eq!(worker.pending(), 1);
    let reply = symbols_reply(&mut worker, FileKey(1)).await.unwrap();
    let answered: Vec<Svma> = reply.iter().map(|(address, _)| *address).collect();
    assert_eq!(answered, addresses[1..]);

    for key in 0..QUEUE_REQUESTS {
        assert!(worker.request_symbols(FileKey(key as u32), &libc, Place::default(), &[Svma(0)]));
    }
    assert!(!worker.request_symbols(FileKey(0), &libc, Place::default(), &[Svma(0)]));
    assert_eq!(worker.pending(), QUEUE_REQUESTS);
}

#[tokio::test]
async fn a_child_is_restricted() {
    let field = |pid: u32, file: &str, name: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let own = |name| u64::from_str_radix(&field(std::process::id(), "status", name)[0], 16).unwrap();
    let (dac_read_search, sys_chroot) = (own("CapPrm:") & 1 << 2, own("CapEff:") & 1 << 18);
    for role in [Role::Tables, Role::Symbols, Role::Generated, Role::Describe] {
        let mut worker = worker(role);
        match role {
            Role::Tables => assert!(table(&mut worker, open(libc_path())).await.is_ok()),
            Role::Symbols => assert!(symbols(&mut worker, &libc_path(), &[Svma(0)]).await.is_ok()),
            Role::Generated => assert_eq!(names(&mut worker, &open(libc_path()), 1).await, Ok(None)),
            Role::Describe => assert!(described(&mut worker, open(libc_path())).await.is_ok()),
        }
        let pid = worker.child_id().unwrap();
        assert_eq!(field(pid, "status", "Seccomp:"), ["2"], "filter mode");
        assert_eq!(field(pid, "status", "NoNewPrivs:"), ["1"]);
        assert_eq!(field(pid, "status", "Threads:"), ["1"]);
        let capabilities = if role == Role::Symbols { dac_read_search } else { 0 };
        for set in ["CapPrm:", "CapEff:"] {
            assert_eq!(field(pid, "status", set), [format!("{capabilities:016x}")], "{role:?} {set}");
        }
        for set in ["CapInh:", "CapAmb:"] {
            assert_eq!(field(pid, "status", set), ["0000000000000000"], "{role:?} {set}");
        }
        let root = fs::read_link(format!("/proc/{pid}/root")).unwrap();
        let is_confined = role == Role::Symbols && sys_chroot != 0;
        assert_eq!(root.ends_with(format!("{pid}/fd")), is_confined, "{role:?}: {}", root.display());
        assert_eq!(field(pid, "limits", "Max core file size")[..2], ["0", "0"]);
        assert_ne!(field(pid, "limits", "Max address space")[1], "unlimited");
        assert_ne!(field(pid, "limits", "Max data size")[1], "unlimited");
        assert_eq!(field(pid, "limits", "Max file size")[..2], ["67108864", "67108864"]);
        assert_ne!(field(pid, "limits", "Max cpu time")[0], "unlimited");
        let nicer = if role == Role::Tables { 0 } else { 10 };
        assert_eq!(nice(&pid.to_string()), (nice("self") + nicer).min(19));
    }
}

/// What a file has is what it was built with; a damaged one costs nothing but its own answer.
#[tokio::test]
async fn files_are_described() {
    let scratch = Scratch::new("describe");
    let whole = scratch.compile("whole.c", PROGRAM, &["-g", "-O1"]);
    let bare = ["-O1", "-s", "-fno-asynchronous-unwind-tables", "-fomit-frame-pointer"];
    let bare = scratch.compile("bare.c", &(PROGRAM.to_owned() + r#"__asm__(".fill 100000, 1, 0x06");"#), &bare);
    let mut worker = worker(Role::Describe);
    let found = described(&mut worker, open(&whole)).await.unwrap();
    let sections = found.sections;
    assert!(sections.eh_frame && sections.symtab && sections.dynsym && sections.debug_info && sections.debug_line);
    assert!(!sections.debug_frame && !sections.go_table && !sections.gnu_debugdata, "{found:?}");
    assert!(found.rows > 5 && found.debug_file.is_empty() && found.unreadable == 0, "{found:?}");
    let found = described(&mut worker, open(&bare)).await.unwrap();
    assert!(!found.sections.symtab && !found.sections.debug_info && found.sections.dynsym, "{found:?}");
    let coverage = found.coverage;
    assert!(coverage.uncovered_bytes + coverage.by_frame_pointer_bytes >= 100_000, "{coverage:?}");
    assert!(coverage.by_table_bytes < 10_000, "{coverage:?}");

    assert_eq!(described(&mut worker, open("/etc/passwd")).await, Err(FileError::NotElf));
    let bytes = fs::read(&whole).unwrap();
    for length in [5, 63, 64, 200, 1000, bytes.len() / 2, bytes.len() - 100] {
        let damaged = scratch.0.join("damaged");
        fs::write(&damaged, &bytes[..length]).unwrap();
        let _may_be_anything = described(&mut worker, open(&damaged)).await;
    }
    assert_eq!(worker.restarts(), 0);
}

async fn described(worker: &mut Worker, file: Arc<OwnedFd>) -> Result<Description, FileError> {
    assert!(worker.request_description(FileKey(7), file, Place::default()));
    match worker.next_reply().await {
        Reply::Description { key: FileKey(7), result } => result,
        other => panic!("{other:?}"),
    }
}

/// A child that is started for its first request reads a map on from where it ended, also when another
/// child has to begin anew.
#[tokio::test]
async fn generated_code_is_named_as_its_map_grows() {
    let scratch = Scratch::new("map");
    let path = scratch.0.join("perf-1.map");
    fs::write(&path, "1000 100 first\n").unwrap();
    let mut worker = Worker::later(Role::Generated, Path::new(env!("CARGO_BIN_EXE_spanflame")));
    assert_eq!(worker.child_id(), None);
    let map = open(&path);
    assert_eq!(names(&mut worker, &map, 0x10ff).await, Ok(Some("first".to_owned())));
    assert_eq!(names(&mut worker, &map, 0x2000).await, Ok(None));
    fs::write(&path, "1000 100 first\n2000 100 second\n").unwrap();
    assert_eq!(names(&mut worker, &map, 0x2000).await, Ok(Some("second".to_owned())));
    let pid = Pid::from_raw(worker.child_id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    // Lost between two requests or with this one: the caller asks again.
    let _perhaps_lost = names(&mut worker, &map, 0x2000).await;
    assert_eq!(names(&mut worker, &map, 0x2000).await, Ok(Some("second".to_owned())));
    assert_eq!(worker.restarts(), 1);
}

/// The name of what is at an address of generated code.
async fn names(worker: &mut Worker, map: &Arc<OwnedFd>, address: u64) -> Result<Option<String>, FileError> {
    let question = Question { address: VirtualAddress(address), time: MonotonicNs(u64::MAX) };
    assert!(worker.request_generated(MapKey(1), map, &[question]));
    let Reply::Generated { key: MapKey(1), result } = worker.next_reply().await else { panic!("another reply") };
    let GeneratedNames { frames, meanings, .. } = result?;
    Ok(match meanings[..] {
        [Meaning::Function(at)] => Some(frames[at as usize].name.clone()),
        _ => None,
    })
}

/// How nice a process is: field 19 of proc_pid_stat(5).
fn nice(process: &str) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(16).unwrap().parse().unwrap()
}

/// The worker is leaked, so its socket stays open: only the signal can end the child.
#[test]
fn a_child_does_not_outlive_the_thread_that_started_it() {
    let thread = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let pid = runtime.block_on(async {
            let mut worker = worker(Role::Symbols);
            assert!(symbols(&mut worker, &libc_path(), &[Svma(0)]).await.is_ok());
            let pid = worker.child_id().unwrap();
            std::mem::forget(worker);
            pid
        });
        std::mem::forget(runtime);
        pid
    });
    gone(Pid::from_raw(thread.join().unwrap().try_into().unwrap()).unwrap());
}

/// Waits until a process ended (collected or not).
fn gone(pid: Pid) {
    let start = Instant::now();
    let running = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        stat.is_ok_and(|stat| !stat.rsplit(") ").next().unwrap().starts_with('Z'))
    };
    while running() {
        assert!(start.elapsed() < Duration::from_secs(20), "still there");
        std::thread::yield_now();
    }
}
