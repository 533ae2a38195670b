//! Who may ask.
//!
//! With a token, every request needs it, but for probes and the page. It is compared in a time that does not depend on how much of it is right, and it is never logged.
//! Without a token the server is on loopback, and what may reach it there is this machine, and any web page in this machine's browser: such a page cannot read what another
//! origin answers (there are no CORS headers), unless its own name is made to point to 127.0.0.1. Hence the check of `Host`.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sinks::Secret;
use subtle::ConstantTimeEq;

use crate::problem::Problem;

const OPEN_PATHS: [&str; 3] = ["/", "/healthz", "/readyz"];

pub(crate) struct Guard {
    token: Option<Secret>,
    hosts: Vec<String>,
}

impl Guard {
    pub(crate) fn new(token: Option<Secret>, hosts: &[String]) -> Self {
        Self { token, hosts: hosts.to_vec() }
    }

    fn admits(&self, path: &str, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(token) = &self.token else { return self.check_host(headers) };
        if OPEN_PATHS.contains(&path) {
            return Ok(());
        }
        let sent = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let sent = match sent.split_at_checked(7) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => token,
            _ => b"",
        };
        if bool::from(sent.ct_eq(token.reveal().as_bytes())) { Ok(()) } else { Err(Problem::Unauthorized) }
    }

    fn check_host(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return Ok(()) };
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        let known = bare.eq_ignore_ascii_case("localhost")
            || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            || self.hosts.iter().any(|host| host.eq_ignore_ascii_case(name));
        if known { Ok(()) } else { Err(Problem::WrongHost { host: name.to_owned() }) }
    }
}

pub(crate) async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    match guard.admits(request.uri().path(), request.headers()) {
        Ok(()) => {
            let mut response = next.run(request).await;
            response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            response
        }
        Err(problem) => problem.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn only_the_whole_token_is_let_in() {
        let guard = Guard::new(Some(Secret::new("s3cret")), &[]);
        for (value, admitted) in [
            ("Bearer s3cret", true),
            ("bearer s3cret", true),
            ("Bearer s3cre", false),
            ("Bearer s3cret1", false),
            ("s3cret", false),
        ] {
            assert_eq!(guard.admits("/v1/status", &headers(header::AUTHORIZATION, value)).is_ok(), admitted, "{value}");
        }
        assert!(guard.admits("/metrics", &HeaderMap::new()).is_err());
        assert!(guard.admits("/healthz", &HeaderMap::new()).is_ok());
    }

    #[test]
    fn without_a_token_only_our_own_names_are_answered_to() {
        let guard = Guard::new(None, &["tributary.internal".to_owned()]);
        for (value, admitted) in [
            ("localhost:8080", true),
            ("127.0.0.1", true),
            ("[::1]:80", true),
            ("tributary.internal", true),
            ("evil.example:8080", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(guard.admits("/v1/status", &headers(header::HOST, value)).is_ok(), admitted, "{value}");
        }
    }
}
