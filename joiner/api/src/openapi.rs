//! The OpenAPI 3.1 document, made from the entity definitions: each entity has its own paths, with its document's schema.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use schemas::entity::EntityInfo;
use serde_json::{Map, Value, json};

use crate::entities::LIMIT_MAX;
use crate::server::Shared;

pub(crate) async fn get(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], shared.openapi.clone()).into_response()
}

pub(crate) fn document(entities: &[EntityInfo]) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for entity in entities {
        let name = &*entity.name;
        schemas.insert(name.to_owned(), without_dialect(&entity.document_schema));
        paths.insert(format!("/v1/entities/{name}"), list(entity));
        paths.insert(format!("/v1/entities/{name}/{{key}}"), by_key(entity));
    }
    paths.extend(general());
    schemas.insert("Problem".to_owned(), problem_schema());
    let of_sources = json!({"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Lsn"}, "description": "Of several sources, the LSN of each, whose sum lsn is; left out of one source."});
    schemas.insert("Sources".to_owned(), of_sources);
    schemas.insert("Lsn".to_owned(), json!({"type": "string", "pattern": "^[0-9a-f]{8}:[0-9a-f]{8}:[0-9a-f]{4}$", "description": "A commit LSN of the source; of several sources, the sum of one of each."}));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tributary",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Entities joined from the tables of a SQL Server, or of several. Every answer names the LSN it reflects: each change at or below it is included.",
        },
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    })
}

/// OpenAPI 3.1 has one dialect for all schemas; `$schema` and `$id` inside of components only confuse tools.
fn without_dialect(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(members) = schema.as_object_mut() {
        members.remove("$schema");
        members.remove("$id");
    }
    schema
}

fn parameter(name: &str, place: &str, schema: &Value, description: &str) -> Value {
    json!({"name": name, "in": place, "required": place == "path", "schema": schema, "description": description})
}

fn freshness() -> [Value; 2] {
    let wait = "Wait until the answer includes everything";
    [
        parameter(
            "min_lsn",
            "query",
            &json!({"type": "string"}),
            &format!(
                "{wait} at or below this LSN, or of several sources at or below those of some of them (source=LSN;source=LSN); also as header tributary-min-lsn."
            ),
        ),
        parameter(
            "min_time",
            "query",
            &json!({"type": "string", "format": "date-time"}),
            &format!("{wait} committed by then; also as header tributary-min-time."),
        ),
    ]
}

fn problems(statuses: &[&str]) -> Map<String, Value> {
    let answer = |status: &&str| {
        let content = json!({"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}});
        ((*status).to_owned(), json!({"description": "Problem details (RFC 9457).", "content": content}))
    };
    statuses.iter().map(answer).collect()
}

fn lsn_header() -> Value {
    json!({
        "tributary-lsn": {"description": "Every change at or below this LSN is included.", "schema": {"$ref": "#/components/schemas/Lsn"}},
        "tributary-sources": {"description": "Of several sources, the LSN of each up to which every change is included: source=LSN;source=LSN.", "schema": {"type": "string"}},
    })
}

fn by_key(entity: &EntityInfo) -> Value {
    let name = &*entity.name;
    let parts: Vec<&str> = entity.key.iter().map(|(name, _)| name.as_str()).collect();
    let mut headers = lsn_header();
    headers["tributary-version"] =
        json!({"description": "The commit LSN that this document reflects.", "schema": {"$ref": "#/components/schemas/Lsn"}});
    headers["etag"] = json!({"description": "The version, for If-None-Match.", "schema": {"type": "string"}});
    let mut responses = problems(&["400", "401", "404", "503"]);
    let content = json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{name}")}}});
    responses.insert("200".to_owned(), json!({"description": "The document.", "headers": headers, "content": content}));
    responses.insert("304".to_owned(), json!({"description": "It still has the version that If-None-Match names."}));
    let key = parameter("key", "path", &json!({"type": "string"}), &format!("{}, joined by commas.", parts.join(", ")));
    let match_tag = parameter("If-None-Match", "header", &json!({"type": "string"}), "An ETag that is known already.");
    let parameters: Vec<Value> = [key, match_tag].into_iter().chain(freshness()).collect();
    json!({"get": {"operationId": format!("get_{name}"), "summary": format!("One {name}"), "tags": [name], "parameters": parameters, "responses": responses}})
}

fn list(entity: &EntityInfo) -> Value {
    let name = &*entity.name;
    let mut parameters = vec![
        parameter(
            "limit",
            "query",
            &json!({"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": 50}),
            "Items on a page.",
        ),
        parameter("cursor", "query", &json!({"type": "string"}), "The member next of the page before."),
    ];
    parameters.extend(freshness());
    filters(&entity.document_schema, "", &mut parameters);
    let item = json!({
        "type": "object",
        "required": ["key", "version", "document"],
        "properties": {
            "key": {"type": "string"},
            "version": {"$ref": "#/components/schemas/Lsn"},
            "document": {"$ref": format!("#/components/schemas/{name}")},
        },
    });
    let page = json!({
        "type": "object",
        "required": ["lsn", "items", "next"],
        "properties": {"lsn": {"oneOf": [{"$ref": "#/components/schemas/Lsn"}, {"type": "null"}]}, "sources": {"$ref": "#/components/schemas/Sources"}, "items": {"type": "array", "items": item}, "next": {"type": ["string", "null"]}},
    });
    let mut responses = problems(&["400", "401", "404", "503"]);
    let content = json!({"application/json": {"schema": page}});
    responses.insert(
        "200".to_owned(),
        json!({"description": "A page, in the order of the keys' text.", "headers": lsn_header(), "content": content}),
    );
    json!({"get": {"operationId": format!("list_{name}"), "summary": format!("A page of {name}"), "tags": [name], "parameters": parameters, "responses": responses}})
}

/// A filter for each member that is neither object nor array, by its path.
fn filters(schema: &Value, prefix: &str, parameters: &mut Vec<Value>) {
    for (name, member) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if member.get("properties").is_some() {
            filters(member, &path, parameters);
        } else if member.get("items").is_none() {
            let schema = json!({"type": "string", "pattern": "^(eq|neq|gt|gte|lt|lte)\\."});
            parameters.push(parameter(&path, "query", &schema, "A filter: operator.value, such as eq.OPEN."));
        }
    }
}

fn general() -> Map<String, Value> {
    let plain = |summary: &str, kind: &str, refused: &[&str]| {
        let mut responses = problems(refused);
        responses.insert("200".to_owned(), json!({"description": summary, "content": {kind: {}}}));
        json!({"get": {"summary": summary, "responses": responses}})
    };
    let mut changes = plain(
        "Entity changes and progress as server-sent events",
        "text/event-stream",
        &["400", "401", "404", "410", "501", "503"],
    );
    let text = json!({"type": "string"});
    changes["get"]["parameters"] = json!([
        parameter("entity", "query", &text, "This kind of entity only."),
        parameter("key", "query", &text, "This key only; needs entity."),
        parameter("from", "query", &json!({"type": "string", "default": "now"}), "now, oldest, or a resume token."),
        parameter("Last-Event-ID", "header", &text, "The id of the last event received: go on after it."),
    ]);
    Map::from_iter([
        ("/v1/sources/{source}/snapshots".to_owned(), snapshots()),
        ("/v1/dead-letters".to_owned(), dead_letters()),
        (
            "/v1/dead-letters/retry".to_owned(),
            letters_request("Has the entities of refused changes written again, as they stand then"),
        ),
        ("/v1/dead-letters/drop".to_owned(), letters_request("Forgets dead letters")),
        ("/v1/savepoints".to_owned(), savepoints()),
        ("/v1/entities".to_owned(), plain("The kinds of entities", "application/json", &["401", "503"])),
        ("/v1/changes".to_owned(), changes),
        ("/v1/status".to_owned(), plain("Lag, frontier and counts", "application/json", &["401"])),
        ("/metrics".to_owned(), plain("Metrics for Prometheus", "text/plain", &["401"])),
        ("/healthz".to_owned(), plain("The process answers", "text/plain", &[])),
        ("/readyz".to_owned(), plain("The first load has ended and entities can be read", "text/plain", &["503"])),
    ])
}

fn dead_letters() -> Value {
    let text = json!({"type": "string"});
    let parameters = [
        parameter("id", "query", &text, "This letter only."),
        parameter("sink", "query", &text, "Those of this sink only."),
        parameter(
            "limit",
            "query",
            &json!({"type": "integer", "minimum": 1, "maximum": 10_000, "default": 100}),
            "At most so many.",
        ),
    ];
    let mut responses = problems(&["400", "401", "501", "503"]);
    responses
        .insert("200".to_owned(), json!({"description": "What was set aside, and why.", "content": {"application/json": {}}}));
    json!({"get": {"operationId": "list_dead_letters", "summary": "Events and entity changes that were set aside", "parameters": parameters, "responses": responses}})
}

fn letters_request(summary: &str) -> Value {
    let one = |name: &str, schema: Value| json!({"type": "object", "required": [name], "properties": {name: schema}, "additionalProperties": false});
    let text = || json!({"type": "string"});
    let body = json!({"oneOf": [one("id", text()), one("sink", text()), one("all", json!({"const": true}))]});
    let mut responses = problems(&["400", "401", "415", "501", "503"]);
    responses.insert("200".to_owned(), json!({"description": "How many.", "content": {"application/json": {}}}));
    json!({"post": {"summary": summary, "responses": responses, "requestBody": {"required": true, "content": {"application/json": {"schema": body}}}}})
}

fn savepoints() -> Value {
    let body = json!({"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}, "additionalProperties": false});
    let mut responses = problems(&["400", "401", "409", "415", "501", "503"]);
    responses.insert("200".to_owned(), json!({"description": "It is there.", "content": {"application/json": {}}}));
    let summary = "Has a checkpoint of the joiner's state made, under a name";
    json!({"post": {
        "operationId": "create_savepoint", "summary": summary, "responses": responses,
        "requestBody": {"required": true, "content": {"application/json": {"schema": body}}},
    }})
}

fn snapshots() -> Value {
    let part = json!({"type": ["string", "number", "boolean"]});
    let key = json!({"oneOf": [part, {"type": "array", "items": part, "minItems": 1}, {"type": "null"}]});
    let table = json!({"type": "string", "examples": ["dbo.orders"]});
    let body = json!({"type": "object", "required": ["table"], "properties": {"table": table, "from": key, "to": key}, "additionalProperties": false});
    let answer = json!({"type": "object", "required": ["source", "table", "generation"], "properties": {"source": {"type": "string"}, "table": table, "generation": {"type": "integer"}}});
    let mut responses = problems(&["400", "401", "404", "409", "415", "501", "503"]);
    responses.insert("202".to_owned(), json!({"description": "It has begun; how far it is stands in the status.", "content": {"application/json": {"schema": answer}}}));
    let source = parameter("source", "path", &json!({"type": "string"}), "The source's name in the configuration.");
    let summary = "Has a table, or a range of its keys, read again beside the tail";
    json!({"post": {
        "operationId": "begin_snapshot", "summary": summary, "parameters": [source], "responses": responses,
        "requestBody": {"required": true, "content": {"application/json": {"schema": body}}},
    }})
}

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
        },
    })
}
