//! `POST /v1/sources/{source}/snapshots`: has a table, or a range of its keys, read again while everything goes on.
//!
//! The body is JSON, `{"table": "dbo.orders", "from": [17], "to": [20]}`; `from` and `to` are the first and the last key, each an array of the key's columns in their order (a single
//! value stands for an array of one), and may be left out. The answer is 202 with the generation under which the table is read; how far that is stands in the status.
//!
//! This, savepoints, and what is done with dead letters, are the only requests that change anything. Without a token, what keeps a web page elsewhere from sending them through this machine's browser is the content type: a browser
//! asks first whether it may send JSON to another origin, and nothing here says that it may. So any other content type is refused, as is a name that is not ours
//! ([`crate::guard`]).

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemas::TableName;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::problem::Problem;
use crate::server::Shared;

/// A body is small: more than this is not one.
const BODY_LIMIT: usize = 64 << 10;

/// A table that is to be read again. Keys are as a person writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRequest {
    pub table: TableName,
    pub from: Option<Vec<String>>,
    pub to: Option<Vec<String>>,
}

/// Why it was not begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotRefusal {
    #[error("{0}")]
    NoSuchTable(String),
    /// The keys cannot be keys of the table.
    #[error("{0}")]
    BadKey(String),
    /// Not now: it may be taken later.
    #[error("{0}")]
    Busy(String),
    #[error("{0}")]
    Failed(String),
}

/// An importer that runs beside the API, as far as it can be asked for something.
#[async_trait]
pub trait Snapshots: Send + Sync {
    /// The source's name, as it stands in the path.
    fn source(&self) -> &str;

    /// Has the table read again. Answers the generation once the request has been taken on durably; asking again before it has ended is refused as busy.
    async fn begin(&self, request: SnapshotRequest) -> Result<u64, SnapshotRefusal>;
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    table: TableName,
    #[serde(default)]
    from: Option<Value>,
    #[serde(default)]
    to: Option<Value>,
}

pub(crate) async fn begin(
    State(shared): State<Arc<Shared>>,
    Path(source): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let all = &shared.parts.snapshots;
    if all.is_empty() {
        let detail = "The importer does not run in this process: ask the one in which it does.".to_owned();
        return Err(Problem::NotHere { detail });
    }
    let Some(snapshots) = all.iter().find(|snapshots| source == snapshots.source()) else {
        let known = all.iter().map(|snapshots| snapshots.source()).collect::<Vec<_>>().join(", ");
        return Err(Problem::UnknownSource { source, known });
    };
    let body: Body = json_body(&headers, &body)?;
    let request = SnapshotRequest { from: key("from", body.from)?, to: key("to", body.to)?, table: body.table.clone() };
    let generation = snapshots.begin(request).await.map_err(Problem::from)?;
    let answer = json!({"source": source, "table": body.table, "generation": generation});
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((StatusCode::ACCEPTED, headers, answer.to_string()).into_response())
}

/// A body that says of itself that it is JSON, and is.
pub(crate) fn json_body<T: DeserializeOwned>(headers: &HeaderMap, body: &Bytes) -> Result<T, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        return Err(Problem::NotJson);
    }
    if body.len() > BODY_LIMIT {
        return Err(Problem::parameter("body", format!("is larger than {BODY_LIMIT} bytes")));
    }
    serde_json::from_slice(body).map_err(|error| Problem::parameter("body", error.to_string()))
}

/// The text of each column of a key.
fn key(member: &str, value: Option<Value>) -> Result<Option<Vec<String>>, Problem> {
    let part = |value: Value| match value {
        Value::String(text) => Ok(text),
        value @ (Value::Number(_) | Value::Bool(_)) => Ok(value.to_string()),
        _ => Err(Problem::parameter(member, "a key's columns are strings, numbers or booleans")),
    };
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(parts)) if parts.is_empty() => Err(Problem::parameter(member, "names no column: leave it out")),
        Some(Value::Array(parts)) => parts.into_iter().map(part).collect::<Result<_, _>>().map(Some),
        Some(one) => Ok(Some(vec![part(one)?])),
    }
}

impl From<SnapshotRefusal> for Problem {
    fn from(refusal: SnapshotRefusal) -> Self {
        match refusal {
            SnapshotRefusal::NoSuchTable(detail) => Self::UnknownTable { detail },
            SnapshotRefusal::BadKey(detail) => Self::BadParameter { name: "key".to_owned(), detail },
            SnapshotRefusal::Busy(detail) => Self::Conflict { detail },
            SnapshotRefusal::Failed(detail) => Self::Unavailable { detail },
        }
    }
}
