//! The manifest beside the committed objects: what they were made from, with what, and what the
//! verifier says about them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::sources::sha256;
use super::toolchain::Versions;

/// The contents of `manifest.json`.
pub(crate) struct Manifest {
    /// Of everything the objects are made from.
    pub(super) sources_sha256: String,
    /// What built them.
    pub(super) toolchain: Versions,
    /// Architecture to SHA-256 of its object.
    pub(super) objects: BTreeMap<String, String>,
    /// What the verifier said of these very objects; nothing after a rebuild that changed them.
    pub(crate) verifier: Option<Value>,
}

fn path() -> PathBuf {
    super::folder().join("manifest.json")
}

impl Manifest {
    pub(super) fn new(sources_sha256: String, toolchain: Versions) -> Self {
        Self { sources_sha256, toolchain, objects: BTreeMap::new(), verifier: None }
    }

    /// The committed manifest; nothing when there is none.
    pub(crate) fn read() -> Result<Option<Self>> {
        let path = path();
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display())).map(Some)
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text)?;
        let word = |pointer: &str| {
            let found = value.pointer(pointer).and_then(Value::as_str);
            found.map(str::to_owned).with_context(|| format!("no text at {pointer}"))
        };
        let toolchain = Versions {
            rustc: word("/toolchain/rustc")?,
            bpf_linker: word("/toolchain/bpf_linker")?,
            llvm: word("/toolchain/llvm")?,
        };
        let mut manifest = Self::new(word("/sources_sha256")?, toolchain);
        for architecture in super::ARCHITECTURES {
            manifest.objects.insert(architecture.to_owned(), word(&format!("/objects/{architecture}"))?);
        }
        manifest.verifier = value.get("verifier").filter(|figures| !figures.is_null()).cloned();
        Ok(manifest)
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "sources_sha256": self.sources_sha256,
            "toolchain": {
                "rustc": self.toolchain.rustc,
                "bpf_linker": self.toolchain.bpf_linker,
                "llvm": self.toolchain.llvm,
            },
            "objects": self.objects,
            "verifier": self.verifier,
        })
    }

    /// Writes it beside the objects.
    pub(crate) fn write(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.to_json())? + "\n";
        fs::write(path(), text).with_context(|| format!("writing {}", path().display()))
    }

    pub(super) fn add_object(&mut self, architecture: &str, bytes: &[u8]) {
        self.objects.insert(architecture.to_owned(), sha256(bytes));
    }

    /// Are these the bytes of the object that the manifest names?
    pub(super) fn check_object(&self, architecture: &str, bytes: &[u8]) -> Result<()> {
        let (found, named) = (sha256(bytes), self.objects.get(architecture));
        if named != Some(&found) {
            bail!(
                "the {architecture} object hashes to {found}, the manifest says {}: run `cargo xtask ebpf`",
                named.map_or("nothing", String::as_str)
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let versions = Versions { rustc: "rustc 1".into(), bpf_linker: "bpf-linker 2".into(), llvm: "3".into() };
        let mut manifest = Manifest::new("ab".into(), versions);
        manifest.add_object("x86_64", b"one");
        manifest.add_object("aarch64", b"two");
        let read = Manifest::parse(&manifest.to_json().to_string()).unwrap();
        assert_eq!(read.sources_sha256, "ab");
        assert_eq!(read.toolchain, manifest.toolchain);
        assert_eq!(read.objects, manifest.objects);
        assert!(read.verifier.is_none());
        assert!(read.check_object("x86_64", b"one").is_ok());
        assert!(read.check_object("x86_64", b"two").is_err());
        assert!(read.check_object("riscv64", b"two").is_err());
    }

    #[test]
    fn a_missing_field_is_named() {
        let error = Manifest::parse(r#"{"toolchain": {"rustc": "x", "bpf_linker": "y"}}"#).err().unwrap();
        assert_eq!(error.to_string(), "no text at /toolchain/llvm");
    }
}
