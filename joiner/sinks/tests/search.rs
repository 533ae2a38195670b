//! The search sink against our stub of a cluster: what fails by item, by request and by configuration. Neither Elasticsearch nor OpenSearch runs here.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::table::SqlType;
use schemas::{ErrorClass, Lsn};
use serde_json::{Value, json};
use sinks::search::{SearchConfig, SearchSink};
use sinks::test_support::{SearchFaults, SearchStub};
use sinks::{SecretReference, Sink};

fn entities() -> Vec<EntityInfo> {
    let document_schema =
        json!({"type": "object", "properties": {"n": {"type": "integer"}, "total": {"type": "string", "format": "decimal"}}});
    vec![EntityInfo { name: Arc::from("order"), key: vec![("n".to_owned(), SqlType::Int)], document_schema }]
}

fn change(key: u32, version: u8, document: Option<&Value>) -> EntityChange {
    EntityChange {
        entity: "order".into(),
        key: EntityKey::from_text(key.to_string()),
        version: Lsn::from_bytes([0, 0, 0, 1, 0, 0, 0, version, 0, 1]),
        commit_time_ms: 1_700_000_000_000,
        document: document.map(|document| document.to_string().into()),
    }
}

fn orders(keys: std::ops::Range<u32>) -> Vec<EntityChange> {
    keys.map(|key| change(key, 1, Some(&json!({"n": key, "total": "12.50"})))).collect()
}

async fn prepared(config: SearchConfig) -> SearchSink {
    let mut sink = SearchSink::new(config);
    sink.prepare(&entities()).await.unwrap();
    sink
}

#[tokio::test]
async fn a_document_can_be_searched_by_its_members_and_says_what_it_reflects() {
    let stub = SearchStub::start().await;
    let mut sink = prepared(SearchConfig::new(stub.url())).await;
    sink.write(&orders(1..2), None).await.unwrap();
    let document = &stub.documents("order")["1"];
    assert_eq!((&document["n"], &document["total"]), (&json!(1), &json!("12.50")));
    let about =
        json!({"entity": "order", "key": "1", "version": "00000001:00000001:0001", "commit_time": "2023-11-14T22:13:20Z"});
    assert_eq!(document["tributary"], about);
    let mappings = stub.mappings("order");
    assert_eq!((&mappings["properties"]["total"]["type"], &mappings["date_detection"]), (&json!("double"), &json!(false)));
}

#[tokio::test]
async fn operations_without_room_are_tried_again_and_only_those() {
    let stub = SearchStub::start().await;
    let mut sink = prepared(SearchConfig::new(stub.url())).await;
    stub.set_faults(SearchFaults { every_operation: 7, ..SearchFaults::default() });
    assert_eq!(sink.write(&orders(0..100), None).await.unwrap(), []);
    assert_eq!(stub.documents("order").len(), 100);
    assert!(stub.bulks() > 1);
    stub.set_faults(SearchFaults { every_operation: 1, ..SearchFaults::default() });
    let error = sink.write(&orders(0..1), Some(Lsn::ZERO)).await.unwrap_err();
    assert!(matches!(error, sinks::Error::Throttled { .. }) && error.to_string().contains("by order of the test"), "{error}");
    assert!(stub.documents("tributary_frontier")["frontier"]["lsn"].is_null(), "the frontier waits for its documents");
}

#[tokio::test]
async fn a_document_that_the_mapping_refuses_is_a_dead_letter_and_the_rest_is_written() {
    let stub = SearchStub::start().await;
    let mut sink = prepared(SearchConfig::new(stub.url())).await;
    let mut changes = orders(0..20);
    changes[7].document = Some(r#"{"n": "seven"}"#.into());
    // Under this LSN no version can be told.
    changes[8].version = Lsn::MAX;
    let mut rejected = sink.write(&changes, None).await.unwrap();
    rejected.sort_by(|a, b| a.change.key.cmp(&b.change.key));
    assert_eq!(rejected.iter().map(|rejected| rejected.change.key.as_str()).collect::<Vec<_>>(), ["7", "8"]);
    assert!(rejected[0].reason.contains("failed to parse field [n]"), "{}", rejected[0].reason);
    assert!(rejected[1].reason.contains("lsn_block_bits"), "{}", rejected[1].reason);
    assert_eq!(stub.documents("order").len(), 18);
}

#[tokio::test]
async fn a_request_that_is_too_large_is_halved_and_a_document_that_is_too_large_is_a_dead_letter() {
    let stub = SearchStub::start().await;
    let mut sink = prepared(SearchConfig::new(stub.url())).await;
    stub.set_faults(SearchFaults { most_bytes: Some(2000), ..SearchFaults::default() });
    let mut changes = orders(0..50);
    changes[20] = change(20, 1, Some(&json!({"n": 20, "text": "x".repeat(3000)})));
    let rejected = sink.write(&changes, None).await.unwrap();
    assert_eq!(rejected.len(), 1);
    assert!(rejected[0].reason.contains("413") && rejected[0].change.key.as_str() == "20", "{rejected:?}");
    assert_eq!(stub.documents("order").len(), 49);
}

#[tokio::test]
async fn a_load_takes_away_more_than_one_page_of_what_has_vanished() {
    let stub = SearchStub::start().await;
    let mut sink = prepared(SearchConfig::new(stub.url())).await;
    sink.write(&orders(0..2500), None).await.unwrap();
    sink.begin_load().await.unwrap();
    sink.write(&[change(1, 9, Some(&json!({"n": 1})))], None).await.unwrap();
    sink.end_load("order", change(1, 9, None).version).await.unwrap();
    assert_eq!(stub.documents("order").keys().collect::<Vec<_>>(), ["1"]);
    // What vanished does not come back by something older.
    sink.write(&[change(2, 8, Some(&json!({"n": 2})))], None).await.unwrap();
    assert_eq!(stub.documents("order").len(), 1);
}

#[tokio::test]
async fn what_is_set_up_wrongly_is_told() {
    let stub = SearchStub::start().await;
    let looked = SearchSink::new(SearchConfig::new(stub.url())).check(&entities()).await.unwrap();
    assert!(
        looked.detail.contains("elasticsearch 8.15.0") && looked.detail.contains("order, tributary_frontier will be made"),
        "{looked:?}"
    );
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    std::fs::write(&path, "hunter2").unwrap();
    let config = SearchConfig {
        username: Some("u".to_owned()),
        password: Some(SecretReference::File(path.clone())),
        ..SearchConfig::new(stub.url())
    };
    // The base64 of u:hunter2.
    stub.set_faults(SearchFaults { authorization: Some("Basic dTpodW50ZXIy".to_owned()), ..SearchFaults::default() });
    let mut sink = prepared(config).await;
    std::fs::write(&path, "rotated").unwrap();
    stub.set_faults(SearchFaults { authorization: Some("Basic dTpyb3RhdGVk".to_owned()), ..SearchFaults::default() });
    let error = sink.write(&orders(0..1), None).await.unwrap_err();
    assert!(error.class() == ErrorClass::Misconfigured && !error.to_string().contains("hunter2"), "{error}");
    sink.prepare(&entities()).await.unwrap();
    assert_eq!(sink.write(&orders(0..1), None).await.unwrap(), []);

    stub.set_faults(SearchFaults { forbidden_index: Some("order".to_owned()), ..SearchFaults::default() });
    let error = prepared(SearchConfig::new(stub.url())).await.write(&orders(1..2), None).await.unwrap_err();
    assert!(error.class() == ErrorClass::Misconfigured && error.to_string().contains("unauthorized"), "{error}");

    // An index that somebody else has made.
    stub.set_faults(SearchFaults::default());
    let mut foreign = entities();
    foreign[0].name = Arc::from("tributary_frontier");
    let error = SearchSink::new(SearchConfig::new(stub.url())).prepare(&foreign).await.unwrap_err();
    assert!(error.class() == ErrorClass::Misconfigured && error.to_string().contains("index_prefix"), "{error}");
}
