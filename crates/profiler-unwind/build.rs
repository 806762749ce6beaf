//! A number for the sources that rows are made by, so that rows kept on disk are never those of another
//! state of them.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

/// Folders and files, from this one.
const SOURCES: [&str; 3] = ["src", "../../profiler-common/src", "../../Cargo.lock"];

fn main() -> io::Result<()> {
    let mut files = Vec::new();
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
        collect(Path::new(source), &mut files)?;
    }
    files.sort();
    // FNV-1a, 64 bits (RFC 9923).
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for file in files {
        let content = std::fs::read(&file)?;
        let length = content.len().to_le_bytes();
        for byte in file.as_os_str().as_encoded_bytes().iter().chain(&length).chain(&content) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    println!("cargo:rustc-env=ROW_BUILDER={hash}");
    Ok(())
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_dir() {
        for entry in path.read_dir()? {
            collect(&entry?.path(), files)?;
        }
    } else {
        files.push(path.to_owned());
    }
    Ok(())
}
