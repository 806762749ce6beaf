//! The hash of everything that the kernel objects are made from.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::build;
use crate::shell;

/// Folders and files that go into the objects, from the repository's root.
const SOURCES: [&str; 3] = ["profiler-ebpf", "profiler-common/src", "profiler-common/Cargo.toml"];

/// What counts as a source.
const EXTENSIONS: [&str; 3] = ["rs", "toml", "lock"];

/// SHA-256 over path and bytes of every source, sorted by path, and over the compiler's flags.
pub(super) fn hash() -> Result<String> {
    let root = shell::root();
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    hash_of(&root, files)
}

fn hash_of(root: &Path, mut files: Vec<PathBuf>) -> Result<String> {
    files.sort();
    let mut hash = Sha256::new();
    for flag in build::FLAGS {
        add(&mut hash, flag.as_bytes());
    }
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file);
        add(&mut hash, name.to_string_lossy().as_bytes());
        add(&mut hash, &fs::read(&file).with_context(|| format!("reading {}", file.display()))?);
    }
    Ok(hex(&hash.finalize()))
}

/// With its length, so that no two lists of pieces give the same bytes.
fn add(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        files.push(path.to_path_buf());
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("reading {}", path.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known)) {
            files.push(path);
        }
    }
    Ok(())
}

/// SHA-256 of some bytes, in hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_of_abc() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn the_hash_depends_on_names_and_bytes_but_not_on_order() {
        let folder = std::env::temp_dir().join(format!("xtask-sources-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (a, b) = (folder.join("a.rs"), folder.join("b.rs"));
        fs::write(&a, "one").unwrap();
        fs::write(&b, "two").unwrap();
        let hash = hash_of(&folder, vec![a.clone(), b.clone()]).unwrap();
        assert_eq!(hash, hash_of(&folder, vec![b.clone(), a.clone()]).unwrap());
        fs::write(&b, "tw").unwrap();
        assert_ne!(hash, hash_of(&folder, vec![a.clone(), b.clone()]).unwrap());
        fs::write(&b, "two").unwrap();
        fs::rename(&b, folder.join("c.rs")).unwrap();
        assert_ne!(hash, hash_of(&folder, vec![a, folder.join("c.rs")]).unwrap());
        fs::remove_dir_all(&folder).unwrap();
    }
}
