//! The rules of change data capture, each shown over SQLite with a small catalog of the test's own.
#![allow(clippy::unwrap_used)]

mod capturing;
mod cleaning;
mod enabling;
mod functions;
mod jobs;
mod replaying;
mod schema_changes;
mod world;
