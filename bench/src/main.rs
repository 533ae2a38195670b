//! The benchmarks.
mod results;
mod rows;
fn main() {}
