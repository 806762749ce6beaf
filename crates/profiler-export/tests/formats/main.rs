//! Tests of all formats, on profiles built by hand and generated ones.
#![forbid(unsafe_code)]

mod common;
mod golden;
mod pprof_tool;
mod properties;
