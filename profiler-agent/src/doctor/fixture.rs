//! Findings made by hand, for the tests of what is said of them.

use std::collections::HashMap;
use std::num::NonZeroU32;

use profiler_common::address::{FileOffset, Pid, VirtualAddress};
use profiler_model::{
    About, Bias, Cpu, FoundBy, FrameKind, Function, Labels, Line, LocationId, LocationKey, Mapping, Profile,
    StopReason, Tid,
};
use profiler_unwind::{Coverage, Sections};

use super::code::{self, Code, Contents, Place};
use super::family::Member;
use super::generated::{Generated, Names};
use super::packages::{Distribution, Owner, Packages};
use super::report::Findings;
use super::run_time::RunTime;
use crate::worker::{Description, FileError};

const PID: Pid = Pid(4242);

/// A profile and the code that its locations are in.
struct Scene {
    profile: Profile,
    code: Vec<Code>,
}

impl Scene {
    fn new() -> Self {
        let about = About {
            title: "server".to_owned(),
            host: "web-1".to_owned(),
            kernel_release: "6.1".to_owned(),
            sample_rate_hz: NonZeroU32::new(499).unwrap(),
            start_unix_ns: 1,
            duration_ns: 2_003_000_000,
        };
        Self { profile: Profile::new(about), code: Vec::new() }
    }

    /// A file at a round address.
    fn file(&mut self, path: &str, build_id: &str, contents: Contents) -> usize {
        let mut code = Code::new(path, contents);
        code.build_id = build_id.to_owned();
        let start = VirtualAddress(0x7000_0000_0000 + 0x10_0000 * self.code.len() as u64);
        let end = VirtualAddress(start.0 + 0x1_0000);
        code.places.push(Place { start, end, file_offset: FileOffset(0) });
        self.code.push(code);
        self.code.len() - 1
    }

    /// A location in a file; without a name when that is empty.
    fn at(&mut self, file: usize, offset: u64, name: &str) -> LocationId {
        let (code, profile) = (&self.code[file], &mut self.profile);
        let Place { start, end, file_offset } = code.places[0];
        let (path, build_id) = (profile.string(&code.path), profile.string(&code.build_id));
        let bias = Bias(start.0);
        let mapping = profile.mapping(Mapping { start, end, file_offset, bias, path, build_id, discriminator: 0 });
        let address = VirtualAddress(start.0 + offset);
        let key = LocationKey { mapping: Some(mapping), address, kind: FrameKind::User, found_by: FoundBy::Cfi };
        let location = profile.location(key);
        let name = profile.string(name);
        let function = Function { name, system_name: name, file: profile.string(""), start_line: 0 };
        let line = Line { function: profile.function(function), line: 0, column: 0 };
        let nameless = profile[name].is_empty();
        profile.set_lines(location, if nameless { Vec::new() } else { vec![line] });
        location
    }

    fn samples(&mut self, stack: &[LocationId], stop: StopReason, count: u64) {
        let name = self.profile.string("server");
        let labels = Labels { pid: PID, tid: Tid(1), cpu: Some(Cpu(0)), thread: name, process: name, stop };
        self.profile.add_sample(stack, labels, count);
    }

    fn findings(mut self, run_time: Option<RunTime>, names: Names) -> Findings {
        self.profile.quality.samples_taken = self.profile.samples().map(|sample| sample.count).sum();
        code::count(&mut self.code, &self.profile);
        let owner = Owner { package: "server-bin".to_owned(), version: "1:2.3-4".to_owned() };
        Findings {
            named: PID,
            pid: PID,
            family: vec![Member { pid: PID.0, name: "server".to_owned(), samples: 0 }],
            run_time,
            command: vec!["/usr/bin/server".to_owned(), "--port".to_owned()],
            profile: self.profile,
            code: self.code,
            generated: Generated { names, own_pid: Some(Pid(1)) },
            packages: Packages {
                distribution: Distribution::Debian { codename: "bookworm".to_owned() },
                ..Packages::default()
            },
            owners: HashMap::from([("/usr/bin/server".to_owned(), owner)]),
        }
    }
}

/// What a distribution ships: stripped, with a table.
fn stripped() -> Description {
    Description {
        rows: 35_362,
        refused: 2,
        coverage: Coverage { by_table_bytes: 1_000_000, uncovered_bytes: 300, ..Coverage::default() },
        sections: Sections { eh_frame: true, dynsym: true, ..Sections::default() },
        ..Description::default()
    }
}

/// What a compiler makes without tables.
fn bare() -> Description {
    Description {
        coverage: Coverage { by_table_bytes: 400, uncovered_bytes: 90_000, ..Coverage::default() },
        sections: Sections { eh_frame: true, symtab: true, dynsym: true, ..Sections::default() },
        ..stripped()
    }
}

fn with_debug_file() -> Description {
    let debug_file = "/usr/lib/debug/.build-id/93/85a7c1a2b3c4d5e6f70011223344556677889900.debug".to_owned();
    Description { debug_file, ..stripped() }
}

/// Every kind of file, and broken stacks for several reasons.
pub(super) fn server() -> Findings {
    let mut scene = Scene::new();
    let server = scene.file("/usr/bin/server", "aa01", Contents::Described(stripped()));
    let libc = scene.file("/usr/lib/x86_64-linux-gnu/libc.so.6", "93", Contents::Described(with_debug_file()));
    let bare = scene.file("/opt/my app/libbare.so", "", Contents::Described(bare()));
    let go = Description {
        sections: Sections { go_table: true, ..Sections::default() },
        coverage: Coverage { by_table_bytes: 90_000, uncovered_bytes: 10_000, ..Coverage::default() },
        ..stripped()
    };
    let go = scene.file("/opt/plugin.so", "", Contents::Described(go));
    let frame_pointers = Description {
        rows: 4,
        refused: 0,
        coverage: Coverage { by_frame_pointer_bytes: 5_000, ..Coverage::default() },
        sections: Sections { gnu_debugdata: true, debug_info: true, ..Sections::default() },
        ..Description::default()
    };
    let replaced = scene.file("/usr/lib/libreplaced.so", "cc03", Contents::Described(stripped()));
    scene.code[replaced].deleted = true;
    let told = Description {
        coverage: Coverage {
            by_table_bytes: 60,
            by_instructions_bytes: 600_000,
            uncovered_bytes: 900,
            ..Coverage::default()
        },
        ..stripped()
    };
    scene.file("/lib/ld-musl-x86_64.so.1", "", Contents::Described(told));
    scene.file("/opt/libfp.so", "", Contents::Described(frame_pointers));
    scene.file("/opt/libnothing.so", "", Contents::Described(Description::default()));
    scene.file("/run/secret", "", Contents::Unopened);
    scene.file("/opt/libdamaged.so", "", Contents::Refused(FileError::Corrupt("no".to_owned())));
    let jit = scene.file("[jit]", "", Contents::Generated);

    let (main, parse) = (scene.at(server, 0x1100, "main"), scene.at(server, 0x1200, ""));
    let (start, read) = (scene.at(libc, 0x2000, "__libc_start_main"), scene.at(libc, 0x2100, "read"));
    let old = scene.at(replaced, 0x2200, "");
    let leaves = [0x10, 0x20, 0x30].map(|offset| scene.at(bare, offset, "bare_leaf"));
    let (morestack, made) = (scene.at(go, 0x40, "runtime.morestack"), scene.at(jit, 0x50, "[jit]"));
    scene.samples(&[parse, main, start], StopReason::Complete, 700);
    scene.samples(&[read, parse, main, start], StopReason::Complete, 200);
    scene.samples(&[old, parse, main, start], StopReason::Complete, 10);
    scene.samples(&[leaves[0]], StopReason::NoFramePointer, 20);
    scene.samples(&[leaves[1]], StopReason::NoFramePointer, 21);
    scene.samples(&[leaves[2]], StopReason::NoFramePointer, 19);
    scene.samples(&[morestack], StopReason::UnsupportedCfi, 7);
    scene.samples(&[made], StopReason::NoFramePointer, 30);
    scene.samples(&[], StopReason::NoTable, 3);
    scene.profile.add_note("stacks may be cut in /opt/libdamaged.so: corrupt file: no");
    scene.findings(None, Names::None)
}

/// Nothing ran.
pub(super) fn idle() -> Findings {
    let mut scene = Scene::new();
    scene.file("/usr/bin/server", "aa01", Contents::Described(stripped()));
    scene.file("/usr/lib/x86_64-linux-gnu/libc.so.6", "93", Contents::Described(with_debug_file()));
    scene.findings(None, Names::None)
}

/// Nothing is missing.
pub(super) fn whole() -> Findings {
    let mut scene = Scene::new();
    let own = Description {
        sections: Sections { eh_frame: true, symtab: true, debug_info: true, ..Sections::default() },
        ..stripped()
    };
    let node = scene.file("/usr/bin/node", "aa01", Contents::Described(own));
    let jit = scene.file("[jit]", "", Contents::Generated);
    let stack = [scene.at(jit, 0x50, "JS:*fib /srv/fib.js:1"), scene.at(node, 0x1100, "main")];
    scene.samples(&stack, StopReason::Complete, 998);
    let names = Names::PerfMap { path: "/proc/77/root/tmp/perf-1.map".to_owned(), size_bytes: 12_345 };
    scene.findings(Some(RunTime::Node), names)
}

/// A JVM without any option, and many libraries.
pub(super) fn java() -> Findings {
    let mut scene = Scene::new();
    let jvm = Description { sections: Sections { symtab: true, eh_frame: true, ..Sections::default() }, ..stripped() };
    let path = "/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so";
    let jvm = scene.file(path, "aa01", Contents::Described(jvm));
    let jit = scene.file("[jit]", "", Contents::Generated);
    for number in 0..20 {
        scene.file(&format!("/usr/lib/lib{number}.so"), "", Contents::Described(stripped()));
    }
    scene.file("/opt/libnothing.so", "", Contents::Described(Description::default()));
    for offset in 0..40 {
        let made = scene.at(jit, offset, "[jit]");
        scene.samples(&[made], StopReason::NoFramePointer, 10);
    }
    let (collector, thread) = (scene.at(jvm, 0x10, "G1ParTask::work"), scene.at(jvm, 0x20, "thread_native_entry"));
    scene.samples(&[collector, thread], StopReason::Complete, 50);
    scene.findings(Some(RunTime::Jvm), Names::None)
}

/// One that is not unwound.
pub(super) fn process_of_32_bits() -> Findings {
    let mut scene = Scene::new();
    let why = "a 32-bit ELF file; stacks of 32-bit programs are not unwound".to_owned();
    scene.file("/opt/old", "", Contents::Refused(FileError::Unsupported(why)));
    scene.samples(&[], StopReason::Process32Bit, 998);
    scene.findings(None, Names::None)
}
