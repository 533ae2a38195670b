//! SQL Server's change data capture to streams.
//!
//! ```text
//! Importer::run ─► lease ─► session (connect, catalog, contracts, saved progress)
//!                              ├─► snapshot ─► chunks of rows ─┐
//!                              └─► tail ─► ticks of changes ───┴─► publish ─► events, dead letters, progress records ─► saved progress
//! ```
//! What holds over all of it: nothing at or below a published progress LSN is published afterwards under the same epoch, except repeats (INV-1); saved progress never
//! passes acknowledged work (INV-2); every captured change is published, dead-lettered or reported missing (INV-6). Each module says how it keeps its part.
//!
//! [`check`] looks at a source and says what an operator should do; [`init`] reads a source's catalog and proposes contracts and entities.

pub mod check;
mod config;
pub mod contracts;
mod error;
mod importer;
pub mod init;
mod lease;
mod metrics;
mod publish;
mod saved;
mod session;
mod snapshot;
mod status;
mod tail;

pub use check::check;
pub use config::{Config, TableFilter};
pub use error::Error;
pub use importer::Importer;
pub use publish::dead_letter_stream;
pub use source::{
    CapturedColumn, CapturedTable, Catalog, Encryption, Error as SourceFailure, ForeignKey, Instance, Password, Source,
    SourceError, SourceSettings, SourceUrl,
};
pub use status::{Activity, Status, StatusHandle, TableStatus};
