//! What connections go over: TCP, unless a [`Source`](crate::Source) names something else, as a simulation does.

use std::fmt;
use std::io;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection's bytes, in both directions.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Wire for S {}

/// Opens connections in the place of TCP. May be called by several tasks at once.
pub trait Dial: Send + Sync {
    fn dial(&self, host: &str, port: u16) -> BoxFuture<'_, io::Result<Box<dyn Wire>>>;
}

/// How connections are opened. Two are equal when they are the same.
#[derive(Clone, Default)]
pub struct Network(pub(crate) Option<Arc<dyn Dial>>);

impl Network {
    pub fn of(dial: Arc<dyn Dial>) -> Self {
        Self(Some(dial))
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "other" } else { "tcp" })
    }
}

impl PartialEq for Network {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Eq for Network {}
