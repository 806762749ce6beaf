//! The contract between the kernel programs and user space: record layouts, unwind rows, range
//! tables, limits, counters and address types.
//!
//! Both sides compile this crate, so a layout exists once. It holds no I/O and no `unsafe`: what
//! crosses the border is made of `u64` words that this crate packs and unpacks.
#![no_std]
#![forbid(unsafe_code)]

pub mod address;
pub mod counter;
pub mod limits;
pub mod range;
pub mod record;
pub mod row;
pub mod search;
pub mod settings;
pub mod step;
pub mod thread;
