//! What was found out about a process.

use std::collections::HashMap;

use profiler_common::address::Pid;
use profiler_export::{Broken, broken};
use profiler_model::{Figures, Profile};
use serde::{Serialize, Serializer};

use super::advice::Circumstances;
use super::code::{Code, Contents};
use super::family::Member;
use super::fix::{Fix, Why};
use super::generated::{Generated, Names};
use super::packages::{Owner, Packages};
use super::run_time::RunTime;
use crate::proc_fs;
use crate::worker::{Description, FileError};

/// Everything that the answer is made of.
pub(super) struct Findings {
    /// The process that was asked about.
    pub(super) named: Pid,
    /// That, or the child that works for it.
    pub(super) pid: Pid,
    /// The process that was asked about, then its children.
    pub(super) family: Vec<Member>,
    pub(super) run_time: Option<RunTime>,
    pub(super) command: Vec<String>,
    pub(super) profile: Profile,
    pub(super) code: Vec<Code>,
    pub(super) generated: Generated,
    pub(super) packages: Packages,
    /// The packages of files.
    pub(super) owners: HashMap<String, Owner>,
}

/// The answer.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) pid: u32,
    pub(super) name: String,
    /// The processes that were looked at: that one, then its children.
    pub(super) processes: Vec<Member>,
    /// The process that `generated` and `fixes` are about, where run times or packages matter.
    pub(super) advice_is_for: u32,
    /// A thread of the kernel: there is nothing more to say.
    pub(super) kernel_thread: bool,
    pub(super) duration_ns: u64,
    pub(super) rate_hz: u32,
    pub(super) samples: u64,
    pub(super) incomplete: u64,
    /// Samples that were taken and lost.
    pub(super) lost: u64,
    /// The files that it runs: those with the most samples first.
    pub(super) code: Vec<CodeEntry>,
    /// Where it tells of the code that it makes.
    pub(super) generated: Names,
    pub(super) broken: Vec<BrokenEntry>,
    /// What to do: what helps most samples first.
    pub(super) fixes: Vec<Advice>,
    pub(super) notes: Vec<String>,
}

/// A file that the process runs.
#[derive(Debug, Serialize)]
pub(super) struct CodeEntry {
    pub(super) path: String,
    pub(super) build_id: String,
    /// The file was removed or replaced since it was mapped.
    pub(super) deleted: bool,
    pub(super) mappings: Vec<Mapping>,
    pub(super) samples: u64,
    pub(super) nameless_samples: u64,
    pub(super) unwinding: Unwinding,
    pub(super) symbols: Symbols,
    pub(super) debug_info: DebugInfo,
    /// Compilation units whose part of the debug information is not there (split DWARF), of the first 64.
    pub(super) missing_parts: u64,
    /// What gives its functions names, if they lack some.
    pub(super) fix: Option<Fix>,
}

/// Where code is mapped.
#[derive(Debug, Serialize)]
pub(super) struct Mapping {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) file_offset: u64,
}

/// By what most of a file's code is unwound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Unwinding {
    /// A table that the file has.
    Table {
        /// `.eh_frame`, `.debug_frame` or `.gopclntab`.
        section: &'static str,
        /// The debug file that it is in; empty where it is in the file itself.
        file: String,
        /// Rows that it comes to.
        rows: u64,
        /// Rows that can't be used.
        refused: u64,
        /// Pieces that can't be read.
        unreadable: u64,
        /// Bytes of code that it covers.
        covered_bytes: u64,
        /// Bytes of code that it does not cover, or not usefully.
        uncovered_bytes: u64,
        /// Of these, bytes of code whose instructions tell where the caller is.
        by_instructions_bytes: u64,
        /// And bytes of code that keep a frame pointer.
        by_frame_pointer_bytes: u64,
    },
    /// Its instructions: no table covers its code, but what it does to the stack pointer can be followed.
    Instructions {
        /// Bytes of code that tell where the caller is.
        covered_bytes: u64,
        /// Bytes of code that do not.
        uncovered_bytes: u64,
        /// Of these, bytes of code that keep a frame pointer.
        by_frame_pointer_bytes: u64,
    },
    /// The frame pointer: no table covers its code.
    FramePointer {
        /// Bytes of code that keep one.
        covered_bytes: u64,
        /// Bytes of code that do not.
        uncovered_bytes: u64,
    },
    /// Nothing.
    None,
    /// It is not unwound.
    Unsupported {
        /// Why.
        why: String,
    },
    /// It could not be read.
    Unreadable {
        /// Why.
        why: String,
    },
}

/// The best table of symbols that a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Symbols {
    /// `.symtab`: all functions.
    Symtab,
    /// `.gopclntab`: all Go functions.
    Go,
    /// `.gnu_debugdata`: all functions.
    GnuDebugdata,
    /// `.dynsym`: what other files use.
    Dynsym,
    /// What the process tells of the code that it makes.
    PerfMap,
    /// The same in another form.
    Jitdump,
    /// None.
    None,
}

/// Where the source lines of a file's code are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum DebugInfo {
    /// In the file.
    Own,
    /// In a file of its own.
    Separate {
        /// Its path.
        path: String,
    },
    /// In Go's table.
    Go,
    /// Nowhere.
    None,
}

/// Broken stacks and what to do about them.
#[derive(Debug, Serialize)]
pub(super) struct BrokenEntry {
    #[serde(flatten)]
    pub(super) broken: Broken,
    #[serde(serialize_with = "with_text")]
    pub(super) fix: Fix,
}

/// Something to do, and how many samples get better by it.
#[derive(Debug, Serialize)]
pub(super) struct Advice {
    pub(super) samples: u64,
    #[serde(flatten, serialize_with = "with_text")]
    pub(super) fix: Fix,
    /// For what it is done.
    pub(super) files: Vec<String>,
}

/// A fix with what people are told of it.
fn with_text<S: Serializer>(fix: &Fix, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct WithText<'a> {
        #[serde(flatten)]
        fix: &'a Fix,
        text: String,
        command: Option<String>,
    }
    WithText { fix, text: fix.to_string(), command: fix.command() }.serialize(serializer)
}

impl Report {
    /// What there is to say of a thread of the kernel.
    pub(super) fn of_kernel_thread(pid: Pid) -> Self {
        let fix = Fix::Nothing { why: Why::KernelThread };
        Self {
            pid: pid.0,
            name: proc_fs::name(pid).unwrap_or_default(),
            processes: Vec::new(),
            advice_is_for: pid.0,
            kernel_thread: true,
            duration_ns: 0,
            rate_hz: 0,
            samples: 0,
            incomplete: 0,
            lost: 0,
            code: Vec::new(),
            generated: Names::None,
            broken: Vec::new(),
            fixes: vec![Advice { samples: 0, fix, files: Vec::new() }],
            notes: Vec::new(),
        }
    }

    /// The answer from what was found.
    pub(super) fn of(findings: Findings) -> Self {
        let Findings { named, pid, family, run_time, command, profile, mut code, generated, packages, owners } =
            findings;
        let name = family.iter().find(|member| member.pid == named.0).map(|member| member.name.clone());
        code.sort_by_key(|code| std::cmp::Reverse(code.samples));
        let figures = Figures::of(&profile);
        let circumstances = Circumstances {
            run_time,
            pid,
            command: &command,
            own_pid: generated.own_pid.unwrap_or(pid).0,
            names: &generated.names,
            code: &code,
            packages: &packages,
            owners: &owners,
        };
        let with_fix = |broken: Broken| BrokenEntry { fix: circumstances.for_broken(&broken), broken };
        let broken: Vec<BrokenEntry> = broken(&profile).into_iter().map(with_fix).collect();
        let mut fixes = advice(&circumstances, &broken);
        if figures.samples == 0 {
            fixes.insert(0, Advice { samples: 0, fix: Fix::PutLoadOnIt { pid: named.into() }, files: Vec::new() });
        }
        let entry = |code: &Code| CodeEntry::of(code, &generated.names, circumstances.for_names(code));
        Self {
            pid: named.0,
            name: name.unwrap_or_default(),
            processes: family,
            advice_is_for: pid.0,
            kernel_thread: false,
            duration_ns: profile.about().duration_ns,
            rate_hz: profile.about().sample_rate_hz.get(),
            samples: figures.samples,
            incomplete: figures.incomplete,
            lost: profile.quality.samples_lost(),
            code: code.iter().map(entry).collect(),
            generated: generated.names.clone(),
            broken,
            fixes,
            notes: profile.notes().map(str::to_owned).collect(),
        }
    }

    /// The answer for programs: one JSON object, in one line.
    pub(super) fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self).map(|text| text + "\n")
    }
}

/// Everything that can be done, each once.
fn advice(circumstances: &Circumstances<'_>, broken: &[BrokenEntry]) -> Vec<Advice> {
    let mut all: Vec<Advice> = Vec::new();
    let mut add = |fix: Fix, samples: u64, file: &str| {
        let known = all.iter().position(|known| known.fix == fix).unwrap_or_else(|| {
            all.push(Advice { samples: 0, fix, files: Vec::new() });
            all.len() - 1
        });
        let Some(Advice { samples: total, files, .. }) = all.get_mut(known) else { return };
        *total = total.saturating_add(samples);
        if !file.is_empty() && !files.iter().any(|known| known == file) {
            files.push(file.to_owned());
        }
    };
    for entry in broken.iter().filter(|entry| !matches!(entry.fix, Fix::Nothing { .. })) {
        add(entry.fix.clone(), entry.broken.samples, &entry.broken.file);
    }
    for code in circumstances.code.iter().filter(|code| code.nameless_samples > 0) {
        if let Some(fix) = circumstances.for_names(code) {
            add(fix, code.nameless_samples, &code.path);
        }
    }
    for code in circumstances.code {
        if let Some(description) = code.description().filter(|description| description.missing_parts > 0) {
            let (path, part) = (code.path.clone(), description.missing_part.clone());
            add(Fix::ProvideParts { path, part }, code.samples, &code.path);
        }
        match &code.contents {
            Contents::Unopened => add(Fix::AllowReading { path: code.path.clone() }, code.samples, &code.path),
            Contents::Refused(_) if code.is_32_bit() => add(Fix::Run64Bit, code.samples, ""),
            Contents::Refused(_) | Contents::Described(_) | Contents::Generated => {}
        }
    }
    if let Some(fix) = circumstances.for_generated() {
        let generated = circumstances.code.iter().filter(|code| code.is_generated());
        add(fix, generated.map(|code| code.nameless_samples).sum(), "");
    }
    let mut advice = all;
    // What makes stacks whole goes before what gives them names, where both help as much.
    advice.sort_by_key(|advice| std::cmp::Reverse(advice.samples));
    let needs_archive = |advice: &Advice| matches!(&advice.fix, Fix::InstallDebugPackage { package, .. } if package.ends_with("-dbgsym"));
    // Before all packages: one command installs them together.
    let is_package = |advice: &Advice| matches!(advice.fix, Fix::InstallDebugPackage { .. });
    if advice.iter().any(needs_archive)
        && let Some(at) = advice.iter().position(is_package)
        && let Some(fix) = circumstances.for_archive()
    {
        advice.insert(at, Advice { samples: 0, fix, files: Vec::new() });
    }
    advice
}

impl CodeEntry {
    fn of(code: &Code, names: &Names, fix: Option<Fix>) -> Self {
        let mapping = |place: &super::code::Place| Mapping {
            start: place.start.0,
            end: place.end.0,
            file_offset: place.file_offset.0,
        };
        let (unwinding, symbols, debug_info) = match &code.contents {
            Contents::Described(description) => {
                (Unwinding::of(description), Symbols::of(description), DebugInfo::of(description))
            }
            Contents::Generated => {
                let symbols = match names {
                    Names::PerfMap { .. } => Symbols::PerfMap,
                    Names::Jitdump { .. } => Symbols::Jitdump,
                    Names::Refused { .. } | Names::None => Symbols::None,
                };
                (Unwinding::FramePointer { covered_bytes: 0, uncovered_bytes: 0 }, symbols, DebugInfo::None)
            }
            Contents::Unopened => {
                let why = "it could not be opened".to_owned();
                (Unwinding::Unreadable { why }, Symbols::None, DebugInfo::None)
            }
            Contents::Refused(FileError::Unsupported(why)) => {
                (Unwinding::Unsupported { why: why.clone() }, Symbols::None, DebugInfo::None)
            }
            Contents::Refused(error) => {
                (Unwinding::Unreadable { why: error.to_string() }, Symbols::None, DebugInfo::None)
            }
        };
        Self {
            path: code.path.clone(),
            build_id: code.build_id.clone(),
            deleted: code.deleted,
            mappings: code.places.iter().map(mapping).collect(),
            samples: code.samples,
            nameless_samples: code.nameless_samples,
            unwinding,
            symbols,
            debug_info,
            missing_parts: code.description().map_or(0, |description| description.missing_parts),
            fix,
        }
    }
}

/// A table that covers one byte of so many that it does not cover is worth a word.
const LEAST_TABLE: u64 = 10;

impl Unwinding {
    fn of(description: &Description) -> Self {
        let (sections, coverage) = (&description.sections, &description.coverage);
        let section = if !description.frames_file.is_empty() {
            Some(".debug_frame")
        } else if sections.go_table {
            Some(".gopclntab")
        } else if sections.eh_frame {
            Some(".eh_frame")
        } else if sections.debug_frame {
            Some(".debug_frame")
        } else {
            None
        };
        let (table, pointer) = (coverage.by_table_bytes, coverage.by_frame_pointer_bytes);
        let instructions = coverage.by_instructions_bytes;
        let none = coverage.uncovered_bytes.saturating_add(coverage.refused_bytes);
        let uncovered_bytes = instructions.saturating_add(pointer).saturating_add(none);
        match section {
            // Less is what start files and some assembly bring along.
            Some(section) if table >= uncovered_bytes / LEAST_TABLE => Self::Table {
                section,
                file: description.frames_file.clone(),
                rows: description.rows,
                refused: description.refused,
                unreadable: description.unreadable,
                covered_bytes: table,
                uncovered_bytes,
                by_instructions_bytes: instructions,
                by_frame_pointer_bytes: pointer,
            },
            _ if instructions >= pointer.max(none) && instructions > 0 => Self::Instructions {
                covered_bytes: instructions,
                uncovered_bytes: pointer.saturating_add(none),
                by_frame_pointer_bytes: pointer,
            },
            _ if pointer >= none && pointer > 0 => Self::FramePointer { covered_bytes: pointer, uncovered_bytes: none },
            _ => Self::None,
        }
    }
}

impl Symbols {
    fn of(description: &Description) -> Self {
        let sections = &description.sections;
        if sections.symtab {
            Self::Symtab
        } else if sections.go_table {
            Self::Go
        } else if sections.gnu_debugdata {
            Self::GnuDebugdata
        } else if sections.dynsym {
            Self::Dynsym
        } else {
            Self::None
        }
    }
}

impl DebugInfo {
    fn of(description: &Description) -> Self {
        let sections = &description.sections;
        if !description.debug_file.is_empty() {
            Self::Separate { path: description.debug_file.clone() }
        } else if sections.debug_info || sections.debug_line {
            Self::Own
        } else if sections.go_table {
            Self::Go
        } else {
            Self::None
        }
    }
}
