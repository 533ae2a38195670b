//! `tributary status`: asks a running process how it is.

use std::process::ExitCode;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::cli::StatusArgs;

/// A status is small: more than this is not one.
const LIMIT: usize = 16 << 20;

pub(crate) async fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let url = format!("{}/v1/status", args.url.trim_end_matches('/'));
    let mut request = hyper::Request::get(&url).header("accept", "application/json");
    if let Some(name) = &args.token_env {
        let token = std::env::var(name).with_context(|| format!("the environment variable {name} (--token-env) is not set"))?;
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Empty::<Bytes>::new()).with_context(|| format!("{url} is not a URL"))?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let response = client
        .request(request)
        .await
        .with_context(|| format!("{url} does not answer. Is `tributary run` running there? --url names another address"))?;
    let status = response.status();
    let body =
        http_body_util::Limited::new(response.into_body(), LIMIT).collect().await.map_err(|error| anyhow::anyhow!(error))?;
    let body = body.to_bytes();
    if status.as_u16() == 401 {
        bail!("{url} wants its bearer token: put it into an environment variable and name that with --token-env");
    }
    if !status.is_success() {
        bail!("{url} answered {status}: {}", String::from_utf8_lossy(&body));
    }
    let value: Value = serde_json::from_slice(&body).with_context(|| format!("{url} did not answer with JSON"))?;
    println!("{}", serde_json::to_string_pretty(&value)?);
    Ok(if has_failed(&value) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Whether some part says of itself that it has stopped for an error.
fn has_failed(status: &Value) -> bool {
    let failed = |part: &Value| part["phase"] == "failed" || part["state"] == "failed";
    failed(&status["source"])
        || failed(&status["joiner"])
        || status["sinks"].as_array().is_some_and(|sinks| sinks.iter().any(failed))
}
