//! The record of one thread, as the iterator over all threads writes it: [`HEADER_WORDS`] words, then
//! the kernel frames, in words of 8 bytes.

use crate::address::{Pid, Tid};
use crate::limits::MAX_KERNEL_FRAMES;
use crate::record::OTHER_REGISTER_WORDS;

/// Words before the kernel frames.
pub const HEADER_WORDS: usize = word::OTHER_REGISTERS + OTHER_REGISTER_WORDS;

/// Words of the longest record.
pub const MAX_WORDS: usize = HEADER_WORDS + MAX_KERNEL_FRAMES;

/// The first byte of every record. Another value is a record of another version.
pub const KIND_THREAD: u8 = 0x54;

/// The index of each word of the header.
pub mod word {
    /// `kind | flags << 8 | kernel_frames << 32`.
    pub const SHAPE: usize = 0;
    /// `pid | tid << 32`.
    pub const PID_TID: usize = 1;
    /// How often it left the CPU since it was made.
    pub const SWITCHES: usize = 2;
    /// The thread's name, 16 bytes in two words.
    pub const COMM: usize = 3;
    /// User registers: pc, sp, fp, lr.
    pub const REGISTERS: usize = 5;
    /// x86_64: the base of fs (aarch64: of no meaning).
    pub const THREAD_POINTER: usize = 9;
    /// x86_64's [`crate::row::OTHER_REGISTERS`] (aarch64: of no meaning).
    pub const OTHER_REGISTERS: usize = 10;
}

/// In `flags`: it was running on a CPU, so that its registers and its kernel stack were not read.
pub const FLAG_ON_CPU: u8 = 1;
/// In `flags`: it has a user stack, and the registers that lead there.
pub const FLAG_USER: u8 = 1 << 1;
/// In `flags`: it runs 32-bit code.
pub const FLAG_32_BIT: u8 = 1 << 2;

/// A thread at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread<'a> {
    /// Its process.
    pub pid: Pid,
    /// Its number.
    pub tid: Tid,
    /// Its name, padded with NUL.
    pub comm: [u8; 16],
    /// How often it left the CPU since it was made.
    pub switches: u64,
    /// The `FLAG_` bits.
    pub flags: u8,
    /// pc, sp, fp, lr in user space.
    pub registers: [u64; 4],
    /// x86_64: the base of fs.
    pub thread_pointer: u64,
    /// x86_64's [`crate::row::OTHER_REGISTERS`].
    pub other_registers: &'a [u64],
    /// Leaf first.
    pub kernel_frames: &'a [u64],
}

impl<'a> Thread<'a> {
    /// Decodes the first record in `words`, and returns what follows it; `None` when there is no whole
    /// record of this version.
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of words")]
    #[must_use]
    pub fn decode(words: &'a [u64]) -> Option<(Self, &'a [u64])> {
        let shape = *words.first()?;
        let kernel = (shape >> 32) as usize;
        if shape as u8 != KIND_THREAD || kernel > MAX_KERNEL_FRAMES {
            return None;
        }
        let (header, rest) = words.split_at_checked(HEADER_WORDS)?;
        let (kernel_frames, rest) = rest.split_at_checked(kernel)?;
        let mut comm = [0; 16];
        comm[..8].copy_from_slice(&header[word::COMM].to_ne_bytes());
        comm[8..].copy_from_slice(&header[word::COMM + 1].to_ne_bytes());
        let thread = Self {
            pid: Pid(header[word::PID_TID] as u32),
            tid: Tid((header[word::PID_TID] >> 32) as u32),
            comm,
            switches: header[word::SWITCHES],
            flags: (shape >> 8) as u8,
            registers: core::array::from_fn(|index| header[word::REGISTERS + index]),
            thread_pointer: header[word::THREAD_POINTER],
            other_registers: &header[word::OTHER_REGISTERS..],
            kernel_frames,
        };
        Some((thread, rest))
    }
}

/// The first word of a record.
#[must_use]
pub const fn shape_word(flags: u64, kernel_frames: u64) -> u64 {
    KIND_THREAD as u64 | flags << 8 | kernel_frames << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_was_written_and_refuses_the_rest() {
        let mut words = [0; HEADER_WORDS + 3];
        words[word::SHAPE] = shape_word(u64::from(FLAG_USER), 2);
        words[word::PID_TID] = 7 | 8 << 32;
        words[word::SWITCHES] = 9;
        words[word::COMM] = u64::from_ne_bytes(*b"threadna");
        words[word::REGISTERS + 1] = 11;
        words[word::THREAD_POINTER] = 12;
        words[HEADER_WORDS..HEADER_WORDS + 2].copy_from_slice(&[21, 22]);
        let (thread, rest) = Thread::decode(&words).unwrap();
        assert_eq!((thread.pid, thread.tid, thread.switches, thread.flags), (Pid(7), Tid(8), 9, FLAG_USER));
        assert_eq!(&thread.comm[..9], b"threadna\0");
        assert_eq!((thread.registers[1], thread.kernel_frames), (11, [21, 22].as_slice()));
        assert_eq!(thread.thread_pointer, 12);
        assert_eq!((thread.other_registers.len(), rest.len()), (OTHER_REGISTER_WORDS, 1));
        for cut in 0..HEADER_WORDS + 2 {
            assert_eq!(Thread::decode(&words[..cut]), None);
        }
        words[word::SHAPE] = shape_word(0, MAX_KERNEL_FRAMES as u64 + 1);
        assert_eq!(Thread::decode(&words), None);
        words[word::SHAPE] = 0x51;
        assert_eq!(Thread::decode(&words), None);
    }
}
