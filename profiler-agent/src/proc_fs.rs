//! What /proc says about processes. Its text comes from the kernel, but names and paths in it are
//! whatever a process chose.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;

use profiler_common::address::{FileOffset, Pid, Tid, VirtualAddress};

use crate::kernel::sideband::{FileId, Mapping};

/// `/proc/PID/maps` is read up to this many bytes: about 600,000 mappings (`vm.max_map_count` is
/// 65,530 by default, 1,048,576 on some distributions).
const MOST_MAPS_BYTES: u64 = 64 << 20;

/// The executable mappings of a process, with the paths that they have for it.
///
/// # Errors
/// When the process is gone or may not be looked at.
pub(crate) fn executable_mappings(pid: Pid) -> io::Result<Vec<Mapping>> {
    use io::Read as _;
    let mut text = Vec::new();
    // A first thread that has ended shows no mappings; any other thread does.
    let thread = living_thread(pid).unwrap_or(pid);
    fs::File::open(format!("/proc/{thread}/maps"))?.take(MOST_MAPS_BYTES).read_to_end(&mut text)?;
    let mut mappings: Vec<Mapping> = text.split(|byte| *byte == b'\n').filter_map(mapping).collect();
    // Paths there are told from the reader's root directory, as this link is.
    if let Ok(root) = fs::read_link(format!("/proc/{thread}/root")) {
        mappings.iter_mut().for_each(|mapping| mapping.path = below(root.as_os_str(), &mapping.path));
    }
    Ok(mappings)
}

/// A path as it is seen from a root directory; what is not below it stays as it is.
fn below(root: &OsStr, path: &OsStr) -> OsString {
    let rest = path.as_bytes().strip_prefix(root.as_bytes()).filter(|rest| rest.starts_with(b"/"));
    rest.map_or_else(|| path.to_owned(), |rest| OsStr::from_bytes(rest).to_owned())
}

/// A thread of the process that has not ended: the first one, if it is one. `None` when nothing of
/// the process can run any more, though it may not have been waited for yet.
pub(crate) fn living_thread(pid: Pid) -> Option<Pid> {
    let lives = |thread: &Pid| stat_fields(*thread).is_some_and(|(state, _parent)| !matches!(state, b'Z' | b'X'));
    if lives(&pid) {
        return Some(pid);
    }
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    threads.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Pid)).find(lives)
}

/// `start-end perms offset major:minor inode    path`; `None` for what is not executable.
fn mapping(line: &[u8]) -> Option<Mapping> {
    let mut fields = line.splitn(6, |byte| *byte == b' ').map(<[u8]>::trim_ascii);
    let mut text = || fields.next().and_then(|field| std::str::from_utf8(field).ok());
    let (start, end) = text()?.split_once('-')?;
    let hex = |digits| u64::from_str_radix(digits, 16).ok();
    if text()?.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let file_offset = FileOffset(hex(text()?)?);
    let (major, minor) = text()?.split_once(':')?;
    let file = FileId {
        device_major: u32::from_str_radix(major, 16).ok()?,
        device_minor: u32::from_str_radix(minor, 16).ok()?,
        inode: text()?.parse().ok()?,
        generation: 0,
    };
    let path = OsStr::from_bytes(fields.next().unwrap_or_default()).to_owned();
    Some(Mapping { start: VirtualAddress(hex(start)?), end: VirtualAddress(hex(end)?), file_offset, file, path })
}

/// What a process is among those of its own pid namespace, and by which right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    /// Its number in the innermost pid namespace that it is in.
    pub(crate) pid: Pid,
    /// Its real, effective, saved and file system user ids.
    pub(crate) uids: Vec<u32>,
}

/// What `/proc/PID/status` says of that; `None` when the process has ended.
#[must_use]
pub(crate) fn own(pid: Pid) -> Option<Own> {
    // The name in it is whatever bytes the process chose, but for the end of the line.
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let numbers = |field: &str| -> Option<Vec<u32>> {
        let values = status.lines().find_map(|line| line.strip_prefix(field))?;
        values.split_ascii_whitespace().map(|value| value.parse().ok()).collect()
    };
    Some(Own { pid: Pid(*numbers("NSpid:")?.last()?), uids: numbers("Uid:")? })
}

/// When a process started, in ns since boot (`CLOCK_BOOTTIME`), 10 ms less at most.
#[must_use]
pub(crate) fn started_boot_ns(pid: Pid) -> Option<u64> {
    // Field 22 of proc_pid_stat(5); the state is field 3.
    let stat = fields_from_state(&format!("/proc/{pid}/stat"))?;
    let ticks: u64 = stat.split_ascii_whitespace().nth(22 - 3)?.parse().ok()?;
    Some(ticks.saturating_mul(1_000_000_000 / TICKS_PER_SECOND))
}

/// The name of a process: that of its first thread.
#[must_use]
pub(crate) fn name(pid: Pid) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(bytes.trim_ascii_end()).into_owned())
}

/// The file name of the program that a process runs; none for threads of the kernel, and when it has ended.
pub(crate) fn program_name(pid: Pid) -> Option<String> {
    let of_thread = |_ended| {
        // A first thread that has ended shows none; any other thread does.
        let thread = living_thread(pid).filter(|thread| *thread != pid)?;
        fs::read_link(format!("/proc/{pid}/task/{thread}/exe")).ok()
    };
    let program = fs::read_link(format!("/proc/{pid}/exe")).map_or_else(of_thread, Some)?;
    file_name(program.as_os_str())
}

/// The last name in a path as the kernel prints it.
pub(crate) fn file_name(path: &OsStr) -> Option<String> {
    let name = path.as_bytes().rsplit(|byte| *byte == b'/').next()?;
    // `d_path` (linux/fs/d_path.c).
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}

/// Device and inode of the program that a process runs; `None` when it has ended.
#[must_use]
pub(crate) fn program_of(pid: Pid) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(format!("/proc/{pid}/exe")).ok().map(|program| (program.dev(), program.ino()))
}

/// The process of a thread: its own number for a process.
///
/// # Errors
/// When there is none, or /proc does not show it.
pub(crate) fn process_of_thread(thread: Pid) -> io::Result<Pid> {
    // The name in it is whatever bytes the thread chose.
    let status = fs::read(format!("/proc/{thread}/status"))?;
    let status = String::from_utf8_lossy(&status);
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    process.and_then(|process| process.trim().parse().ok().map(Pid)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether there is such a process or thread, shown or not.
pub(crate) fn exists(pid: Pid) -> bool {
    let pid = i32::try_from(pid.0).ok().and_then(rustix::process::Pid::from_raw);
    let asked = pid.map(rustix::process::test_kill_process);
    matches!(asked, Some(Ok(()) | Err(rustix::io::Errno::PERM)))
}

/// All processes.
///
/// # Errors
/// When /proc can't be listed.
pub(crate) fn all_pids() -> io::Result<Vec<Pid>> {
    let pid = |name: OsString| name.to_str()?.parse().ok().map(Pid);
    Ok(fs::read_dir("/proc")?.filter_map(|entry| pid(entry.ok()?.file_name())).collect())
}

/// Those processes and all that descend from them, in no order. We and our workers are left out, unless
/// we are named: nobody wants to see the profiler because it was started by what it profiles.
///
/// # Errors
/// When /proc can't be listed.
pub(crate) fn with_descendants(roots: &[Pid]) -> io::Result<Vec<Pid>> {
    let us = Pid(std::process::id());
    let mut family = roots.to_vec();
    let parents: Vec<(Pid, Pid)> = all_pids()?.into_iter().filter_map(|pid| Some((pid, stat_fields(pid)?.1))).collect();
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        let children = parents.iter().filter(|(pid, of)| *of == parent && *pid != us && !family.contains(pid));
        let children: Vec<Pid> = children.map(|(pid, _parent)| *pid).collect();
        family.extend(children);
        next += 1;
    }
    Ok(family)
}

/// The parent of a process, its parent, and so on: [`MOST_ANCESTORS`] of them, the last one is perhaps 0. None when it
/// has ended.
pub(crate) fn ancestors(pid: Pid) -> impl Iterator<Item = Pid> {
    let parent = |pid: &Pid| stat_fields(*pid).map(|(_state, parent)| parent);
    std::iter::successors(parent(&pid), parent).take(MOST_ANCESTORS)
}

/// A shell in a container in a session of a desktop has some ten.
const MOST_ANCESTORS: usize = 64;

/// The children of our first thread, orphans that we were given among them. None where the kernel
/// does not list them (`CONFIG_PROC_CHILDREN`).
pub(crate) fn children() -> Vec<Pid> {
    let text = fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok().map(Pid)).collect()
}

/// The threads of a process; none when it has ended.
pub(crate) fn threads(pid: Pid) -> Vec<Tid> {
    let tid = |name: OsString| name.to_str()?.parse().ok().map(Tid);
    let entries = fs::read_dir(format!("/proc/{pid}/task"));
    entries
        .map_or_else(|_ended| Vec::new(), |entries| entries.filter_map(|entry| tid(entry.ok()?.file_name())).collect())
}

/// The name of a thread, as the kernel keeps it: padded with NUL.
pub(crate) fn comm(tid: Tid) -> [u8; 16] {
    let name = fs::read(format!("/proc/{tid}/comm")).unwrap_or_default();
    let name = name.strip_suffix(b"\n").unwrap_or(&name);
    std::array::from_fn(|index| name.get(index).copied().unwrap_or(0))
}

/// The state of a thread of a process; `None` when there is none. Unlike `/proc/TID/stat`, which sums up all threads
/// of the process, it costs the same however many there are (`do_task_stat`, linux/fs/proc/array.c).
pub(crate) fn state_of_thread(pid: Pid, tid: Tid) -> Option<u8> {
    let fields = fields_from_state(&format!("/proc/{pid}/task/{tid}/stat"))?;
    fields.split_ascii_whitespace().next()?.as_bytes().first().copied()
}

/// State and parent from `/proc/PID/stat`.
fn stat_fields(pid: Pid) -> Option<(u8, Pid)> {
    let fields = fields_from_state(&format!("/proc/{pid}/stat"))?;
    let mut fields = fields.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, Pid(fields.next()?.parse().ok()?)))
}

/// Whether it is a thread of the kernel: it has no code of its own.
#[must_use]
pub(crate) fn is_kernel_thread(pid: Pid) -> bool {
    /// `PF_KTHREAD` (linux/include/linux/sched.h).
    const KERNEL_THREAD: u64 = 0x0020_0000;
    flags(pid).is_some_and(|flags| flags & KERNEL_THREAD != 0)
}

/// Whether the first thread of a process ends, has ended, or was waited for.
pub(crate) fn is_exiting(pid: Pid) -> bool {
    /// `PF_EXITING` (linux/include/linux/sched.h).
    const EXITING: u64 = 0x4;
    flags(pid).is_none_or(|flags| flags & EXITING != 0)
}

/// The kernel's flags of a thread.
fn flags(thread: Pid) -> Option<u64> {
    // Field 9 of proc_pid_stat(5); the state is field 3.
    fields_from_state(&format!("/proc/{thread}/stat"))?.split_ascii_whitespace().nth(9 - 3)?.parse().ok()
}

/// The words of a process's command line; none when it has ended or has wiped them. The first
/// [`MOST_COMMAND_BYTES`] of them.
#[must_use]
pub(crate) fn command_line(pid: Pid) -> Vec<String> {
    use io::Read as _;
    let mut bytes = Vec::new();
    let file = fs::File::open(format!("/proc/{pid}/cmdline"));
    if file.and_then(|file| file.take(MOST_COMMAND_BYTES).read_to_end(&mut bytes)).is_err() {
        return Vec::new();
    }
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// `/proc/PID/cmdline` is read up to this many bytes: the kernel allows a process 6 MiB (`_STK_LIM / 4 * 3`
/// in linux/fs/exec.c), and options stand at the beginning.
const MOST_COMMAND_BYTES: u64 = 1 << 20;

/// The fields of `/proc/PID/stat`, or of a thread's, from the third one on. The name before them may contain
/// anything, so it ends at the last closing parenthesis.
fn fields_from_state(path: &str) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let after_name = bytes.iter().rposition(|byte| *byte == b')')?;
    String::from_utf8(bytes.get(after_name + 1..)?.to_vec()).ok()
}

/// Busy time of each CPU since boot, in ticks of [`TICKS_PER_SECOND`], by CPU number.
#[must_use]
pub(crate) fn busy_ticks() -> Vec<(u32, u64)> {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    text.lines().filter_map(busy_of_line).collect()
}

/// `USER_HZ` (linux/include/asm-generic/param.h): the unit of /proc/stat.
pub(crate) const TICKS_PER_SECOND: u64 = 100;

/// `cpuN user nice system idle iowait irq softirq steal guest guest_nice`. Steal is left out: a
/// virtual CPU that does not run takes no sample; so are interrupts, which hit idle CPUs too. Guest
/// time is in user time.
fn busy_of_line(line: &str) -> Option<(u32, u64)> {
    // The line of all CPUs together has no number behind `cpu`.
    let (cpu, ticks) = line.strip_prefix("cpu")?.split_once(' ')?;
    let cpu = cpu.parse().ok()?;
    let ticks: Vec<u64> = ticks.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, ..] = *ticks.as_slice() else { return None };
    Some((cpu, user.saturating_add(nice).saturating_add(system)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_lines() {
        let line = b"55d0c8a00000-55d0c8a21000 r-xp 0001f000 fe:01 1234 /usr/bin/a b (deleted)";
        let found = mapping(line).unwrap();
        assert_eq!((found.start.0, found.end.0, found.file_offset.0), (0x55d0_c8a0_0000, 0x55d0_c8a2_1000, 0x1f000));
        assert_eq!((found.file.device_major, found.file.device_minor, found.file.inode), (0xfe, 1, 1234));
        assert_eq!(found.path, "/usr/bin/a b (deleted)");
        assert_eq!(mapping(b"1000-2000 rw-p 00000000 00:00 0 "), None);
        let anonymous = mapping(b"1000-2000 rwxp 00000000 00:00 0 ").unwrap();
        assert_eq!(anonymous.path, "");
        for bad in ["", "x", "1000 r-xp", "1000-2000 r-xp 0 0 0"] {
            assert_eq!(mapping(bad.as_bytes()), None);
        }
    }

    #[test]
    fn paths_below_a_root() {
        for (root, path, expected) in [
            ("/srv/jail", "/srv/jail/bin/a (deleted)", "/bin/a (deleted)"),
            ("/srv/jail", "/srv/jail2/a", "/srv/jail2/a"),
            ("/srv/jail", "/srv/jail", "/srv/jail"),
            ("/srv/jail", "[vdso]", "[vdso]"),
            ("/", "/bin/a", "/bin/a"),
        ] {
            assert_eq!(below(root.as_ref(), path.as_ref()), expected, "{path}");
        }
    }

    #[test]
    fn our_own_process_is_found() {
        let us = Pid(std::process::id());
        assert_eq!((process_of_thread(us).ok(), living_thread(us)), (Some(us), Some(us)));
        assert!(exists(us) && exists(Pid(1)) && !exists(Pid(1 << 30)) && !exists(Pid(u32::MAX)));
        assert!(state_of_thread(us, Tid(us.0)).is_some_and(|state| b"RS".contains(&state)));
        assert_eq!(state_of_thread(Pid(1), Tid(us.0)), None);
        assert!(executable_mappings(us).unwrap().iter().any(|mapping| mapping.path == "[vdso]"));
        assert!(program_of(us).is_some() && program_of(us) != program_of(Pid(1)));
        let parent = ancestors(us).next().unwrap();
        assert_eq!((Some(parent), ancestors(us).last()), (stat_fields(us).map(|fields| fields.1), Some(Pid(0))));
        assert_eq!(ancestors(Pid(u32::MAX)).next(), None);
        assert!(with_descendants(&[us]).unwrap().contains(&us));
        assert!(!with_descendants(&[parent]).unwrap().contains(&us));
        assert!(process_of_thread(Pid(u32::MAX)).is_err());
        assert!(!is_exiting(us) && is_exiting(Pid(u32::MAX)) && !is_kernel_thread(us));
        assert!(program_name(us).is_some_and(|name| name.starts_with("profiler_agent-")));
        let own = own(us).unwrap();
        assert!(own.uids.contains(&rustix::process::geteuid().as_raw()) && own.uids.len() == 4, "{own:?}");
        let age_ns = crate::clock::boot_ns() - started_boot_ns(us).unwrap();
        assert!(age_ns < 3_600_000_000_000, "{age_ns} ns old");
    }

    #[test]
    fn names_of_program_files() {
        for (path, name) in [
            ("/usr/sbin/nginx", Some("nginx")),
            ("/usr/sbin/nginx (deleted)", Some("nginx")),
            ("/memfd:a (deleted)", Some("memfd:a")),
            ("/", None),
        ] {
            assert_eq!(file_name(path.as_ref()).as_deref(), name, "{path}");
        }
    }

    #[test]
    fn busy_time_leaves_idle_out() {
        assert_eq!(busy_of_line("cpu3 1 2 3 1000 1000 4 5 1000 0 0"), Some((3, 6)));
        assert_eq!(busy_of_line("cpu  1 2 3 4 5 6 7 8 9 10"), None);
        assert_eq!(busy_of_line("intr 5"), None);
    }
}
