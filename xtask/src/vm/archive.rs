//! Kernels and a static busybox from Debian's archive, by the ordinary apt client with a private
//! configuration and a cache of our own: nothing is installed, no root is needed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use super::Architecture;
use crate::shell;

/// The suites that together hold every kernel series from 5.10 on; versions in them rotate.
const SUITES: [(&str, Part); 8] = [
    ("bullseye", Part::Main),
    ("bullseye-security", Part::Security),
    ("bookworm", Part::Main),
    ("bookworm-security", Part::Security),
    ("trixie", Part::Main),
    ("trixie-security", Part::Security),
    ("trixie-backports", Part::Main),
    ("sid", Part::Main),
];

/// Signs all of them (Debian package `debian-archive-keyring`).
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Package lists older than this are fetched again: a new kernel may be in the archive.
const LISTS_AGE: Duration = Duration::from_secs(3 * 24 * 3600);

/// Releases that are tried, newest first, before a series counts as unavailable. November 2026: the
/// lists of bullseye-security name four arm64 releases of 5.10 that no mirror holds.
const TRIED_RELEASES: usize = 8;

#[derive(Clone, Copy)]
enum Part {
    Main,
    Security,
}

/// A kernel, ready to boot.
pub(super) struct Kernel {
    /// As in the package's name: `5.10.0-46`, `7.3.4+deb13`.
    pub(super) release: String,
    pub(super) image: PathBuf,
    /// The folder of [`MODULES`], each as `NAME.ko`.
    pub(super) modules: PathBuf,
}

/// The modules that are kept of a kernel's hundreds: a hash that exists only as this module's plain C
/// from 5.10 to 7.3, and what gives user space access to it. What one needs stands before it.
pub(super) const MODULES: [&str; 3] = ["af_alg", "algif_hash", "wp512"];

/// Why there is no kernel.
pub(super) enum Unavailable {
    /// The archive does not answer and the cache does not hold it.
    Archive(String),
    /// The archive answers and does not have it.
    Version(String),
}

/// Debian's archive for one architecture, with its cache.
pub(super) struct Archive {
    architecture: Architecture,
    folder: PathBuf,
    /// Names of all kernel packages.
    packages: Vec<String>,
}

impl Archive {
    /// Reads the package lists, fetching them first when they are missing or old.
    pub(super) fn open(architecture: Architecture) -> Result<Self> {
        let folder = cache()?.join(architecture.debian());
        let mut archive = Self { architecture, folder, packages: Vec::new() };
        archive.configure()?;
        archive.update();
        let suffix = archive.suffix();
        let found =
            archive.apt("apt-cache", &["search", "--names-only", &format!("^linux-(image|binary)-.*{suffix}$")])?;
        archive.packages = found.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
        Ok(archive)
    }

    /// The series that the archive has, oldest first: `5.10`, `6.1`, ...
    pub(super) fn series(&self) -> Vec<String> {
        let mut series: Vec<(u32, u32)> = Vec::new();
        for (version, _) in self.releases() {
            if let &[major, minor, ..] = version.as_slice() {
                series.push((major, minor));
            }
        }
        series.sort_unstable();
        series.dedup();
        series.iter().map(|(major, minor)| format!("{major}.{minor}")).collect()
    }

    /// The newest kernel of a series (`5.10`), a release (`6.12.117+deb12`), or `newest`. Package
    /// lists may name a version that the mirror has no more, or not yet: then the one before it.
    pub(super) fn kernel(&self, wanted: &str) -> Result<Kernel, Unavailable> {
        let candidates = matching(self.releases(), wanted);
        let mut failure = None;
        for release in candidates.into_iter().take(TRIED_RELEASES) {
            let fetched = if self.is_cached(&release) { Ok(()) } else { self.fetch_kernel(&release) };
            match (fetched, self.cached(wanted)) {
                (Ok(()), _) => return Ok(self.of_cache(release)),
                (Err(_), Some(kernel)) => return Ok(kernel),
                (Err(error), None) => {
                    failure.get_or_insert(error);
                }
            }
        }
        let unavailable = || match failure {
            Some(error) => Unavailable::Archive(shell::last_lines(&format!("{error:#}"), 1)),
            None if self.packages.is_empty() => Unavailable::Archive("its package lists cannot be fetched".to_owned()),
            None => Unavailable::Version(format!("it has no kernel `{wanted}` now, but {}", self.series().join(" "))),
        };
        self.cached(wanted).ok_or_else(unavailable)
    }

    /// The path of a statically linked busybox.
    pub(super) fn busybox(&self) -> Result<PathBuf> {
        let path = self.folder.join("busybox");
        if !path.exists() {
            let unpacked = self.unpack("busybox-static")?;
            let inside = ["bin/busybox", "usr/bin/busybox"].map(|name| unpacked.join(name));
            let found = inside.iter().find(|path| path.is_file()).context("busybox-static holds no busybox")?;
            fs::rename(found, &path).context("keeping busybox")?;
            fs::remove_dir_all(unpacked)?;
        }
        Ok(path)
    }

    fn releases(&self) -> Vec<(Vec<u32>, String)> {
        releases(&self.packages, &self.suffix())
    }

    fn suffix(&self) -> String {
        format!("-cloud-{}", self.architecture.debian())
    }

    fn image(&self, release: &str) -> PathBuf {
        self.folder.join("kernels").join(release)
    }

    fn modules(&self, release: &str) -> PathBuf {
        self.folder.join("modules").join(release)
    }

    fn is_cached(&self, release: &str) -> bool {
        self.image(release).exists() && self.modules(release).exists()
    }

    fn of_cache(&self, release: String) -> Kernel {
        Kernel { image: self.image(&release), modules: self.modules(&release), release }
    }

    /// The newest kernel in the cache that answers to `wanted`.
    fn cached(&self, wanted: &str) -> Option<Kernel> {
        let entries = fs::read_dir(self.folder.join("kernels")).ok()?;
        let releases: Vec<_> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|release| self.is_cached(release))
            .map(|release| (numbers(&release), release))
            .collect();
        Some(self.of_cache(matching(releases, wanted).into_iter().next()?))
    }

    fn fetch_kernel(&self, release: &str) -> Result<()> {
        println!("fetching Linux {release} ({})", self.architecture.debian());
        self.fetch(release)
            .inspect_err(|error| println!("  not to be had: {}", shell::last_lines(&format!("{error:#}"), 1)))
    }

    fn fetch(&self, release: &str) -> Result<()> {
        // From 6.19 on the image package is empty: `linux-binary-*` has the image, `linux-modules-*`
        // the modules.
        let named = |kind: &str| format!("linux-{kind}-{release}{}", self.suffix());
        let binary = named("binary");
        let split = self.packages.contains(&binary);
        let package = if split { binary } else { named("image") };
        let unpacked = self.unpack(&package)?;
        let found = find_image(&unpacked).with_context(|| format!("no kernel image in {package}"))?;
        fs::rename(found, self.image(release)).context("keeping the kernel")?;
        let with_modules = if split { self.unpack(&named("modules"))? } else { unpacked.clone() };
        self.keep_modules(&with_modules, release)?;
        for folder in [unpacked, with_modules] {
            if folder.exists() {
                fs::remove_dir_all(folder).context("removing the unpacked package")?;
            }
        }
        Ok(())
    }

    /// Takes [`MODULES`] out of an unpacked package. The folder gets its name last: it is whole or not
    /// there.
    fn keep_modules(&self, unpacked: &Path, release: &str) -> Result<()> {
        let folder = self.folder.join("modules").join(format!("new-{}", std::process::id()));
        fs::create_dir_all(&folder).context("making a folder for modules")?;
        for name in MODULES {
            let found = find_module(unpacked, name).with_context(|| format!("Linux {release} has no module {name}"))?;
            let kept = folder.join(found.file_name().unwrap_or_default());
            fs::copy(&found, &kept).with_context(|| format!("keeping {}", found.display()))?;
            if kept.extension().is_some_and(|extension| extension == "xz") {
                shell::output(Command::new("xz").arg("-d").arg(kept))?;
            }
        }
        fs::rename(folder, self.modules(release)).context("keeping the modules")
    }

    /// Downloads a package and unpacks it into a folder of the cache.
    fn unpack(&self, package: &str) -> Result<PathBuf> {
        let folder = self.folder.join(format!("unpack-{}-{package}", std::process::id()));
        fs::create_dir_all(&folder)?;
        self.apt("apt-get", &["download", "-qq", package])?;
        let download = fs::read_dir(&self.folder)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get download {package} left no package"))?;
        shell::output(Command::new("dpkg-deb").arg("-x").arg(&download).arg(&folder))?;
        fs::remove_file(download)?;
        Ok(folder)
    }

    fn configure(&self) -> Result<()> {
        if shell::find("apt-get").is_none() || !Path::new(KEYRING).exists() {
            bail!("Debian's apt and debian-archive-keyring are not here");
        }
        for folder in ["lists/partial", "cache/archives/partial", "kernels", "modules"] {
            fs::create_dir_all(self.folder.join(folder)).with_context(|| format!("in {}", self.folder.display()))?;
        }
        let (main, security) = mirrors(&machine_sources());
        let lines = SUITES.iter().map(|(suite, part)| {
            let mirror = if matches!(part, Part::Main) { &main } else { &security };
            format!("deb [signed-by={KEYRING} target=Packages] {mirror} {suite} main\n")
        });
        fs::write(self.folder.join("sources.list"), lines.collect::<String>())?;
        fs::write(self.folder.join("status"), "")?;
        fs::write(self.folder.join("apt.conf"), self.configuration())?;
        Ok(())
    }

    /// The machine's own settings (proxies) stay: `Dir::Etc::parts` is not changed.
    fn configuration(&self) -> String {
        let folder = self.folder.display();
        let architecture = self.architecture.debian();
        format!(
            "Dir::State \"{folder}\";\nDir::State::status \"{folder}/status\";\nDir::Cache \"{folder}/cache\";\n\
             Dir::Etc::sourcelist \"{folder}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             Dir::Etc::preferencesparts \"/dev/null\";\nAPT::Architecture \"{architecture}\";\n\
             APT::Architectures {{ \"{architecture}\"; }};\nAcquire::Languages \"none\";\n\
             Acquire::GzipIndexes \"true\";\nAcquire::http::Timeout \"20\";\nAcquire::Retries \"1\";\n\
             APT::Sandbox::User \"root\";\n"
        )
    }

    /// Fetches the package lists when they are old. A suite that fails is said and left out: what
    /// the others (or older lists) have is still good.
    fn update(&self) {
        let stamp = self.folder.join("updated");
        let age = fs::metadata(&stamp).and_then(|meta| meta.modified()).ok();
        let fresh = age.and_then(|time| SystemTime::now().duration_since(time).ok()).is_some_and(|age| age < LISTS_AGE);
        if fresh {
            return;
        }
        println!("fetching Debian's package lists ({})", self.architecture.debian());
        match self.apt("apt-get", &["update", "-qq"]).and_then(|_| Ok(fs::write(&stamp, "")?)) {
            Ok(()) => {}
            Err(error) => println!("not all package lists could be fetched: {error:#}"),
        }
    }

    fn apt(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(arguments).env("APT_CONFIG", self.folder.join("apt.conf")).current_dir(&self.folder);
        shell::output(&mut command)
    }
}

/// `$XDG_CACHE_HOME/spanflame/vm`: kernels outlive a checkout.
pub(super) fn cache() -> Result<PathBuf> {
    let named = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = named.or_else(|| env::home_dir().map(|home| home.join(".cache"))).context("no home folder")?;
    Ok(base.join("spanflame/vm"))
}

/// All sources of the machine's own apt, as text.
fn machine_sources() -> String {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(folder.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect()
}

/// The mirrors of the main and of the security archive: the machine's own, else Debian's.
fn mirrors(sources: &str) -> (String, String) {
    let lines = sources.lines().filter(|line| !line.trim_start().starts_with('#'));
    let words: Vec<&str> = lines.flat_map(str::split_whitespace).filter(|word| word.starts_with("http")).collect();
    let ending = |end: &str| {
        let found = words.iter().map(|word| word.trim_end_matches('/')).find(|word| word.ends_with(end));
        found.map_or_else(|| format!("http://deb.debian.org{end}"), str::to_owned)
    };
    (ending("/debian"), ending("/debian-security"))
}

/// The releases among package names, each with the numbers that order it. Metapackages, which name
/// a series only, are left out.
fn releases(packages: &[String], suffix: &str) -> Vec<(Vec<u32>, String)> {
    let release = |package: &String| {
        let rest = package.strip_prefix("linux-image-").or_else(|| package.strip_prefix("linux-binary-"))?;
        let release = rest.strip_suffix(suffix)?;
        let numbers = numbers(release);
        (release.starts_with(|c: char| c.is_ascii_digit()) && numbers.len() > 2).then(|| (numbers, release.to_owned()))
    };
    packages.iter().filter_map(release).collect()
}

/// Every number in a release, in order: `6.12.117+deb12` is 6, 12, 117, 12.
fn numbers(release: &str) -> Vec<u32> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// The releases that are `wanted` (a release, a series or `newest`), newest first.
fn matching(mut releases: Vec<(Vec<u32>, String)>, wanted: &str) -> Vec<String> {
    let series = numbers(wanted);
    releases.retain(|(numbers, release)| {
        wanted == "newest" || release == wanted || (series.len() == 2 && numbers.starts_with(&series))
    });
    releases.sort();
    releases.dedup();
    releases.into_iter().rev().map(|(_, release)| release).collect()
}

/// The file of a module, `NAME.ko` or `NAME.ko.xz`, anywhere below a folder.
fn find_module(folder: &Path, name: &str) -> Option<PathBuf> {
    let is_module = |path: &PathBuf| {
        let file = path.file_name().and_then(|file| file.to_str()).and_then(|file| file.strip_prefix(name));
        matches!(file, Some(".ko" | ".ko.xz"))
    };
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries: Vec<_> = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        if let Some(found) = entries.iter().find(|path| is_module(path)) {
            return Some(found.clone());
        }
        folders.extend(entries.into_iter().filter(|path| path.is_dir() && !path.is_symlink()));
    }
    None
}

/// The kernel image in an unpacked package: `/boot/vmlinuz-*`, or `/usr/lib/modules/*/vmlinuz`.
fn find_image(unpacked: &Path) -> Option<PathBuf> {
    let entries =
        |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let is_image = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"));
    let in_boot = entries(unpacked.join("boot")).find(is_image);
    let in_modules =
        || entries(unpacked.join("usr/lib/modules")).map(|folder| folder.join("vmlinuz")).find(|path| path.is_file());
    in_boot.or_else(in_modules)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages() -> Vec<String> {
        let names = [
            "linux-image-6.1-cloud-amd64",
            "linux-image-cloud-amd64",
            "linux-image-5.10.0-30-cloud-amd64",
            "linux-image-5.10.0-46-cloud-amd64",
            "linux-image-6.1.0-0.deb11.52-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-6.12.90+deb12.1-cloud-amd64",
            "linux-image-6.19.6+deb13-cloud-amd64",
            "linux-binary-6.19.6+deb13-cloud-amd64",
            "linux-image-6.99.0-1-cloud-arm64",
        ];
        names.map(str::to_owned).to_vec()
    }

    #[test]
    fn the_newest_of_a_series_is_chosen() {
        let releases = releases(&packages(), "-cloud-amd64");
        let chosen = |wanted| matching(releases.clone(), wanted).into_iter().next();
        assert_eq!(chosen("5.10").as_deref(), Some("5.10.0-46"));
        assert_eq!(chosen("6.1").as_deref(), Some("6.1.0-9"));
        assert_eq!(chosen("6.12").as_deref(), Some("6.12.107+deb13"));
        assert_eq!(chosen("6.12.90+deb12.1").as_deref(), Some("6.12.90+deb12.1"));
        assert_eq!(chosen("newest").as_deref(), Some("6.19.6+deb13"));
        assert_eq!(chosen("5.15"), None);
        assert_eq!(chosen("nonsense"), None);
        assert_eq!(matching(releases, "5.10"), ["5.10.0-46", "5.10.0-30"]);
    }

    #[test]
    fn mirrors_are_those_of_the_machine() {
        let own = "# http://no.example/debian\nTypes: deb\nURIs: http://a.example/debian/\nURIs: https://b.example/debian-security\n";
        assert_eq!(mirrors(own), ("http://a.example/debian".into(), "https://b.example/debian-security".into()));
        let none = ("http://deb.debian.org/debian".into(), "http://deb.debian.org/debian-security".into());
        assert_eq!(mirrors("deb http://archive.example/ubuntu noble main"), none);
    }
}
