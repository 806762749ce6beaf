//! For the tests of steps: a stack.

use super::{Machine, NoBarrier, Registers};
use crate::row::MAX_SLOT;

pub(super) const STACK: u64 = 0x7000;

/// A stack of 64 words from [`STACK`] on, each holding its own index + 100 unless set.
pub(super) struct Stack {
    words: [u64; 64],
    read: [u64; 64],
}

impl Stack {
    pub(super) fn with(values: &[(u64, u64)]) -> Self {
        let mut words = core::array::from_fn(|index| index as u64 + 100);
        for &(address, value) in values {
            words[((address - STACK) / 8) as usize] = value;
        }
        Self { words, read: [0; 64] }
    }
}

impl Machine for Stack {
    type Barrier = NoBarrier;

    fn read(&mut self, address: u64, words: u64) -> u64 {
        assert!((1..=u64::from(MAX_SLOT)).contains(&words));
        let Some(index) = address.checked_sub(STACK).map(|distance| distance / 8) else { return 1 };
        if index + words > 64 || !address.is_multiple_of(8) {
            return 1;
        }
        for word in 0..words {
            self.read[word as usize] = self.words[(index + word) as usize];
        }
        0
    }

    fn other_register(&self, index: u64) -> u64 {
        STACK + index * 16
    }

    fn thread_pointer(&self) -> u64 {
        STACK + 16
    }

    fn word(&self, index: u64) -> u64 {
        self.read[(index & 63) as usize]
    }
}

/// Registers of an innermost frame.
pub(super) fn at(sp: u64, fp: u64) -> Registers {
    Registers { pc: 0x1000, sp, fp, lr: 0x2222, interrupted: 0, exact: 1 }
}
