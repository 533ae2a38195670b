//! Entities by key and in pages.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use schemas::entity::EntityInfo;
use schemas::{Lsn, Vector};
use serde_json::{Value, json};
use sinks::{Filter, Operator, Query, Reading, StoredEntity};

use crate::freshness::Wanted;
use crate::parameters::Parameters;
use crate::problem::Problem;
use crate::server::Shared;
use crate::{cursor, keys};

const LIMIT_DEFAULT: usize = 50;
pub(crate) const LIMIT_MAX: usize = 1_000;
const FILTERS_MAX: usize = 20;
pub(crate) const LSN_HEADER: HeaderName = HeaderName::from_static("tributary-lsn");
const SOURCES_HEADER: HeaderName = HeaderName::from_static("tributary-sources");
const VERSION_HEADER: HeaderName = HeaderName::from_static("tributary-version");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// The browser asks again each time, and mostly hears 304.
const REVALIDATE: HeaderValue = HeaderValue::from_static("no-cache");
const OPERATORS: [(&str, Operator); 6] = [
    ("eq", Operator::Eq),
    ("neq", Operator::Neq),
    ("gt", Operator::Gt),
    ("gte", Operator::Gte),
    ("lt", Operator::Lt),
    ("lte", Operator::Lte),
];

/// `GET /v1/entities`.
pub(crate) async fn kinds(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<Response, Problem> {
    shared.freshness.wait(&Wanted::from_headers(&headers)?).await?;
    let Reading { frontier: lsn, sources, .. } = shared.freshness.reached().await?;
    let kinds: Vec<Value> = shared
        .parts
        .entities
        .iter()
        .map(|entity| {
            let key: Vec<Value> = entity.key.iter().map(|(name, kind)| json!({"name": name, "type": kind.to_string()})).collect();
            json!({"name": &*entity.name, "key": key, "href": format!("/v1/entities/{}", entity.name)})
        })
        .collect();
    let mut body = json!({"lsn": lsn, "entities": kinds});
    if !sources.is_empty() {
        body["sources"] = json!(sources);
    }
    Ok(reflecting(lsn, &sources, ([(header::CONTENT_TYPE, JSON)], body.to_string())))
}

/// `GET /v1/entities/{entity}/{key}`: the document itself; the LSNs are in the headers.
pub(crate) async fn document(
    State(shared): State<Arc<Shared>>,
    uri: Uri,
    Parameters(parameters): Parameters,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    // Not the router's decoded segments: a comma that was encoded is part of a key's part, see `keys`.
    let (entity, segment) = segments(&uri);
    let info = find(&shared, &entity)?;
    let mut wanted = Wanted::from_headers(&headers)?;
    for (name, value) in &parameters {
        if !wanted.parameter(name, value)? {
            return Err(Problem::parameter(name, "is not known here; known are: min_lsn, min_time"));
        }
    }
    let missing = |lsn: Option<Lsn>| Problem::NoSuchKey {
        entity: entity.clone(),
        key: keys::decode(segment).unwrap_or_else(|| segment.to_owned()),
        lsn: lsn.map(|lsn| lsn.to_string()),
    };
    let key = keys::from_segment(segment, info.key.len()).and_then(|key| (shared.parts.normalize_key)(&info.name, &key));
    let key = key.ok_or_else(|| missing(None))?;
    shared.freshness.wait(&wanted).await?;
    let reading = shared.freshness.limited(shared.parts.reader.get_with_frontier(&info.name, &key)).await?;
    let Some(stored) = reading.value else { return Err(missing(reading.frontier)) };
    let version = stored.version.to_string();
    let etag = format!("\"{version}\"");
    let known = headers.get_all(header::IF_NONE_MATCH).iter().any(|value| value.to_str().is_ok_and(|list| matches(list, &etag)));
    let mut response = reflecting(
        reading.frontier,
        &reading.sources,
        ([(header::CONTENT_TYPE, JSON), (header::CACHE_CONTROL, REVALIDATE)], stored.document),
    );
    for (name, text) in [(header::ETAG, &etag), (VERSION_HEADER, &version)] {
        insert(&mut response, name, text);
    }
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.body_mut() = axum::body::Body::empty();
        response.headers_mut().remove(header::CONTENT_TYPE);
    }
    Ok(response)
}

/// `GET /v1/entities/{entity}`: `{"lsn", "items": [{"key", "version", "document"}], "next": cursor or null}`; of several sources with a member `sources`.
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    uri: Uri,
    Parameters(parameters): Parameters,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (entity, _) = segments(&uri);
    let info = find(&shared, &entity)?;
    let asked = Asked::parse(info, &parameters, Wanted::from_headers(&headers)?)?;
    let question = cursor::question(&entity, &asked.filters);
    let after = match &asked.cursor {
        Some(text) => Some(cursor::decode(question, text).map_err(|detail| Problem::parameter("cursor", detail))?),
        None => None,
    };
    shared.freshness.wait(&asked.wanted).await?;
    // One more than asked for tells whether there is a next page.
    let query = Query { entity: entity.clone(), filters: asked.filters, after, limit: asked.limit + 1 };
    let mut reading = shared.freshness.limited(shared.parts.reader.list_with_frontier(&query)).await?;
    let items = &mut reading.value;
    let next = (items.len() > asked.limit).then(|| {
        items.truncate(asked.limit);
        items.last().map(|last| cursor::encode(question, &last.key))
    });
    let body = page(&reading, next.flatten().as_deref());
    Ok(reflecting(
        reading.frontier,
        &reading.sources,
        ([(header::CONTENT_TYPE, JSON), (header::CACHE_CONTROL, REVALIDATE)], body),
    ))
}

/// What stands after `/v1/entities/`: the entity's name, and the raw rest.
fn segments(uri: &Uri) -> (String, &str) {
    let path = uri.path().strip_prefix("/v1/entities/").unwrap_or_default();
    let (entity, key) = path.split_once('/').unwrap_or((path, ""));
    (keys::decode(entity).unwrap_or_else(|| entity.to_owned()), key)
}

/// Documents are JSON text already, and are put in as they are.
fn page(reading: &Reading<Vec<StoredEntity>>, next: Option<&str>) -> String {
    let mut body = format!("{{\"lsn\":{}", json!(reading.frontier));
    if !reading.sources.is_empty() {
        body.push_str(&format!(",\"sources\":{}", json!(reading.sources)));
    }
    body.push_str(",\"items\":[");
    for (index, item) in reading.value.iter().enumerate() {
        let separator = if index == 0 { "" } else { "," };
        let (key, version) = (json!(item.key.as_str()), json!(item.version));
        body.push_str(&format!("{separator}{{\"key\":{key},\"version\":{version},\"document\":"));
        body.push_str(&item.document);
        body.push('}');
    }
    body.push_str(&format!("],\"next\":{}}}", json!(next)));
    body
}

/// The parameters of a list.
struct Asked {
    filters: Vec<Filter>,
    cursor: Option<String>,
    limit: usize,
    wanted: Wanted,
}

impl Asked {
    fn parse(info: &EntityInfo, parameters: &[(String, String)], wanted: Wanted) -> Result<Self, Problem> {
        let mut asked = Self { filters: Vec::new(), cursor: None, limit: LIMIT_DEFAULT, wanted };
        for (name, value) in parameters {
            match name.as_str() {
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
                    asked.limit =
                        limit.ok_or_else(|| Problem::parameter(name, format!("expected a number from 1 to {LIMIT_MAX}")))?;
                }
                "cursor" => asked.cursor = Some(value.clone()),
                _ if asked.wanted.parameter(name, value)? => {}
                _ => asked.filters.push(filter(info, name, value)?),
            }
        }
        if asked.filters.len() > FILTERS_MAX {
            return Err(Problem::parameter("filters", format!("more than {FILTERS_MAX}")));
        }
        Ok(asked)
    }
}

fn filter(info: &EntityInfo, name: &str, value: &str) -> Result<Filter, Problem> {
    let path: Vec<String> = name.split('.').map(str::to_owned).collect();
    check_path(info, name, &path)?;
    let known = || OPERATORS.map(|(name, _)| name).join(", ");
    let (operator, operand) = value
        .split_once('.')
        .ok_or_else(|| Problem::parameter(name, format!("expected operator.value, with one of {}", known())))?;
    let found = OPERATORS.iter().find(|(name, _)| *name == operator);
    let (_, operator) =
        found.ok_or_else(|| Problem::parameter(name, format!("unknown operator {operator:?}; known are: {}", known())))?;
    if operand.contains('\0') {
        return Err(Problem::parameter(name, "a NUL character matches nothing"));
    }
    Ok(Filter { path, operator: *operator, value: operand.to_owned() })
}

/// A filter names members of the document, as its schema has them; arrays have no names to go on with.
fn check_path(info: &EntityInfo, name: &str, path: &[String]) -> Result<(), Problem> {
    let mut schema = &info.document_schema;
    for step in path {
        let Some(members) = schema.get("properties").and_then(Value::as_object) else {
            return Err(Problem::parameter(name, format!("{step:?} is inside of something that is not an object")));
        };
        schema = members.get(step).ok_or_else(|| {
            let names: Vec<&str> = members.keys().map(String::as_str).collect();
            let detail = format!(
                "is neither a parameter (limit, cursor, min_lsn, min_time) nor a member of {}; members are: {}",
                info.name,
                names.join(", ")
            );
            Problem::parameter(name, detail)
        })?;
    }
    if schema.get("properties").is_some() || schema.get("items").is_some() {
        return Err(Problem::parameter(
            name,
            "is an object or an array; name one of its members, and of an array none can be named",
        ));
    }
    Ok(())
}

pub(crate) fn find<'a>(shared: &'a Shared, entity: &str) -> Result<&'a EntityInfo, Problem> {
    let entities = &shared.parts.entities;
    entities.iter().find(|info| &*info.name == entity).ok_or_else(|| Problem::UnknownEntity {
        entity: entity.to_owned(),
        known: entities.iter().map(|info| info.name.to_string()).collect(),
    })
}

/// Whether a list of entity tags holds ours; `*` holds any. Weak comparison, as RFC 9110 has it for If-None-Match.
fn matches(list: &str, etag: &str) -> bool {
    list.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// An answer, with what it reflects.
pub(crate) fn reflecting(lsn: Option<Lsn>, sources: &Vector, response: impl IntoResponse) -> Response {
    let mut response = response.into_response();
    if let Some(lsn) = lsn {
        insert(&mut response, LSN_HEADER, &lsn.to_string());
    }
    if !sources.is_empty() {
        insert(&mut response, SOURCES_HEADER, &sources.to_string());
    }
    response
}

/// LSNs, tags of them and names of sources are ASCII, so that this cannot fail.
fn insert(response: &mut Response, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        response.headers_mut().insert(name, value);
    }
}
