//! A typed client for SQL Server's change data capture, over tiberius.
//!
//! What the importer knows of SQL Server, it knows through this crate: [`sql`] holds every T-SQL text and the reason for it, [`decode`] turns the
//! driver's values into ours, with [`clr`] for the types that are objects, [`catalog`] reads what is captured, [`keys`] which columns tell rows apart, [`changes`] and [`cursor`] read change
//! tables and [`rows`] source tables, [`fence`] reads them as of one LSN, [`clock`] makes moments of the server's zoneless times, [`health`] says how capture
//! is doing, [`retention`] how long what waits is safe, [`identity`] whether the database is still the same, [`recount`] counts again, [`error`] says what
//! each failure means, [`network`] what connections go over.

mod browser;
pub mod catalog;
pub mod changes;
pub mod client;
pub mod clock;
pub mod clr;
pub mod cursor;
pub mod decode;
pub mod error;
pub mod fence;
pub mod health;
pub mod identity;
pub mod keys;
pub mod network;
mod password;
mod reach;
pub mod recount;
pub mod retention;
pub mod rows;
pub mod source;
pub mod sql;
mod url;

pub use catalog::{CapturedColumn, CapturedTable, Catalog, ForeignKey, Instance};
pub use error::Error;
pub use source::{Encryption, Password, Source, SourceError, SourceSettings, SourceUrl};

pub use client::Client;
