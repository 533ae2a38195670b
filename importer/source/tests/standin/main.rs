//! The client against the stand-in for SQL Server.
#![allow(clippy::unwrap_used)]

mod capture;
mod connect;
mod driver;
mod ranges;
mod state;
mod support;
mod types;
