//! Dead letters of the joiner that runs beside the API: `GET /v1/dead-letters`, `POST /v1/dead-letters/retry`, `POST /v1/dead-letters/drop`.
//!
//! Which letters are meant is told by `id`, by `sink`, or by nothing where all are listed; to retry or drop all of them, `{"all": true}` has to be said.
//! The two requests that change something are JSON, for the reason that stands in [`crate::snapshots`].

use std::sync::Arc;

use async_trait::async_trait;
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::FeedError;
use crate::parameters::Parameters;
use crate::problem::Problem;
use crate::server::Shared;
use crate::snapshots::json_body;

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 10_000;

/// Which letters are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhichLetters {
    Id(String),
    /// All of one sink.
    Sink(String),
    All,
}

/// The dead letters of the joiner beside the API.
#[async_trait]
pub trait DeadLetters: Send + Sync {
    /// At most `limit` of them, each an object with its `id`.
    async fn list(&self, which: WhichLetters, limit: usize) -> Result<Vec<Value>, FeedError>;
    /// Has the entities of refused changes written again, as they stand when their turn comes. Answers what it has taken on, as an object.
    async fn retry(&self, which: WhichLetters) -> Result<Value, FeedError>;
    /// Forgets them; answers how many.
    async fn remove(&self, which: WhichLetters) -> Result<u64, FeedError>;
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    sink: Option<String>,
    #[serde(default)]
    all: bool,
}

impl Body {
    fn which(self) -> Result<WhichLetters, Problem> {
        match (self.id, self.sink, self.all) {
            (Some(id), None, false) => Ok(WhichLetters::Id(id)),
            (None, Some(sink), false) => Ok(WhichLetters::Sink(sink)),
            (None, None, true) => Ok(WhichLetters::All),
            _ => Err(Problem::parameter("body", "names exactly one of `id`, `sink` and `all: true`")),
        }
    }
}

pub(crate) async fn list(State(shared): State<Arc<Shared>>, Parameters(parameters): Parameters) -> Result<Json<Value>, Problem> {
    let letters = letters(&shared)?;
    let (mut which, mut limit) = (WhichLetters::All, LIMIT_DEFAULT);
    for (name, value) in parameters {
        match name.as_str() {
            "id" => which = WhichLetters::Id(value),
            "sink" => which = WhichLetters::Sink(value),
            "limit" => {
                let wanted = value.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
                limit = wanted.ok_or_else(|| Problem::parameter("limit", format!("is a number from 1 to {LIMIT_MAX}")))?;
            }
            _ => return Err(Problem::parameter(name, "there are id, sink and limit")),
        }
    }
    Ok(Json(json!({"items": letters.list(which, limit).await.map_err(unavailable)?})))
}

pub(crate) async fn retry(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Result<Json<Value>, Problem> {
    let letters = letters(&shared)?;
    let which = json_body::<Body>(&headers, &body)?.which()?;
    letters.retry(which).await.map(Json).map_err(unavailable)
}

pub(crate) async fn remove(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Result<Json<Value>, Problem> {
    let letters = letters(&shared)?;
    let which = json_body::<Body>(&headers, &body)?.which()?;
    Ok(Json(json!({"dropped": letters.remove(which).await.map_err(unavailable)?})))
}

fn letters(shared: &Shared) -> Result<&Arc<dyn DeadLetters>, Problem> {
    let detail = || "The joiner does not run in this process: ask the one in which it does.".to_owned();
    shared.parts.dead_letters.as_ref().ok_or_else(|| Problem::NotHere { detail: detail() })
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn unavailable(error: FeedError) -> Problem {
    Problem::Unavailable { detail: error.to_string() }
}
