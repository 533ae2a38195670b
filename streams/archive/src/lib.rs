//! Every event also in object storage: written by an archiver that follows the streams, read by a reader that goes over to the live stream without a seam.
//!
//! # What holds
//! - **Exactly once in effect.** The archive is a chain of numbered *segments*. A segment says where every shard stood at its end, and the next one begins there; it exists as soon as its manifest does,
//!   and the manifest is the last object that is written, under a number that can be taken once. The archiver has no other state than the last manifest: killed anywhere, it goes on after it, and what
//!   it had written without a manifest is no part of the archive and is removed ([`store`]).
//! - **One archiver.** Whoever starts takes a number in the chain for itself; one that worked before finds its own next number taken, and stops ([`Error::Superseded`]). So that they do not take turns at that, whoever comes later waits
//!   until the one at work has ended ([`lease`]).
//! - **Nothing is lost on the way.** A segment ends where progress records say that whole ticks are in (or, where a tick is larger than memory, in the middle of one: then its record is in a later
//!   segment). What a record promises and the streams do not hold is told by table, tick and position, and kept in the manifest ([`account`]; INV-6).
//! - **Every record as it was.** Stream, shard, sequence number and bytes come back as they went in ([`line`]), of all event streams and of the progress stream. So a reader of the archive hands over
//!   what a reader of the stream would have handed over, and the position at which it ends is a position in the live stream: [`Fused`] goes on there. No gap and no repeat, because both sides count
//!   in the same numbers.
//! - **What cannot be archived any more is told.** Where the streams had forgotten something before an archiver came to read it, the archive says what, by LSNs and positions, and no reader passes it unawares ([`gap`]). So it is with what is
//!   removed for its age ([`expire`]).
//! - **What is removed or changed is told.** Every object's checksum is in the manifest; where it does not fit, or the object is gone, a list of all positions tells which events are missing ([`read`]).
//!
//! # What is in the bucket
//! [`manifest`] documents names and formats: zstd JSON lines below `events/table=…/date=…/`, which DuckDB, Spark and the like read as they are, and small JSON manifests.
//!
//! JSON lines, and not Parquet: an archive that is to give back every record of any encoding byte for byte needs the record itself, and columns beside it would double it; the two crates it takes (arrow, parquet) are larger than all
//! of this project's other dependencies on storage together. Typed Parquet belongs to a sink that writes entities.

mod account;
mod archiver;
mod collect;
mod config;
mod error;
mod expire;
mod facts;
mod follow;
mod fused;
mod gap;
mod lease;
mod line;
pub mod manifest;
pub mod metrics;
mod quiet;
mod read;
mod replay;
mod segment;
mod spill;
mod status;
mod store;
mod verify;

pub use account::Missing;
pub use archiver::Archiver;
pub use config::{Config, OnTrimmed};
pub use error::{Error, Lost};
pub use expire::Beginning;
pub use fused::Fused;
pub use gap::{Gap, Hole};
pub use replay::{Plan, PlannedObject, PlannedTable, Range, Replay};
pub use status::{Phase, Status, StatusHandle, TableStatus};
pub use store::Archive;
pub use verify::{Verification, verify};
