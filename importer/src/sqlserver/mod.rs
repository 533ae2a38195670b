//! A typed client for SQL Server's change data capture, over tiberius.
//!
//! What the rest of the crate knows of SQL Server, it knows through this module: [`sql`] holds every T-SQL text and the reason for it, [`decode`] turns the
//! driver's values into ours, [`catalog`] reads what is captured, [`changes`] reads change tables and [`rows`] source tables, [`clock`] makes moments of the
//! server's zoneless times, [`error`] says what each failure means.

pub(crate) mod catalog;
pub(crate) mod changes;
pub(crate) mod client;
pub(crate) mod clock;
pub(crate) mod decode;
pub(crate) mod error;
pub(crate) mod rows;
pub(crate) mod source;
pub(crate) mod sql;

pub use catalog::{CapturedColumn, CapturedTable, Catalog, ForeignKey, Instance};
pub use error::Error;
pub use source::{Encryption, Password, Source, SourceError, SourceSettings, SourceUrl};

pub(crate) use client::Client;
