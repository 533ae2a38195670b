//! A search cluster of our own, as far as the sink speaks with one: it follows the documentation of Elasticsearch and OpenSearch for indices, mappings, `_bulk` with external versions, refreshes and range queries, and fails
//! as it is told. Neither product runs here, so what they do beyond their documentation is not known to it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{AUTHORIZATION, RETRY_AFTER};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::serving::Served;

const BODY_BYTES: usize = 64 << 20;
/// Limit of a document's id.
const ID_BYTES: usize = 512;

/// What goes wrong.
#[derive(Debug, Clone, Default)]
pub struct SearchFaults {
    /// Of the operations of `_bulk`, each of so many is refused for lack of room; 0 for none.
    pub every_operation: u64,
    /// Requests of more bytes are refused.
    pub most_bytes: Option<usize>,
    /// The value of `Authorization` without which nothing is answered.
    pub authorization: Option<String>,
    /// Every request is refused because there are too many; the pause is the one that it asks for, in seconds.
    pub throttled: Option<Option<u64>>,
    /// Requests are carried out and not answered, until something else is set.
    pub unanswered: bool,
    /// Indices that may not be written to.
    pub forbidden_index: Option<String>,
}

struct Document {
    version: u64,
    /// Counts the operations of its index.
    sequence: u64,
    /// None of a deleted one, whose version is kept for a while.
    source: Option<Value>,
    since: Instant,
}

#[derive(Default)]
struct Index {
    mappings: Value,
    gc_deletes: Duration,
    documents: BTreeMap<String, Document>,
    operations: u64,
    /// What searches see: the state of the last refresh.
    searchable: BTreeMap<String, Value>,
}

#[derive(Default)]
struct Stand {
    indices: BTreeMap<String, Index>,
    faults: SearchFaults,
    operations: u64,
    bulks: u64,
}

/// What the requests share, and who waits for other faults.
#[derive(Default)]
struct Common {
    stand: Mutex<Stand>,
    changed: Notify,
}

type Shared = Arc<Common>;

/// Listens on a free port of the loopback interface, and ends with this value.
pub struct SearchStub {
    common: Shared,
    server: Served,
}

impl SearchStub {
    pub async fn start() -> Self {
        let common = Shared::default();
        let router = Router::new().fallback(answer).layer(DefaultBodyLimit::max(BODY_BYTES)).with_state(Arc::clone(&common));
        Self { common, server: Served::start(router).await }
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Its port refuses connections; what it holds stays.
    pub async fn down(&self) {
        self.server.down().await;
    }

    pub async fn up(&self) {
        self.server.up().await;
    }

    pub fn set_faults(&self, faults: SearchFaults) {
        self.common.stand.lock().expect("the stand").faults = faults;
        self.common.changed.notify_waiters();
    }

    /// The documents of an index as a GET of each would find them: by id, what was stored.
    pub fn documents(&self, index: &str) -> BTreeMap<String, Value> {
        let stand = self.common.stand.lock().expect("the stand");
        let documents = stand.indices.get(index).map(|index| &index.documents).into_iter().flatten();
        documents.filter_map(|(id, document)| Some((id.clone(), document.source.clone()?))).collect()
    }

    /// `_bulk` requests so far.
    pub fn bulks(&self) -> u64 {
        self.common.stand.lock().expect("the stand").bulks
    }

    /// Somebody removes an index.
    pub fn remove(&self, index: &str) {
        self.common.stand.lock().expect("the stand").indices.remove(index);
    }

    /// The mapping of an index.
    pub fn mappings(&self, index: &str) -> Value {
        self.common.stand.lock().expect("the stand").indices[index].mappings.clone()
    }
}

fn error(status: u16, kind: &str, reason: &str) -> (StatusCode, Value) {
    let body = json!({"error": {"type": kind, "reason": reason}, "status": status});
    (StatusCode::from_u16(status).expect("a status"), body)
}

async fn answer(State(common): State<Shared>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, BODY_BYTES).await.expect("the whole request");
    let text = String::from_utf8(body.to_vec()).expect("UTF-8");
    let answer = common.stand.lock().expect("the stand").receive(&head, &text);
    loop {
        let changed = common.changed.notified();
        if !common.stand.lock().expect("the stand").faults.unanswered {
            return answer;
        }
        changed.await;
    }
}

impl Stand {
    fn receive(&mut self, head: &Parts, text: &str) -> Response {
        let authorization = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let (status, body) = if let Some(pause) = self.faults.throttled {
            let (status, body) = error(429, "circuit_breaking_exception", "[parent] Data too large, by order of the test");
            let pause = pause.map(|seconds| [(RETRY_AFTER, seconds.to_string())]);
            return match pause {
                Some(pause) => (status, pause, body.to_string()).into_response(),
                None => (status, body.to_string()).into_response(),
            };
        } else if self.faults.authorization.is_some() && self.faults.authorization.as_deref() != authorization {
            error(401, "security_exception", "missing or wrong authentication credentials")
        } else if self.faults.most_bytes.is_some_and(|most| text.len() > most) {
            return StatusCode::PAYLOAD_TOO_LARGE.into_response();
        } else {
            let path: Vec<&str> = head.uri.path().trim_matches('/').split('/').collect();
            self.answer(&head.method, &path, head.uri.query().unwrap_or_default(), text)
        };
        (status, [("content-type", "application/json")], body.to_string()).into_response()
    }

    fn answer(&mut self, method: &Method, path: &[&str], query: &str, body: &str) -> (StatusCode, Value) {
        let good = |value| (StatusCode::OK, value);
        match (method.as_str(), path) {
            ("GET", [""]) => good(json!({"version": {"number": "8.15.0"}, "tagline": "You Know, for Search"})),
            ("POST", ["_bulk"]) => self.bulk(body),
            ("PUT", [index]) => self.create(index, body),
            (_, [index, rest @ ..]) => {
                let Some(found) = self.indices.get_mut(*index) else {
                    return error(404, "index_not_found_exception", &format!("no such index [{index}]"));
                };
                match (method.as_str(), rest) {
                    ("GET", ["_doc", id]) => match found.live(id) {
                        Some((document, source)) => good(json!({
                            "_index": index, "_id": id, "_seq_no": document.sequence, "_primary_term": 1, "found": true, "_source": source
                        })),
                        None => (StatusCode::NOT_FOUND, json!({"_index": index, "_id": id, "found": false})),
                    },
                    ("PUT", ["_create", id]) if found.live(id).is_none() => found.put(id, body),
                    ("PUT", ["_doc", id])
                        if found.live(id).is_some_and(|(document, _)| {
                            query == format!("if_seq_no={}&if_primary_term=1", document.sequence)
                        }) =>
                    {
                        found.put(id, body)
                    }
                    ("PUT", ["_create" | "_doc", _]) => {
                        error(409, "version_conflict_engine_exception", "another document is there")
                    }
                    ("DELETE", ["_doc", id]) if found.live(id).is_some() => {
                        found.documents.remove(*id);
                        good(json!({"result": "deleted"}))
                    }
                    ("DELETE", ["_doc", _]) => (StatusCode::NOT_FOUND, json!({"result": "not_found"})),
                    ("GET", ["_mapping"]) => good(json!({*index: {"mappings": found.mappings}})),
                    ("POST", ["_refresh"]) => {
                        let live = |(id, document): (&String, &Document)| Some((id.clone(), document.source.clone()?));
                        found.searchable = found.documents.iter().filter_map(live).collect();
                        good(json!({"_shards": {"total": 1, "successful": 1, "failed": 0}}))
                    }
                    ("POST", ["_search"]) => good(found.search(&serde_json::from_str(body).expect("a query"))),
                    _ => error(400, "illegal_argument_exception", "the stub does not know this"),
                }
            }
            _ => error(405, "illegal_argument_exception", "the stub does not know this"),
        }
    }

    fn create(&mut self, name: &str, body: &str) -> (StatusCode, Value) {
        if self.indices.contains_key(name) {
            return error(400, "resource_already_exists_exception", &format!("index [{name}] already exists"));
        }
        if name.to_lowercase() != name || name.starts_with(['_', '-', '+']) {
            return error(400, "invalid_index_name_exception", &format!("Invalid index name [{name}]"));
        }
        let definition: Value = serde_json::from_str(body).expect("a definition");
        let hours = definition["settings"]["index"]["gc_deletes"].as_str().and_then(|text| text.strip_suffix('h')?.parse().ok());
        // Without the setting it is a minute.
        let gc_deletes = hours.map_or(Duration::from_secs(60), |hours: u64| Duration::from_secs(hours * 3600));
        let index = Index { mappings: definition["mappings"].clone(), gc_deletes, ..Index::default() };
        self.indices.insert(name.to_owned(), index);
        (StatusCode::OK, json!({"acknowledged": true, "index": name}))
    }

    fn bulk(&mut self, body: &str) -> (StatusCode, Value) {
        self.bulks += 1;
        if !body.ends_with('\n') {
            return error(400, "illegal_argument_exception", "The bulk request must be terminated by a newline [\\n]");
        }
        let (mut items, mut lines) = (Vec::new(), body.lines());
        while let Some(line) = lines.next() {
            let Ok(action) = serde_json::from_str::<Value>(line) else {
                return error(400, "illegal_argument_exception", "Malformed action/metadata line");
            };
            let (name, about) = action.as_object().and_then(|action| action.iter().next()).expect("an action");
            if about["_id"].as_str().is_none_or(|id| id.is_empty() || id.len() > ID_BYTES) {
                return error(400, "action_request_validation_exception", "id is too long or empty");
            }
            let source = if name == "index" { lines.next() } else { None };
            items.push(json!({name: self.operate(name, about, source)}));
        }
        let errors =
            items.iter().any(|item| item.as_object().into_iter().flatten().any(|(_, result)| !result["error"].is_null()));
        (StatusCode::OK, json!({"took": 1, "errors": errors, "items": items}))
    }

    fn operate(&mut self, action: &str, about: &Value, source: Option<&str>) -> Value {
        let failed = |status: u16, kind: &str, reason: &str| json!({"status": status, "error": {"type": kind, "reason": reason}});
        let (index, id) = (about["_index"].as_str().unwrap_or_default(), about["_id"].as_str().unwrap_or_default());
        self.operations += 1;
        let every = self.faults.every_operation;
        if every > 0 && self.operations.is_multiple_of(every) {
            return failed(429, "es_rejected_execution_exception", "rejected execution, by order of the test");
        }
        if self.faults.forbidden_index.as_deref() == Some(index) {
            return failed(403, "security_exception", "action [indices:data/write/bulk] is unauthorized");
        }
        let Some(index) = self.indices.get_mut(index) else {
            return failed(404, "index_not_found_exception", "no such index");
        };
        let version = about["version"].as_u64().unwrap_or_default();
        let gc_deletes = index.gc_deletes;
        index.documents.retain(|_, document| document.source.is_some() || document.since.elapsed() < gc_deletes);
        let held = index.documents.get(id);
        // Only `external_gte` is asked for: what is not older is taken.
        let takes = about["version_type"] == "external_gte" && held.is_none_or(|held| version >= held.version);
        if !takes {
            return failed(409, "version_conflict_engine_exception", "current version is higher than the one provided");
        }
        let existed = held.is_some_and(|held| held.source.is_some());
        let source = match source.map(|source| index.parse(source)) {
            Some(Err(reason)) => return failed(400, "document_parsing_exception", &reason),
            Some(Ok(source)) => Some(source),
            None => None,
        };
        index.operations += 1;
        let sequence = index.operations;
        index.documents.insert(id.to_owned(), Document { version, sequence, source, since: Instant::now() });
        json!({"status": match (action, existed) { ("index", false) => 201, ("delete", false) => 404, _ => 200 }})
    }
}

impl Index {
    fn live(&self, id: &str) -> Option<(&Document, &Value)> {
        let document = self.documents.get(id)?;
        Some((document, document.source.as_ref()?))
    }

    /// A document whose version the index counts by itself.
    fn put(&mut self, id: &str, source: &str) -> (StatusCode, Value) {
        self.operations += 1;
        let version = self.documents.get(id).map_or(1, |document| document.version + 1);
        let source = serde_json::from_str(source).expect("a document");
        let document = Document { version, sequence: self.operations, source: Some(source), since: Instant::now() };
        self.documents.insert(id.to_owned(), document);
        (StatusCode::CREATED, json!({"_id": id, "_seq_no": self.operations, "_primary_term": 1}))
    }

    /// The document, if its fields are what the mapping says.
    fn parse(&self, source: &str) -> Result<Value, String> {
        let document: Value = serde_json::from_str(source).map_err(|error| format!("failed to parse: {error}"))?;
        let members = document.as_object().ok_or("not an object")?;
        for (name, value) in members {
            let is_number = value.is_number() || value.as_str().is_some_and(|text| text.parse::<f64>().is_ok());
            let kind = self.mappings["properties"][name]["type"].as_str();
            if matches!(kind, Some("long" | "double")) && !value.is_null() && !is_number {
                return Err(format!("failed to parse field [{name}] of type [{}]", kind.unwrap_or_default()));
            }
        }
        Ok(document)
    }

    fn search(&self, query: &Value) -> Value {
        let (path, below) = query["query"]["range"].as_object().and_then(|range| range.iter().next()).expect("a range");
        let below = below["lt"].as_str().expect("an upper end");
        let pointer = format!("/{}", path.replace('.', "/"));
        let matches = |source: &Value| source.pointer(&pointer).and_then(Value::as_str).is_some_and(|text| text < below);
        let size = query["size"].as_u64().unwrap_or(10) as usize;
        let (key, behind) =
            (|source: &Value| source["tributary"]["key"].as_str().map(str::to_owned), query["search_after"][0].as_str());
        assert_eq!(query["sort"], json!([{"tributary.key": "asc"}]));
        let mut found: Vec<(Option<String>, &String)> =
            self.searchable.iter().filter(|(_, source)| matches(source)).map(|(id, source)| (key(source), id)).collect();
        found.retain(|(key, _)| behind.is_none_or(|behind| key.as_deref() > Some(behind)));
        found.sort_unstable();
        let hit = |(key, id): &(Option<String>, &String)| json!({"_id": id, "_source": {"tributary": {"key": key}}});
        json!({"hits": {"hits": found.iter().take(size).map(hit).collect::<Vec<_>>()}})
    }
}
