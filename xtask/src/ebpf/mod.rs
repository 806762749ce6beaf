//! `cargo xtask ebpf`: builds the kernel programs, one object per CPU architecture, and checks the
//! committed objects against their manifest.

mod build;
mod calls;
mod manifest;
mod sources;
pub(crate) mod stack;
pub(crate) mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::report::{Outcome, Report, in_ci};
use crate::shell;
pub(crate) use manifest::Manifest;

/// The CPU architectures that the agent runs on, as in `--cfg bpf_target_arch`.
pub(crate) const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

/// Options of `cargo xtask ebpf`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Change nothing: fail when the committed objects are not what the sources give.
    #[arg(long)]
    check: bool,
    /// Take the nightly and the bpf-linker that are installed here, and name them in the manifest.
    #[arg(long, conflicts_with = "check")]
    adopt_toolchain: bool,
}

/// The folder of the committed objects.
pub(crate) fn folder() -> PathBuf {
    shell::root().join("profiler-agent/ebpf")
}

/// The path of the committed object for an architecture.
pub(crate) fn object_path(architecture: &str) -> PathBuf {
    folder().join(format!("spanflame.{architecture}.o"))
}

/// `cargo xtask ebpf`.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.check {
        return build_and_write(arguments.adopt_toolchain);
    }
    let mut report = Report::default();
    check(&mut report);
    report.finish(in_ci())
}

fn build_and_write(adopt_toolchain: bool) -> Result<()> {
    let old = Manifest::read()?;
    let pinned = old.as_ref().map(|manifest| &manifest.toolchain).filter(|_| !adopt_toolchain);
    let toolchain = match pinned {
        Some(versions) => toolchain::find_or_install(versions)?,
        None => toolchain::installed()?,
    };
    println!("with {}", toolchain.versions);
    fs::create_dir_all(folder()).context("making the folder of the objects")?;
    let mut manifest = Manifest::new(sources::hash()?, toolchain.versions.clone());
    for architecture in ARCHITECTURES {
        let bytes = build::object(&toolchain, architecture, &shell::root())?;
        calls::check(&bytes).with_context(|| format!("the object for {architecture}"))?;
        let path = object_path(architecture);
        fs::write(&path, &bytes).with_context(|| format!("writing {}", path.display()))?;
        println!("{} ({} bytes)", path.display(), bytes.len());
        manifest.add_object(architecture, &bytes);
    }
    // Figures of the same bytes stay true; of others they do not.
    manifest.verifier = old.filter(|old| old.objects == manifest.objects).and_then(|old| old.verifier);
    if manifest.verifier.is_none() {
        println!("the objects changed: measure them with `cargo xtask verifier --write`");
    }
    manifest.write()
}

/// The checks of the committed objects, each a step.
pub(crate) fn check(report: &mut Report) {
    let manifest = match Manifest::read() {
        Ok(Some(manifest)) => manifest,
        Ok(None) => {
            return report.step("manifest", || Outcome::Failed("there is none: run `cargo xtask ebpf`".to_owned()));
        }
        Err(error) => return report.step("manifest", || Outcome::Failed(format!("{error:#}"))),
    };
    report.step("kernel objects: sources", || check_sources(&manifest).into());
    report.step("kernel objects: bytes and calls", || check_objects(&manifest).into());
    report.step("kernel objects: verifier figures", || check_figures(&manifest).into());
    report.step("kernel objects: rebuild", || rebuild(&manifest));
}

fn check_sources(manifest: &Manifest) -> Result<()> {
    let now = sources::hash()?;
    if now != manifest.sources_sha256 {
        bail!(
            "the sources hash to {now}, the manifest says {}: run `cargo xtask ebpf`, then \
             `cargo xtask verifier --write`, and commit the result",
            manifest.sources_sha256
        );
    }
    Ok(())
}

fn check_objects(manifest: &Manifest) -> Result<()> {
    for architecture in ARCHITECTURES {
        let path = object_path(architecture);
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        manifest.check_object(architecture, &bytes)?;
        calls::check(&bytes).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn check_figures(manifest: &Manifest) -> Result<()> {
    if manifest.verifier.is_none() {
        bail!("the manifest has no verifier figures of these objects: run `cargo xtask verifier --write`");
    }
    Ok(())
}

/// Builds again where the manifest's toolchain is present: the bytes must be the same.
fn rebuild(manifest: &Manifest) -> Outcome {
    let toolchain = match toolchain::find(&manifest.toolchain) {
        Ok(toolchain) => toolchain,
        Err(why) => return Outcome::Skipped(format!("{why:#}")),
    };
    let rebuild = |root: &Path| {
        ARCHITECTURES.iter().try_for_each(|architecture| {
            let bytes = build::object(&toolchain, architecture, root)?;
            let context = || format!("built again from the same sources in {}", root.display());
            manifest.check_object(architecture, &bytes).with_context(context)
        })
    };
    // Twice, from two folders: the bytes depend on neither.
    let result = rebuild(&shell::root()).and_then(|()| rebuild(&build::copy_of_sources()?));
    result.into()
}
