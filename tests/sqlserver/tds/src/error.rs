//! What can go wrong below the engine: the network, TLS, and clients that break the protocol.

use std::io;

/// A fault of the protocol server or of one of its connections.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The network failed; the connection is gone.
    #[error("the connection was lost: {0}")]
    Io(#[from] io::Error),
    /// The certificate given in the options cannot be used, or none could be made.
    #[error("the TLS certificate cannot be used: {0}; give a PEM certificate chain and its private key")]
    Certificate(String),
    /// The client broke the protocol.
    #[error("the client sent a malformed {what}: {why}; the connection is closed")]
    Malformed { what: &'static str, why: &'static str },
    /// A message is longer than [`crate::Limits`] allows.
    #[error("the client sent a {what} of more than {limit} bytes; the connection is closed")]
    TooLong { what: &'static str, limit: usize },
    /// The client asks for something that this server does not speak.
    #[error("the client asked for {what}, which this server does not support; the connection is closed")]
    Unsupported { what: &'static str },
    /// The client did not finish its login in time.
    #[error("the client did not log in within {seconds} s; the connection is closed")]
    LoginTimeout { seconds: u64 },
    /// The thread of the session could not be started, or ended in the middle of an answer.
    #[error("the session's thread {0}; the connection is closed")]
    Thread(&'static str),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

pub(crate) fn malformed<T>(what: &'static str, why: &'static str) -> Result<T> {
    Err(Error::Malformed { what, why })
}
