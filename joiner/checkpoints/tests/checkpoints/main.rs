//! Checkpoints on object storage that fails, with processes that are killed, and of a joiner that goes on from them.

#![allow(clippy::unwrap_used)]

mod fencing;
mod folders;
mod joined;
mod killed;
mod steps;
mod store;
#[path = "../../../tests/support/mod.rs"]
mod support;
