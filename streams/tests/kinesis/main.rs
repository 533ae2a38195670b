//! What only Kinesis can be asked: reshards while writing and reading (kinesis-local), and faults (the crate's own stub).
#![allow(clippy::unwrap_used)]

mod consumers;
mod fan_out;
mod faults;
mod lag;
mod operations;
mod operator;
mod others;
mod oversize;
mod proxy;
mod quotas;
mod reshards;
#[path = "../support/mod.rs"]
mod support;
