//! The files that processes run: opened once, their tables built once, shared by all processes.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use profiler_common::address::{MonotonicNs, Pid, VirtualAddress};

use super::executable::{Executable, Identity, Unwinding};
use super::open::{Opened, Presence, Root, copy_of_vdso, leads_to, open, root_seen_by};
use super::process::{JitDump, NEVER};
use super::trampoline;
use crate::clock;
use crate::debug_files::Place;
use crate::kernel::sideband::{FileId, Mapping};
use crate::worker::FileKey;

/// All files that were seen.
#[derive(Debug, Default)]
pub(crate) struct Executables {
    all: Vec<Executable>,
    by_identity: HashMap<Identity, FileKey>,
    by_number: HashMap<Number, FileKey>,
    /// Files that could not be opened, with their paths: another file may get the number.
    unreadable: HashMap<(FileId, String), FileKey>,
    /// Files of mappings that are not applied yet.
    early: HashMap<(Pid, VirtualAddress, FileId), Early>,
    /// Root directories of processes.
    roots: HashMap<Identity, Weak<OwnedFd>>,
    vdso: Option<FileKey>,
}

/// What tells a file from all others while it is open: an inode in use is not given to another file.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Number {
    file: FileId,
    /// Where the kernel tells of no real device (overlayfs, the subvolumes of btrfs) and of no generation, two files can
    /// have the same inode: these have different paths.
    path: Option<OsString>,
}

impl Number {
    fn of(mapping: &Mapping) -> Self {
        let is_unique = mapping.file.device_major != 0 || mapping.file.generation != 0;
        Self { file: mapping.file, path: (!is_unique).then(|| mapping.path.clone()) }
    }
}

/// Executable memory that is no file: one table for all, by the frame pointer.
pub(crate) const ANONYMOUS: FileKey = FileKey(0);

/// Such memory with CPython's trampolines: they have a table of their own.
pub(super) const TRAMPOLINES: FileKey = FileKey(1);

/// A file that was opened before its mapping was applied.
#[derive(Debug)]
struct Early {
    key: FileKey,
    is_old: bool,
}

/// Files that are opened early at a time, at most: the others are opened when their turn comes.
const MOST_EARLY: usize = 4096;

/// What [`Executables::open_early`] had to do.
pub(crate) enum Foreseen {
    /// Nothing: the file is known by its number, or there is none.
    Known,
    /// It looked at the process: the file is one that was seen before, or could not be opened.
    Looked,
    /// The same, and the file was not seen before.
    New(FileKey),
}

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

    pub(crate) fn iter(&self) -> impl Iterator<Item = (FileKey, &Executable)> {
        self.all.iter().enumerate().map(|(index, executable)| (key_at(index), executable))
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
            place: None,
            segments: Vec::new(),
            unwinding: Unwinding::Unasked,
            generated: false,
            lacked_room: false,
            row_count: 0,
            last_used: Cell::new(MonotonicNs(0)),
            contents: None,
            idle_since: None,
            identity,
            known: Cell::new((NEVER, MonotonicNs(0))),
        });
        if let Some(identity) = identity {
            self.by_identity.insert(identity, key);
        }
        key
    }

    /// The file of a mapping, opened if it has to be.
    pub(super) fn find(&mut self, pid: Pid, mapping: &Mapping, presence: Presence) -> Found {
        match mapping.path.to_str() {
            Some("[vdso]") => return self.find_vdso(),
            Some("[vsyscall]" | "[uprobes]" | "[sigpage]") => return Found::Nothing,
            _ if mapping.file.inode == 0 => {
                let is_trampoline = trampoline::is_at(pid, mapping.start);
                return Found::Known(if is_trampoline { TRAMPOLINES } else { ANONYMOUS });
            }
            _ => {}
        }
        if !self.early.is_empty()
            && let Some(early) = self.early.remove(&(pid, mapping.start, mapping.file))
        {
            return Found::Known(early.key);
        }
        if let Some(key) = self.by_number(mapping, presence.from) {
            return Found::Known(key);
        }
        match open(pid, mapping, presence) {
            Opened::File(file) => self.opened(pid, mapping, file, presence),
            Opened::NoFile => Found::Known(ANONYMOUS),
            Opened::Nothing => self.unreadable(mapping),
        }
    }

    /// The file that is known by this number, if it was `at` that time what it is known as.
    fn by_number(&self, mapping: &Mapping, at: MonotonicNs) -> Option<FileKey> {
        let key = *self.by_number.get(&Number::of(mapping))?;
        self.get(key).is_some_and(|known| known.place.is_some() && known.is_unchanged(at)).then_some(key)
    }

    /// Opens the file of a mapping that is not applied yet: the process may soon be gone, and the file
    /// removed.
    pub(crate) fn open_early(&mut self, pid: Pid, mapping: &Mapping, at: MonotonicNs) -> Foreseen {
        let of_file = mapping.file.inode != 0 && !tells_of_jitdump(mapping);
        if !of_file || self.early.len() >= MOST_EARLY || self.by_number(mapping, at).is_some() {
            return Foreseen::Known;
        }
        let (place, presence) = ((pid, mapping.start, mapping.file), Presence::at(at));
        match open(pid, mapping, presence) {
            Opened::File(file) => match self.opened(pid, mapping, file, presence) {
                Found::Known(key) => {
                    self.early.insert(place, Early { key, is_old: false });
                    Foreseen::Looked
                }
                Found::New(key) => {
                    self.early.insert(place, Early { key, is_old: false });
                    Foreseen::New(key)
                }
                Found::Unreadable(_) | Found::Nothing => Foreseen::Looked,
            },
            Opened::NoFile | Opened::Nothing => Foreseen::Looked,
        }
    }

    /// Forgets which files were opened early before the last time that this was asked for: their mappings are
    /// applied by now.
    pub(crate) fn forget_early(&mut self) {
        self.early.retain(|_mapping, early| !std::mem::replace(&mut early.is_old, true));
    }

    fn opened(&mut self, pid: Pid, mapping: &Mapping, file: OwnedFd, presence: Presence) -> Found {
        let now = clock::monotonic();
        let Some(identity) = Identity::of(&file) else { return self.unreadable(mapping) };
        let Some(since) = identity.holds_from(presence, pid, mapping) else { return self.unreadable(mapping) };
        let file = Arc::new(file);
        let place = self.place_of(pid, mapping, &file);
        let found = match self.by_identity.get(&identity).copied() {
            Some(key) => {
                if let Some(known) = self.get_mut(key)
                    && known.file.is_none()
                {
                    (known.file, known.place) = (Some(file), place);
                    let never_read = known.segments.is_empty() || known.row_count > 0;
                    if matches!(known.unwinding, Unwinding::Missing) && never_read {
                        known.unwinding = Unwinding::Unasked;
                    }
                } else if let Some(known) = self.get_mut(key)
                    && known.place.is_none()
                {
                    known.place = place;
                }
                Found::Known(key)
            }
            None => {
                let key = self.add(shown_path(mapping), Some(file), Some(identity));
                if let Some(executable) = self.get_mut(key) {
                    executable.place = place;
                }
                Found::New(key)
            }
        };
        let (Found::Known(key) | Found::New(key)) = found else { return found };
        if let Some(executable) = self.get(key) {
            let (earlier, later) = executable.known.get();
            executable.known.set((since.min(earlier), now.max(later)));
        }
        self.by_number.insert(Number::of(mapping), key);
        found
    }

    /// Where a process has its file. When it is gone, only our own root directory can be looked at: what is
    /// the same file there was perhaps run from elsewhere, but what lies beside it is ours.
    fn place_of(&mut self, pid: Pid, mapping: &Mapping, file: &OwnedFd) -> Option<Place> {
        let path = shown_path(mapping);
        let root = match root_seen_by(pid) {
            Root::Ours => None,
            Root::Theirs(root) => Some(self.shared_root(root)),
            Root::Unknown => leads_to(&path, file).then_some(None)?,
        };
        Some(Place { path, root })
    }

    /// One descriptor for all executables below a root directory.
    fn shared_root(&mut self, root: OwnedFd) -> Arc<OwnedFd> {
        self.roots.retain(|_root, descriptor| descriptor.strong_count() > 0);
        let Some(identity) = Identity::of(&root) else { return Arc::new(root) };
        if let Some(known) = self.roots.get(&identity).and_then(Weak::upgrade) {
            return known;
        }
        let root = Arc::new(root);
        self.roots.insert(identity, Arc::downgrade(&root));
        root
    }

    /// Opens what a process mapped to tell where its jitdump is.
    pub(super) fn open_jitdump(pid: Pid, mapping: &Mapping, since: MonotonicNs) -> Option<JitDump> {
        let Opened::File(file) = open(pid, mapping, Presence::at(since)) else { return None };
        Some(JitDump { id: mapping.file, file: Arc::new(file), path: shown_path(mapping), since })
    }

    fn unreadable(&mut self, mapping: &Mapping) -> Found {
        // /proc does not tell generations.
        let id = (FileId { generation: 0, ..mapping.file }, shown_path(mapping));
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
        self.by_number.retain(|_number, known| *known != key);
        if let Some(executable) = self.get_mut(key)
            && executable.identity.is_some()
        {
            executable.file = None;
            executable.place.take_if(|place| place.root.is_some());
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::proc_fs;

    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ended = self.0.kill().and_then(|()| self.0.wait());
        }
    }

    /// `sleep` with `root` as its root directory, in which the system's folders are mounted for it alone.
    fn sleeping_below(root: &str) -> (Running, Pid) {
        let folders = ["usr", "bin", "lib", "lib64"].map(|name| format!("/{name}"));
        let folders = folders.into_iter().filter(|folder| fs::exists(folder).unwrap()).collect::<Vec<_>>().join(" ");
        let script = format!(
            "for folder in {folders}; do mkdir {root}$folder && mount --rbind $folder {root}$folder || exit 1; done
             exec chroot {root} sleep 600"
        );
        let child = Command::new("unshare").args(["-m", "sh", "-c", &script]).spawn().unwrap();
        let pid = Pid(child.id());
        let running = Running(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        while proc_fs::name(pid).as_deref() != Some("sleep") {
            assert!(Instant::now() < deadline, "sleep did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        (running, pid)
    }

    #[test]
    fn what_runs_below_another_root_stays_there() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: mounts need root");
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(scratch.path()).unwrap();
        let (_running, pid) = sleeping_below(root.to_str().unwrap());
        let identity = Identity::of(&fs::File::open(&root).unwrap());
        let mappings = proc_fs::executable_mappings(pid).unwrap();
        let mapping = mappings.iter().find(|mapping| shown_path(mapping).ends_with("bin/sleep")).unwrap();
        // As the process has it, whoever reads /proc.
        assert!(shown_path(mapping).starts_with("/usr/bin/") || shown_path(mapping).starts_with("/bin/"));
        let is_there =
            |place: &Place| place.path == shown_path(mapping) && place.root.as_ref().and_then(Identity::of) == identity;
        let mut executables = Executables::new();
        let Found::New(key) = executables.find(pid, mapping, Presence::at(clock::monotonic())) else {
            panic!("it is new")
        };
        assert!(is_there(&executables.get(key).unwrap().place()));
        executables.close(key);
        let closed = executables.get(key).unwrap().place();
        assert!(closed.path.is_empty() && closed.root.is_none(), "its path leads elsewhere here: {closed:?}");
        assert!(
            matches!(executables.find(pid, mapping, Presence::at(clock::monotonic())), Found::Known(known) if known == key)
        );
        assert!(is_there(&executables.get(key).unwrap().place()), "opened again");
    }

    /// Runs a program and returns its first mapping and when it was seen.
    fn started(program: &std::path::Path) -> (Running, Pid, Mapping, MonotonicNs) {
        let child = Command::new(program).arg("600").spawn().unwrap();
        let pid = Pid(child.id());
        let running = Running(child);
        let of_program = |mapping: &Mapping| std::path::Path::new(&mapping.path) == program;
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let mappings = proc_fs::executable_mappings(pid).unwrap();
            if let Some(mapping) = mappings.into_iter().find(of_program) {
                return (running, pid, mapping, clock::monotonic());
            }
            assert!(Instant::now() < deadline, "{} did not start", program.display());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn what_was_written_into_a_file_later_is_not_what_ran() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: map_files needs CAP_CHECKPOINT_RESTORE");
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let program = fs::canonicalize(scratch.path()).unwrap().join("program");
        fs::copy("/bin/sleep", &program).unwrap();
        let (running, ended, of_ended, then) = started(&program);
        drop(running);
        // Times of files are coarse.
        while clock::monotonic().0 < then.0 + 20_000_000 {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Into the same inode.
        let other = [fs::read("/bin/sleep").unwrap(), vec![0]].concat();
        fs::write(&program, other).unwrap();
        let (running, pid, mapping, now) = started(&program);
        assert_eq!(mapping.file, of_ended.file);
        let mut executables = Executables::new();
        let is_new = |found| if let Found::New(key) = found { Some(key) } else { None };
        let key = is_new(executables.find(pid, &mapping, Presence::at(now))).unwrap();
        assert!(
            matches!(executables.find(ended, &of_ended, Presence::at(then)), Found::Unreadable(other) if other != key)
        );
        assert!(matches!(executables.find(pid, &mapping, Presence::at(now)), Found::Known(known) if known == key));
        // The process has it mapped now, but has had it mapped since before it was written.
        assert!(matches!(executables.find(pid, &mapping, Presence::at(then)), Found::Known(known) if known != key));
        let later = MonotonicNs(now.0 + 1_000_000_000);
        assert!(
            matches!(executables.find(Pid(u32::MAX), &mapping, Presence::at(later)), Found::Known(known) if known == key)
        );
        // It ends, and its file is open for those only who still have to read it.
        drop(running);
        let file = executables.get(key).and_then(|executable| executable.file.clone()).unwrap();
        executables.close(key);
        let executable = executables.get(key).unwrap();
        assert!(!executable.is_rewritten(&file));
        fs::write(&program, "something else").unwrap();
        assert!(executable.is_rewritten(&file));
    }

    /// As on overlayfs: in a container hundreds of processes are over before anybody can look at them.
    #[test]
    fn without_a_device_a_file_is_known_by_its_path_as_well() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(scratch.path()).unwrap().join("before");
        fs::create_dir(&folder).unwrap();
        let program = folder.join("program");
        fs::copy("/bin/sleep", &program).unwrap();
        let (running, pid, mut mapping, now) = started(&program);
        (mapping.file.device_major, mapping.file.generation) = (0, 0);
        let mut executables = Executables::new();
        let Found::New(key) = executables.find(pid, &mapping, Presence::at(now)) else { panic!("it is new") };
        drop(running);
        // It is not to be found by its path, and is what it was.
        fs::rename(&folder, folder.with_file_name("behind")).unwrap();
        let mut find = |mapping: &Mapping| executables.find(Pid(u32::MAX), mapping, Presence::at(clock::monotonic()));
        assert!(matches!(find(&mapping), Found::Known(known) if known == key));
        mapping.path = folder.join("other").into();
        assert!(matches!(find(&mapping), Found::Unreadable(_)));
    }

    #[test]
    fn what_runs_below_our_root_has_a_place_whoever_runs_it() {
        let us = Pid(std::process::id());
        let mappings = proc_fs::executable_mappings(us).unwrap();
        let mapping = mappings.iter().find(|mapping| mapping.file.inode != 0).unwrap();
        let mut executables = Executables::new();
        let Found::New(key) = executables.find(us, mapping, Presence::at(clock::monotonic())) else {
            panic!("it is new")
        };
        executables.close(key);
        let place = executables.get(key).unwrap().place();
        assert!(place.path == shown_path(mapping) && place.root.is_none(), "{place:?}");
        let file = OwnedFd::from(fs::File::open(&place.path).unwrap());
        let gone = Pid(u32::MAX);
        assert!(executables.place_of(gone, mapping, &file).is_some_and(|place| place.root.is_none()));
        let other = OwnedFd::from(fs::File::open("/proc/version").unwrap());
        assert!(executables.place_of(gone, mapping, &other).is_none());
    }
}
