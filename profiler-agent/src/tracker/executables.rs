//! The files that processes run: opened once, their tables built once, shared by all processes.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use profiler_common::address::{Bias, FileOffset, MonotonicNs, Pid, Svma, VirtualAddress};
use profiler_common::row::{Row, Rule};
use profiler_common::search::{Extent, last_at_most};
use profiler_common::step::NoBarrier;
use profiler_unwind::{Segment, bias_of_mapping};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::process::JitDump;
use super::trampoline;
use crate::kernel::Tables;
use crate::kernel::sideband::{FileId, Mapping};
use crate::proc_fs;
use crate::worker::FileKey;

/// Which file it is, whatever its name. A file that was written again is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
    size_bytes: u64,
    /// When its contents or its inode were last changed (ctime).
    changed: (i64, u64),
}

/// A piece of an executable's table, where the kernel reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlacedPart {
    pub(crate) start: Svma,
    pub(crate) end: Svma,
    pub(crate) first_row: u32,
    pub(crate) extent: Extent,
}

/// What is known of an executable's unwind table.
#[derive(Debug)]
pub(crate) enum Unwinding {
    /// Nobody needed it yet, or it was given up for want of room when nobody did.
    Unasked,
    /// The worker builds it.
    Waiting,
    /// The kernel has it.
    Placed(Vec<PlacedPart>),
    /// There is no room for it now.
    NoRoom {
        /// When it is tried again.
        retry_from: MonotonicNs,
    },
    /// There is none.
    Missing,
}

/// A file that processes run.
#[derive(Debug)]
pub(crate) struct Executable {
    /// The path under which it was first seen, or a name in brackets.
    pub(crate) path: String,
    /// The GNU build id in hex; empty when there is none.
    pub(crate) build_id: String,
    /// Kept open while it is mapped and a little longer.
    pub(crate) file: Option<Arc<OwnedFd>>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) unwinding: Unwinding,
    /// Made at run time: memory without a file, or of a file that is no program.
    pub(crate) generated: bool,
    /// Its table once found no room: that was counted.
    pub(crate) lacked_room: bool,
    /// Rows of its table, whether it is placed or not.
    pub(crate) row_count: u64,
    /// Since when no process has it mapped.
    pub(crate) idle_since: Option<MonotonicNs>,
    identity: Option<Identity>,
}

impl Identity {
    fn of(file: &impl AsFd) -> Option<Self> {
        let stat = rustix::fs::fstat(file).ok()?;
        Some(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size_bytes: stat.st_size.unsigned_abs(),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        })
    }
}

impl Executable {
    /// Whether the open file is still what it was when its table was built.
    fn is_unchanged(&self) -> bool {
        self.identity.is_some() && self.file.as_ref().and_then(Identity::of) == self.identity
    }

    /// What is added to this file's addresses where `start` shows `file_offset`.
    ///
    /// Without segments (no ELF, or unreadable) addresses count from the start of the mapping.
    pub(crate) fn bias(&self, start: VirtualAddress, file_offset: FileOffset) -> Bias {
        let page_bytes = rustix::param::page_size() as u64;
        bias_of_mapping(&self.segments, start, file_offset, page_bytes).unwrap_or(Bias(start.0))
    }

    /// Whether its table, and with it what its addresses mean, is yet to come.
    pub(crate) fn is_awaited(&self) -> bool {
        matches!(self.unwinding, Unwinding::Unasked | Unwinding::Waiting)
    }

    /// The rule for `address`, read from where the kernel reads it.
    pub(crate) fn rule(&self, address: Svma, tables: &Tables) -> Option<Rule> {
        let Unwinding::Placed(parts) = &self.unwinding else { return None };
        let part = parts.get(parts.partition_point(|part| part.end <= address))?;
        let offset = address.0.checked_sub(part.start.0)?;
        let row = |index| tables.row(u64::from(part.first_row) + index);
        let found = last_at_most::<NoBarrier>(part.extent, Row::search_key(offset), |index| row(index).0);
        Some(row(found).rule())
    }
}

/// All files that were seen.
#[derive(Debug, Default)]
pub(crate) struct Executables {
    all: Vec<Executable>,
    by_identity: HashMap<Identity, FileKey>,
    /// Only files with a generation: others may be another file with the same inode.
    by_id: HashMap<FileId, FileKey>,
    /// Files that can't be opened.
    unreadable: HashMap<FileId, FileKey>,
    vdso: Option<FileKey>,
}

/// Executable memory that is no file: one table for all, by the frame pointer.
pub(crate) const ANONYMOUS: FileKey = FileKey(0);

/// Such memory with CPython's trampolines: they have a table of their own.
pub(super) const TRAMPOLINES: FileKey = FileKey(1);

/// What [`Executables::find`] found.
pub(crate) enum Found {
    /// A known file.
    Known(FileKey),
    /// A file seen for the first time.
    New(FileKey),
    /// A file that could not be opened, for the first time: known by its path only.
    Unreadable(FileKey),
    /// Memory where no user code is.
    Nothing,
}

impl Executables {
    pub(crate) fn new() -> Self {
        let mut executables = Self::default();
        for key in [ANONYMOUS, TRAMPOLINES] {
            let added = executables.add("[jit]".to_owned(), None, None);
            debug_assert_eq!(added, key, "these are the first ones");
            if let Some(generated) = executables.get_mut(added) {
                generated.generated = true;
            }
        }
        executables
    }

    pub(crate) fn get(&self, key: FileKey) -> Option<&Executable> {
        self.all.get(key.0 as usize)
    }

    pub(crate) fn get_mut(&mut self, key: FileKey) -> Option<&mut Executable> {
        self.all.get_mut(key.0 as usize)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (FileKey, &mut Executable)> {
        self.all.iter_mut().enumerate().map(|(index, executable)| (key_at(index), executable))
    }

    fn add(&mut self, path: String, file: Option<Arc<OwnedFd>>, identity: Option<Identity>) -> FileKey {
        let key = key_at(self.all.len());
        self.all.push(Executable {
            path,
            build_id: String::new(),
            file,
            segments: Vec::new(),
            unwinding: Unwinding::Unasked,
            generated: false,
            lacked_room: false,
            row_count: 0,
            idle_since: None,
            identity,
        });
        if let Some(identity) = identity {
            self.by_identity.insert(identity, key);
        }
        key
    }

    /// The file of a mapping, opened if it has to be.
    pub(crate) fn find(&mut self, pid: Pid, mapping: &Mapping) -> Found {
        match mapping.path.to_str() {
            Some("[vdso]") => return self.find_vdso(),
            Some("[vsyscall]" | "[uprobes]" | "[sigpage]") => return Found::Nothing,
            _ if mapping.file.inode == 0 => {
                let is_trampoline = trampoline::is_at(pid, mapping.start);
                return Found::Known(if is_trampoline { TRAMPOLINES } else { ANONYMOUS });
            }
            _ => {}
        }
        if let Some(&key) = self.by_id.get(&mapping.file)
            && self.get(key).is_some_and(Executable::is_unchanged)
        {
            return Found::Known(key);
        }
        let file = match open(pid, mapping) {
            Opened::File(file) => file,
            Opened::NoFile => return Found::Known(ANONYMOUS),
            Opened::Nothing => return self.unreadable(mapping),
        };
        let Some(identity) = Identity::of(&file) else { return self.unreadable(mapping) };
        let file = Arc::new(file);
        let found = match self.by_identity.get(&identity).copied() {
            Some(key) => {
                if let Some(known) = self.get_mut(key)
                    && known.file.is_none()
                {
                    known.file = Some(file);
                    if matches!(known.unwinding, Unwinding::Missing) && known.segments.is_empty() {
                        known.unwinding = Unwinding::Unasked;
                    }
                }
                Found::Known(key)
            }
            None => Found::New(self.add(shown_path(mapping), Some(file), Some(identity))),
        };
        if let (true, Found::Known(key) | Found::New(key)) = (mapping.file.generation != 0, &found) {
            self.by_id.insert(mapping.file, *key);
        }
        found
    }

    /// Opens what a process mapped to tell where its jitdump is.
    pub(super) fn open_jitdump(pid: Pid, mapping: &Mapping, since: MonotonicNs) -> Option<JitDump> {
        let Opened::File(file) = open(pid, mapping) else { return None };
        Some(JitDump { id: mapping.file, file: Arc::new(file), path: shown_path(mapping), since })
    }

    fn unreadable(&mut self, mapping: &Mapping) -> Found {
        // /proc does not tell generations.
        let id = FileId { generation: 0, ..mapping.file };
        if let Some(key) = self.unreadable.get(&id) {
            return Found::Known(*key);
        }
        let key = self.add(shown_path(mapping), None, None);
        if let Some(executable) = self.get_mut(key) {
            executable.unwinding = Unwinding::Missing;
        }
        self.unreadable.insert(id, key);
        Found::Unreadable(key)
    }

    /// The vDSO is the same for all 64-bit processes of a kernel: ours is read, once.
    fn find_vdso(&mut self) -> Found {
        if let Some(key) = self.vdso {
            return Found::Known(key);
        }
        let Some(file) = copy_of_vdso() else { return Found::Nothing };
        let key = self.add("[vdso]".to_owned(), Some(Arc::new(file)), None);
        self.vdso = Some(key);
        Found::New(key)
    }

    /// Forgets that this file is known by a number that another file may get.
    pub(crate) fn close(&mut self, key: FileKey) {
        self.by_id.retain(|_id, known| *known != key);
        if let Some(executable) = self.get_mut(key)
            && executable.identity.is_some()
        {
            executable.file = None;
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "every entry costs an open file: 2^32 can't be")]
const fn key_at(index: usize) -> FileKey {
    FileKey(index as u32)
}

/// Whether the mapping is there to tell of a jitdump: perf's convention is a name `jit-PID.dump`.
pub(super) fn tells_of_jitdump(mapping: &Mapping) -> bool {
    let path = shown_path(mapping);
    let name = path.rsplit('/').next().and_then(|name| name.strip_prefix("jit-")?.strip_suffix(".dump"));
    name.is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
}

fn shown_path(mapping: &Mapping) -> String {
    let path = mapping.path.to_string_lossy();
    path.strip_suffix(" (deleted)").unwrap_or(&path).to_owned()
}

/// What opening a mapping's file came to.
enum Opened {
    /// It is open for reading.
    File(OwnedFd),
    /// A device or the like is mapped: what is there is no file's code.
    NoFile,
    /// It is not there, or may not be read.
    Nothing,
}

/// Opens the very file that is mapped; by its path only when the process is gone, and then only if
/// it is that inode and was not changed since.
///
/// Paths are the observed process's choice, and to open some things does harm: a FIFO wakes who
/// writes to it, a watchdog device arms a reboot. So only what turned out to be the regular file that
/// is wanted is opened for more than a look at its inode (`O_PATH`).
fn open(pid: Pid, mapping: &Mapping) -> Opened {
    let linked = |thread: Pid, start: VirtualAddress, end: VirtualAddress| {
        let link = format!("/proc/{thread}/map_files/{:x}-{:x}", start.0, end.0);
        let (file, stat) = look_at(rustix::fs::open(link, LOOK, Mode::empty()))?;
        (stat.st_ino == mapping.file.inode).then_some((file, stat))
    };
    let mapped_in = |thread: Pid| linked(thread, mapping.start, mapping.end);
    let other_thread = || proc_fs::living_thread(pid).filter(|thread| *thread != pid);
    // The record of a program whose first segment is code has the range of the whole image, which is
    // mapped first to have the room (`elf_load` in linux/fs/binfmt_elf.c).
    let by_what_is_left = || {
        let now = proc_fs::executable_mappings(pid).ok()?;
        let same = |known: &&Mapping| known.start == mapping.start && known.file.inode == mapping.file.inode;
        now.iter().find(same).and_then(|known| linked(proc_fs::living_thread(pid)?, known.start, known.end))
    };
    let found = mapped_in(pid).or_else(|| mapped_in(other_thread()?)).or_else(by_what_is_left);
    if let Some((file, stat)) = found {
        return if is_regular(&stat) { reopen(&file) } else { Opened::NoFile };
    }
    let roots = [format!("/proc/{pid}/root"), "/".to_owned()];
    let found = roots.iter().find_map(|root| find_in(root, mapping));
    found.map_or(Opened::Nothing, |file| reopen(&file))
}

/// What opening somebody's file came to.
pub(crate) enum Opening {
    /// It is open for reading.
    File(OwnedFd),
    /// It is not there.
    Nothing,
    /// What is there is not what is wanted.
    Refused(&'static str),
}

/// The root directory of a process, to look from.
pub(crate) fn root_of(pid: Pid) -> Option<OwnedFd> {
    rustix::fs::open(format!("/proc/{pid}/root"), LOOK | OFlags::DIRECTORY, Mode::empty()).ok()
}

/// The folder `/tmp` below a root directory.
pub(crate) fn tmp_in(root: &OwnedFd) -> Option<OwnedFd> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, "tmp", LOOK | OFlags::DIRECTORY, Mode::empty(), inside).ok()
}

/// Opens the file with this name in a folder, if it is a regular file of one of `owners` there, on the
/// same file system: no link leads on, and nothing that is mounted over it.
pub(crate) fn open_owned(folder: &OwnedFd, name: &str, owners: &[u32]) -> Opening {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let looked = rustix::fs::openat2(folder, name, LOOK | OFlags::NOFOLLOW, Mode::empty(), beneath);
    let (file, stat) = match looked {
        Ok(file) => match look_at(Ok(file)) {
            Some(found) => found,
            None => return Opening::Nothing,
        },
        Err(Errno::XDEV) => return Opening::Refused("something is mounted there"),
        Err(Errno::ACCESS | Errno::PERM) => return Opening::Refused("it may not be looked at"),
        Err(_) => return Opening::Nothing,
    };
    if !is_regular(&stat) {
        return Opening::Refused("it is no regular file");
    }
    if !owners.contains(&stat.st_uid) {
        return Opening::Refused("it is another user's");
    }
    match reopen(&file) {
        Opened::File(file) => Opening::File(file),
        _ => Opening::Refused("it may not be read"),
    }
}

/// To look at an inode: nothing of what is behind it is opened.
const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// The file that a mapping's path leads to below `root`, if it is that file. The kernel makes such
/// paths without symbolic links, so one that has some by now leads elsewhere.
fn find_in(root: &str, mapping: &Mapping) -> Option<OwnedFd> {
    let path = Path::new(&mapping.path).strip_prefix("/").ok()?;
    let root = rustix::fs::open(root, LOOK | OFlags::DIRECTORY, Mode::empty()).ok()?;
    let beneath = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let (file, stat) = look_at(rustix::fs::openat2(root, path, LOOK | OFlags::NOFOLLOW, Mode::empty(), beneath))?;
    (is_regular(&stat) && is_same(&stat, mapping.file) && !just_changed(&stat)).then_some(file)
}

fn look_at(file: rustix::io::Result<OwnedFd>) -> Option<(OwnedFd, Stat)> {
    let file = file.ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    Some((file, stat))
}

/// Opens a regular file for reading. It never waits for who has a lease on it.
fn reopen(file: &OwnedFd) -> Opened {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty()).map_or(Opened::Nothing, Opened::File)
}

fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Whether it is this file, as far as numbers tell. Devices with major number 0 (overlayfs, btrfs) are
/// another number in `stat` than where the kernel tells of mappings.
fn is_same(stat: &Stat, file: FileId) -> bool {
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let comparable = major != 0 && file.device_major != 0;
    stat.st_ino == file.inode && (!comparable || (major, minor) == (file.device_major, file.device_minor))
}

/// Whether the file was made or changed in the last moment: perhaps after it was mapped.
fn just_changed(stat: &Stat) -> bool {
    const MOMENT_S: i64 = 2;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    stat.st_ctime > now - MOMENT_S
}

fn copy_of_vdso() -> Option<OwnedFd> {
    use io::Write as _;
    use std::os::unix::fs::FileExt as _;
    const MOST_BYTES: u64 = 1 << 20;
    let us = Pid(std::process::id());
    let maps = proc_fs::executable_mappings(us).ok()?;
    let vdso = maps.iter().find(|mapping| mapping.path == "[vdso]")?;
    let length = usize::try_from((vdso.end.0 - vdso.start.0).min(MOST_BYTES)).ok()?;
    let mut bytes = vec![0; length];
    File::open("/proc/self/mem").ok()?.read_exact_at(&mut bytes, vdso.start.0).ok()?;
    let copy = rustix::fs::memfd_create("spanflame-vdso", rustix::fs::MemfdFlags::CLOEXEC).ok()?;
    let mut copy = File::from(copy);
    copy.write_all(&bytes).ok()?;
    Some(copy.into())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::mem::MaybeUninit;
    use std::os::unix::fs::{MetadataExt as _, symlink};
    use std::path::PathBuf;

    use rustix::fs::inotify;

    use super::*;

    /// A folder that goes with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("spanflame-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _gone = std::fs::remove_dir_all(&self.0);
        }
    }

    /// A mapping of `path` at an address where nothing is mapped, so that only the path leads on.
    fn mapping(path: impl Into<OsString>, metadata: &std::fs::Metadata) -> Mapping {
        let file = FileId {
            device_major: rustix::fs::major(metadata.dev()),
            device_minor: rustix::fs::minor(metadata.dev()),
            inode: metadata.ino(),
            generation: 0,
        };
        let (start, end) = (VirtualAddress(0x1000), VirtualAddress(0x2000));
        Mapping { start, end, file_offset: FileOffset(0), file, path: path.into() }
    }

    fn is_opened(mapping: &Mapping) -> bool {
        matches!(open(Pid(std::process::id()), mapping), Opened::File(_))
    }

    #[test]
    fn what_is_no_regular_file_is_never_opened() {
        let scratch = Scratch::new("devices");
        let (fifo, link) = (scratch.0.join("fifo"), scratch.0.join("link"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        symlink(&fifo, &link).unwrap();
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&watch, &fifo, inotify::WatchFlags::OPEN).unwrap();
        let metadata = std::fs::metadata(&fifo).unwrap();
        assert!(!is_opened(&mapping(&fifo, &metadata)));
        assert!(!is_opened(&mapping(&link, &metadata)));
        let mut space = [MaybeUninit::uninit(); 512];
        let mut events = inotify::Reader::new(&watch, &mut space);
        assert!(matches!(events.next(), Err(rustix::io::Errno::WOULDBLOCK)), "the FIFO was opened");
    }

    #[test]
    fn a_path_leads_to_the_file_that_was_mapped_or_to_none() {
        // Not made just now, and not reached through a link.
        let path = std::fs::canonicalize("/bin/sh").unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert!(is_opened(&mapping(&path, &metadata)));
        let mut other = mapping(&path, &metadata);
        other.file.inode += 1;
        assert!(!is_opened(&other), "another inode");
        let mut other = mapping(&path, &metadata);
        (other.file.device_major, other.file.device_minor) = (0xfff, 0xfffff);
        let comparable = rustix::fs::major(metadata.dev()) != 0;
        assert_eq!(is_opened(&other), !comparable, "another device");
        assert!(!is_opened(&mapping("relative", &metadata)));
    }

    #[test]
    fn no_link_leads_out_of_a_root() {
        let scratch = Scratch::new("root");
        let path = std::fs::canonicalize("/bin/sh").unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        for (name, target) in [("absolute", path.as_path()), ("folder", Path::new("/"))] {
            symlink(target, scratch.0.join(name)).unwrap();
        }
        let root = scratch.0.to_str().unwrap();
        let through = format!("/folder{}", path.display());
        let up = format!("/{}{}", "../".repeat(40), path.display());
        for inside in ["/absolute", &through, &up] {
            assert!(find_in(root, &mapping(inside, &metadata)).is_none(), "{inside}");
        }
        assert!(find_in("/", &mapping(&path, &metadata)).is_some());
    }

    #[test]
    fn a_mapped_file_is_found_by_its_mapping_whatever_its_path() {
        let us = Pid(std::process::id());
        let Some(mut mapping) = proc_fs::executable_mappings(us).unwrap().into_iter().find(|one| one.file.inode != 0)
        else {
            panic!("the test itself is mapped");
        };
        if File::open(format!("/proc/{us}/map_files/{:x}-{:x}", mapping.start.0, mapping.end.0)).is_err() {
            println!("skipped: map_files needs CAP_CHECKPOINT_RESTORE");
            return;
        }
        mapping.path = "/nowhere".into();
        assert!(is_opened(&mapping));
    }

    #[test]
    fn only_a_regular_file_of_the_right_owner_is_opened_in_tmp() {
        let us = Pid(std::process::id());
        let folder = tmp_in(&root_of(us).unwrap()).unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let name = |what: &str| format!("spanflame-in-tmp-{what}-{us}");
        let path = |what: &str| PathBuf::from("/tmp").join(name(what));
        let refused = |what: &str, owner| match open_owned(&folder, &name(what), &[owner]) {
            Opening::Refused(why) => why,
            Opening::File(_) => "opened",
            Opening::Nothing => "nothing",
        };
        std::fs::write(path("file"), "1000 100 f").unwrap();
        symlink(path("file"), path("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&watch, path("pipe"), inotify::WatchFlags::OPEN).unwrap();
        let found = [("file", uid), ("file", uid + 1), ("link", uid), ("pipe", uid), ("none", uid)]
            .map(|(what, owner)| refused(what, owner));
        for what in ["file", "link", "pipe"] {
            std::fs::remove_file(path(what)).unwrap();
        }
        assert_eq!(
            found,
            ["opened", "it is another user's", "it is no regular file", "it is no regular file", "nothing"]
        );
        let mut buffer = [MaybeUninit::uninit(); 256];
        let opened = inotify::Reader::new(&watch, &mut buffer)
            .next()
            .is_ok_and(|event| event.events().contains(inotify::ReadFlags::OPEN));
        assert!(!opened, "the pipe was opened");
    }

    #[test]
    fn markers_of_jitdumps_are_known_by_their_names() {
        for (path, expected) in [
            ("/tmp/jit-77.dump", true),
            ("/var/lib/a b/.debug/jit/java/jit-7.dump (deleted)", true),
            ("/tmp/jit-.dump", false),
            ("/tmp/jit-7a.dump", false),
            ("/tmp/xjit-7.dump", false),
            ("/usr/lib/libc.so.6", false),
        ] {
            let metadata = std::fs::metadata("/").unwrap();
            assert_eq!(tells_of_jitdump(&mapping(path, &metadata)), expected, "{path}");
        }
    }
}
