//! The server side of TDS 7.4 (and of TDS 8.0's strict TLS): packets, tokens, logins, requests and results.
//!
//! The crate knows the protocol and nothing of SQL: whoever implements [`Server`] and [`Session`] answers the requests.
//! Protocol: [MS-TDS], <https://learn.microsoft.com/openspecs/windows_protocols/ms-tds>.

mod data;
mod session;

pub use data::{Column, DataType, Length, Value};
pub use session::{Batch, Call, Cancel, EnvChange, Isolation, Login, Parameter, Response, Server, Session, SqlError, TransactionRequest};
