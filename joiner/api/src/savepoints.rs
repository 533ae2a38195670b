//! `POST /v1/savepoints`: has a checkpoint of the joiner's state made now, under a name. The body is JSON, `{"name": "before-migration"}`, for the reason that stands in [`crate::snapshots`]; the answer comes when the savepoint is there.

use std::sync::Arc;

use async_trait::async_trait;
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::Deserialize;
use serde_json::Value;

use crate::problem::Problem;
use crate::server::Shared;
use crate::snapshots::json_body;

/// Why there is no savepoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SavepointRefusal {
    #[error("{0}")]
    BadName(String),
    #[error("{0}")]
    Exists(String),
    #[error("{0}")]
    Failed(String),
}

/// The checkpoints of the joiner beside the API.
#[async_trait]
pub trait Savepoints: Send + Sync {
    /// Makes one; answers what it holds, as an object.
    async fn create(&self, name: String) -> Result<Value, SavepointRefusal>;
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    name: String,
}

pub(crate) async fn create(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Result<Json<Value>, Problem> {
    let Some(savepoints) = &shared.parts.savepoints else {
        let detail = "No checkpoints are made in this process: ask the one in which the joiner runs, and give its configuration a `checkpoints` section.";
        return Err(Problem::NotHere { detail: detail.to_owned() });
    };
    let Body { name } = json_body(&headers, &body)?;
    savepoints.create(name).await.map(Json).map_err(|refusal| match refusal {
        SavepointRefusal::BadName(detail) => Problem::parameter("name", detail),
        SavepointRefusal::Exists(detail) => Problem::Conflict { detail },
        SavepointRefusal::Failed(detail) => Problem::Unavailable { detail },
    })
}
