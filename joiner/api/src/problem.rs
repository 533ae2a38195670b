//! Everything that a request can be told instead of its answer, as RFC 9457 problem details. This is the one place where a status is chosen.

use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// When to come back after a 503.
const RETRY_AFTER_SECONDS: &str = "1";

#[derive(Debug)]
pub(crate) enum Problem {
    /// 404: no such kind of entity.
    UnknownEntity { entity: String, known: Vec<String> },
    /// 404: no such entity, or it is gone.
    NoSuchKey { entity: String, key: String, lsn: Option<String> },
    /// 404: no such path.
    NoSuchPath { path: String },
    /// 404: no such source.
    UnknownSource { source: String, known: String },
    /// 404: no such table of the source.
    UnknownTable { detail: String },
    /// 405.
    MethodNotAllowed,
    /// 409: not now.
    Conflict { detail: String },
    /// 415.
    NotJson,
    /// 400: a parameter that is not known, or not right.
    BadParameter { name: String, detail: String },
    /// 401.
    Unauthorized,
    /// 403: called by a name that is not ours.
    WrongHost { host: String },
    /// 410: changes after the resume token are no longer kept.
    Trimmed { detail: String },
    /// 501: this process cannot answer that.
    NotHere { detail: String },
    /// 503: what the client must see is not there yet.
    TooEarly { wanted: String, have: Option<String> },
    /// 503: the store does not answer.
    Unavailable { detail: String },
    /// 503: as many subscriptions as there may be.
    TooManySubscriptions,
    /// 500.
    Internal { detail: String },
}

impl Problem {
    pub(crate) fn parameter(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::BadParameter { name: name.into(), detail: detail.into() }
    }

    /// What a sink's error is to a client. The message names the store, and no secret.
    pub(crate) fn from_sink(error: &sinks::Error) -> Self {
        tracing::warn!(%error, "a query failed");
        match error.class() {
            schemas::ErrorClass::Transient => Self::Unavailable { detail: error.to_string() },
            _ => Self::Internal { detail: "the store of entities cannot be read; the log says why".to_owned() },
        }
    }

    fn parts(&self) -> (StatusCode, &'static str, &'static str, String) {
        match self {
            Self::UnknownEntity { entity, known } => {
                let detail = format!("There is no entity {entity:?}; there are: {}.", known.join(", "));
                (StatusCode::NOT_FOUND, "unknown-entity", "No such kind of entity", detail)
            }
            Self::NoSuchKey { entity, key, lsn } => {
                let as_of = lsn.as_ref().map(|lsn| format!(" as of LSN {lsn}")).unwrap_or_default();
                (StatusCode::NOT_FOUND, "no-such-key", "No such entity", format!("There is no {entity} with key {key:?}{as_of}."))
            }
            Self::NoSuchPath { path } => (
                StatusCode::NOT_FOUND,
                "no-such-path",
                "No such path",
                format!("{path} is nothing here; /openapi.json lists what is."),
            ),
            Self::UnknownSource { source, known } => {
                let detail = format!("There is no source {source:?}; the source is {known:?}.");
                (StatusCode::NOT_FOUND, "unknown-source", "No such source", detail)
            }
            Self::UnknownTable { detail } => (StatusCode::NOT_FOUND, "unknown-table", "No such table", detail.clone()),
            Self::Conflict { detail } => (StatusCode::CONFLICT, "conflict", "Not now", detail.clone()),
            Self::NotJson => {
                let detail = "Send JSON, with the header Content-Type: application/json.".to_owned();
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", "JSON is expected", detail)
            }
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "Only GET",
                "Entities are read here; they change at their source.".to_owned(),
            ),
            Self::BadParameter { name, detail } => {
                (StatusCode::BAD_REQUEST, "bad-parameter", "A parameter is not right", format!("{name}: {detail}"))
            }
            Self::Unauthorized => {
                let detail = "Send the header Authorization: Bearer with the token of this server.".to_owned();
                (StatusCode::UNAUTHORIZED, "unauthorized", "A token is needed", detail)
            }
            Self::WrongHost { host } => {
                let detail = format!(
                    "This server does not answer to {host:?}; list the name under api.hosts, or give the server a token."
                );
                (StatusCode::FORBIDDEN, "wrong-host", "Called by another name", detail)
            }
            Self::Trimmed { detail } => (StatusCode::GONE, "trimmed", "No longer kept", detail.clone()),
            Self::NotHere { detail } => (StatusCode::NOT_IMPLEMENTED, "not-here", "Not answered by this process", detail.clone()),
            Self::TooEarly { wanted, have } => {
                let have = have.as_deref().unwrap_or("nothing yet");
                let detail = format!("Asked for {wanted}; reached so far: {have}. Try again.");
                (StatusCode::SERVICE_UNAVAILABLE, "too-early", "Not there yet", detail)
            }
            Self::Unavailable { detail } => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The store does not answer", detail.clone())
            }
            Self::TooManySubscriptions => {
                let detail = "As many subscriptions are open as there may be (api.subscription_limit).".to_owned();
                (StatusCode::SERVICE_UNAVAILABLE, "too-many-subscriptions", "Too many subscriptions", detail)
            }
            Self::Internal { detail } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something is wrong here", detail.clone())
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, kind, title, detail) = self.parts();
        let body =
            json!({"type": format!("urn:tributary:problem:{kind}"), "title": title, "status": status.as_u16(), "detail": detail});
        let mut response = (status, body.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
            _ => {}
        }
        if let Self::NoSuchKey { lsn: Some(lsn), .. } = &self
            && let Ok(value) = HeaderValue::from_str(lsn)
        {
            headers.insert("tributary-lsn", value);
        }
        response
    }
}

pub(crate) async fn not_found(uri: Uri) -> Problem {
    Problem::NoSuchPath { path: uri.path().to_owned() }
}

pub(crate) async fn method_not_allowed() -> Problem {
    Problem::MethodNotAllowed
}
