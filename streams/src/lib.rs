//! How change events travel: one writer trait, one reader trait; in-memory, embedded and Kinesis implementations.
