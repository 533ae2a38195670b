//! The way from the importers to the server: pipes in memory that carry the real protocol, are slow at times, and break.
//!
//! A connection that breaks does so at some byte, of a request or of an answer, as networks do. A process that dies drops its end; what the server had been asked by then it answers to nobody.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use source::network::{Dial, Wire};
use tds::{Encryption, Options, Sessions};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use crate::dice::Dice;
use crate::faults::Faults;
use crate::history::History;
use crate::server::ShopServer;

const PIPE_BYTES: usize = 1 << 16;
/// A connection that is to break does so within so many bytes.
const BREAKS_WITHIN: u64 = 60_000;

pub(crate) struct SourceNetwork {
    server: Arc<ShopServer>,
    faults: Faults,
    dice: Mutex<Dice>,
    history: History,
}

impl SourceNetwork {
    pub(crate) fn new(server: ShopServer, faults: Faults, dice: Dice, history: History) -> Self {
        Self { server: Arc::new(server), faults, dice: Mutex::new(dice), history }
    }

    async fn connect(&self) -> io::Result<Box<dyn Wire>> {
        let (wait, refused, breaks) = {
            let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = Duration::from_millis(dice.below(5));
            let bad = self.faults.source_permille();
            let refused = dice.chance(bad);
            (wait, refused, dice.chance(bad * 2).then(|| dice.below(BREAKS_WITHIN)))
        };
        tokio::time::sleep(wait).await;
        if refused || self.faults.source_is_cut() {
            self.history.fault("a connection to the source was refused");
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let options = Options { encryption: Encryption::Off, sessions: Sessions::InPlace, ..Options::default() };
        let server: Arc<dyn tds::Server> = Arc::clone(&self.server) as _;
        tokio::spawn(tds::converse(theirs, server, options));
        Ok(Box::new(Breaking {
            pipe: ours,
            left: breaks,
            faults: self.faults.clone(),
            told: AtomicBool::new(false),
            history: self.history.clone(),
        }))
    }
}

/// The network as one host sees it.
pub(crate) struct ToSource(pub(crate) Arc<SourceNetwork>);

impl Dial for ToSource {
    fn dial(&self, _host: &str, _port: u16) -> BoxFuture<'_, io::Result<Box<dyn Wire>>> {
        self.0.connect().boxed()
    }
}

/// The client's end of a connection.
struct Breaking {
    pipe: DuplexStream,
    /// How many bytes still go through; none: all.
    left: Option<u64>,
    faults: Faults,
    told: AtomicBool,
    history: History,
}

impl Breaking {
    fn pass(&mut self, bytes: usize) -> io::Result<()> {
        let Some(left) = &mut self.left else { return Ok(()) };
        match left.checked_sub(bytes as u64) {
            Some(rest) => {
                *left = rest;
                Ok(())
            }
            None => Err(self.broken("a connection to the source broke")),
        }
    }

    fn broken(&self, what: &str) -> io::Error {
        if !self.told.swap(true, Ordering::Relaxed) {
            self.history.fault(what);
        }
        io::ErrorKind::ConnectionReset.into()
    }

    fn check(&self) -> io::Result<()> {
        if self.faults.source_is_cut() { Err(self.broken("a connection to the source was cut")) } else { Ok(()) }
    }
}

impl AsyncRead for Breaking {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.pipe).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = outcome {
            let read = buffer.filled().len() - before;
            self.pass(read)?;
        }
        outcome
    }
}

impl AsyncWrite for Breaking {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        let outcome = Pin::new(&mut self.pipe).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = outcome {
            self.pass(written)?;
        }
        outcome
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(context)
    }
}
