//! A connection's life on the network: TLS, login, then requests and answers until either side ends it.
//!
//! One task reads and writes; the session lives on a thread of its own. While an answer goes out the task keeps looking for an attention, so a
//! client can stop a statement whose rows it no longer reads. An attention is acknowledged exactly once, by the task, in a message of its own
//! after the answer that it cut short or came too late for: SQL Server does so, and `tedious` counts on it.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::answer::Chunk;
use crate::error::{Error, Result, malformed};
use crate::login::{self, Login7};
use crate::options::{Encryption, Options, Sessions};
use crate::packet::{self, DEFAULT_PACKET_BYTES, Message, kind};
use crate::prelogin::{Prelogin, Scope};
use crate::session::{Cancel, Command, Server, SqlError};
use crate::tls::{Acceptors, Prelogged};
use crate::token::{self, Done, done};
use crate::worker::{self, Job};

/// A TLS record that starts a handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// Groups of packets on their way from a session to the network.
const CHUNKS_UNDER_WAY: usize = 4;
/// The same where the session may not wait: more than any answer has.
const CHUNKS_IN_PLACE: usize = 1 << 16;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Serves TDS on the listener until `shutdown` is ready; then closes every connection and returns when their sessions have ended.
pub async fn serve(
    listener: TcpListener,
    server: Arc<dyn Server>,
    options: Options,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    let acceptors = match options.encryption {
        Encryption::Off => None,
        _ => Some(Acceptors::new(&options.certificate)?),
    };
    let shared = Arc::new(Shared { server, options: Arc::new(options), acceptors });
    let (stop, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    if connections.len() >= shared.options.limits.connections || shared.options.faults.refuses_connection() {
                        tracing::debug!(%peer, "connection refused");
                        continue;
                    }
                    let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
                    connections.spawn(async move {
                        match Box::pin(run(log_in(stream, &shared), &shared, stopped)).await {
                            Ok(()) => tracing::debug!(%peer, "connection closed"),
                            Err(error) => tracing::debug!(%peer, %error, "connection ended"),
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors, mostly: the others go on, and trying again at once would only spin.
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    stop.send_replace(true);
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// Serves one connection over any stream until either side ends it; without the strict TLS that comes before the first byte.
pub async fn converse<S>(stream: S, server: Arc<dyn Server>, options: Options) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let acceptors = match options.encryption {
        Encryption::Off => None,
        _ => Some(Acceptors::new(&options.certificate)?),
    };
    let shared = Arc::new(Shared { server, options: Arc::new(options), acceptors });
    let (_stop, stopped) = watch::channel(false);
    let logging_in = async {
        match agree(stream, &shared).await? {
            Some((stream, message)) => open(stream, &shared, &message, false).await,
            None => Ok(None),
        }
    };
    run(logging_in, &shared, stopped).await
}

struct Shared {
    server: Arc<dyn Server>,
    options: Arc<Options>,
    acceptors: Option<Acceptors>,
}

async fn run(
    logging_in: impl Future<Output = Result<Option<LoggedIn>>>,
    shared: &Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let limit = shared.options.limits.login_timeout;
    let login = timeout_at(Instant::now() + limit, logging_in);
    let opened = tokio::select! {
        opened = login => opened.map_err(|_| Error::LoginTimeout { seconds: limit.as_secs() })??,
        _ = stopped.wait_for(|stop| *stop) => return Ok(()),
    };
    let Some((connection, reader)) = opened else { return Ok(()) };
    let (cancel, ended) = (connection.cancel.clone(), connection.ended);
    let (messages, incoming) = mpsc::channel(1);
    let limit = shared.options.limits.message_bytes;
    let reading = read_messages(reader, messages, limit);
    let answering = Exchange {
        writer: connection.writer,
        incoming,
        jobs: connection.jobs,
        chunks: connection.chunks,
        cancel: cancel.clone(),
        shared: Arc::clone(shared),
        packet_bytes: connection.packet_bytes,
        next: None,
        attention: false,
    };
    let outcome = tokio::select! {
        outcome = answering.run() => outcome,
        // Never ends: what it reads and how it ended go to the exchange by the channel.
        () = reading => Ok(()),
        () = cancel.killed() => Ok(()),
        _ = stopped.wait_for(|stop| *stop) => Ok(()),
    };
    // The channels are gone with the exchange: a session in the middle of a statement sees it by the flag or by its next row, and its thread ends.
    cancel.set();
    let _ = ended.await;
    outcome
}

/// A connection that is logged in.
struct Opened {
    writer: WriteHalf<Box<dyn Stream>>,
    jobs: mpsc::Sender<Job>,
    chunks: mpsc::Receiver<Chunk>,
    cancel: Cancel,
    ended: oneshot::Receiver<()>,
    packet_bytes: u16,
}

/// A connection, and what comes in on it.
type LoggedIn = (Opened, ReadHalf<Box<dyn Stream>>);

/// From the TCP connection to the answer to the login; `None` when there is nothing to go on with.
async fn log_in(stream: TcpStream, shared: &Arc<Shared>) -> Result<Option<LoggedIn>> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Ok(None);
    }
    let offered = shared.options.encryption;
    let strict = first[0] == TLS_HANDSHAKE;
    let (stream, message): (Box<dyn Stream>, Message) = if strict {
        let Some(acceptors) = &shared.acceptors else { return Err(Error::Unsupported { what: "encryption" }) };
        let mut stream = acceptors.strict.accept(stream).await?;
        let Some(message) = read_login(&mut stream, shared).await? else { return Ok(None) };
        let message = if message.kind == kind::PRELOGIN {
            let prelogin = Prelogin::parse(&message.payload)?;
            let (encryption, _) = prelogin.agree(offered, true);
            let answer = prelogin.answer(shared.options.version, encryption);
            packet::write_message(&mut stream, &answer, DEFAULT_PACKET_BYTES).await?;
            let Some(message) = read_login(&mut stream, shared).await? else { return Ok(None) };
            message
        } else {
            message
        };
        (Box::new(stream), message)
    } else {
        match agree(stream, shared).await? {
            Some(agreed) => agreed,
            None => return Ok(None),
        }
    };
    open(stream, shared, &message, strict).await
}

/// Answers the login message.
async fn open(mut stream: Box<dyn Stream>, shared: &Arc<Shared>, message: &Message, strict: bool) -> Result<Option<LoggedIn>> {
    if message.kind != kind::LOGIN7 {
        return malformed("login", "another message stands in its place");
    }
    answer_login(&mut stream, shared, message, strict).await.map(|opened| {
        opened.map(|(jobs, chunks, cancel, ended, packet_bytes)| {
            let (reader, writer) = tokio::io::split(stream);
            (Opened { writer, jobs, chunks, cancel, ended, packet_bytes }, reader)
        })
    })
}

async fn read_login<S: AsyncRead + Unpin>(stream: &mut S, shared: &Shared) -> Result<Option<Message>> {
    packet::read_message(stream, shared.options.limits.login_bytes).await
}

/// Prelogin, TLS inside it as agreed, and the login message.
async fn agree<S: Stream + 'static>(mut stream: S, shared: &Shared) -> Result<Option<(Box<dyn Stream>, Message)>> {
    let Some(message) = read_login(&mut stream, shared).await? else { return Ok(None) };
    let offered = shared.options.encryption;
    if message.kind != kind::PRELOGIN {
        // Old clients log in at once.
        return match offered {
            Encryption::Off | Encryption::On => Ok(Some((Box::new(stream), message))),
            _ => Err(Error::Unsupported { what: "a connection without encryption" }),
        };
    }
    let prelogin = Prelogin::parse(&message.payload)?;
    let (encryption, scope) = prelogin.agree(offered, false);
    let answer = prelogin.answer(shared.options.version, encryption);
    packet::write_message(&mut stream, &answer, DEFAULT_PACKET_BYTES).await?;
    let acceptors = match (scope?, &shared.acceptors) {
        (Scope::Nothing, _) | (_, None) => {
            return Ok(read_login(&mut stream, shared).await?.map(|message| (Box::new(stream) as Box<dyn Stream>, message)));
        }
        (scope, Some(acceptors)) => (scope, acceptors),
    };
    let (scope, acceptors) = acceptors;
    let mut encrypted = acceptors.inside.accept(Prelogged::new(stream, true)).await?;
    encrypted.get_mut().0.end_handshake();
    let Some(message) = read_login(&mut encrypted, shared).await? else { return Ok(None) };
    Ok(Some(match scope {
        Scope::Login => (Box::new(encrypted.into_inner().0.into_inner()), message),
        _ => (Box::new(encrypted), message),
    }))
}

type Accepted = (mpsc::Sender<Job>, mpsc::Receiver<Chunk>, Cancel, oneshot::Receiver<()>, u16);

/// Asks the engine, on the session's new thread, and answers the client.
async fn answer_login(
    stream: &mut Box<dyn Stream>,
    shared: &Arc<Shared>,
    message: &Message,
    strict: bool,
) -> Result<Option<Accepted>> {
    let options = &shared.options;
    let login = Login7::parse(&message.payload)?;
    let tds_version = match login.agreed_version(strict) {
        Ok(version) => version,
        Err(error) => {
            let refusal = protocol_error(&error);
            packet::write_message(stream, &login::refused(options, &refusal), DEFAULT_PACKET_BYTES).await?;
            return Err(error);
        }
    };
    let packet_bytes = login.agreed_packet_bytes(options.limits.packet_bytes);
    let outcome = if login.integrated {
        Err(login::integrated_refused())
    } else {
        let cancel = Cancel::default();
        let (jobs, job_queue) = mpsc::channel(1);
        let (chunk_queue, chunks) = mpsc::channel(match options.sessions {
            Sessions::Threads => CHUNKS_UNDER_WAY,
            Sessions::InPlace => CHUNKS_IN_PLACE,
        });
        let (logged_in, outcome) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let session = worker::Start {
            server: Arc::clone(&shared.server),
            options: Arc::clone(options),
            login: login.login.clone(),
            cancel: cancel.clone(),
            packet_bytes,
            jobs: job_queue,
            chunks: chunk_queue,
            logged_in,
            end,
        };
        worker::spawn(session)?;
        let outcome = outcome.await.map_err(|_| Error::Thread("ended in the login"))?;
        outcome.map(|database| (database, (jobs, chunks, cancel, ended, packet_bytes)))
    };
    match outcome {
        Ok((database, opened)) => {
            let answer = login.accepted(options, &database, tds_version, packet_bytes);
            packet::write_message(stream, &answer, DEFAULT_PACKET_BYTES).await?;
            Ok(Some(opened))
        }
        Err(error) => {
            packet::write_message(stream, &login::refused(options, &error), DEFAULT_PACKET_BYTES).await?;
            stream.shutdown().await?;
            Ok(None)
        }
    }
}

/// Hands every message on, and the error that ends them; a message is whole before anyone sees it.
async fn read_messages(mut from: ReadHalf<Box<dyn Stream>>, to: mpsc::Sender<Result<Message>>, limit: usize) {
    while let Some(message) = packet::read_message(&mut from, limit).await.transpose() {
        let broken = message.is_err();
        if to.send(message).await.is_err() || broken {
            break;
        }
    }
    drop(to);
    // The exchange sees the closed channel and ends the connection; this future must not win against it.
    std::future::pending().await
}

/// Requests and answers.
struct Exchange {
    writer: WriteHalf<Box<dyn Stream>>,
    incoming: mpsc::Receiver<Result<Message>>,
    jobs: mpsc::Sender<Job>,
    chunks: mpsc::Receiver<Chunk>,
    cancel: Cancel,
    shared: Arc<Shared>,
    packet_bytes: u16,
    /// A request that came while the end of the answer before it was on its way.
    next: Option<Message>,
    /// An attention came for the answer that is under way.
    attention: bool,
}

impl Exchange {
    async fn run(mut self) -> Result<()> {
        loop {
            let message = match self.next.take() {
                Some(message) => message,
                None => match self.incoming.recv().await {
                    Some(Ok(message)) => message,
                    Some(Err(error @ Error::Io(_))) => return Err(error),
                    Some(Err(error)) => return self.refuse(error).await,
                    None => break,
                },
            };
            match message.kind {
                kind::ATTENTION => self.acknowledge().await?,
                _ if message.ignored => self.send(&done_token(done::ERROR)).await?,
                kind::BATCH | kind::RPC | kind::TRANSACTION => {
                    if !self.answer(message).await? {
                        return Ok(());
                    }
                }
                kind::BULK => return self.refuse(Error::Unsupported { what: "bulk load" }).await,
                _ => return self.refuse(Error::Malformed { what: "request", why: "its kind is unknown" }).await,
            }
        }
        self.writer.shutdown().await?;
        Ok(())
    }

    /// Says why, and ends the connection.
    async fn refuse(&mut self, error: Error) -> Result<()> {
        self.send(&login::refused(&self.shared.options, &protocol_error(&error))).await?;
        self.writer.shutdown().await?;
        Err(error)
    }

    async fn send(&mut self, payload: &[u8]) -> Result<()> {
        packet::write_message(&mut self.writer, payload, self.packet_bytes).await
    }

    async fn acknowledge(&mut self) -> Result<()> {
        self.send(&done_token(done::ATTENTION)).await
    }

    /// Sends the whole answer to a request; false when the connection is to be closed.
    async fn answer(&mut self, message: Message) -> Result<bool> {
        self.cancel.clear();
        let job = Job { kind: message.kind, payload: message.payload, reset: message.reset };
        if self.jobs.send(job).await.is_err() {
            return self.refuse(Error::Thread("has ended")).await.map(|()| false);
        }
        self.attention = false;
        let mut first = true;
        loop {
            let chunk = tokio::select! {
                chunk = self.chunks.recv() => chunk,
                message = self.incoming.recv(), if !self.attention && self.next.is_none() => {
                    self.interrupted(message)?;
                    continue;
                }
            };
            match chunk {
                Some(Chunk::Packets { bytes, count }) => {
                    if std::mem::take(&mut first)
                        && let Some(by) = self.shared.options.faults.delay()
                    {
                        tokio::time::sleep(by).await;
                    }
                    if !self.write(&bytes, count).await? {
                        return Ok(false);
                    }
                }
                Some(Chunk::End) => {
                    self.writer.flush().await?;
                    if self.attention {
                        self.acknowledge().await?;
                    }
                    return Ok(true);
                }
                Some(Chunk::Last { bytes }) => {
                    self.writer.write_all(&bytes).await?;
                    self.writer.shutdown().await?;
                    return Ok(false);
                }
                Some(Chunk::Cut { bytes }) => {
                    self.writer.write_all(&bytes).await?;
                    self.writer.flush().await?;
                    return Ok(false);
                }
                // The session's thread is gone: a panic in the engine.
                None => return self.refuse(Error::Thread("ended in the middle of an answer")).await.map(|()| false),
            }
        }
    }

    /// Writes packets while looking for an attention; false when a fault cuts the connection here.
    async fn write(&mut self, bytes: &[u8], count: u64) -> Result<bool> {
        let allowed = self.shared.options.faults.on_send(count, bytes.len() as u64, u64::from(self.packet_bytes));
        let cut = allowed.is_some();
        let bytes = &bytes[..allowed.map_or(bytes.len(), |allowed| allowed as usize)];
        let mut written = 0;
        while written < bytes.len() {
            // Both are safe to drop half-way: a write counts when it returns, a message stays in the channel.
            tokio::select! {
                count = self.writer.write(&bytes[written..]) => match count? {
                    0 => return Err(Error::Io(std::io::ErrorKind::WriteZero.into())),
                    count => written += count,
                },
                message = self.incoming.recv(), if !self.attention && self.next.is_none() => self.interrupted(message)?,
            }
        }
        if cut {
            self.writer.flush().await?;
        }
        Ok(!cut)
    }

    /// A message in the middle of an answer: an attention, or the next request of a client that has read the answer's last packet already.
    fn interrupted(&mut self, message: Option<Result<Message>>) -> Result<()> {
        match message.transpose()? {
            Some(Message { kind: kind::ATTENTION, .. }) => {
                self.attention = true;
                self.cancel.set();
            }
            Some(next) => self.next = Some(next),
            None => return Err(Error::Io(std::io::ErrorKind::ConnectionReset.into())),
        }
        Ok(())
    }
}

fn done_token(flags: u16) -> Vec<u8> {
    let mut out = Vec::new();
    Done { flags, command: Command::Other, rows: 0 }.put(&mut out, token::done::DONE);
    out
}

/// A broken protocol as the client is told of it.
pub(crate) fn protocol_error(error: &Error) -> SqlError {
    SqlError { number: 4002, state: 1, class: 16, message: error.to_string(), procedure: String::new(), line: 1 }
}
