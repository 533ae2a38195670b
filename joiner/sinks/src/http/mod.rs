//! HTTP towards targets: hyper with rustls, as everything else of the project is, with a limit on everything: the time of a request with its answer, the bytes of an answer, and, where it is asked for, the
//! networks that may be reached ([`guard`]).
//!
//! Redirects are not followed: an answer that names another place is handed over as it is.

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::RETRY_AFTER;
use hyper::{HeaderMap, Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use tokio_rustls::rustls::ClientConfig;

use crate::Error;

pub(crate) mod guard;

use guard::{Forbidden, Guard, Resolver};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Connections to one target that wait for their next request.
const IDLE_CONNECTIONS: usize = 64;
/// A target that asks for more is asked again all the same.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);
const IDLE_LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// How long the target asks to be left alone: seconds, or a date.
    pub(crate) fn retry_after(&self, now: SystemTime) -> Option<Duration> {
        let text = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        let asked = match text.parse() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => {
                let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
                SystemTime::from(date).duration_since(now).unwrap_or_default()
            }
        };
        Some(asked.min(LONGEST_RETRY_AFTER))
    }

    /// Status and the beginning of the body, for an error.
    pub(crate) fn said(&self) -> String {
        const CHARACTERS: usize = 300;
        let body = String::from_utf8_lossy(&self.body);
        let beginning: String = body.trim().chars().take(CHARACTERS).collect();
        if beginning.is_empty() { self.status.to_string() } else { format!("{}: {beginning}", self.status) }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Forbidden(Forbidden),
    #[error("no whole answer within {} ms", .0.as_millis())]
    Late(Duration),
    /// Not reached, or broken off: the request may have been carried out.
    #[error("{0}")]
    Broken(String),
}

impl Failure {
    pub(crate) fn into_error(self, target: &str) -> Error {
        match self {
            Self::Forbidden(forbidden) => forbidden.into_error(target),
            other => Error::unavailable(target, other),
        }
    }
}

pub(crate) struct Http {
    client: Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>,
    guard: Guard,
    limit: Duration,
}

impl Http {
    pub(crate) fn new(tls: ClientConfig, guard: Guard, limit: Duration) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(Resolver::new(guard.clone()));
        tcp.set_connect_timeout(Some(CONNECT_LIMIT));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_idle_timeout(IDLE_LIMIT)
            .pool_timer(hyper_util::rt::TokioTimer::new());
        Self { client: builder.build(connector), guard, limit }
    }

    /// Whether requests there are allowed, as its name resolves now.
    pub(crate) async fn look_up(&self, uri: &Uri) -> Result<(), Failure> {
        self.guard.check_literal(uri).map_err(Failure::Forbidden)?;
        let looked_up = tokio::time::timeout(self.limit, self.guard.look_up(guard::host_of(uri)));
        match looked_up.await {
            Err(_) => Err(Failure::Late(self.limit)),
            Ok(Err(guard::LookUp::Forbidden(forbidden))) => Err(Failure::Forbidden(forbidden)),
            Ok(Err(error)) => Err(Failure::Broken(error.to_string())),
            Ok(Ok(_)) => Ok(()),
        }
    }

    /// Makes a request. Of an answer that is longer than `answer_bytes` only the status is told where that says failure, and it counts as broken where it says success.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>, answer_bytes: usize) -> Result<Answer, Failure> {
        self.guard.check_literal(request.uri()).map_err(Failure::Forbidden)?;
        let answer = async {
            let (head, body) = self.client.request(request).await.map_err(|error| failed(&error))?.into_parts();
            let body = match Limited::new(body, answer_bytes).collect().await {
                Ok(body) => body.to_bytes(),
                Err(_) if !head.status.is_success() => Bytes::new(),
                Err(error) => return Err(Failure::Broken(error.to_string())),
            };
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        tokio::time::timeout(self.limit, answer).await.unwrap_or(Err(Failure::Late(self.limit)))
    }
}

fn failed(error: &hyper_util::client::legacy::Error) -> Failure {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(guard::LookUp::Forbidden(forbidden)) = inner.downcast_ref() {
            return Failure::Forbidden(forbidden.clone());
        }
        said = format!("{said}: {inner}");
        cause = inner.source();
    }
    Failure::Broken(said)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_pause_is_told_in_seconds_or_as_a_date() {
        let after = |value: &str, now| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            Answer { status: StatusCode::TOO_MANY_REQUESTS, headers, body: Bytes::new() }.retry_after(now)
        };
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(after("120", date), Some(Duration::from_secs(120)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT", date - Duration::from_secs(30)), Some(Duration::from_secs(30)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT", date + Duration::from_secs(30)), Some(Duration::ZERO));
        assert_eq!(after("99999999", date), Some(LONGEST_RETRY_AFTER));
        assert_eq!(after("soon", date), None);
    }
}
