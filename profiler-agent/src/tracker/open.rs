//! Opening files that observed processes chose, as root, without doing harm.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use profiler_common::address::{MonotonicNs, Pid, VirtualAddress};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::clock;
use crate::kernel::sideband::{FileId, Mapping};
use crate::proc_fs;

/// When a mapping was there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Presence {
    /// Since when, or when it was seen.
    pub(super) from: MonotonicNs,
    /// The last time at which it surely was, with what the file had at `from`: nobody wrote to it meanwhile, or the
    /// process saw that, too.
    pub(super) to: MonotonicNs,
}

impl Presence {
    /// It was there at that time, and nothing else is known.
    pub(super) const fn at(time: MonotonicNs) -> Self {
        Self { from: time, to: time }
    }
}

/// What opening a mapping's file came to.
pub(super) enum Opened {
    /// It is open for reading.
    File(OwnedFd),
    /// A device or the like is mapped: what is there is no file's code.
    NoFile,
    /// It is not there, or may not be read.
    Nothing,
}

/// Opens the very file that is mapped, or was; by its path only when the process is gone, and then only if it is that
/// inode and was not changed since.
///
/// Paths are the observed process's choice, and to open some things does harm: a FIFO wakes who
/// writes to it, a watchdog device arms a reboot. So only what turned out to be the regular file that
/// is wanted is opened for more than a look at its inode (`O_PATH`).
pub(super) fn open(pid: Pid, mapping: &Mapping, presence: Presence) -> Opened {
    if let Some((file, stat)) = mapped(pid, mapping) {
        return if is_regular(&stat) { reopen(&file) } else { Opened::NoFile };
    }
    let roots = [format!("/proc/{pid}/root"), "/".to_owned()];
    let found = roots.iter().find_map(|root| find_in(root, mapping, presence));
    found.map_or(Opened::Nothing, |file| reopen(&file))
}

/// Whether the process has the file mapped there now.
pub(super) fn is_mapped(pid: Pid, mapping: &Mapping) -> bool {
    mapped(pid, mapping).is_some()
}

/// The inode that the process has mapped there now, if it is that of the mapping.
fn mapped(pid: Pid, mapping: &Mapping) -> Option<(OwnedFd, Stat)> {
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
    mapped_in(pid).or_else(|| mapped_in(other_thread()?)).or_else(by_what_is_left)
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

/// Opens a folder below a root directory, to list it; ours is meant without one. Links are followed as by
/// [`open_in`].
pub(crate) fn folder_in(root: Option<&OwnedFd>, path: &str) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    resolve_in(root, Path::new(path), flags, following(root)).ok()
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

/// Opens a regular file by a path below a root directory; ours is meant without one. With `follow` links
/// lead on, but not out of the root, and in others' roots not to what is mounted there: a container could
/// have us read its procfs, with our rights. Otherwise a path with a link leads nowhere.
pub(crate) fn open_in(root: Option<&OwnedFd>, path: &Path, follow: bool) -> Option<OwnedFd> {
    let links = if follow { following(root) } else { ResolveFlags::NO_SYMLINKS };
    let (file, stat) = look_at(resolve_in(root, path, LOOK, links))?;
    match is_regular(&stat).then(|| reopen(&file))? {
        Opened::File(file) => Some(file),
        _ => None,
    }
}

/// How links are followed below a root directory.
fn following(root: Option<&OwnedFd>) -> ResolveFlags {
    root.map_or(ResolveFlags::empty(), |_theirs| ResolveFlags::NO_XDEV)
}

fn resolve_in(
    root: Option<&OwnedFd>,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | resolve;
    match root {
        Some(theirs) => rustix::fs::openat2(theirs, path, flags, Mode::empty(), inside),
        None => {
            let ours = rustix::fs::open("/", LOOK | OFlags::DIRECTORY, Mode::empty())?;
            rustix::fs::openat2(ours, path, flags, Mode::empty(), inside)
        }
    }
}

/// The root directory of a process.
pub(super) enum Root {
    /// The same as ours.
    Ours,
    /// Another one.
    Theirs(OwnedFd),
    /// The process is gone, or may not be looked at.
    Unknown,
}

/// Which root directory a process has.
pub(super) fn root_seen_by(pid: Pid) -> Root {
    let theirs = root_of(pid).and_then(|root| look_at(Ok(root)));
    match (theirs, rustix::fs::stat("/")) {
        (Some((_root, theirs)), Ok(ours)) if is_one(&theirs, &ours) => Root::Ours,
        (Some((root, _theirs)), Ok(_ours)) => Root::Theirs(root),
        _ => Root::Unknown,
    }
}

/// Whether the path leads to that file in our root directory, through no link.
pub(super) fn leads_to(path: &str, file: &OwnedFd) -> bool {
    let found = rustix::fs::openat2(rustix::fs::CWD, path, LOOK, Mode::empty(), ResolveFlags::NO_SYMLINKS);
    match (look_at(found), rustix::fs::fstat(file)) {
        (Some((_found, found)), Ok(file)) => path.starts_with('/') && is_one(&found, &file),
        _ => false,
    }
}

fn is_one(first: &Stat, second: &Stat) -> bool {
    (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)
}

/// To look at an inode: nothing of what is behind it is opened.
const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// The file that a mapping's path leads to below `root`, if it is that file. The kernel makes such
/// paths without symbolic links, so one that has some by now leads elsewhere.
fn find_in(root: &str, mapping: &Mapping, presence: Presence) -> Option<OwnedFd> {
    let path = Path::new(&mapping.path).strip_prefix("/").ok()?;
    let root = rustix::fs::open(root, LOOK | OFlags::DIRECTORY, Mode::empty()).ok()?;
    let beneath = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let (file, stat) = look_at(rustix::fs::openat2(root, path, LOOK | OFlags::NOFOLLOW, Mode::empty(), beneath))?;
    let since = unchanged_since((stat.st_ctime, stat.st_ctime_nsec));
    (is_regular(&stat) && is_same(&stat, mapping.file) && since < presence.to).then_some(file)
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

/// How late a timer interrupt may be; 1.5 ms were seen in a virtual machine with neighbours.
const LATE_TICK_NS: u64 = 6_000_000;

/// From when on a file surely has been what it is that was last changed (ctime) at that time, in seconds and ns. Times
/// of files are those of the last timer interrupt (`current_time` in linux/fs/inode.c).
pub(super) fn unchanged_since((seconds, nanoseconds): (i64, u64)) -> MonotonicNs {
    MonotonicNs(clock::monotonic_at(seconds, nanoseconds).0.saturating_add(clock::tick_ns() + LATE_TICK_NS))
}

pub(super) fn copy_of_vdso() -> Option<OwnedFd> {
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

    use profiler_common::address::FileOffset;
    use rustix::fs::inotify;

    use super::super::executables::tells_of_jitdump;
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
        matches!(open(Pid(std::process::id()), mapping, Presence::at(clock::monotonic())), Opened::File(_))
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
            assert!(find_in(root, &mapping(inside, &metadata), Presence::at(clock::monotonic())).is_none(), "{inside}");
        }
        assert!(find_in("/", &mapping(&path, &metadata), Presence::at(clock::monotonic())).is_some());
    }

    #[test]
    fn no_link_in_a_container_leads_to_what_is_mounted_there() {
        let scratch = tempfile::tempdir().unwrap();
        let above = scratch.path().strip_prefix("/").unwrap();
        std::fs::write(scratch.path().join("release"), "ID=debian").unwrap();
        let link = |name: &str, target: &Path| symlink(target, scratch.path().join(name)).unwrap();
        link("plain", &scratch.path().join("release"));
        link("version", Path::new("/proc/version"));
        link("folder", Path::new("/proc"));
        let ours = root_of(Pid(std::process::id())).unwrap();
        let opened = |root, name: &str| open_in(root, &above.join(name), true).is_some();
        let listed = |root| folder_in(root, above.join("folder").to_str().unwrap()).is_some();
        assert!(opened(None, "plain") && opened(None, "version") && listed(None), "ours");
        assert!(!opened(Some(&ours), "version") && !listed(Some(&ours)), "theirs");
        let of_folder = rustix::fs::open(scratch.path(), LOOK | OFlags::DIRECTORY, Mode::empty()).unwrap();
        symlink("/release", scratch.path().join("inside")).unwrap();
        assert!(open_in(Some(&of_folder), Path::new("inside"), true).is_some());
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
