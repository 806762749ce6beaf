//! Which package a file is of, by the files in which dpkg keeps its lists. They are those of the process's
//! own root directory, so every length is bounded and no link leads out of it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;

use profiler_common::address::Pid;

use crate::tracker::{Opening, folder_in, open_in, open_owned, root_of};

/// Lists of files that are read, at most, and bytes of one and of all. A desktop has 4,000 with 30 MB.
const MOST_LISTS: usize = 20_000;
const MOST_LIST_BYTES: u64 = 16 << 20;
const MOST_BYTES: u64 = 256 << 20;

/// `/var/lib/dpkg/status` is read up to this many bytes. A desktop's has 6 MB.
const MOST_STATUS_BYTES: u64 = 64 << 20;

/// `/etc/os-release` is read up to this many bytes.
const MOST_RELEASE_BYTES: u64 = 64 << 10;

/// How debug information is installed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Distribution {
    /// By apt; from an archive of its own.
    Debian {
        /// `bookworm`; empty when it is not known.
        codename: String,
    },
    /// By apt; from an archive of its own.
    Ubuntu {
        /// `noble`; empty when it is not known.
        codename: String,
    },
    /// By dnf.
    Rpm,
    /// In some other way.
    #[default]
    Other,
}

/// The package of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) package: String,
    /// The version that is installed; empty when it is not known.
    pub(super) version: String,
}

/// The packages of a root directory.
#[derive(Debug, Default)]
pub(super) struct Packages {
    pub(super) root: Option<OwnedFd>,
    pub(super) distribution: Distribution,
    /// The root directory is not ours: what is installed there is not found here.
    pub(super) elsewhere: bool,
    /// The archive of debug packages is among apt's sources.
    pub(super) has_debug_archive: bool,
}

impl Packages {
    /// Those of a process's root directory.
    pub(super) fn of(pid: Pid) -> Self {
        let Some(root) = root_of(pid) else { return Self::default() };
        let identity = |root: &OwnedFd| rustix::fs::fstat(root).ok().map(|stat| (stat.st_dev, stat.st_ino));
        let ours = root_of(Pid(std::process::id()));
        let elsewhere = ours.as_ref().and_then(identity) != identity(&root);
        let theirs = Some(&root).filter(|_| elsewhere);
        let release = open_in(theirs, Path::new("etc/os-release"), true).map(|file| text_of(file, MOST_RELEASE_BYTES));
        Self {
            distribution: distribution(&release.unwrap_or_default()),
            elsewhere,
            has_debug_archive: has_debug_archive(theirs),
            root: Some(root),
        }
    }

    /// The package of each of these paths, as far as it is known.
    pub(super) fn owners(&self, paths: &[&str]) -> HashMap<String, Owner> {
        let mut owners = HashMap::new();
        let Some(root) = &self.root else { return owners };
        let theirs = Some(root).filter(|_| self.elsewhere);
        if !matches!(self.distribution, Distribution::Debian { .. } | Distribution::Ubuntu { .. }) || paths.is_empty() {
            return owners;
        }
        let Some(folder) = folder_in(theirs, "var/lib/dpkg/info") else { return owners };
        let wanted = spellings(paths);
        let mut left_bytes = MOST_BYTES;
        for list in names(&folder).filter(|name| name.ends_with(".list")).take(MOST_LISTS) {
            let Opening::File(file) = open_owned(&folder, &list, &[0]) else { continue };
            let text = text_of(file, MOST_LIST_BYTES.min(left_bytes));
            left_bytes = left_bytes.saturating_sub(text.len() as u64);
            let package = list.trim_end_matches(".list").split(':').next().unwrap_or_default();
            for path in text.lines().filter_map(|line| wanted.get(line)) {
                let owner = || Owner { package: package.to_owned(), version: String::new() };
                owners.entry((*path).to_owned()).or_insert_with(owner);
            }
        }
        let status =
            open_in(theirs, Path::new("var/lib/dpkg/status"), true).map(|file| text_of(file, MOST_STATUS_BYTES));
        let versions = versions(status.as_deref().unwrap_or_default());
        for owner in owners.values_mut() {
            versions.get(owner.package.as_str()).copied().unwrap_or_default().clone_into(&mut owner.version);
        }
        owners
    }
}

/// The version of each package, by dpkg's list of all.
fn versions(status: &str) -> HashMap<&str, &str> {
    let mut package = "";
    let mut versions = HashMap::new();
    for line in status.lines() {
        if let Some(name) = line.strip_prefix("Package: ") {
            package = name;
        } else if let Some(version) = line.strip_prefix("Version: ") {
            versions.entry(package).or_insert(version);
        }
    }
    versions
}

/// Where /lib is a link to /usr/lib, a file has two names, and dpkg may know the other one.
fn spellings<'p>(paths: &[&'p str]) -> HashMap<String, &'p str> {
    let mut wanted = HashMap::new();
    for path in paths {
        let other = match path.strip_prefix("/usr") {
            Some(rest) if rest.starts_with('/') => rest.to_owned(),
            _ => format!("/usr{path}"),
        };
        wanted.insert(other, *path);
    }
    wanted.extend(paths.iter().map(|path| ((*path).to_owned(), *path)));
    wanted
}

/// The package with the debug information of a package's files.
pub(super) fn debug_package(package: &str) -> String {
    let number = |start: &str| {
        let rest = package.strip_prefix(start)?;
        let version = rest.split('-').next().unwrap_or_default();
        (!version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')).then_some(version)
    };
    // Packages of the time before `-dbgsym` that were kept (Debian 12, Ubuntu 24.04).
    if package == "libc6" {
        return "libc6-dbg".to_owned();
    }
    if let Some(version) = number("openjdk-") {
        return format!("openjdk-{version}-dbg");
    }
    if let Some(version) = number("libpython3").or_else(|| number("python3")) {
        return format!("python3{version}-dbg");
    }
    format!("{package}-dbgsym")
}

fn distribution(release: &str) -> Distribution {
    let value = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    let plain = |text: &String| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let codename = Some(value("VERSION_CODENAME")).filter(plain).unwrap_or_default();
    let ids = format!("{} {}", value("ID"), value("ID_LIKE"));
    let is = |name: &str| ids.split(' ').any(|id| id == name);
    if is("ubuntu") {
        Distribution::Ubuntu { codename }
    } else if is("debian") {
        Distribution::Debian { codename }
    } else if is("fedora") || is("rhel") {
        Distribution::Rpm
    } else {
        Distribution::Other
    }
}

fn has_debug_archive(root: Option<&OwnedFd>) -> bool {
    let lists = folder_in(root, "var/lib/apt/lists");
    lists.is_some_and(|folder| {
        // `HOST_debian-debug_dists_bookworm-debug_InRelease`, `ddebs.ubuntu.com_dists_noble_InRelease`.
        names(&folder).take(MOST_LISTS).any(|name| name.contains("-debug_") || name.starts_with("ddebs."))
    })
}

fn names(folder: &OwnedFd) -> impl Iterator<Item = String> {
    let entries = rustix::fs::Dir::read_from(folder).ok();
    let entries = entries.into_iter().flatten().map_while(Result::ok);
    entries.filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned))
}

fn text_of(file: OwnedFd, most_bytes: u64) -> String {
    let mut bytes = Vec::new();
    // What can't be read is not known.
    let _partly = File::from(file).take(most_bytes).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_packages() {
        for (package, expected) in [
            ("nginx", "nginx-dbgsym"),
            ("libc6", "libc6-dbg"),
            ("libssl3", "libssl3-dbgsym"),
            ("openjdk-17-jre-headless", "openjdk-17-dbg"),
            ("openjdk-lts", "openjdk-lts-dbgsym"),
            ("python3.11-minimal", "python3.11-dbg"),
            ("libpython3.11", "python3.11-dbg"),
            ("python3-numpy", "python3-numpy-dbgsym"),
        ] {
            assert_eq!(debug_package(package), expected);
        }
    }

    #[test]
    fn distributions() {
        let debian = |codename: &str| Distribution::Debian { codename: codename.to_owned() };
        let ubuntu = |codename: &str| Distribution::Ubuntu { codename: codename.to_owned() };
        for (release, expected) in [
            ("NAME=\"Debian\"\nID=debian\nVERSION_CODENAME=bookworm\n", debian("bookworm")),
            ("ID=debian\nVERSION_CODENAME=\"x; reboot\"\n", debian("")),
            ("ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n", ubuntu("noble")),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", ubuntu("")),
            ("ID=fedora\n", Distribution::Rpm),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", Distribution::Rpm),
            ("ID=arch\n", Distribution::Other),
            ("", Distribution::Other),
        ] {
            assert_eq!(distribution(release), expected, "{release}");
        }
    }

    #[test]
    fn a_file_is_found_under_both_of_its_names() {
        let paths = ["/usr/lib/a.so", "/lib/b.so", "/usrlocal/c.so"];
        let wanted = spellings(&paths);
        for (line, path) in [
            ("/usr/lib/a.so", "/usr/lib/a.so"),
            ("/lib/a.so", "/usr/lib/a.so"),
            ("/usr/lib/b.so", "/lib/b.so"),
            ("/lib/b.so", "/lib/b.so"),
            ("/usrlocal/c.so", "/usrlocal/c.so"),
        ] {
            assert_eq!(wanted.get(line), Some(&path), "{line}");
        }
        assert_eq!(wanted.get("local/c.so"), None);
    }

    /// Containers choose what is in the place of dpkg's lists.
    #[test]
    fn lists_of_others_do_no_harm() {
        use rustix::fs::{CWD, FileType, Mode, OFlags};
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("var/lib/dpkg/info");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("good:amd64.list"), "/.\n/usr/lib/good.so\n").unwrap();
        std::fs::write(folder.join("noise.list"), b"\xff\0\n/usr/lib/noise.so").unwrap();
        rustix::fs::mknodat(CWD, folder.join("pipe.list"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        std::fs::write(scratch.path().join("linked"), "/usr/lib/linked.so\n").unwrap();
        std::os::unix::fs::symlink(scratch.path().join("linked"), folder.join("linked.list")).unwrap();
        std::os::unix::fs::symlink("/var/lib/dpkg/info/pipe.list", scratch.path().join("var/lib/dpkg/status")).unwrap();
        let root = rustix::fs::open(scratch.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let distribution = Distribution::Debian { codename: String::new() };
        let packages = Packages { root: Some(root), distribution, elsewhere: true, ..Packages::default() };
        let owners = packages.owners(&["/usr/lib/good.so", "/usr/lib/noise.so", "/usr/lib/linked.so"]);
        let package = |path: &str| owners.get(path).map(|owner| owner.package.as_str());
        // Only root's lists count.
        let ours = rustix::process::geteuid().is_root();
        assert_eq!(package("/usr/lib/good.so"), ours.then_some("good"));
        assert_eq!(package("/usr/lib/noise.so"), ours.then_some("noise"));
        assert_eq!(package("/usr/lib/linked.so"), None);
        assert!(owners.values().all(|owner| owner.version.is_empty()), "the FIFO was not read");
    }

    #[test]
    fn versions_of_packages() {
        let status = "Package: a\nVersion: 1:2-3\n\nPackage: b\nStatus: x\nVersion: 4~5\nDescription: c\n Version: 6\n";
        assert_eq!(versions(status), HashMap::from([("a", "1:2-3"), ("b", "4~5")]));
    }

    /// By this system's own lists, where it has some.
    #[test]
    fn the_packages_of_this_system() {
        let packages = Packages::of(Pid(std::process::id()));
        assert!(!packages.elsewhere);
        let path = std::fs::canonicalize("/bin/sh").unwrap();
        let path = path.to_str().unwrap();
        let owners = packages.owners(&[path, "/no/such/file"]);
        assert_eq!(owners.get("/no/such/file"), None);
        if let Ok(said) = std::process::Command::new("dpkg").args(["-S", path]).output()
            && said.status.success()
        {
            let said = String::from_utf8(said.stdout).unwrap();
            let owner = owners.get(path).unwrap();
            assert_eq!(Some(owner.package.as_str()), said.split(':').next(), "{said}");
            let query = ["-W", "-f", "${Version}", &owner.package];
            let version = std::process::Command::new("dpkg-query").args(query).output().unwrap();
            assert_eq!(owner.version, String::from_utf8(version.stdout).unwrap());
        }
    }
}
