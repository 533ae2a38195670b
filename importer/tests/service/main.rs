//! A service's own stream as a source: what is published is what the service said, once in effect, whatever happens in between.
#![allow(clippy::unwrap_used)]

mod crashes;
#[path = "../standin/gate.rs"]
mod gate;
mod kinesis;
mod refusals;
mod support;
