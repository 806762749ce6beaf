//! The files that a process runs, and what each offers for unwinding and naming its code.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use profiler_common::address::{FileOffset, Pid, VirtualAddress};
use profiler_model::{FrameKind, Profile};
use tokio::time::{Instant, timeout_at};

use crate::debug_files;
use crate::debuginfod::DebugCache;
use crate::record::RecordError;
use crate::session::SessionError;
use crate::tracker::Tracker;
use crate::worker::{Description, FileError, FileKey, QUEUE_REQUESTS, Reply, Role, Worker};

/// How long all descriptions together may take. A JVM with its libraries takes 0.3 s.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

/// Where a file, or a part of it, is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) start: VirtualAddress,
    pub(super) end: VirtualAddress,
    pub(super) file_offset: FileOffset,
}

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// It was looked at.
    Described(Description),
    /// It could not be opened.
    Unopened,
    /// There is nothing to unwind it by.
    Refused(FileError),
    /// Made at run time: there is no file, or none that is a program.
    Generated,
}

/// A file that a process runs.
#[derive(Debug)]
pub(super) struct Code {
    pub(super) path: String,
    pub(super) build_id: String,
    pub(super) places: Vec<Place>,
    pub(super) contents: Contents,
    /// The file was removed or replaced since it was mapped.
    pub(super) deleted: bool,
    /// The memory for tables had no room for its own.
    pub(super) lacked_room: bool,
    /// Samples with a frame in it.
    pub(super) samples: u64,
    /// Those with a frame in it that has no name.
    pub(super) nameless_samples: u64,
    file: Option<(FileKey, Arc<OwnedFd>, debug_files::Place)>,
}

impl Code {
    /// Code of that path, of which nothing is known.
    pub(super) fn new(path: &str, contents: Contents) -> Self {
        Self {
            path: path.to_owned(),
            build_id: String::new(),
            places: Vec::new(),
            contents,
            deleted: false,
            lacked_room: false,
            samples: 0,
            nameless_samples: 0,
            file: None,
        }
    }

    pub(super) fn is_generated(&self) -> bool {
        self.contents == Contents::Generated
    }

    /// Whether it is a 32-bit program or library: that much is in what the row builder says of it.
    pub(super) fn is_32_bit(&self) -> bool {
        matches!(&self.contents, Contents::Refused(FileError::Unsupported(why)) if why.starts_with("a 32-bit ELF file"))
    }

    pub(super) const fn description(&self) -> Option<&Description> {
        match &self.contents {
            Contents::Described(description) => Some(description),
            Contents::Unopened | Contents::Refused(_) | Contents::Generated => None,
        }
    }
}

/// The files that processes have mapped now, in the order of their addresses; those of the first process first, and
/// each where the first one has it. They are not looked at yet.
pub(super) fn of_processes(tracker: &Tracker, pids: impl Iterator<Item = Pid>) -> Vec<Code> {
    let mut all: Vec<Code> = Vec::new();
    let mut known: HashMap<(FileKey, &str), (Pid, usize)> = HashMap::new();
    let mappings = pids.filter_map(|pid| tracker.process(pid)).flat_map(|process| {
        let pid = process.pid;
        process.live().map(move |mapping| (pid, mapping))
    });
    for (pid, mapping) in mappings {
        let Some(executable) = tracker.executable(mapping.file) else { continue };
        // There are two kinds of generated code, and one name for both.
        let key = if executable.generated { FileKey(0) } else { mapping.file };
        let (whose, index) = *known.entry((key, executable.path.as_str())).or_insert_with(|| {
            let contents = if executable.generated { Contents::Generated } else { Contents::Unopened };
            let file = executable.file.as_ref().filter(|_| !executable.generated);
            all.push(Code {
                build_id: executable.build_id.clone(),
                // The vDSO has a file of ours, without a name.
                deleted: file.is_some_and(|file| is_deleted(file)) && executable.path.starts_with('/'),
                lacked_room: executable.lacked_room,
                file: file.map(|file| (mapping.file, Arc::clone(file), executable.place())),
                ..Code::new(&executable.path, contents)
            });
            (pid, all.len() - 1)
        });
        if whose != pid {
            continue;
        }
        let (start, end, file_offset) = (mapping.start, mapping.end, mapping.file_offset);
        if let Some(code) = all.get_mut(index) {
            code.places.push(Place { start, end, file_offset });
        }
    }
    all
}

/// Whether a file has no name any more.
fn is_deleted(file: &OwnedFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink == 0)
}

/// Has a worker look at the files, and at debug files that servers sent.
pub(super) async fn describe(all: &mut [Code], downloaded: Option<Arc<DebugCache>>) -> Result<(), RecordError> {
    let mut worker = Worker::spawn(Role::Describe, Path::new("/proc/self/exe")).map_err(SessionError::Worker)?;
    if let Some(cache) = downloaded {
        worker.use_downloaded(cache);
    }
    let deadline = Instant::now() + LIMIT;
    let mut left = all.iter().filter_map(|code| code.file.clone());
    let mut found: BTreeMap<FileKey, Contents> = BTreeMap::new();
    loop {
        while worker.pending() < QUEUE_REQUESTS
            && let Some((key, file, place)) = left.next()
        {
            // There is room in its queue.
            let _asked = worker.request_description(key, file, place);
        }
        if worker.pending() == 0 {
            break;
        }
        let Ok(reply) = timeout_at(deadline, worker.next_reply()).await else { break };
        if let Reply::Description { key, result } = reply {
            let contents = match result {
                Ok(description) => Contents::Described(description),
                Err(FileError::NotElf) => Contents::Generated,
                Err(error) => Contents::Refused(error),
            };
            found.insert(key, contents);
        }
    }
    for code in all {
        if let Some((key, ..)) = code.file.take()
            && let Some(contents) = found.remove(&key)
        {
            code.contents = contents;
        }
    }
    Ok(())
}

/// Counts the samples in each file.
pub(super) fn count(all: &mut [Code], profile: &Profile) {
    let by_name: HashMap<(String, String), usize> =
        all.iter().enumerate().map(|(index, code)| ((code.path.clone(), code.build_id.clone()), index)).collect();
    let index_of = |(_id, mapping): (_, &profiler_model::Mapping)| {
        by_name.get(&(profile[mapping.path].to_owned(), profile[mapping.build_id].to_owned())).copied()
    };
    let of_mapping: Vec<Option<usize>> = profile.mappings().map(index_of).collect();
    let (mut hit, mut nameless) = (HashSet::new(), HashSet::new());
    for sample in profile.samples() {
        hit.clear();
        nameless.clear();
        for id in sample.stack {
            let key = profile.location_key(*id);
            let mapping = key.mapping.filter(|_| key.kind == FrameKind::User);
            let index = mapping.and_then(|mapping| of_mapping.get(mapping.index()).copied().flatten());
            let Some((index, code)) = index.and_then(|index| Some((index, all.get_mut(index)?))) else { continue };
            if hit.insert(index) {
                code.samples = code.samples.saturating_add(sample.count);
            }
            if is_nameless(profile, *id) && nameless.insert(index) {
                code.nameless_samples = code.nameless_samples.saturating_add(sample.count);
            }
        }
    }
}

/// Whether nobody named the function at a location.
fn is_nameless(profile: &Profile, id: profiler_model::LocationId) -> bool {
    match profile.lines(id) {
        None | Some([]) => true,
        Some([line]) => &profile[profile[line.function].name] == "[jit]",
        Some(_) => false,
    }
}
