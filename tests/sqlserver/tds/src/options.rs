//! How a server presents itself, and the bounds that it sets to its clients.

use std::time::Duration;

use crate::collation::Collation;
use crate::faults::Faults;

/// Which encryption the server offers and demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encryption {
    /// No TLS at all; a client that insists on it gives up.
    Off,
    /// As the client wishes: none, the login alone, everything, or strict (TLS before anything else).
    #[default]
    On,
    /// Everything is encrypted, by TLS inside TDS or strictly; a client without TLS is refused.
    Required,
    /// TDS 8.0 alone: TLS before anything else.
    Strict,
}

/// The server's certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Certificate {
    /// Made at start for `localhost`, `127.0.0.1` and `::1`, as SQL Server does when it was given none.
    #[default]
    SelfSigned,
    /// PEM texts: the chain, server first, and the private key.
    Pem { chain: String, key: String },
}

/// The version that clients are told; many of them choose their SQL by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    pub major: u8,
    pub minor: u8,
    pub build: u16,
}

/// Bounds on what a client may send and on what waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest packet that a client may negotiate, header included (512 to 32767).
    pub packet_bytes: u16,
    /// The longest request.
    pub message_bytes: usize,
    /// The longest login message.
    pub login_bytes: usize,
    /// From the TCP connection to the end of the login.
    pub login_timeout: Duration,
    /// Connections at a time; later ones are closed at once.
    pub connections: usize,
    /// Prepared statements and open cursors of one connection, each.
    pub handles: usize,
    /// Rows that one server cursor may hold.
    pub cursor_rows: usize,
}

/// Where the calls of a [`Session`](crate::Session) are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sessions {
    /// On a thread of each connection's own: they may block.
    #[default]
    Threads,
    /// In the connection's task: they must not block. Everything then happens in an order that the runtime alone decides, as a simulation needs it.
    InPlace,
}

/// All options of [`crate::serve`].
#[derive(Debug, Clone)]
pub struct Options {
    pub encryption: Encryption,
    pub certificate: Certificate,
    /// As `@@SERVERNAME` and in error messages.
    pub server_name: String,
    pub version: Version,
    /// Of `char`, `varchar` and `text`, in both directions.
    pub collation: Collation,
    pub limits: Limits,
    pub faults: Faults,
    pub sessions: Sessions,
}

impl Default for Version {
    /// SQL Server 2022, cumulative update 14.
    fn default() -> Self {
        Version { major: 16, minor: 0, build: 4135 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            packet_bytes: 32767,
            message_bytes: 256 << 20,
            login_bytes: 128 << 10,
            login_timeout: Duration::from_secs(30),
            connections: 1024,
            handles: 4096,
            cursor_rows: 1_000_000,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            encryption: Encryption::default(),
            certificate: Certificate::default(),
            server_name: "TRIBUTARY".to_owned(),
            version: Version::default(),
            collation: Collation::LATIN1_GENERAL_CP1_CI_AS,
            limits: Limits::default(),
            faults: Faults::default(),
            sessions: Sessions::default(),
        }
    }
}
