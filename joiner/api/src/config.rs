//! What the server is told, and what is wrong with it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::Deserialize;
use sinks::SecretReference;

/// The `api:` section of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen. Default: `127.0.0.1:8080`. Any address that is not loopback needs `token`.
    pub listen: SocketAddr,
    /// The bearer token that clients must send: `{env: NAME}` or `{file: PATH}`.
    pub token: Option<SecretReference>,
    /// Names by which clients may call a server on loopback that has no token, beside localhost and the loopback addresses: others are refused, since a
    /// web page elsewhere could have its own name point here.
    pub hosts: Vec<String>,
    /// How long an answer waits for the LSN that its client asked for. Default: 2000.
    pub wait_limit_ms: u64,
    /// How long a sink may take to answer one query. Default: 10000.
    pub query_limit_ms: u64,
    /// A subscription gets a progress event at least this often. Default: 5000.
    pub progress_interval_ms: u64,
    /// How long a shutdown waits for answers under way. Default: 5000.
    pub drain_limit_ms: u64,
    /// Subscriptions at once. Default: 1000.
    pub subscription_limit: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
            token: None,
            hosts: Vec::new(),
            wait_limit_ms: 2_000,
            query_limit_ms: 10_000,
            progress_interval_ms: 5_000,
            drain_limit_ms: 5_000,
            subscription_limit: 1_000,
        }
    }
}

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the API is told to listen on {listen}, which others can reach, and has no token: set api.token ({{env: NAME}} or {{file: PATH}}), or listen on 127.0.0.1"
    )]
    TokenMissing { listen: SocketAddr },
    #[error(transparent)]
    Token(#[from] sinks::Error),
    #[error("the API cannot listen on {listen}: {source}. Choose another address or port (api.listen), or stop what uses it")]
    Listen { listen: SocketAddr, source: std::io::Error },
    #[error("the API stopped serving on {listen}: {source}")]
    Serve { listen: SocketAddr, source: std::io::Error },
}

impl Error {
    pub fn class(&self) -> schemas::ErrorClass {
        match self {
            Self::Serve { .. } => schemas::ErrorClass::Transient,
            Self::TokenMissing { .. } | Self::Token(_) | Self::Listen { .. } => schemas::ErrorClass::Misconfigured,
        }
    }
}
