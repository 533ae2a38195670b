//! A small client of a running process's API.

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::cli::ApiArgs;

/// An answer is small: more than this is not one.
const LIMIT: usize = 16 << 20;

/// Asks, and returns the status and the JSON of the answer.
pub(super) async fn ask(api: &ApiArgs, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<(StatusCode, Value)> {
    let url = format!("{}{path}", api.url.trim_end_matches('/'));
    let mut request = hyper::Request::builder().method(method).uri(&url).header("accept", "application/json");
    if let Some(name) = &api.token_env {
        let token = std::env::var(name).with_context(|| format!("the environment variable {name} (--token-env) is not set"))?;
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let bytes = Bytes::from(body.map(Value::to_string).unwrap_or_default());
    let request = request.body(Full::new(bytes)).with_context(|| format!("{url} is not a URL"))?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let response = client
        .request(request)
        .await
        .with_context(|| format!("{url} does not answer. Is `tributary run` running there? --url names another address"))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LIMIT).collect().await.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    if status == StatusCode::UNAUTHORIZED {
        bail!("{url} wants its bearer token: put it into an environment variable and name that with --token-env");
    }
    let value = serde_json::from_slice(&body).with_context(|| {
        format!("{url} answered {status}, and not with JSON: {}", String::from_utf8_lossy(&body[..body.len().min(300)]))
    })?;
    Ok((status, value))
}

/// As [`ask`], and anything but success is an error with what the problem says.
pub(super) async fn get(api: &ApiArgs, path: &str) -> anyhow::Result<Value> {
    match ask(api, Method::GET, path, None).await? {
        (status, value) if status.is_success() => Ok(value),
        (status, value) => Err(refused(status, &value)),
    }
}

/// What a problem says.
pub(super) fn refused(status: StatusCode, problem: &Value) -> anyhow::Error {
    match (problem["title"].as_str(), problem["detail"].as_str()) {
        (Some(title), Some(detail)) => anyhow::anyhow!("{title} ({}): {detail}", status.as_u16()),
        _ => anyhow::anyhow!("the API answered {status}: {problem}"),
    }
}
