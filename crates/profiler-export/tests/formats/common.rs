//! A profile built by hand, shared by the tests of all formats.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::num::NonZeroU32;

use profiler_model::{
    About, Bias, Cpu, FileOffset, FoundBy, FrameKind, Function, Labels, Line, LocationId, LocationKey, Mapping,
    MappingId, Missed, Pid, Profile, StopReason, StringId, Tid, VirtualAddress,
};

/// A profile without samples.
pub(crate) fn empty(title: &str) -> Profile {
    Profile::new(About {
        title: title.into(),
        host: "web-1".into(),
        kernel_release: "6.1.0-42-amd64".into(),
        sample_rate_hz: NonZeroU32::new(99).expect("not 0"),
        start_unix_ns: 1_795_266_506_000_000_000,
        duration_ns: 10_250_000_000,
    })
}

/// Labels of a process whose threads have its name.
pub(crate) fn labels(profile: &mut Profile, pid: u32, process: &str) -> Labels {
    let name = profile.string(process);
    Labels { pid: Pid(pid), tid: Tid(pid), cpu: Some(Cpu(0)), thread: name, process: name, stop: StopReason::Complete }
}

/// A file of 64 KiB, mapped at `start`, that states addresses from 0 on.
pub(crate) fn mapping(profile: &mut Profile, path: &str, build_id: &str, start: u64) -> MappingId {
    let mapping = Mapping {
        start: VirtualAddress(start),
        end: VirtualAddress(start + 0x10000),
        file_offset: FileOffset(0),
        bias: Bias(start),
        path: profile.string(path),
        build_id: profile.string(build_id),
        discriminator: 0,
    };
    profile.mapping(mapping)
}

/// The location at `address`.
pub(crate) fn location(profile: &mut Profile, mapping: Option<MappingId>, address: u64, kind: FrameKind) -> LocationId {
    profile.location(LocationKey { mapping, address: VirtualAddress(address), kind, found_by: FoundBy::Cfi })
}

/// A line of a function: name, name in the file, source file.
pub(crate) fn line(profile: &mut Profile, [name, system_name, file]: [&str; 3], line: u32) -> Line {
    let function = Function {
        name: profile.string(name),
        system_name: profile.string(system_name),
        file: profile.string(file),
        start_line: line.saturating_sub(2),
    };
    Line { function: profile.function(function), line, column: 0 }
}

/// A location of user code with one function of this name, at an address that follows from `number`.
pub(crate) fn named(profile: &mut Profile, name: &str, number: u64) -> LocationId {
    let id = location(profile, None, 0x1000 + number, FrameKind::User);
    let line = line(profile, [name, name, ""], 0);
    profile.set_lines(id, vec![line]);
    id
}

/// A server in Rust and C with kernel frames, inlined functions, recursion, a library without
/// symbols and stacks that lack callers; a kernel thread; figures of every kind.
pub(crate) fn server() -> Profile {
    let mut profile = empty("/usr/bin/server --port 80");
    let libc = mapping(&mut profile, "/usr/lib/libc.so.6", "cafe01", 0x7f00_0000_0000);
    let exe = mapping(&mut profile, "/usr/bin/server", "beef02", 0x5500_0000_0000);
    let kernel = mapping(&mut profile, "[kernel.kallsyms]", "", 0xffff_ffff_8100_0000);
    profile.set_main_mapping(exe);

    let at = |profile: &mut Profile, mapping, base: u64, offset, kind, lines: &[([&str; 3], u32)]| {
        let id = location(profile, Some(mapping), base + offset, kind);
        let lines = lines.iter().map(|(names, number)| line(profile, *names, *number)).collect();
        profile.set_lines(id, lines);
        id
    };
    let user = |profile: &mut Profile, offset, lines: &[([&str; 3], u32)]| {
        at(profile, exe, 0x5500_0000_0000, offset, FrameKind::User, lines)
    };
    let main = user(&mut profile, 0x1100, &[(["server::main", "_ZN6server4main17h0E", "src/main.rs"], 12)]);
    let parse = user(
        &mut profile,
        0x1200,
        &[
            (["core::str::find<char>", "core::str::find<char>", "core/str.rs"], 700),
            (["server::parse<T>", "_RINvC6server5parsejE", "src/parse.rs"], 40),
        ],
    );
    let walk = user(&mut profile, 0x1300, &[(["server::walk", "_ZN6server4walk17h1E", "src/walk.rs"], 9)]);
    let start = user(&mut profile, 0x1000, &[(["_start", "_start", ""], 0)]);
    let memcpy = location(&mut profile, Some(libc), 0x7f00_0000_2a1f, FrameKind::User);
    let read =
        at(&mut profile, kernel, 0xffff_ffff_8100_0000, 0x500, FrameKind::Kernel, &[(["vfs_read", "vfs_read", ""], 0)]);
    let poll =
        at(&mut profile, kernel, 0xffff_ffff_8100_0000, 0x700, FrameKind::Kernel, &[(["kthread", "kthread", ""], 0)]);

    let server = labels(&mut profile, 4000, "server");
    let worker = Labels { tid: Tid(4001), thread: profile.string("worker-1"), cpu: Some(Cpu(1)), ..server };
    profile.add_sample(&[parse, main, start], server, 400);
    profile.add_sample(&[parse, main, start], worker, 100);
    profile.add_sample(&[walk, walk, walk, main, start], server, 300);
    profile.add_sample(&[memcpy, walk, main, start], server, 90);
    // What called a library without call frame information.
    let guess = LocationKey { found_by: FoundBy::FramePointerOfInterrupted, ..*profile.location_key(walk) };
    let (lines, guessed) = (profile.lines(walk).map(<[Line]>::to_vec), profile.location(guess));
    profile.set_lines(guessed, lines.expect("set above"));
    profile.add_sample(&[memcpy, guessed, walk, main, start], server, 30);
    profile.add_sample(&[memcpy], Labels { stop: StopReason::NoUnwindTable, ..worker }, 7);
    profile.add_sample(&[read, main, start], server, 50);
    profile.add_sample(&[main, start], server, 10);
    let kworker = labels(&mut profile, 17, "kworker/0:1");
    profile.add_sample(&[poll], Labels { cpu: None, stop: StopReason::NoUserStack, ..kworker }, 3);

    quality(&mut profile);
    profile
}

/// Figures that agree with the 990 samples of [`server`].
fn quality(profile: &mut Profile) {
    profile.quality.samples_taken = 1500;
    profile.quality.filtered.insert("filtered_idle".into(), 500);
    profile.quality.lost.insert("lost_ring_full".into(), 10);
    profile.quality.missed_by_kernel = Some(Missed { count: 12, uncertainty: 3 });
    profile.quality.errors.insert("sideband_lost".into(), 1);
    profile.add_note("1 executable had no symbols: /usr/lib/libc.so.6");
}

/// Names that formats, terminals and readers stumble over.
pub(crate) const HOSTILE_NAMES: &[&str] = &[
    "",
    " ",
    ";",
    "a;b",
    "a\nb",
    "a\0b",
    "\r\n",
    "\x1b[31mred",
    "<script>alert(1)</script>",
    "\"&quot;'&<>]]>",
    "-->",
    "--",
    "-",
    "# comment",
    "#",
    "worker 12",
    "12",
    "1.5",
    "f 1 2",
    "f()_[k]",
    "_[é]",
    "x]",
    "日本語",
    "\u{202e}rtl",
    "\u{ffff}",
    "\u{a0}",
    "a\u{2028}b",
    "100%s%n",
    "operator<",
    "[[1]]",
    "\\",
    "all",
];

/// A profile where every hostile name, and one of 1 MB, is a process, a function and a file.
pub(crate) fn hostile() -> Profile {
    let long = "long::".repeat(170_000);
    let mut profile = empty(&format!("cmd --\0<&>\"{long}"));
    profile.add_note("-- <note> &\n");
    for (number, name) in HOSTILE_NAMES.iter().copied().chain([long.as_str()]).enumerate() {
        let number = number as u64;
        let start = 0x10_0000 * (number + 1);
        let mapping = mapping(&mut profile, name, "", start);
        let unnamed = location(&mut profile, Some(mapping), start + 0x10, FrameKind::User);
        let inlined = location(&mut profile, Some(mapping), start + 0x20, FrameKind::Kernel);
        let lines = vec![line(&mut profile, [name, name, name], 1), line(&mut profile, [name, "", name], 2)];
        profile.set_lines(inlined, lines);
        let leaf = named(&mut profile, name, number);
        let labels = labels(&mut profile, u32::try_from(number).expect("few"), name);
        profile.add_sample(&[leaf, inlined, unnamed], labels, 1);
        profile.add_sample(&[], Labels { stop: StopReason::NoTable, ..labels }, 1);
        profile.add_sample(&[], labels, 1);
    }
    assert_eq!(StringId::EMPTY, profile.string(""));
    profile
}
