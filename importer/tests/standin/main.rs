//! The importer against the stand-in: what is published is what was done, whatever happens in between.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod chaos;
mod contracts;
mod evolution;
mod faults;
mod fenced;
mod gate;
mod health;
mod init;
mod lease;
mod load;
mod order;
mod rereads;
mod resume;
mod sink;
mod support;
mod types;
mod verify;
mod workload;
