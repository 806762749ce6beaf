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
                Some(code) if code.is_generated() => Fix::FramePointersInGenerated,
                Some(code) if broken.reason == StopReason::NoFramePointer => self.for_bare(code, &broken.function),
                _ => nothing(Why::InBetween),
            },
            StopReason::UnsupportedCfi => match broken.function.as_str() {
                "runtime.systemstack" | "runtime.asmcgocall" => Fix::UpgradeGo,
                "runtime.morestack" => nothing(Why::GoChangesStacks),
                _ => nothing(Why::UnusualTable),
            },
            StopReason::TooDeep => nothing(Why::TooDeep),
            StopReason::Process32Bit => Fix::Run64Bit,
            StopReason::StackCopyEnded => nothing(Why::FirstMoments),
            StopReason::MappingChanged => nothing(Why::Replaced),
            StopReason::NoUnwindTable => match code.map(|code| &code.contents) {
                Some(Contents::Unopened) => Fix::AllowReading { path: broken.file.clone() },
                Some(Contents::Refused(FileError::Unsupported(_))) => Fix::Run64Bit,
                _ => nothing(Why::TablesFull),
            },
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
            // What a compiler made has tables or not; what lacks them in a file that has them is assembly.
            coverage.by_table_bytes > 4 * (coverage.by_frame_pointer_bytes + coverage.uncovered_bytes)
        });
        match (covered, self.owners.contains_key(code.path.as_str())) {
            (true, true) => Fix::Nothing { why: Why::PackagedAssembly },
            (true, false) => Fix::AnnotateAssembly { path, function: function.to_owned() },
            (false, _) => Fix::BuildUnwindable { path },
        }
    }

    /// Whether it is a JVM that uses the frame pointer for something else.
    fn lacks_jvm_frame_pointers(&self) -> bool {
        let said =
            self.command.iter().rev().find_map(|word| word.strip_prefix("-XX:")?.strip_suffix("PreserveFramePointer"));
        self.run_time == Some(RunTime::Jvm) && said != Some("+")
    }
}

/// Whether a file is where packages put theirs.
fn is_of_system(path: &str) -> bool {
    ["/usr/", "/lib", "/bin/", "/sbin/"].iter().any(|start| path.starts_with(start)) && !path.starts_with("/usr/local/")
}
