//! Which [`Fix`] is for what.

use std::collections::HashMap;

use profiler_common::address::Pid;
use profiler_common::record::StopReason;
use profiler_export::Broken;

use super::code::{Code, Contents};
use super::fix::{Fix, Why};
use super::generated::Names;
use super::packages::{Distribution, Owner, Packages, debug_package};
use super::run_time::RunTime;
use crate::worker::FileError;

/// What advice depends on.
pub(super) struct Circumstances<'a> {
    pub(super) run_time: Option<RunTime>,
    /// The words of the command line.
    pub(super) command: &'a [String],
    pub(super) pid: Pid,
    /// The process id in the process's own pid namespace.
    pub(super) own_pid: u32,
    pub(super) names: &'a Names,
    pub(super) code: &'a [Code],
    pub(super) packages: &'a Packages,
    /// The packages of the files.
    pub(super) owners: &'a HashMap<String, Owner>,
}

impl Circumstances<'_> {
    /// How the functions of a file get names; `None` when they have all that there are.
    pub(super) fn for_names(&self, code: &Code) -> Option<Fix> {
        let description = code.description()?;
        let sections = description.sections;
        if sections.symtab
            || sections.gnu_debugdata
            || sections.go_table
            || !description.debug_file.is_empty()
            || code.path.starts_with('[')
        {
            return None;
        }
        let path = code.path.clone();
        if code.deleted && is_of_system(&path) {
            return Some(Fix::Restart { path });
        }
        let owner = self.owners.get(code.path.as_str());
        let provide = |owner: Option<&Owner>| Fix::ProvideDebugFile {
            path: path.clone(),
            build_id: code.build_id.clone(),
            package: owner.map(|owner| debug_package(&owner.package)).unwrap_or_default(),
        };
        let no_build_id = code.build_id.is_empty();
        Some(match (&self.packages.distribution, owner) {
            (_, owner) if self.packages.elsewhere && !no_build_id && (owner.is_some() || is_of_system(&path)) => {
                provide(owner)
            }
            (_, Some(Owner { package, version })) if !self.packages.elsewhere => {
                Fix::InstallDebugPackage { package: debug_package(package), version: version.clone() }
            }
            (Distribution::Rpm, None) if !self.packages.elsewhere && is_of_system(&path) => {
                Fix::InstallDebugInfo { path }
            }
            (Distribution::Other, None) if !no_build_id && is_of_system(&path) => provide(None),
            _ => Fix::KeepSymbols { path },
        })
    }

    /// What makes debug packages available.
    pub(super) fn for_archive(&self) -> Option<Fix> {
        if self.packages.has_debug_archive {
            return None;
        }
        match &self.packages.distribution {
            Distribution::Debian { codename } if !codename.is_empty() => {
                Some(Fix::AddDebianDebugArchive { codename: codename.clone() })
            }
            Distribution::Ubuntu { codename } if !codename.is_empty() => {
                Some(Fix::AddUbuntuDebugArchive { codename: codename.clone() })
            }
            _ => None,
        }
    }

    /// How the code that the process makes gets names; `None` when it has them, or makes none.
    pub(super) fn for_generated(&self) -> Option<Fix> {
        match self.names {
            Names::PerfMap { size_bytes: 1.., .. } | Names::Jitdump { .. } => return None,
            Names::Refused { why } => return Some(Fix::RepairMap { why: why.clone() }),
            Names::PerfMap { .. } | Names::None => {}
        }
        let sampled = self.code.iter().any(|code| code.is_generated() && code.samples > 0);
        Some(match self.run_time {
            Some(RunTime::Node) => Fix::NodePerfMap,
            Some(RunTime::Jvm) => Fix::JvmPerfMap { pid: self.pid.into(), own_pid: self.own_pid },
            Some(RunTime::CPython { minor: minor @ ..=11 }) => Fix::NewerPython { minor },
            Some(RunTime::CPython { .. }) => Fix::PythonPerfMap,
            Some(RunTime::DotNet) => Fix::DotNetPerfMap,
            Some(RunTime::Beam) => Fix::ErlangPerfMap,
            Some(RunTime::Ruby) if sampled => Fix::RubyPerfMap,
            Some(RunTime::PostgresJit) if sampled => Fix::PostgresJitdump,
            _ if sampled => Fix::WritePerfMap { pid: self.own_pid },
            _ => return None,
        })
    }

    /// What makes stacks whole that end there.
    pub(super) fn for_broken(&self, broken: &Broken) -> Fix {
        let nothing = |why| Fix::Nothing { why };
        let code = self.code.iter().find(|code| code.path == broken.file);
        match broken.reason {
            StopReason::NoFramePointer | StopReason::UnreadableStack | StopReason::NotCode => match code {
                _ if self.lacks_jvm_frame_pointers() => Fix::JvmFramePointers,
                Some(code) if code.is_generated() && self.run_time == Some(RunTime::PostgresJit) => {
                    Fix::PostgresWithoutJit
                }
                Some(code) if code.is_generated() => Fix::FramePointersInGenerated,
                Some(code) if broken.reason == StopReason::NoFramePointer => self.for_bare(code, &broken.function),
                _ => nothing(Why::InBetween),
            },
            StopReason::UnsupportedCfi => match broken.function.as_str() {
                "runtime.systemstack" | "runtime.asmcgocall" if cfg!(target_arch = "x86_64") => Fix::UpgradeGo,
                "runtime.systemstack" | "runtime.asmcgocall" | "runtime.morestack" => nothing(Why::GoChangesStacks),
                _ => nothing(Why::UnusualTable),
            },
            StopReason::TooDeep => nothing(Why::TooDeep),
            StopReason::Process32Bit => Fix::Run64Bit,
            StopReason::StackCopyEnded => nothing(Why::FirstMoments),
            StopReason::MappingChanged => nothing(Why::Replaced),
            StopReason::NoUnwindTable => code.map_or_else(|| nothing(Why::InBetween), for_no_table),
            StopReason::NoTable | StopReason::NoRange | StopReason::ReturnAddressLost => nothing(Why::InBetween),
            // These are no broken stacks.
            StopReason::Complete | StopReason::NoUserStack => nothing(Why::InBetween),
        }
    }

    /// A function without unwind information and without a frame pointer.
    fn for_bare(&self, code: &Code, function: &str) -> Fix {
        let path = code.path.clone();
        let covered = code.description().is_some_and(|description| {
            let coverage = &description.coverage;
            let guessed_bytes = coverage.by_frame_pointer_bytes.saturating_add(coverage.uncovered_bytes);
            let bare_bytes = coverage.by_instructions_bytes.saturating_add(guessed_bytes);
            // What a compiler made has tables or not; what lacks them in a file that has them is assembly.
            coverage.by_table_bytes > bare_bytes.saturating_mul(4)
        });
        let symtab = code.description().is_some_and(|description| description.sections.symtab);
        let owned = self.owners.contains_key(code.path.as_str());
        match (covered, owned || is_of_system(&path)) {
            (true, _) if owned => Fix::Nothing { why: Why::PackagedAssembly },
            (true, _) => Fix::AnnotateAssembly { path, function: function.to_owned() },
            (false, true) => {
                // Compilers write it there with -g, where they are to make no tables.
                let package = self.for_names(code).filter(|fix| {
                    matches!(
                        fix,
                        Fix::InstallDebugPackage { .. } | Fix::InstallDebugInfo { .. } | Fix::ProvideDebugFile { .. }
                    )
                });
                package.unwrap_or(Fix::UseUnwindable { path })
            }
            // Who strips it may well not be who has built it.
            (false, false) if !symtab => Fix::UseUnwindable { path },
            (false, false) => Fix::BuildUnwindable { path },
        }
    }

    /// Whether it is a JVM that uses the frame pointer for something else.
    fn lacks_jvm_frame_pointers(&self) -> bool {
        let said =
            self.command.iter().rev().find_map(|word| word.strip_prefix("-XX:")?.strip_suffix("PreserveFramePointer"));
        self.run_time == Some(RunTime::Jvm) && said != Some("+")
    }
}

/// A file that has no unwind table.
fn for_no_table(code: &Code) -> Fix {
    let why = match &code.contents {
        Contents::Unopened => return Fix::AllowReading { path: code.path.clone() },
        Contents::Refused(_) if code.is_32_bit() => return Fix::Run64Bit,
        Contents::Refused(FileError::Unsupported(_)) => Why::OtherArchitecture,
        Contents::Refused(_) => Why::Damaged,
        Contents::Described(_) | Contents::Generated if code.lacked_room => Why::TablesFull,
        Contents::Described(_) | Contents::Generated => Why::TableTooLate,
    };
    Fix::Nothing { why }
}

/// Whether a file is where packages put theirs.
fn is_of_system(path: &str) -> bool {
    ["/usr/", "/lib", "/bin/", "/sbin/"].iter().any(|start| path.starts_with(start)) && !path.starts_with("/usr/local/")
}

#[cfg(test)]
mod tests {
    use profiler_model::Svma;
    use profiler_unwind::{BuildError, Coverage, Sections};

    use super::*;
    use crate::worker::{Description, WorkerFailure};

    fn code(path: &str, by_table_bytes: u64, uncovered_bytes: u64) -> Code {
        let description = Description {
            coverage: Coverage { by_table_bytes, uncovered_bytes, ..Coverage::default() },
            sections: Sections { eh_frame: true, dynsym: true, ..Sections::default() },
            ..Description::default()
        };
        let mut code = Code::new(path, Contents::Described(description));
        (code.build_id, code.samples) = ("0123".to_owned(), 1);
        code
    }

    /// Without tables, told by its instructions for the most part.
    fn bare(path: &str, symtab: bool) -> Code {
        let mut code = code(path, 10, 1000);
        if let Contents::Described(Description { coverage, sections, .. }) = &mut code.contents {
            coverage.by_instructions_bytes = 9000;
            sections.symtab = symtab;
        }
        code
    }

    /// Asks with some files, of which `/usr/lib/packaged.so` and `/usr/lib/bare.so` are of a package.
    fn with<T>(
        (run_time, command, names): (Option<RunTime>, &[&str], Names),
        packages: &Packages,
        ask: impl Fn(&Circumstances<'_>) -> T,
    ) -> T {
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let mut jit = Code::new("[jit]", Contents::Generated);
        jit.samples = 1;
        let refused = |path, error| Code::new(path, Contents::Refused(error));
        let no_elf = |ident| FileError::Unsupported(BuildError::NotElf { ident }.to_string());
        let arm = FileError::Unsupported(BuildError::Machine { machine: 40 }.to_string());
        let mut large = code("/opt/large", 1000, 10);
        large.lacked_room = true;
        let all = [
            bare("/opt/bare.so", true),
            bare("/opt/stripped.so", false),
            bare("/usr/lib/bare.so", false),
            bare("/lib/symbols.so", true),
            code("/opt/covered.so", 1000, 10),
            code("/usr/lib/packaged.so", 1000, 10),
            jit,
            Code::new("/run/secret", Contents::Unopened),
            refused("/opt/old", no_elf(*b"\x7fELF\x01\x01\x01\0")),
            refused("/opt/big-endian", no_elf(*b"\x7fELF\x02\x02\x01\0")),
            refused("/opt/arm", arm),
            refused("/opt/damaged", FileError::Corrupt("no".to_owned())),
            refused("/opt/unreadable", FileError::Unreadable("EIO".to_owned())),
            refused("/opt/deadly", FileError::Worker(WorkerFailure::Crashed("SIGBUS".to_owned()))),
            large,
        ];
        let owner = Owner { package: "libpackaged1".to_owned(), version: "1-2".to_owned() };
        let owners = ["/usr/lib/packaged.so", "/usr/lib/bare.so"].map(|path| (path.to_owned(), owner.clone())).into();
        let (pid, own_pid) = (Pid(77), 1);
        ask(&Circumstances {
            run_time,
            pid,
            command: &command,
            own_pid,
            names: &names,
            code: &all,
            packages,
            owners: &owners,
        })
    }

    fn broken(reason: StopReason, function: &str, file: &str) -> Broken {
        let (function, file) = (function.to_owned(), file.to_owned());
        Broken { samples: 1, reason, function, file, address: Svma(0), addresses: 1 }
    }

    #[test]
    fn every_end_of_a_stack_has_its_fix() {
        use StopReason::*;
        let nothing = |why| Fix::Nothing { why };
        let path = |path: &str| path.to_owned();
        let annotate = Fix::AnnotateAssembly { path: path("/opt/covered.so"), function: "f".to_owned() };
        let package = Fix::InstallDebugPackage { package: "libpackaged1-dbgsym".to_owned(), version: "1-2".to_owned() };
        let cases = [
            (NoFramePointer, "f", "/opt/bare.so", Fix::BuildUnwindable { path: path("/opt/bare.so") }),
            (NoFramePointer, "f", "/opt/stripped.so", Fix::UseUnwindable { path: path("/opt/stripped.so") }),
            (NoFramePointer, "f", "/usr/lib/bare.so", package),
            (NoFramePointer, "f", "/lib/symbols.so", Fix::UseUnwindable { path: path("/lib/symbols.so") }),
            (NoFramePointer, "f", "/opt/covered.so", annotate),
            (NoFramePointer, "f", "/usr/lib/packaged.so", nothing(Why::PackagedAssembly)),
            (NoFramePointer, "[jit]", "[jit]", Fix::FramePointersInGenerated),
            (UnreadableStack, "[jit]", "[jit]", Fix::FramePointersInGenerated),
            (UnreadableStack, "f", "/opt/covered.so", nothing(Why::InBetween)),
            (NotCode, "f", "", nothing(Why::InBetween)),
            (UnsupportedCfi, "runtime.systemstack", "/opt/go", Fix::UpgradeGo),
            (UnsupportedCfi, "runtime.morestack", "/opt/go", nothing(Why::GoChangesStacks)),
            (UnsupportedCfi, "f", "/opt/covered.so", nothing(Why::UnusualTable)),
            (TooDeep, "f", "/opt/covered.so", nothing(Why::TooDeep)),
            (Process32Bit, "", "", Fix::Run64Bit),
            (StackCopyEnded, "f", "/opt/covered.so", nothing(Why::FirstMoments)),
            (MappingChanged, "f", "/opt/covered.so", nothing(Why::Replaced)),
            (NoUnwindTable, "f", "/run/secret", Fix::AllowReading { path: path("/run/secret") }),
            (NoUnwindTable, "f", "/opt/old", Fix::Run64Bit),
            (NoUnwindTable, "f", "/opt/big-endian", nothing(Why::OtherArchitecture)),
            (NoUnwindTable, "f", "/opt/arm", nothing(Why::OtherArchitecture)),
            (NoUnwindTable, "f", "/opt/damaged", nothing(Why::Damaged)),
            (NoUnwindTable, "f", "/opt/unreadable", nothing(Why::Damaged)),
            (NoUnwindTable, "f", "/opt/deadly", nothing(Why::Damaged)),
            (NoUnwindTable, "f", "/opt/large", nothing(Why::TablesFull)),
            (NoUnwindTable, "f", "/opt/covered.so", nothing(Why::TableTooLate)),
            (NoUnwindTable, "f", "/opt/closed", nothing(Why::InBetween)),
            (NoTable, "", "", nothing(Why::InBetween)),
        ];
        for (reason, function, file, expected) in cases {
            let fix = with((None, &[], Names::None), &Packages::default(), |circumstances| {
                circumstances.for_broken(&broken(reason, function, file))
            });
            assert_eq!(fix, expected, "{reason:?} in {function}, {file}");
        }
    }

    #[test]
    fn a_jvm_is_told_to_keep_frame_pointers_once_and_postgres_that_it_keeps_none() {
        let of = |run_time, command: &[&str]| {
            with((Some(run_time), command, Names::None), &Packages::default(), |circumstances| {
                circumstances.for_broken(&broken(StopReason::NoFramePointer, "[jit]", "[jit]"))
            })
        };
        assert_eq!(of(RunTime::PostgresJit, &[]), Fix::PostgresWithoutJit);
        let fix = |command: &[&str]| of(RunTime::Jvm, command);
        assert_eq!(fix(&["java", "A"]), Fix::JvmFramePointers);
        assert_eq!(fix(&["java", "-XX:+PreserveFramePointer", "A"]), Fix::FramePointersInGenerated);
        let both = ["java", "-XX:+PreserveFramePointer", "-XX:-PreserveFramePointer", "A"];
        assert_eq!(fix(&both), Fix::JvmFramePointers, "the last one counts");
    }

    #[test]
    fn each_run_time_has_its_way_to_tell_of_code() {
        let fix = |run_time, names| {
            with((run_time, &[], names), &Packages::default(), |circumstances| circumstances.for_generated())
        };
        for (run_time, expected) in [
            (Some(RunTime::Node), Fix::NodePerfMap),
            (Some(RunTime::Jvm), Fix::JvmPerfMap { pid: Pid(77).into(), own_pid: 1 }),
            (Some(RunTime::CPython { minor: 11 }), Fix::NewerPython { minor: 11 }),
            (Some(RunTime::CPython { minor: 12 }), Fix::PythonPerfMap),
            (Some(RunTime::DotNet), Fix::DotNetPerfMap),
            (Some(RunTime::Beam), Fix::ErlangPerfMap),
            (Some(RunTime::Ruby), Fix::RubyPerfMap),
            (Some(RunTime::PostgresJit), Fix::PostgresJitdump),
            (None, Fix::WritePerfMap { pid: 1 }),
        ] {
            assert_eq!(fix(run_time, Names::None), Some(expected.clone()));
            let map = |size_bytes| Names::PerfMap { path: "/tmp/perf-1.map".to_owned(), size_bytes };
            assert_eq!(fix(run_time, map(0)), Some(expected), "an empty map names nothing");
            assert_eq!(fix(run_time, map(9)), None);
            let why = || "it is older than the process".to_owned();
            assert_eq!(fix(run_time, Names::Refused { why: why() }), Some(Fix::RepairMap { why: why() }));
        }
        let container = Fix::JvmPerfMap { pid: Pid(77).into(), own_pid: 1 }.command().unwrap();
        assert_eq!(container, "sudo nsenter -m -p -t 77 -- jcmd 1 Compiler.perfmap");
    }

    #[test]
    fn names_come_from_where_the_distribution_has_them() {
        let debian = || Distribution::Debian { codename: "bookworm".to_owned() };
        let path = || "/usr/lib/packaged.so".to_owned();
        let package = "libpackaged1-dbgsym".to_owned();
        let provide = |package: &str| Fix::ProvideDebugFile {
            path: path(),
            build_id: "0123".to_owned(),
            package: package.to_owned(),
        };
        let install = Fix::InstallDebugPackage { package: package.clone(), version: "1-2".to_owned() };
        for (distribution, elsewhere, expected) in [
            (debian(), false, install),
            (debian(), true, provide(&package)),
            (Distribution::Rpm, true, provide(&package)),
        ] {
            let packages = Packages { distribution, elsewhere, ..Packages::default() };
            let fix = with((None, &[], Names::None), &packages, |circumstances| {
                let code = circumstances.code.iter().find(|code| code.path == path()).unwrap();
                circumstances.for_names(code)
            });
            assert_eq!(fix, Some(expected));
        }
        let of = |distribution, file: &str| {
            let packages = Packages { distribution, ..Packages::default() };
            with((None, &[], Names::None), &packages, |circumstances| circumstances.for_names(&code(file, 10, 0)))
        };
        let unowned = "/usr/lib/unowned.so";
        assert_eq!(of(Distribution::Rpm, unowned), Some(Fix::InstallDebugInfo { path: unowned.to_owned() }));
        assert_eq!(of(debian(), unowned), Some(Fix::KeepSymbols { path: unowned.to_owned() }));
        let own = "/opt/own".to_owned();
        assert_eq!(of(Distribution::Rpm, &own), Some(Fix::KeepSymbols { path: own.clone() }));
        assert_eq!(of(Distribution::Other, &own), Some(Fix::KeepSymbols { path: own }));
        assert_eq!(of(debian(), "[vdso]"), None);
    }
}
