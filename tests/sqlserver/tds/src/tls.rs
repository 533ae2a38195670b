//! TLS: the server's certificate, the handshake inside prelogin packets (TDS 7.x) and the strict one below TDS (TDS 8.0).
//!
//! Inside TDS, TLS is at most 1.2, as SQL Server has it: 1.3 sends session tickets after the handshake, which would mix with plain packets
//! when the login alone is encrypted.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig, SupportedProtocolVersion, version};

use crate::error::{Error, Result};
use crate::options::Certificate;
use crate::packet::{HEADER_BYTES, kind, status};

/// The name of TDS 8.0 in the TLS handshake.
const ALPN: &[u8] = b"tds/8.0";

/// The two ways of TLS over one certificate.
#[derive(Clone)]
pub(crate) struct Acceptors {
    pub(crate) inside: TlsAcceptor,
    pub(crate) strict: TlsAcceptor,
}

impl Acceptors {
    pub(crate) fn new(certificate: &Certificate) -> Result<Acceptors> {
        let (chain, key) = load(certificate)?;
        let inside = config(&[&version::TLS12], chain.clone(), key.clone_key())?;
        let mut strict = config(&[&version::TLS13, &version::TLS12], chain, key)?;
        strict.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Acceptors { inside: TlsAcceptor::from(Arc::new(inside)), strict: TlsAcceptor::from(Arc::new(strict)) })
    }
}

fn config(
    versions: &[&'static SupportedProtocolVersion],
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| Error::Certificate(error.to_string()))
}

fn load(certificate: &Certificate) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    match certificate {
        Certificate::SelfSigned => {
            let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
            let made = rcgen::generate_simple_self_signed(names).map_err(|error| Error::Certificate(error.to_string()))?;
            let key = PrivateKeyDer::try_from(made.signing_key.serialize_der());
            Ok((vec![made.cert.der().clone()], key.map_err(|error| Error::Certificate(error.to_owned()))?))
        }
        Certificate::Pem { chain, key } => {
            let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
            match (chain, key) {
                (Ok(chain), Ok(key)) => Ok((chain, key)),
                (Err(error), _) | (_, Err(error)) => Err(Error::Certificate(error.to_string())),
            }
        }
    }
}

/// A stream that wraps what is written in prelogin packets, and unwraps what is read, until the handshake is over; after that it passes bytes on.
pub(crate) struct Prelogged<S> {
    stream: S,
    handshaking: bool,
    header: [u8; HEADER_BYTES],
    header_read: usize,
    payload_left: usize,
    /// Written in the handshake and not yet sent, behind room for a header.
    pending: Vec<u8>,
    sent: usize,
    framed: bool,
}

impl<S> Prelogged<S> {
    pub(crate) fn new(stream: S, handshaking: bool) -> Self {
        Prelogged {
            stream,
            handshaking,
            header: [0; HEADER_BYTES],
            header_read: 0,
            payload_left: 0,
            pending: vec![0; HEADER_BYTES],
            sent: 0,
            framed: false,
        }
    }

    pub(crate) fn end_handshake(&mut self) {
        self.handshaking = false;
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> Prelogged<S> {
    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        while self.header_read < HEADER_BYTES {
            let mut buffer = ReadBuf::new(&mut self.header[self.header_read..]);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            match buffer.filled().len() {
                0 => return Poll::Ready(Ok(false)),
                read => self.header_read += read,
            }
        }
        let [kind, _, high, low, ..] = self.header;
        match usize::from(u16::from_be_bytes([high, low])).checked_sub(HEADER_BYTES) {
            Some(length) if length > 0 && kind == kind::PRELOGIN => self.payload_left = length,
            _ => return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a broken packet in the TLS handshake"))),
        }
        Poll::Ready(Ok(true))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prelogged<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.handshaking && this.payload_left == 0 {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        }
        if this.payload_left == 0 && !ready!(this.poll_header(cx))? {
            return Poll::Ready(Ok(()));
        }
        let wanted = this.payload_left.min(buffer.remaining());
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(wanted));
        ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        this.payload_left -= read;
        if this.payload_left == 0 {
            this.header_read = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prelogged<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.handshaking {
            return Pin::new(&mut self.stream).poll_write(cx, bytes);
        }
        if self.framed {
            // The header before an earlier flight already says its length.
            ready!(self.as_mut().poll_flush(cx))?;
        }
        // A handshake's flight is a few kilobytes and is sent by the flush that follows it.
        self.pending.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.pending.len() > HEADER_BYTES {
            if !this.framed {
                let length = u16::try_from(this.pending.len()).map_err(|_| io::Error::other("a TLS flight above 64 KiB"))?;
                let [high, low] = length.to_be_bytes();
                this.pending[..HEADER_BYTES].copy_from_slice(&[kind::PRELOGIN, status::END_OF_MESSAGE, high, low, 0, 0, 0, 0]);
                this.framed = true;
            }
            while this.sent < this.pending.len() {
                match ready!(Pin::new(&mut this.stream).poll_write(cx, &this.pending[this.sent..]))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => this.sent += written,
                }
            }
            this.pending.truncate(HEADER_BYTES);
            this.sent = 0;
            this.framed = false;
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
