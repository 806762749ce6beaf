//! The control groups of a process: where it is in each hierarchy, and which systemd unit and which container that
//! says. Names of groups are whatever those chose who made them.

use std::borrow::Cow;
use std::fs;
use std::io::{self, Read as _};

use profiler_common::address::Pid;

use crate::proc_fs;

/// `/proc/PID/cgroup` is read up to this many bytes: a path has at most 4096 (`PATH_MAX`), and there is a line for
/// each of some 15 controllers (`proc_cgroup_show`, linux/kernel/cgroup/cgroup.c).
const MOST_BYTES: u64 = 64 << 10;

/// Hierarchies that are noted, at most: version 1 can have one for each controller, and named ones.
const MOST_HIERARCHIES: usize = 32;

/// What systemd keeps its units in, with version 1 (systemd.io, "Control Group APIs and Delegation").
const SYSTEMD: &str = "name=systemd";

/// The ends of names of units that have a control group (systemd.unit(5)); slices hold other units.
pub(crate) const UNIT_SUFFIXES: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];
pub(crate) const SLICE_SUFFIX: &str = ".slice";

/// Digits of a container's id: a SHA-256, or as many at random.
pub(crate) const ID_DIGITS: usize = 64;

/// Where a process is in the hierarchies of control groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cgroup {
    /// Those first in which systemd keeps units.
    places: Vec<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// The hierarchy's controllers, separated by commas; none for version 2.
    controllers: String,
    /// From the root of our control group namespace; what is outside of that begins with `/..`.
    path: String,
}

impl Cgroup {
    /// That of a process; `None` when it has ended.
    pub(crate) fn of(pid: Pid) -> Option<Self> {
        let cgroup = read(&format!("/proc/{pid}/cgroup")).ok()?;
        // Version 1 shows the root for a thread that ends (`proc_cgroup_show`); another one may live on.
        let in_root = |place: &Place| !place.controllers.is_empty() && place.path == "/";
        if !cgroup.places.iter().any(in_root) || !proc_fs::is_exiting(pid) {
            return Some(cgroup);
        }
        let thread = proc_fs::living_thread(pid).filter(|thread| *thread != pid)?;
        read(&format!("/proc/{pid}/task/{thread}/cgroup")).ok()
    }

    /// From the text of `/proc/PID/cgroup`: lines `ID:CONTROLLERS:PATH` (cgroups(7)). What is no such line, and what
    /// is beyond the bounds, is left out.
    pub(crate) fn parse(text: &[u8]) -> Self {
        let mut places: Vec<Place> = text
            .split_inclusive(|byte| *byte == b'\n')
            .filter_map(|line| place(&String::from_utf8_lossy(line.strip_suffix(b"\n")?)))
            .take(MOST_HIERARCHIES)
            .collect();
        places.sort_by_key(|place| (place.controllers != SYSTEMD, !place.controllers.is_empty()));
        Self { places }
    }

    /// The path by which people know it: the first one that is not the root.
    pub(crate) fn path(&self) -> Option<&str> {
        let mut paths = self.places.iter().map(|place| place.path.as_str());
        paths.clone().find(|path| *path != "/").or_else(|| paths.next())
    }

    /// Whether it is in this group, or below.
    pub(crate) fn is_in(&self, group: &CgroupPath) -> bool {
        self.places.iter().any(|place| group.holds(place))
    }

    /// Whether a group that it is in has a unit's name that is like this: a slice, too, and a unit that has the unit
    /// of a systemd in it, as `user@1000.service` has, and a container.
    pub(crate) fn has_unit(&self, mut is_wanted: impl FnMut(&str) -> bool) -> bool {
        self.places.iter().flat_map(Place::components).any(|name| is_wanted(unit_of(name)))
    }

    /// Whether the id of a container that it is in is like this; containers may be in containers.
    pub(crate) fn has_container(&self, mut is_wanted: impl FnMut(&str) -> bool) -> bool {
        self.places.iter().flat_map(Place::components).filter_map(container_of).any(|id| is_wanted(&id))
    }

    /// The systemd unit: the innermost service or scope (or socket, mount, swap).
    pub(crate) fn unit(&self) -> Option<&str> {
        let is_unit = |name: &&str| UNIT_SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
        self.places.iter().find_map(|place| place.components().map(unit_of).filter(is_unit).last())
    }

    /// The container: the innermost one's id (64 hexadecimal digits), or name, for those of systemd-nspawn and LXC.
    pub(crate) fn container_id(&self) -> Option<Cow<'_, str>> {
        self.places.iter().find_map(|place| place.components().filter_map(container_of).last())
    }
}

impl Place {
    fn components(&self) -> impl Iterator<Item = &str> {
        self.path.split('/').filter(|name| !name.is_empty())
    }
}

fn read(path: &str) -> io::Result<Cgroup> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(MOST_BYTES).read_to_end(&mut text)?;
    Ok(Cgroup::parse(&text))
}

fn place(line: &str) -> Option<Place> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?.to_owned(), fields.next()?);
    // A group that was removed while a zombie is in it (`proc_cgroup_show`).
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    path.starts_with('/').then(|| Place { controllers, path: path.to_owned() })
}

/// systemd puts `_` before names that the kernel could take for a file of its own (`cg_escape`, systemd's
/// src/basic/cgroup-util.c).
fn unit_of(name: &str) -> &str {
    name.strip_prefix('_').unwrap_or(name)
}

/// The container that a group of this name is of. Docker: `ID`, `docker-ID.scope`; Podman: `libpod-ID.scope`,
/// `libpod-payload-ID`; containerd: `ID`, `cri-containerd-ID.scope`, `SLICE:cri-containerd:ID`; CRI-O:
/// `crio-ID.scope`. What watches the container (conmon) is not in it.
fn container_of(name: &str) -> Option<Cow<'_, str>> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let unit = name.strip_suffix(".scope").unwrap_or(name);
    let id = unit.rsplit([':', '-']).next().unwrap_or_default();
    if id.len() == ID_DIGITS && id.bytes().all(is_digit) {
        return (!name.contains("-conmon-")).then_some(Cow::Borrowed(id));
    }
    let machine = unit.strip_prefix("machine-").filter(|_machine| unit.len() < name.len());
    let service = || name.strip_prefix("systemd-nspawn@")?.strip_suffix(".service");
    let lxc = || name.strip_prefix("lxc.payload.");
    machine.or_else(service).or_else(lxc).filter(|name| !name.is_empty()).map(unescaped)
}

/// A name as it was before systemd put `\xNN` for what is no letter of unit names (systemd-escape(1)).
fn unescaped(name: &str) -> Cow<'_, str> {
    if !name.contains("\\x") {
        return Cow::Borrowed(name);
    }
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, after @ ..] = rest {
        let code = || u8::from_str_radix(std::str::from_utf8(after.strip_prefix(b"x")?.get(..2)?).ok()?, 16).ok();
        let escape = if *first == b'\\' { code() } else { None };
        bytes.push(escape.unwrap_or(*first));
        rest = after.get(if escape.is_some() { 3 } else { 0 }..).unwrap_or_default();
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

/// A control group, and all below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CgroupPath {
    /// The controllers (and other options) of the hierarchy that is meant; `None` for whichever has it.
    hierarchy: Option<Vec<String>>,
    path: String,
}

impl CgroupPath {
    /// A path as `/proc/PID/cgroup` and systemctl have it, or that of the folder of a group that is mounted.
    pub(crate) fn new(text: &str) -> Self {
        Self::among(text, &fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    /// The same, with the text of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
    fn among(text: &str, mounts: &str) -> Self {
        let mut best: Option<(usize, Self)> = None;
        for mount in mounts.lines() {
            let Some((about, file_system)) = mount.split_once(" - ") else { continue };
            let (mut about, mut file_system) = (about.split(' ').skip(3), file_system.split(' '));
            let (Some(root), Some(point)) = (about.next(), about.next()) else { continue };
            let options = match (file_system.next(), file_system.nth(1)) {
                (Some("cgroup2"), _) => Vec::new(),
                (Some("cgroup"), Some(options)) => options.split(',').map(str::to_owned).collect(),
                _ => continue,
            };
            let below = text.strip_prefix(point).filter(|rest| rest.is_empty() || rest.starts_with('/'));
            if let Some(below) = below
                && best.as_ref().is_none_or(|(length, _best)| *length < point.len())
            {
                let path = normal(&format!("{root}/{below}"));
                best = Some((point.len(), Self { hierarchy: Some(options), path }));
            }
        }
        best.map_or_else(|| Self { hierarchy: None, path: normal(text) }, |(_length, path)| path)
    }

    /// The group, from the root of the hierarchy.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    fn holds(&self, place: &Place) -> bool {
        let mut controllers = place.controllers.split(',').filter(|name| !name.is_empty());
        let is_meant = self.hierarchy.as_ref().is_none_or(|options| {
            options.is_empty() == place.controllers.is_empty()
                && controllers.all(|name| options.iter().any(|option| option == name))
        });
        let below = if self.path == "/" { Some(place.path.as_str()) } else { place.path.strip_prefix(&self.path) };
        // `/..` is not below `/`.
        let is_below = |rest: &str| (rest.is_empty() || rest.starts_with('/')) && !is_outside(rest);
        is_meant && below.is_some_and(is_below)
    }
}

/// Whether what is behind the path of a group leads out of it.
fn is_outside(rest: &str) -> bool {
    rest.strip_prefix("/..").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// With one `/` at the start and between names, and none at the end.
fn normal(path: &str) -> String {
    let names = path.split('/').filter(|name| !name.is_empty());
    let path: String = names.flat_map(|name| ["/", name]).collect();
    if path.is_empty() { "/".to_owned() } else { path }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "4f0a2e1b9c8d7e6f5a4b3c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f";
    const B: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn one(path: &str) -> Cgroup {
        Cgroup::parse(format!("0::{path}\n").as_bytes())
    }

    /// Lines as docker, podman, containerd, CRI-O, systemd-nspawn, LXC and a kubelet make them.
    #[test]
    fn containers() {
        for (path, expected) in [
            (format!("/system.slice/docker-{A}.scope"), Some(A)),
            (format!("/docker/{A}"), Some(A)),
            (format!("/machine.slice/libpod-{A}.scope/container"), Some(A)),
            (format!("/libpod_parent/libpod-{A}"), Some(A)),
            (format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope"), Some(A)),
            (format!("/system.slice/web.service/libpod-payload-{A}"), Some(A)),
            (format!("/machine.slice/libpod-conmon-{A}.scope"), None),
            (format!("/k8s.io/{A}"), Some(A)),
            (format!("/kubepods/besteffort/pod0a1b2c3d-0001-4000-8000-0123456789ab/{A}"), Some(A)),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/\
                     kubepods-burstable-pod0a1b2c3d_0001_4000_8000_0123456789ab.slice/cri-containerd-{A}.scope"
                ),
                Some(A),
            ),
            (format!("/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{A}"), Some(A)),
            (format!("/kubepods.slice/kubepods-pod1.slice/crio-{A}.scope"), Some(A)),
            (format!("/kubepods.slice/kubepods-pod1.slice/crio-conmon-{A}.scope"), None),
            (format!("/docker/{A}/kubelet.slice/cri-containerd-{B}.scope"), Some(B)),
            (format!("/../../system.slice/docker-{A}.scope"), Some(A)),
            ("/machine.slice/machine-web\\x2d1.scope/payload".to_owned(), Some("web-1")),
            ("/machine.slice/systemd-nspawn@web.service/payload/init.scope".to_owned(), Some("web")),
            ("/lxc.payload.web/system.slice/cron.service".to_owned(), Some("web")),
            (format!("/system.slice/docker-{}.scope", &A[1..]), None),
            (format!("/{}", A.to_uppercase()), None),
            ("/system.slice/nginx.service".to_owned(), None),
            ("/".to_owned(), None),
        ] {
            assert_eq!(one(&path).container_id().as_deref(), expected, "{path}");
            assert_eq!(one(&path).has_container(|id| expected == Some(id)), expected.is_some(), "{path}");
        }
        assert!(one(&format!("/docker/{A}/kubelet.slice/cri-containerd-{B}.scope")).has_container(|id| id == A));
    }

    #[test]
    fn units() {
        for (path, unit, also) in [
            ("/system.slice/nginx.service", Some("nginx.service"), &["system.slice"][..]),
            (
                "/system.slice/system-getty.slice/getty@tty1.service",
                Some("getty@tty1.service"),
                &["system-getty.slice"],
            ),
            (
                "/user.slice/user-0.slice/user@0.service/app.slice/a\\x2db.service/sub",
                Some("a\\x2db.service"),
                &["user@0.service", "app.slice"],
            ),
            ("/user.slice/user-0.slice/session-3.scope", Some("session-3.scope"), &["user-0.slice"]),
            ("/init.scope", Some("init.scope"), &[]),
            ("/_cpu.service", Some("cpu.service"), &[]),
            ("/user.slice", None, &["user.slice"]),
            ("/libpod_parent/x", None, &[]),
        ] {
            assert_eq!(one(path).unit(), unit, "{path}");
            assert!(unit.iter().chain(also).all(|unit| one(path).has_unit(|name| name == *unit)), "{path}");
            assert!(!one(path).has_unit(|name| name == "other.service"), "{path}");
        }
    }

    #[test]
    fn hierarchies_of_version_1_and_both() {
        let text = format!(
            "12:memory:/docker/{A}\n11:cpu,cpuacct:/docker/{A}\n3:pids:/\n1:name=systemd:/system.slice/a.service\n0::/x\n"
        );
        let both = Cgroup::parse(text.as_bytes());
        assert_eq!((both.unit(), both.container_id().as_deref()), (Some("a.service"), Some(A)));
        assert_eq!(both.path(), Some("/system.slice/a.service"));
        let mounts = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      36 31 0:33 / /sys/fs/cgroup/cpu rw shared:4 - cgroup cgroup rw,cpu,cpuacct\n\
                      41 31 0:38 /y /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      42 31 0:39 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                      43 31 0:40 / / rw - ext4 /dev/sda rw\n";
        for (path, is_in) in [
            ("/docker", true),
            (&format!("docker/{A}/"), true),
            (&format!("/docker/{}", &A[..12]), false),
            ("/sys/fs/cgroup/memory/docker", true),
            ("/sys/fs/cgroup/cpu/docker", true),
            ("/sys/fs/cgroup/unified", false),
            ("/sys/fs/cgroup/docker", false),
            ("/sys/fs/cgroup/x", true),
            ("/sys/fs/cgroup/memory/x", false),
            ("/", true),
            ("", true),
        ] {
            assert_eq!(both.is_in(&CgroupPath::among(path, mounts)), is_in, "{path}");
        }
        let outside = one("/../x");
        for (path, is_in) in [("/", false), ("/..", true), ("/../x", true), ("/x", false)] {
            assert_eq!(outside.is_in(&CgroupPath::among(path, "")), is_in, "{path}");
        }
        assert!(one("/..x").is_in(&CgroupPath::among("/", "")));
    }

    #[test]
    fn what_is_no_line_is_left_out() {
        for text in ["", "0::/x", "0:\n", "x\n", "0::x\n", "\n\n"] {
            assert_eq!(Cgroup::parse(text.as_bytes()), Cgroup::default(), "{text:?}");
        }
        assert_eq!(one("/a (deleted)"), one("/a"));
        let many = "1:a:/b\n".repeat(1000);
        assert_eq!(Cgroup::parse(many.as_bytes()).places.len(), MOST_HIERARCHIES);
    }

    #[test]
    fn our_own() {
        let us = Cgroup::of(Pid(std::process::id())).unwrap();
        assert!(us.path().is_some_and(|path| path.starts_with('/')), "{us:?}");
        assert!(us.is_in(&CgroupPath::new(us.path().unwrap())));
        assert_eq!(Cgroup::of(Pid(u32::MAX)), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in proptest::collection::vec(any::<u8>(), 0..400), lines in "([0-9]:[a-z,=]{0,9}:/[-/:_.a-f0-9@\\\\x]{0,80}\n){0,5}") {
            for text in [text.as_slice(), lines.as_bytes()] {
                let cgroup = Cgroup::parse(text);
                if let Some(unit) = cgroup.unit() {
                    prop_assert!(cgroup.has_unit(|name| name == unit));
                }
                if let Some(id) = cgroup.container_id() {
                    prop_assert!(cgroup.has_container(|known| known == id));
                }
                for place in &cgroup.places {
                    let itself = CgroupPath { hierarchy: None, path: normal(&place.path) };
                    prop_assert!(normal(&place.path) != place.path || cgroup.is_in(&itself));
                }
            }
        }

        #[test]
        fn an_id_is_found_in_any_frame(id in "[0-9a-f]{64}", before in "[a-z]{0,8}[-:]?", after in "(\\.scope)?(/[a-z.]{1,9})?") {
            prop_assume!(before.is_empty() || before.ends_with(['-', ':']));
            let path = format!("/a.slice/{before}{id}{after}");
            let cgroup = one(&path);
            let found = cgroup.container_id();
            prop_assert_eq!(found.as_deref(), Some(id.as_str()), "{}", path);
        }
    }
}
