//! Reading the memory of other processes, and giving back our own.

use std::io;

use profiler_common::address::{Tid, VirtualAddress};

/// The kernel's smallest page. Where pages are bigger, a read that crosses this border fails no more often.
const PAGE_BYTES: usize = 4096;

/// Pages that one call reads.
const MOST_PAGES: usize = 8;

/// Reads memory of a thread into `buffer`, page by page until one can't be read; 32 KiB at most. Returns
/// how many bytes were read. The thread must be alive: the first one of its process may have ended before it, and
/// has no memory then.
///
/// # Errors
/// When not even the first page can be read, or the thread has ended or may not be looked at.
pub fn read_memory(tid: Tid, address: VirtualAddress, buffer: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut remote = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MOST_PAGES];
    let (mut at, mut left, mut pages) = (address.0 as usize, buffer.len(), 0);
    for page in &mut remote {
        let length = (PAGE_BYTES - at % PAGE_BYTES).min(left);
        *page = libc::iovec { iov_base: std::ptr::without_provenance_mut(at), iov_len: length };
        (at, left, pages) = (at.wrapping_add(length), left - length, pages + u64::from(length > 0));
    }
    // SAFETY: `local` is all of `buffer`, which is ours alone; the kernel checks what is remote.
    let read = unsafe { libc::process_vm_readv(tid.0.cast_signed(), &raw const local, 1, remote.as_ptr(), pages, 0) };
    usize::try_from(read).map_err(|_failed| io::Error::last_os_error())
}

/// Gives memory that was freed back to the kernel. glibc keeps what it may need again (`M_TRIM_THRESHOLD`, mallopt(3),
/// grows to twice what was freed last, up to 64 MiB); musl keeps little.
pub fn give_back_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call has no preconditions; it changes nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_up_to_what_is_not_there() {
        let us = Tid(std::process::id());
        let known: Vec<u8> = (0..20_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        let address = VirtualAddress(known.as_ptr() as u64 + 1);
        let mut buffer = vec![0; 19_000];
        assert_eq!(read_memory(us, address, &mut buffer).unwrap(), buffer.len());
        assert_eq!(buffer, known[1..=19_000]);
        assert!(read_memory(us, VirtualAddress(8), &mut buffer).is_err(), "nothing is mapped at 8");
        assert!(read_memory(us, VirtualAddress(u64::MAX - 4), &mut buffer).is_err());
    }
}
