//! The benchmarks, and the peers they are held against.
