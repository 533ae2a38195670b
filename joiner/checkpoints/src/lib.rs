//! The joiner's state in object storage: checkpoints that upload only what is new, savepoints with names, and a state made of them again.
//!
//! # What holds
//! - **A checkpoint is consistent, and nothing stops for it.** [`joiner::checkpoint`] argues what is in one: what a kill at that instant would leave. It is taken by hard links, and uploaded in the background.
//! - **It exists whole or not at all.** Its files are uploaded first; an entry of the chain, created where there is none, makes it exist ([`manifest`]). A kill before leaves parts that no checkpoint names; the next checkpoint
//!   removes them.
//! - **Only what is new is uploaded.** A file of the newest checkpoint with the same name, size and checksum is named again. RocksDB writes a table once, so bytes are proportional to what was written since, compaction included.
//! - **One process makes them.** One that was replaced and wakes up neither overwrites nor removes what the newer one counts on ([`writer`] argues it).
//! - **Restoring is all or nothing**, held against sizes and checksums, and refused where the state's format, source or definitions are not those of the configuration ([`restore`]).
//! - **Several instances** each have a chain of their own, in a folder that their share of the entities names. A state of another share is made of their checkpoints ([`parts`]).
//! - **They are bounded**, in number and age, but for the newest one and for savepoints.

mod config;
mod error;
pub mod manifest;
pub mod metrics;
mod parts;
mod restore;
mod service;
mod store;
mod writer;

pub use config::Config;
pub use error::Error;
pub use parts::Part;
pub use restore::{is_empty, settle};
pub use service::{Asking, Phase, Restored, Service, Status, StatusHandle, begin_with, now_ms};
pub use store::{Checkpoints, Listed, Which};
pub use writer::{Made, Removed, Retention, Writer};
