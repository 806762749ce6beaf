//! What can be done about what is missing.

use std::fmt;

use profiler_common::address::Pid;
use serde::Serialize;

use crate::counts::quoted;

/// Where separate debug information is found by build id.
const DEBUG_DIRECTORY: &str = "/usr/lib/debug/.build-id";

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Fix {
    /// Add the archive with debug packages to apt's sources.
    AddDebianDebugArchive {
        /// The release: `bookworm`.
        codename: String,
    },
    /// The same on Ubuntu.
    AddUbuntuDebugArchive {
        /// The release: `noble`.
        codename: String,
    },
    /// Install a package with debug information, with apt.
    InstallDebugPackage {
        /// The package.
        package: String,
        /// Its version, that of the program: another one would bring another program with it. Empty when it
        /// is not known.
        version: String,
    },
    /// Install the debug information of the package that a file is of, with dnf.
    InstallDebugInfo {
        /// The file.
        path: String,
    },
    /// Put a file's debug information where it is found.
    ProvideDebugFile {
        /// The file.
        path: String,
        /// The file's build id, in hex.
        build_id: String,
        /// The package that has it where the file comes from; empty when that is not known.
        package: String,
    },
    /// Bring the parts of the debug information that the compiler wrote beside object files.
    ProvideParts {
        /// The program.
        path: String,
        /// The first one that is missing.
        part: String,
    },
    /// Start it again: the installed file is another one by now, and so is its debug information.
    Restart {
        /// The file.
        path: String,
    },
    /// Leave the symbols in a program that is built here.
    KeepSymbols {
        /// The program.
        path: String,
    },
    /// Build with unwind tables, or with frame pointers.
    BuildUnwindable {
        /// The program or library.
        path: String,
    },
    /// Have what others built without unwind tables with them.
    UseUnwindable {
        /// The program or library.
        path: String,
    },
    /// Describe the frames of a function that is written in assembly, or build what is linked into a file with tables.
    AnnotateAssembly {
        /// The program or library.
        path: String,
        /// The function.
        function: String,
    },
    /// Build with a newer Go.
    UpgradeGo,
    /// Have Node.js tell of its code.
    NodePerfMap,
    /// Have the JVM tell of its code, now.
    JvmPerfMap {
        /// Its process id.
        pid: Pid32,
        /// Its process id in its own pid namespace.
        own_pid: u32,
    },
    /// Have the JVM keep frame pointers.
    JvmFramePointers,
    /// Have CPython tell of its functions.
    PythonPerfMap,
    /// Run a CPython that can tell of its functions.
    NewerPython {
        /// This one is 3.`minor`.
        minor: u32,
    },
    /// Have .NET tell of its code.
    DotNetPerfMap,
    /// Have Erlang tell of its code.
    ErlangPerfMap,
    /// Have Ruby tell of its code.
    RubyPerfMap,
    /// Have PostgreSQL tell of its code.
    PostgresJitdump,
    /// Have whatever makes the code tell of it.
    WritePerfMap {
        /// The process id in its own pid namespace.
        pid: u32,
    },
    /// Have PostgreSQL make no code: what it makes keeps no frame pointers.
    PostgresWithoutJit,
    /// Have whatever makes the code keep frame pointers in it.
    FramePointersInGenerated,
    /// Give a map another owner, age or place.
    RepairMap {
        /// What is wrong with it.
        why: String,
    },
    /// Run a 64-bit build.
    Run64Bit,
    /// Let the file be read.
    AllowReading {
        /// The file.
        path: String,
    },
    /// Look when there is something to see.
    PutLoadOnIt {
        /// The process.
        pid: Pid32,
    },
    /// There is nothing to do.
    Nothing {
        /// Why.
        why: Why,
    },
}

/// A process id, in the initial pid namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub(super) struct Pid32(u32);

impl From<Pid> for Pid32 {
    fn from(pid: Pid) -> Self {
        Self(pid.0)
    }
}

/// Why there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Why {
    /// Only the first samples are like that.
    FirstMoments,
    /// Code was replaced just then.
    Replaced,
    /// The stack is deeper than what is walked.
    TooDeep,
    /// Go's runtime changes stacks there, and leaves no trace.
    GoChangesStacks,
    /// Its call frame information is of a kind that rows can't say.
    UnusualTable,
    /// A thread that began, ended or ran another program just then.
    InBetween,
    /// Code in somebody else's package, most of which has a table; such code is assembly as a rule.
    PackagedAssembly,
    /// The memory for tables is used up.
    TablesFull,
    /// Its table was not built before the samples had to be told.
    TableTooLate,
    /// It can't be read, or makes no sense, or a worker failed over it.
    Damaged,
    /// Code that this machine does not run by itself.
    OtherArchitecture,
    /// The kernel's threads have no code of their own.
    KernelThread,
}

impl Fix {
    /// The command to run, where there is one.
    pub(super) fn command(&self) -> Option<String> {
        Some(match self {
            Self::AddDebianDebugArchive { codename } => format!(
                "echo 'deb http://deb.debian.org/debian-debug {codename}-debug main' | sudo tee \
                 /etc/apt/sources.list.d/debug.list && sudo apt-get update"
            ),
            Self::AddUbuntuDebugArchive { codename } => format!(
                "sudo apt-get install ubuntu-dbgsym-keyring && echo 'deb http://ddebs.ubuntu.com {codename} main \
                 restricted universe multiverse' | sudo tee /etc/apt/sources.list.d/ddebs.list && sudo apt-get update"
            ),
            Self::InstallDebugPackage { .. } => format!("sudo apt-get install {}", self.apt_word()?),
            Self::InstallDebugInfo { path } => format!("sudo dnf debuginfo-install \"$(rpm -qf {})\"", quoted(path)),
            Self::JvmPerfMap { pid, own_pid } if pid.0 == *own_pid => format!("jcmd {own_pid} Compiler.perfmap"),
            // In its container.
            Self::JvmPerfMap { pid, own_pid } => {
                format!("sudo nsenter -m -p -t {} -- jcmd {own_pid} Compiler.perfmap", pid.0)
            }
            Self::PutLoadOnIt { pid } => format!("spanflame dump -p {}", pid.0),
            _ => return None,
        })
    }
}

impl Fix {
    /// What apt installs, for the shell: a package in a version.
    pub(super) fn apt_word(&self) -> Option<String> {
        match self {
            Self::InstallDebugPackage { package, version } if version.is_empty() => Some(quoted(package).into_owned()),
            Self::InstallDebugPackage { package, version } => {
                Some(quoted(&format!("{package}={version}")).into_owned())
            }
            _ => None,
        }
    }
}

impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = |path: &str| quoted(path).into_owned();
        match self {
            Self::AddDebianDebugArchive { .. } => {
                f.write_str("-dbgsym packages are in an archive of their own: add it")
            }
            Self::AddUbuntuDebugArchive { .. } => {
                f.write_str("-dbgsym packages are in an archive of their own: add it")
            }
            Self::InstallDebugPackage { package, .. } => write!(f, "install {package}"),
            Self::InstallDebugInfo { path } => write!(f, "install the debug information of {}", file(path)),
            Self::ProvideDebugFile { path, build_id, package } => {
                let (first, rest) = build_id.split_at_checked(2).unwrap_or_default();
                write!(f, "get the debug file of {} (build id {build_id}", file(path))?;
                if !package.is_empty() {
                    write!(f, ", in the package {package} of its container")?;
                }
                write!(f, ") and put it at {DEBUG_DIRECTORY}/{first}/{rest}.debug, here or there")
            }
            Self::ProvideParts { path, part } => write!(
                f,
                "{} was built with -gsplit-dwarf, and {} is not there: keep the .dwo files, or put {} beside it (made by: \
                 dwp -e), for files, lines and inlined functions",
                file(path),
                file(part),
                file(&format!("{path}.dwp"))
            ),
            Self::Restart { path } => write!(
                f,
                "restart it: {} was replaced while it runs, and debug packages are for what is installed now",
                file(path)
            ),
            Self::KeepSymbols { path } => write!(f, "build {} without -s, and do not strip it", file(path)),
            Self::BuildUnwindable { path } => write!(
                f,
                "build {} with -fasynchronous-unwind-tables (C, C++), -C force-unwind-tables=yes (Rust), or else \
                 with -fno-omit-frame-pointer",
                file(path)
            ),
            Self::UseUnwindable { path } => write!(
                f,
                "{} was built without unwind tables, and keeps no frame pointers there: use a build of it with \
                 -fasynchronous-unwind-tables (C, C++), or ask who built it for one, or for its debug file with \
                 .debug_frame",
                file(path)
            ),
            Self::AnnotateAssembly { path, function } => write!(
                f,
                "{} in {} has no unwind information, but most of that file has: add .cfi directives if it is assembly; \
                 if a static library brought it (musl's libc.a), build that with -fasynchronous-unwind-tables",
                quoted(function),
                file(path)
            ),
            Self::UpgradeGo => f.write_str("build it with Go 1.21 or later"),
            Self::NodePerfMap => f.write_str("start it with: node --perf-basic-prof"),
            Self::JvmPerfMap { .. } => {
                f.write_str("write the JVM's perf map while recording, as its user (JDK 17 or later)")
            }
            Self::JvmFramePointers => f.write_str("start it with: java -XX:+PreserveFramePointer"),
            Self::PythonPerfMap => {
                f.write_str("to see Python functions, start it with: python3 -X perf (or PYTHONPERFSUPPORT=1)")
            }
            Self::NewerPython { minor } => {
                write!(f, "to see Python functions, use CPython 3.12 or later with -X perf (this is 3.{minor})")
            }
            Self::DotNetPerfMap => f.write_str("start it with the environment variable DOTNET_PerfMapEnabled=1"),
            Self::ErlangPerfMap => f.write_str("start it with: erl +JPperf true (ERL_FLAGS=\"+JPperf true\")"),
            Self::RubyPerfMap => f.write_str("start it with: ruby --yjit --yjit-perf (3.3 or later)"),
            Self::PostgresJitdump => {
                f.write_str("set jit_profiling_support = on in postgresql.conf and restart the server")
            }
            Self::WritePerfMap { pid } => {
                write!(f, "have what makes the code write /tmp/perf-{pid}.map or a jitdump")
            }
            Self::PostgresWithoutJit => {
                f.write_str("set jit = off, in postgresql.conf or for a session: such code keeps no frame pointers")
            }
            Self::FramePointersInGenerated => f.write_str("have what makes the code keep frame pointers in it"),
            Self::RepairMap { why } => f.write_str(why),
            Self::Run64Bit => f.write_str("run a 64-bit build: stacks of 32-bit programs are not unwound"),
            Self::AllowReading { path } => write!(
                f,
                "{} could not be opened: run as root, or with CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH and \
                 CAP_CHECKPOINT_RESTORE",
                file(path)
            ),
            Self::PutLoadOnIt { .. } => f.write_str("put load on it and try again, or see where its threads wait"),
            Self::Nothing { why } => write!(f, "nothing to do: {why}"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FirstMoments => "only the first samples are like that; a longer -d has relatively fewer",
            Self::Replaced => "code was mapped or replaced just then",
            Self::TooDeep => "the innermost 992 frames are kept",
            Self::GoChangesStacks => "Go's runtime leaves the goroutine's stack there without a trace",
            Self::UnusualTable => "its unwind information is of a kind that is not handled",
            Self::InBetween => "a thread began, ended or ran another program just then, or its stack is damaged",
            Self::PackagedAssembly => {
                "code of that package without unwind information, while most of the file has some: assembly, as a rule"
            }
            Self::TablesFull => "the memory for unwind tables is used up",
            Self::TableTooLate => "its unwind table was not there in time; a longer -d has relatively fewer",
            Self::Damaged => "the file is damaged, or reading it failed",
            Self::OtherArchitecture => "the file is of an architecture that is not unwound",
            Self::KernelThread => {
                "threads of the kernel have no code of their own; their kernel stacks are always complete"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_processes_chose_is_no_part_of_a_command() {
        let path = "/tmp/$(reboot)'\n\u{1b}[2J.so".to_owned();
        let text = Fix::InstallDebugInfo { path: path.clone() }.command().unwrap();
        assert!(text.contains(r"$'/tmp/$(reboot)\'\012\033[2J.so'"), "{text}");
        let fixes = [
            Fix::KeepSymbols { path: path.clone() },
            Fix::Restart { path: path.clone() },
            Fix::ProvideParts { path: path.clone(), part: path.clone() },
            Fix::BuildUnwindable { path: path.clone() },
            Fix::UseUnwindable { path: path.clone() },
            Fix::AllowReading { path: path.clone() },
            Fix::ProvideDebugFile { path: path.clone(), build_id: "abcd".to_owned(), package: String::new() },
            Fix::AnnotateAssembly { path: path.clone(), function: path },
        ];
        for fix in fixes {
            let text = fix.to_string();
            assert!(!text.contains(['\n', '\u{1b}']), "{text:?}");
        }
    }

    #[test]
    fn the_debug_file_is_named_by_the_build_id() {
        let fix = |build_id: &str| {
            let build_id = build_id.to_owned();
            Fix::ProvideDebugFile { path: "/a".to_owned(), build_id, package: "a-dbgsym".to_owned() }.to_string()
        };
        assert!(
            fix("0123ab").contains("a-dbgsym") && fix("0123ab").ends_with("/.build-id/01/23ab.debug, here or there")
        );
        // What has no build id is not asked for; it does no harm.
        assert!(fix("").contains("/a"));
    }
}
