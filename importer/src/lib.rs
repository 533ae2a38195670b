//! SQL Server's change data capture to streams.
//!
//! ```text
//! Importer::run ─► lease ─► session (connect, catalog, contracts, saved progress)
//!                              ├─► snapshot ─► chunks of rows ──────────────┐
//!                              └─► tail ─► ranges of changes                │
//!                                   └─ between them: rereads ─► chunks ─────┴─► publish ─► events, dead letters, progress records ─► saved progress
//! ```
//! What holds over all of it: nothing at or below a published progress LSN is published afterwards under the same epoch, except repeats (INV-1); saved progress never
//! passes acknowledged work (INV-2); every captured change is published, dead-lettered or reported missing (INV-6). Each module says how it keeps its part.
//!
//! [`service`] is the other kind of source: a service's own stream of events, mapped to rows. It publishes by the same means, and keeps the same promises by its own.
//!
//! [`check`] looks at a source and says what an operator should do; [`init`] reads a source's catalog and proposes contracts and entities.

pub mod check;
mod chunks;
mod config;
mod continuity;
pub mod contracts;
mod controls;
pub mod encodings;
mod error;
mod handle;
mod headroom;
mod importer;
pub mod init;
pub mod lease;
mod metrics;
mod pace;
mod pool;
mod publish;
mod reread;
mod saved;
pub mod service;
mod session;
mod settle;
mod snapshot;
mod status;
mod tables;
mod tail;
mod verify;

pub use check::check;
pub use config::{
    BreakingPolicy, CompatiblePolicy, Config, GapPolicy, LeaseConfig, Output, SnapshotConfig, SnapshotMode, TableFilter,
};
pub use controls::{ControlsError, Mask, TableControls};
pub use error::{BadRecord, Error};
pub use handle::{AskedRange, ImporterHandle, RequestError};
pub use importer::Importer;
pub use publish::dead_letter_stream;
pub use source::{
    CapturedColumn, CapturedTable, Catalog, Encryption, Error as SourceFailure, ForeignKey, Instance, Password, Source,
    SourceError, SourceSettings, SourceUrl,
};
pub use status::{Activity, Status, StatusHandle, TableStatus};
pub use tables::published_tables;
pub use verify::{RangeDifference, Recount, TableRecount, Uncounted, verify};
