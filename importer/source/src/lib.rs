//! A typed client for SQL Server's change data capture, over tiberius.
//!
//! What the importer knows of SQL Server, it knows through this crate: [`sql`] holds every T-SQL text and the reason for it, [`decode`] turns the
//! driver's values into ours, [`catalog`] reads what is captured, [`changes`] reads change tables and [`rows`] source tables, [`clock`] makes moments of the
//! server's zoneless times, [`error`] says what each failure means.

pub mod catalog;
pub mod changes;
pub mod client;
pub mod clock;
pub mod decode;
pub mod error;
pub mod rows;
pub mod source;
pub mod sql;

pub use catalog::{CapturedColumn, CapturedTable, Catalog, ForeignKey, Instance};
pub use error::Error;
pub use source::{Encryption, Password, Source, SourceError, SourceSettings, SourceUrl};

pub use client::Client;
