//! The agent: everything that touches the kernel, /proc, the clock, the disk or the network.

mod aggregate;
mod bpf_code;
pub mod cli;
mod clock;
mod counts;
pub mod debug_files;
pub mod doctor;
pub mod dump;
mod ending;
mod generated;
mod interpreter;
pub mod kernel;
mod kernel_symbols;
pub mod launch;
mod locate;
mod missed;
mod output;
mod proc_fs;
pub mod record;
mod report;
mod session;
mod signals;
pub mod source_map;
mod symbols;
mod tracker;
mod waiting;
pub mod worker;
