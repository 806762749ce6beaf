//! The record of one sample, as it goes through the ring buffer: [`HEADER_WORDS`] words, then the
//! kernel frames, the user frames and, where there is a stack copy, [`OTHER_REGISTER_WORDS`] words of
//! other registers and the copy, all in words of 8 bytes.

use crate::address::{Cpu, MonotonicNs, Pid, Tid};
use crate::limits::{
    MAX_KERNEL_FRAMES, MAX_STACK_COPY_BYTES, MAX_STACK_COPY_PAGES, MAX_USER_FRAMES, STACK_COPY_PAGE_BYTES,
};

/// Words before the frames.
pub const HEADER_WORDS: usize = 11;

/// Words before the stack copy: x86_64's [`crate::row::OTHER_REGISTERS`] (aarch64: of no meaning).
pub const OTHER_REGISTER_WORDS: usize = 9;

const PAGE_BYTES: u64 = STACK_COPY_PAGE_BYTES as u64;

/// The first byte of every record. Another value is a record of another version.
pub const KIND_SAMPLE: u8 = 0x51;

/// In a user frame: the address is where the code was (first frame, or interrupted by a signal),
/// not a return address.
pub const FRAME_EXACT: u64 = 1 << 63;
/// In a user frame: the step that led here used the frame pointer, for want of CFI.
pub const FRAME_BY_FRAME_POINTER: u64 = 1 << 62;
/// The address in a user frame. User addresses have at most 57 bits (x86_64, 5-level paging).
pub const FRAME_ADDRESS: u64 = (1 << 58) - 1;

/// The index of each word of the header.
pub mod word {
    /// `kind | flags << 8 | stop << 16 | kernel_frames << 32 | user_frames << 48`.
    pub const SHAPE: usize = 0;
    /// `CLOCK_MONOTONIC` in ns.
    pub const TIME_NS: usize = 1;
    /// `pid | tid << 32`.
    pub const PID_TID: usize = 2;
    /// `cpu | generation << 32`.
    pub const CPU_GENERATION: usize = 3;
    /// The thread's name, 16 bytes in two words.
    pub const COMM: usize = 4;
    /// Registers at the last user frame, or at the first one with a whole stack: pc, sp, fp, lr (rbx on x86_64).
    pub const REGISTERS: usize = 6;
    /// `bytes | pages << 32`: bytes of stack copy, a multiple of 8, and a bit for each page that is in it, the lowest
    /// for that where it begins.
    pub const STACK_BYTES: usize = 10;
}

/// In `flags`: the sample hit kernel mode.
pub const FLAG_KERNEL_MODE: u8 = 1;
/// In `flags`: registers and stack are those that the sample began with.
pub const FLAG_WHOLE_STACK: u8 = 1 << 1;

macro_rules! stop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $text:literal;)+) => {
        /// Why a user stack ends where it ends.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum StopReason {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl StopReason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The reason with this number; `None` for a number of another version.
            #[must_use]
            pub const fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// The name under which it is counted.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

stop_reasons! {
    /// The outermost frame was reached.
    Complete = 0, "complete";
    /// The thread has no user stack: a kernel thread, or one that is in the middle of exec or exit.
    NoUserStack = 1, "no_user_stack";
    /// The process has no range table yet.
    NoTable = 2, "no_table";
    /// The pc is in no range of the process.
    NoRange = 3, "no_range";
    /// There is CFI at the pc that a row can't express.
    UnsupportedCfi = 4, "unsupported_cfi";
    /// The stack could not be read where the return address should be.
    UnreadableStack = 5, "unreadable_stack";
    /// The return address is claimed in a register that only the first frame has.
    ReturnAddressLost = 6, "return_address_lost";
    /// No CFI, and the frame pointer does not point up the stack.
    NoFramePointer = 7, "no_frame_pointer";
    /// More frames than `MAX_USER_FRAMES`.
    TooDeep = 8, "too_deep";
    /// A 32-bit process: not unwound.
    Process32Bit = 9, "32_bit_process";
    /// The stack copy that came with the sample ended before the stack did.
    StackCopyEnded = 10, "stack_copy_ended";
    /// The mappings of the process changed between unwinding and sample.
    MappingChanged = 11, "mapping_changed";
    /// The executable at the pc could not be read or has no usable table.
    NoUnwindTable = 12, "no_unwind_table";
    /// The pc is in no executable mapping: not an address of code; or it would be 0, found from where a function was
    /// interrupted.
    NotCode = 13, "not_code";
}

impl StopReason {
    /// Whether user space can go on from the registers and the stack copy of the record.
    #[must_use]
    pub const fn can_go_on(self) -> bool {
        matches!(self, Self::NoTable | Self::NoRange)
    }
}

/// Where the copy of a stack begins: up to 128 bytes below sp, in the same page, so that these cost no
/// page more. x86_64 programs use so much below sp (System V ABI AMD64 3.2.2, "red zone"), and behind a pop
/// rows still find the register's place on the stack there.
#[inline(always)]
#[must_use]
pub const fn stack_copy_start(sp: u64) -> u64 {
    const RED_ZONE_BYTES: u64 = 128;
    let in_page = sp & 0xff8;
    sp.wrapping_sub(if in_page < RED_ZONE_BYTES { in_page } else { RED_ZONE_BYTES })
}

/// The header of a record, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleHeader {
    /// When the sample was taken.
    pub time: MonotonicNs,
    /// The process.
    pub pid: Pid,
    /// The thread.
    pub tid: Tid,
    /// The CPU.
    pub cpu: Cpu,
    /// The state of the process's mappings that it was unwound with; 0 when there was none.
    pub generation: u32,
    /// The thread's name, padded with NUL.
    pub comm: [u8; 16],
    /// Whether the sample hit kernel mode.
    pub kernel_mode: bool,
    /// Whether `registers` and the stack copy are those that the sample began with.
    pub whole_stack: bool,
    /// Why the user stack ends.
    pub stop: StopReason,
    /// pc, sp, fp, lr (rbx on x86_64) at the last user frame; at the first one with a whole stack.
    pub registers: [u64; 4],
}

/// A decoded record, borrowing its frames.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The fixed part.
    pub header: SampleHeader,
    /// Kernel frames, leaf first, without user frames.
    pub kernel_frames: &'a [u64],
    /// User frames, leaf first, with `FRAME_EXACT` and `FRAME_BY_FRAME_POINTER`.
    pub user_frames: &'a [u64],
    /// With a stack copy: x86_64's `OTHER_REGISTERS`.
    pub other_registers: &'a [u64],
    /// The stack from [`stack_copy_start`] of `registers[1]` (sp) upwards, in words, without the pages that could not
    /// be read: [`Self::stack_words`] finds what is in it.
    pub stack: &'a [u64],
    /// The pages that are in `stack`: bit n is that of n pages above the first one.
    pub stack_pages: u32,
}

/// Why a record could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Fewer words than the header says, or than a header has.
    TooShort {
        /// Words that should be there.
        needed: usize,
        /// Words that are there.
        found: usize,
    },
    /// The first byte is no kind that this version knows.
    UnknownKind(u8),
    /// The stop reason is none that this version knows.
    UnknownStop(u8),
    /// A length is over its limit.
    OverLimit(&'static str, usize),
}

impl<'a> Sample<'a> {
    /// Decodes a record.
    ///
    /// # Errors
    /// When it is too short, of an unknown kind, or claims lengths over the limits.
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of words")]
    pub fn decode(words: &'a [u64]) -> Result<Self, DecodeError> {
        let found = words.len();
        if found < HEADER_WORDS {
            return Err(DecodeError::TooShort { needed: HEADER_WORDS, found });
        }
        let shape = words[word::SHAPE];
        if shape as u8 != KIND_SAMPLE {
            return Err(DecodeError::UnknownKind(shape as u8));
        }
        let stop = StopReason::from_number((shape >> 16) as u8).ok_or(DecodeError::UnknownStop((shape >> 16) as u8))?;
        let kernel = (shape >> 32) as u16 as usize;
        let user = (shape >> 48) as u16 as usize;
        let stack = (words[word::STACK_BYTES] as u32 / 8) as usize;
        for (what, length, limit) in [
            ("kernel frames", kernel, MAX_KERNEL_FRAMES),
            ("user frames", user, MAX_USER_FRAMES),
            ("stack words", stack, MAX_STACK_COPY_BYTES / 8),
        ] {
            if length > limit {
                return Err(DecodeError::OverLimit(what, length));
            }
        }
        let other = if stack > 0 { OTHER_REGISTER_WORDS } else { 0 };
        let needed = HEADER_WORDS + kernel + user + other + stack;
        if found < needed {
            return Err(DecodeError::TooShort { needed, found });
        }
        let (kernel_frames, rest) = words[HEADER_WORDS..needed].split_at(kernel);
        let (user_frames, rest) = rest.split_at(user);
        let (other_registers, stack) = rest.split_at(other);
        let mut comm = [0; 16];
        comm[..8].copy_from_slice(&words[word::COMM].to_ne_bytes());
        comm[8..].copy_from_slice(&words[word::COMM + 1].to_ne_bytes());
        let header = SampleHeader {
            time: MonotonicNs(words[word::TIME_NS]),
            pid: Pid(words[word::PID_TID] as u32),
            tid: Tid((words[word::PID_TID] >> 32) as u32),
            cpu: Cpu(words[word::CPU_GENERATION] as u32),
            generation: (words[word::CPU_GENERATION] >> 32) as u32,
            comm,
            kernel_mode: (shape >> 8) as u8 & FLAG_KERNEL_MODE != 0,
            whole_stack: (shape >> 8) as u8 & FLAG_WHOLE_STACK != 0,
            stop,
            registers: [
                words[word::REGISTERS],
                words[word::REGISTERS + 1],
                words[word::REGISTERS + 2],
                words[word::REGISTERS + 3],
            ],
        };
        let stack_pages = (words[word::STACK_BYTES] >> 32) as u32;
        Ok(Self { header, kernel_frames, user_frames, other_registers, stack, stack_pages })
    }

    /// So many words at `address`, if the stack copy has them.
    #[must_use]
    pub fn stack_words(&self, address: u64, words: usize) -> Option<&'a [u64]> {
        let start = stack_copy_start(self.header.registers[1]);
        let last = address.checked_add(u64::try_from(words).ok()?.checked_mul(8)?)?.checked_sub(1)?;
        if address < start || !address.is_multiple_of(8) {
            return None;
        }
        let (first_page, last_page) = (self.stack_page(address)?, self.stack_page(last)?);
        let below = |page: u32| (1u32 << page) - 1;
        let needed = below(last_page) & !below(first_page) | 1 << last_page;
        if self.stack_pages & needed != needed {
            return None;
        }
        let left_out = u64::from((below(first_page) & !self.stack_pages).count_ones()) * PAGE_BYTES;
        // Of the first page there is the end only.
        let left_out = left_out + u64::from(self.stack_pages & 1) * (start % PAGE_BYTES);
        let from = (address - (start - start % PAGE_BYTES)).checked_sub(left_out)? / 8;
        let from = usize::try_from(from).ok()?;
        self.stack.get(from..from.checked_add(words)?)
    }

    /// Whether the stack copy ended for want of room, and `address` is above all that it has.
    #[must_use]
    pub fn stack_copy_ended(&self, address: u64) -> bool {
        let is_full = self.stack.len() == MAX_STACK_COPY_BYTES / 8;
        let above = address >= stack_copy_start(self.header.registers[1])
            && self.stack_page(address).is_none_or(|page| self.stack_pages >> page <= 1);
        is_full && above
    }

    /// The number of the page of a stack copy that would have this address, which is not below its start.
    fn stack_page(&self, address: u64) -> Option<u32> {
        let first = stack_copy_start(self.header.registers[1]) / PAGE_BYTES;
        let page = u32::try_from((address / PAGE_BYTES).checked_sub(first)?).ok()?;
        (page < MAX_STACK_COPY_PAGES).then_some(page)
    }
}

/// The first word of a record.
#[must_use]
pub const fn shape_word(flags: u64, stop: u64, kernel_frames: u64, user_frames: u64) -> u64 {
    KIND_SAMPLE as u64 | flags << 8 | stop << 16 | kernel_frames << 32 | user_frames << 48
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kernel: &[u64], user: &[u64], stack: &[u64], into: &mut [u64]) -> usize {
        into[word::SHAPE] =
            shape_word(u64::from(FLAG_KERNEL_MODE), StopReason::NoTable as u64, kernel.len() as u64, user.len() as u64);
        into[word::TIME_NS] = 5;
        into[word::PID_TID] = 7 | 8 << 32;
        into[word::CPU_GENERATION] = 3 | 9 << 32;
        into[word::COMM] = u64::from_ne_bytes(*b"threadna");
        into[word::COMM + 1] = u64::from_ne_bytes(*b"me\0\0\0\0\0\0");
        into[word::STACK_BYTES] = (stack.len() as u64 * 8) | 0b1101 << 32;
        let mut at = HEADER_WORDS;
        let other = if stack.is_empty() { [].as_slice() } else { &[9; OTHER_REGISTER_WORDS] };
        for part in [kernel, user, other, stack] {
            into[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        at
    }

    #[test]
    fn decodes_what_was_written() {
        let mut words = [0; 64];
        let length = record(&[1, 2], &[3 | FRAME_EXACT, 4], &[5, 6, 7], &mut words);
        let sample = Sample::decode(&words[..length]).unwrap();
        assert_eq!(sample.kernel_frames, [1, 2]);
        assert_eq!(sample.user_frames, [3 | FRAME_EXACT, 4]);
        assert_eq!(sample.other_registers, [9; OTHER_REGISTER_WORDS]);
        assert_eq!((sample.stack, sample.stack_pages), ([5, 6, 7].as_slice(), 0b1101));
        assert_eq!((sample.header.pid, sample.header.tid), (Pid(7), Tid(8)));
        assert_eq!((sample.header.cpu, sample.header.generation), (Cpu(3), 9));
        assert_eq!(&sample.header.comm, b"threadname\0\0\0\0\0\0");
        assert!(sample.header.kernel_mode);
        assert_eq!(sample.header.stop, StopReason::NoTable);
    }

    /// A stack copy that begins at `start`, of the pages whose bits are set, each word of which has its address as its
    /// value; in all so many words at most.
    fn stack_copy(start: u64, pages: u32, most: usize, into: &mut [u64]) -> usize {
        let mut words = 0;
        for address in (start..start + 33 * PAGE_BYTES).step_by(8) {
            let page = address / PAGE_BYTES - start / PAGE_BYTES;
            if page < 32 && pages >> page & 1 != 0 && words < most {
                into[words] = address;
                words += 1;
            }
        }
        words
    }

    fn with_stack_copy(start: u64, pages: u32, stack: &[u64]) -> Sample<'_> {
        let mut words = [0; HEADER_WORDS];
        words[word::SHAPE] = shape_word(0, StopReason::NoTable as u64, 0, 0);
        // The red zone is in the copy.
        words[word::REGISTERS + 1] = start + if start.is_multiple_of(PAGE_BYTES) { 0 } else { 128 };
        let header = Sample::decode(&words).unwrap().header;
        assert_eq!(stack_copy_start(header.registers[1]), start);
        Sample { header, kernel_frames: &[], user_frames: &[], other_registers: &[], stack, stack_pages: pages }
    }

    #[test]
    fn words_of_a_stack_copy_are_found_beyond_pages_that_are_left_out() {
        let mut into = [0; 33 * 512];
        for start in [0x7f00_0000_0000, 0x7f00_0000_0ff0 - 0x100] {
            for (pages, most) in [
                (0b1, 6144),
                (0b1101, 6144),
                (0b1010, 6144),
                (1 << 31 | 1, 6144),
                (u32::MAX, 6144),
                (0, 6144),
                (0b111, 700),
            ] {
                let length = stack_copy(start, pages, most, &mut into);
                let sample = with_stack_copy(start, pages, &into[..length]);
                let is_there = |address: u64| into[..length].contains(&address);
                for address in (start - 64..start + 33 * PAGE_BYTES).step_by(8) {
                    let expected = is_there(address).then_some(address);
                    assert_eq!(
                        sample.stack_words(address, 1).map(|words| words[0]),
                        expected,
                        "{pages:#b} {address:#x}"
                    );
                    let both = is_there(address) && is_there(address + 8);
                    assert_eq!(sample.stack_words(address, 2), both.then_some([address, address + 8].as_slice()));
                }
                assert_eq!(sample.stack_words(start + 4, 1), None);
                assert_eq!(sample.stack_words(u64::MAX - 7, 1), None);
                assert_eq!(sample.stack_words(start, usize::MAX), None);
            }
        }
    }

    #[test]
    fn a_stack_copy_ended_above_all_that_it_has_when_it_is_full() {
        let start = 0x7f00_0000_0100;
        let full = [0; MAX_STACK_COPY_BYTES / 8];
        // Twelve pages and a piece of one, with a gap.
        let pages = 0b11_1111_1111_1011;
        let sample = with_stack_copy(start, pages, &full);
        let base = start - 0x100;
        for (address, expected) in [
            (base + 14 * PAGE_BYTES, true),
            (base + 13 * PAGE_BYTES + 0x800, true),
            (u64::MAX, true),
            (base + 2 * PAGE_BYTES, false),
            (start - 8, false),
            (base + 12 * PAGE_BYTES, false),
        ] {
            assert_eq!(sample.stack_copy_ended(address), expected, "{address:#x}");
        }
        assert!(!with_stack_copy(start, pages, &full[8..]).stack_copy_ended(base + 14 * PAGE_BYTES), "not full");
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let mut words = [0; 64];
        let length = record(&[1, 2], &[3], &[], &mut words);
        for cut in 0..length {
            assert!(matches!(Sample::decode(&words[..cut]), Err(DecodeError::TooShort { .. })));
        }
        words[word::STACK_BYTES] = u64::MAX;
        assert!(matches!(Sample::decode(&words), Err(DecodeError::OverLimit("stack words", _))));
        words[word::SHAPE] = 0xff_0000 | u64::from(KIND_SAMPLE);
        assert_eq!(Sample::decode(&words).unwrap_err(), DecodeError::UnknownStop(0xff));
        words[word::SHAPE] = 1;
        assert_eq!(Sample::decode(&words).unwrap_err(), DecodeError::UnknownKind(1));
    }
}
