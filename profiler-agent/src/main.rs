//! The binary `spanflame`.
fn main() {
    println!("{:#?}", profiler_agent::kernel::verifier_report());
}
