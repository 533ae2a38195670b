//! A small HTTP client for the API.

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// Status, headers and body.
pub async fn get(url: &str, headers: &[(&str, &str)]) -> Option<(u16, hyper::HeaderMap, String)> {
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut request = hyper::Request::get(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = client.request(request.body(Empty::new()).unwrap()).await.ok()?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    Some((parts.status.as_u16(), parts.headers, String::from_utf8_lossy(&body).into_owned()))
}

/// The JSON body of a 200; `None` for anything else.
pub async fn json(url: &str) -> Option<Value> {
    let (status, _, body) = get(url, &[]).await?;
    (status == 200).then(|| serde_json::from_str(&body).unwrap())
}

/// Reads server-sent events (the JSON of each `data:` that is a change) until `enough`, or until the stream is quiet for a second.
pub async fn events(url: &str, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let request = hyper::Request::get(url).header("accept", "text/event-stream").body(Empty::new()).unwrap();
    let mut body = client.request(request).await.unwrap().into_body();
    let (mut buffer, mut found) = (String::new(), Vec::new());
    while !enough(&found) {
        let Ok(Some(Ok(frame))) = tokio::time::timeout(std::time::Duration::from_secs(1), body.frame()).await else { break };
        let Ok(data) = frame.into_data() else { continue };
        buffer.push_str(&String::from_utf8_lossy(&data));
        while let Some(end) = buffer.find("\n\n") {
            let event: String = buffer.drain(..end + 2).collect();
            let name = event.lines().find_map(|line| line.strip_prefix("event:")).map_or("", str::trim);
            let data: String = event.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim_start).collect();
            if name != "progress" && !data.is_empty() {
                found.push(serde_json::from_str(&data).unwrap());
            }
        }
    }
    found
}
