//! Requests to a cluster, and what its answers mean. Elasticsearch 7 and later and OpenSearch speak alike as far as this goes.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use serde_json::{Value, json};

use super::SearchConfig;
use super::bulk;
use crate::http::guard::Guard;
use crate::http::{Answer, Http};
use crate::{Error, tls};

const ANSWER_BYTES: usize = 64 << 20;
/// Only what is needed of an answer: it would be longer than the request.
const BULK: &str =
    "/_bulk?filter_path=errors,items.*.status,items.*.error.type,items.*.error.reason,items.*.error.caused_by.reason";

pub(super) struct Cluster {
    target: String,
    http: Http,
    base: String,
    authorization: Option<HeaderValue>,
}

/// What a `_bulk` request came to.
pub(super) enum Bulk {
    Fates(Vec<bulk::Fate>),
    /// The request is larger than the cluster takes.
    TooLarge(String),
}

impl Cluster {
    /// Reads URL, secrets and certificates as they are now.
    pub(super) fn open(config: &SearchConfig, target: &str) -> Result<Self, Error> {
        let wrong = |what: &str| Error::misconfigured(target, what, "Write https://host:9200");
        let url = config.url.resolve(target)?;
        let base = url.reveal().trim_end_matches('/').to_owned();
        let uri: Uri = base.parse().map_err(|_| wrong("its url is no URL"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(wrong("its url is neither of https nor of http"));
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(wrong("its url holds a user: name username and password beside it"));
        }
        let tls = tls::client_config(target, "ca_file", config.ca_file.as_deref())?;
        let http = Http::new(tls, Guard::Anywhere, Duration::from_millis(config.request_limit_ms));
        Ok(Self { target: target.to_owned(), http, base, authorization: authorization(config, target)? })
    }

    /// Makes a request; answers what came, whatever its status.
    async fn ask(&self, method: Method, path: &str, content: &'static str, body: String) -> Result<Answer, Error> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base)).header(CONTENT_TYPE, content);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Full::from(body)).map_err(|error| Error::unexpected(&self.target, error))?;
        let answer = self.http.send(request, ANSWER_BYTES).await.map_err(|failure| failure.into_error(&self.target))?;
        match answer.status {
            StatusCode::UNAUTHORIZED => {
                Err(Error::misconfigured(&self.target, answer.said(), "Check username and password, or the API key"))
            }
            StatusCode::FORBIDDEN => {
                let remedy = "Allow index, delete, create_index, view_index_metadata and read on the sink's indices";
                Err(Error::misconfigured(&self.target, answer.said(), remedy))
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                Err(Error::throttled(&self.target, answer.said(), answer.retry_after(SystemTime::now())))
            }
            status if status.is_server_error() => Err(Error::unavailable(&self.target, answer.said())),
            _ => Ok(answer),
        }
    }

    fn value(&self, answer: &Answer) -> Result<Value, Error> {
        if !answer.status.is_success() {
            return Err(Error::unexpected(&self.target, answer.said()));
        }
        serde_json::from_slice(&answer.body)
            .map_err(|error| Error::unexpected(&self.target, format!("its answer is not JSON: {error}")))
    }

    /// Name and version of what answers.
    pub(super) async fn about(&self) -> Result<String, Error> {
        let answer = self.value(&self.ask(Method::GET, "/", "application/json", String::new()).await?)?;
        let version = &answer["version"];
        let name = version["distribution"].as_str().unwrap_or("elasticsearch");
        match version["number"].as_str() {
            Some(number) => Ok(format!("{name} {number}")),
            None => Err(Error::misconfigured(&self.target, "what answers is no search cluster", "Correct the url")),
        }
    }

    /// Whether an index is there, with our mark in it.
    pub(super) async fn has_index(&self, index: &str, mark: &str) -> Result<bool, Error> {
        let answer = self.ask(Method::GET, &format!("/{index}/_mapping"), "application/json", String::new()).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        // By the name of each index that the name stands for: an alias, for example.
        let indices = self.value(&answer)?;
        let is_keyword = |index: &Value| index.pointer(mark).is_some_and(|found| found["type"] == "keyword");
        if indices.as_object().is_some_and(|indices| !indices.is_empty() && indices.values().all(is_keyword)) {
            return Ok(true);
        }
        let message = format!("the index {index} has another shape: Tributary has not made it");
        Err(Error::misconfigured(&self.target, message, "Set index_prefix, so that the sink makes its own"))
    }

    pub(super) async fn create_index(&self, index: &str, definition: &Value) -> Result<(), Error> {
        let answer = self.ask(Method::PUT, &format!("/{index}"), "application/json", definition.to_string()).await?;
        // Another instance may have made it since.
        if answer.status == StatusCode::BAD_REQUEST && answer.said().contains("resource_already_exists_exception") {
            return Ok(());
        }
        match answer.status {
            status if status.is_client_error() => {
                Err(Error::misconfigured(&self.target, answer.said(), format!("Mend it, or make the index {index} yourself")))
            }
            _ => self.value(&answer).map(drop),
        }
    }

    /// A document as the cluster keeps it, with the numbers that tell this state of it; none where there is no such document, or no such index.
    pub(super) async fn document(&self, path: &str) -> Result<Option<Value>, Error> {
        let answer = self.ask(Method::GET, path, "application/json", String::new()).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        self.value(&answer).map(Some)
    }

    /// Puts a document. Answers nothing where the condition in the path does not hold.
    pub(super) async fn put_document(&self, path: &str, document: &Value) -> Result<Option<Value>, Error> {
        let answer = self.ask(Method::PUT, path, "application/json", document.to_string()).await?;
        match answer.status {
            StatusCode::CONFLICT => Ok(None),
            // Nobody makes an index by naming it, if its owner forbids it.
            StatusCode::NOT_FOUND => Err(Error::misconfigured(
                &self.target,
                answer.said(),
                "Somebody has removed an index: it is made again, and loaded",
            )),
            _ => self.value(&answer).map(Some),
        }
    }

    pub(super) async fn delete_document(&self, path: &str) -> Result<(), Error> {
        let answer = self.ask(Method::DELETE, path, "application/json", String::new()).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(());
        }
        self.value(&answer).map(drop)
    }

    /// Carries out so many operations.
    pub(super) async fn bulk(&self, lines: String, operations: usize) -> Result<Bulk, Error> {
        let answer = self.ask(Method::POST, BULK, "application/x-ndjson", lines).await?;
        if answer.status == StatusCode::PAYLOAD_TOO_LARGE {
            return Ok(Bulk::TooLarge(answer.said()));
        }
        let value = self.value(&answer)?;
        let parsed: Result<bulk::Answer, _> = serde_json::from_value(value);
        let parsed = parsed.map_err(|error| Error::unexpected(&self.target, format!("its answer to _bulk: {error}")))?;
        let fates = parsed.fates(operations);
        fates.map(Bulk::Fates).ok_or_else(|| Error::unexpected(&self.target, "its answer to _bulk does not name each operation"))
    }

    /// Documents of an index whose version is older, behind a key, in the order of keys.
    pub(super) async fn older_than(
        &self,
        index: &str,
        version: &str,
        behind: Option<&str>,
        at_most: usize,
    ) -> Result<Vec<Found>, Error> {
        let refreshed = self.ask(Method::POST, &format!("/{index}/_refresh"), "application/json", String::new()).await?;
        self.value(&refreshed)?;
        let mut query = json!({
            "size": at_most,
            "_source": ["tributary.key"],
            "query": {"range": {"tributary.version": {"lt": version}}},
            "sort": [{"tributary.key": "asc"}],
        });
        if let Some(behind) = behind {
            query["search_after"] = json!([behind]);
        }
        let path = format!("/{index}/_search?allow_partial_search_results=false&filter_path=hits.hits._id,hits.hits._source");
        let found = self.value(&self.ask(Method::POST, &path, "application/json", query.to_string()).await?)?;
        let hits = found["hits"]["hits"].as_array().map_or(&[][..], Vec::as_slice);
        let found = |hit: &Value| {
            let (id, key) = (hit["_id"].as_str()?, hit["_source"]["tributary"]["key"].as_str()?);
            Some(Found { id: id.to_owned(), key: key.to_owned() })
        };
        Ok(hits.iter().filter_map(found).collect())
    }
}

/// A document that a search has found.
pub(super) struct Found {
    pub(super) id: String,
    pub(super) key: String,
}

fn authorization(config: &SearchConfig, target: &str) -> Result<Option<HeaderValue>, Error> {
    let text = match (&config.username, &config.password, &config.api_key) {
        (None, None, None) => return Ok(None),
        (Some(user), Some(password), None) => {
            let password = password.resolve(target)?;
            format!("Basic {}", STANDARD.encode(format!("{user}:{}", password.reveal())))
        }
        (None, None, Some(key)) => format!("ApiKey {}", key.resolve(target)?.reveal()),
        _ => {
            let remedy = "Name username and password, or api_key alone";
            return Err(Error::misconfigured(target, "its credentials are incomplete, or of two kinds", remedy));
        }
    };
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| Error::misconfigured(target, "its credentials hold what no header can", "Correct the secret"))?;
    value.set_sensitive(true);
    Ok(Some(value))
}
