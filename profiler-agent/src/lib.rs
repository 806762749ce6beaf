//! The agent: everything that touches the kernel, /proc, the clock, the disk or the network.

pub mod kernel;
pub mod worker;
