//! An initramfs in the cpio format "newc" (Linux, Documentation/driver-api/early-userspace/
//! buffer-format.rst). Written here, so that device nodes need no root and no `cpio`.

/// File types and permissions as in `st_mode` (inode(7)).
const FOLDER: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive that grows entry by entry.
pub(super) struct Initramfs {
    bytes: Vec<u8>,
    entries: u32,
}

impl Initramfs {
    /// With the folders and the console that the kernel and `init` expect.
    pub(super) fn new() -> Self {
        let mut archive = Self { bytes: Vec::new(), entries: 0 };
        for folder in ["bin", "dev", "etc", "modules", "out", "proc", "sys", "tmp"] {
            archive.entry(folder, FOLDER, (0, 0), &[]);
        }
        // Linux, Documentation/admin-guide/devices.txt: 5,1 is the console, 1,3 is null.
        archive.entry("dev/console", CHARACTER_DEVICE, (5, 1), &[]);
        archive.entry("dev/null", CHARACTER_DEVICE, (1, 3), &[]);
        archive
    }

    /// Adds a program, or any other file; the path has no leading slash.
    pub(super) fn program(&mut self, path: &str, contents: &[u8]) {
        self.entry(path, EXECUTABLE, (0, 0), contents);
    }

    /// The bytes for `-initrd`.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let length = u32::try_from(contents.len()).unwrap_or(u32::MAX);
        let name_length = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
        // namesize, check
        let fields = [self.entries, mode, 0, 0, 1, 0, length, 0, 0, device.0, device.1, name_length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    /// Headers and contents begin at multiples of 4.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_follow_the_format() {
        let mut archive = Initramfs { bytes: Vec::new(), entries: 0 };
        archive.program("init", b"hello");
        // 110 bytes of header, the name with its zero, padding to 116; 5 bytes, padding to 124.
        assert_eq!(archive.bytes.len(), 124);
        assert_eq!(&archive.bytes[..6], b"070701");
        assert_eq!(&archive.bytes[14..22], b"000081ed");
        assert_eq!(&archive.bytes[54..62], b"00000005");
        assert_eq!(&archive.bytes[94..102], b"00000005");
        assert_eq!(&archive.bytes[110..116], b"init\0\0");
        assert_eq!(&archive.bytes[116..124], b"hello\0\0\0");
    }

    #[test]
    fn the_archive_ends_with_its_trailer() {
        let bytes = Initramfs::new().finish();
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
