//! The web page, and the small answers about this process.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use schemas::Vector;
use sinks::Reading;

use crate::entities::reflecting;
use crate::problem::Problem;
use crate::server::Shared;

const PAGE: &str = include_str!("page.html");
/// The page loads nothing, talks to this server only, and is framed by nobody.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const NEVER_STORED: HeaderValue = HeaderValue::from_static("no-store");

pub(crate) async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, PAGE).into_response()
}

/// The sink's frontier is named when it can be read; the status is answered either way.
pub(crate) async fn status(State(shared): State<Arc<Shared>>) -> Response {
    let (lsn, sources) = match shared.freshness.reached().await {
        Ok(reached) => (reached.frontier, reached.sources),
        Err(_) => (None, Vector::default()),
    };
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json")), (header::CACHE_CONTROL, NEVER_STORED)];
    reflecting(lsn, &sources, (headers, shared.parts.status.status().to_string()))
}

pub(crate) async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"))];
    (headers, (shared.parts.metrics)()).into_response()
}

/// The process answers.
pub(crate) async fn health() -> Response {
    ([(header::CONTENT_TYPE, TEXT), (header::CACHE_CONTROL, NEVER_STORED)], "ok\n").into_response()
}

/// Entities can be read, and the first load has ended.
pub(crate) async fn readiness(State(shared): State<Arc<Shared>>) -> Result<Response, Problem> {
    let Reading { frontier, sources, .. } = shared.freshness.reached().await?;
    match frontier {
        Some(_) => {
            let headers = [(header::CONTENT_TYPE, TEXT), (header::CACHE_CONTROL, NEVER_STORED)];
            Ok(reflecting(frontier, &sources, (headers, "ready\n")))
        }
        None => Err(Problem::TooEarly { wanted: "the end of the first load".to_owned(), have: None }),
    }
}
