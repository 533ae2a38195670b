//! The server side of TDS 7.4 (and of TDS 8.0's strict TLS): packets, tokens, logins, requests and results.
//!
//! The crate knows the protocol and nothing of SQL: whoever implements [`Server`] and [`Session`] answers the requests.
//! Protocol: [MS-TDS], <https://learn.microsoft.com/openspecs/windows_protocols/ms-tds>.
//!
//! A connection is one task for the network and one thread for its session ([`Session`]'s calls may block), joined by bounded channels:
//! requests go one at a time to the thread, packets come back, and a client that does not read makes the thread wait. The task reads while it
//! writes, so an attention is seen while a long result is under way.
//!
//! What a client sends is never trusted: every length is checked against what arrived and against [`Limits`], a message that breaks the
//! protocol is answered with an error and a closed connection.

mod answer;
mod binding;
mod code_page;
mod collation;
mod connection;
mod cursor;
mod data;
mod declaration;
mod decode;
mod describe;
mod encode;
mod error;
mod faults;
mod login;
mod names;
mod options;
mod packet;
mod prelogin;
mod prepared;
#[cfg(test)]
mod properties;
mod reader;
mod request;
mod rpc;
mod session;
mod tls;
mod token;
mod type_info;
mod worker;

pub use collation::Collation;
pub use connection::{converse, serve};
pub use data::{Column, DataType, Length, Value};
pub use error::Error;
pub use faults::{Fault, Faults};
pub use options::{Certificate, Encryption, Limits, Options, Sessions, Version};
pub use session::{
    Batch, Call, Cancel, Command, EnvChange, Isolation, Login, Parameter, Recording, Response, Server, Session, SqlError,
    TransactionRequest,
};
