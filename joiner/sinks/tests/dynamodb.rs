//! Keys, indexes, types and large documents in DynamoDB, as ministack has it; not tested against AWS.

#![allow(clippy::unwrap_used)]

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use objects::{Config, ObjectPath, Objects, S3Options};
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::table::SqlType;
use schemas::{ErrorClass, Lsn};
use serde_json::{Value, json};
use sinks::Sink;
use sinks::dynamodb::{DecimalForm, DynamodbConfig, DynamodbSink, IndexConfig};
use sinks::test_support::Ministack;

fn line_item() -> EntityInfo {
    let properties = json!({
        "total": {"type": "string", "format": "decimal"}, "photo": {"type": "string", "format": "base64"},
        "product": {"anyOf": [{"type": "object", "properties": {"sku": {"type": "string"}}}, {"type": "null"}]},
    });
    let key = vec![("order_id".to_owned(), SqlType::Int), ("line".to_owned(), SqlType::Int)];
    EntityInfo { name: "line-item".into(), key, document_schema: json!({"type": "object", "properties": properties}) }
}

fn change(key: &str, version: u8, document: Option<&Value>) -> EntityChange {
    EntityChange {
        entity: "line-item".into(),
        key: EntityKey::from_text(key),
        version: Lsn::from_bytes([version; 10]),
        commit_time_ms: 0,
        document: document.map(|document| document.to_string().into()),
    }
}

fn by_sku() -> IndexConfig {
    IndexConfig { name: "by_sku".into(), partition: "product.sku".into(), sort: Some("total".into()) }
}

async fn query(client: &Client, index: Option<&str>, name: &str, value: &str) -> Vec<String> {
    let query = client
        .query()
        .table_name("entities")
        .set_index_name(index.map(Into::into))
        .key_condition_expression("#name = :value")
        .expression_attribute_names("#name", name)
        .expression_attribute_values(":value", AttributeValue::S(value.to_owned()));
    let items = query.send().await.unwrap().items.unwrap();
    items.iter().filter(|item| !item.contains_key("deleted")).map(|item| item["key"].as_s().unwrap().clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_a_key_and_members_are_queried_in_their_order() {
    let stack = Ministack::start();
    let sdk = stack.sdk_config().await;
    let config = DynamodbConfig {
        sort_key_attribute: Some("sk".into()),
        indexes: vec![by_sku()],
        decimals: DecimalForm::Number,
        ..DynamodbConfig::new("entities")
    };
    let mut sink = DynamodbSink::with_sdk_config(config.clone(), &sdk);
    assert!(sink.check(&[line_item()]).await.unwrap().detail.contains("not there yet"));
    sink.prepare(&[line_item()]).await.unwrap();
    let line = |sku: &str, total: &str| json!({"product": {"sku": sku}, "total": total, "photo": "AP8="});
    let changes = [
        change("7,10", 1, Some(&line("a", "9.50"))),
        change("7,9", 1, Some(&line("a", "10.00"))),
        change("7,-1", 1, Some(&json!({"product": null, "total": "1.00"}))),
        change("8,1", 1, Some(&line("a", "2"))),
    ];
    assert_eq!(sink.write(&changes, None).await.unwrap(), []);
    let client = Client::new(&sdk);
    assert_eq!(query(&client, None, "pk", "line-item#7").await, ["7,-1", "7,9", "7,10"]);
    assert_eq!(query(&client, Some("by_sku"), "product.sku", "a").await, ["8,1", "7,10", "7,9"], "decimals sort by value");
    sink.write(&[change("7,9", 2, None)], None).await.unwrap();
    assert_eq!(query(&client, Some("by_sku"), "product.sku", "a").await, ["8,1", "7,10"]);
    let get = client.get_item().table_name("entities").key("pk", AttributeValue::S("line-item#7".into()));
    let item = get.key("sk", AttributeValue::S("00000000000000000010".into())).send().await.unwrap().item.unwrap();
    let document = item["document"].as_m().unwrap();
    assert_eq!(document["photo"].as_b().unwrap().as_ref(), [0, 255]);
    assert_eq!(document["total"].as_n().unwrap().parse::<f64>().unwrap(), 9.5);

    let rejected = sink.write(&[change("9,1", 1, Some(&json!({"product": {"sku": "s".repeat(2049)}})))], None).await.unwrap();
    assert!(rejected[0].reason.contains("product.sku") && rejected[0].reason.contains("2049"), "{}", rejected[0].reason);
    let other = DynamodbConfig { sort_key_attribute: Some("other".into()), ..config };
    let error = DynamodbSink::with_sdk_config(other, &sdk).prepare(&[line_item()]).await.unwrap_err();
    assert!(error.class() == ErrorClass::Misconfigured && error.to_string().contains("sk RANGE S"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_added_to_a_table_that_is_there_and_one_of_another_kind_is_told() {
    let stack = Ministack::start();
    let sdk = stack.sdk_config().await;
    let plain = DynamodbConfig::new("entities");
    let mut sink = DynamodbSink::with_sdk_config(plain.clone(), &sdk);
    sink.prepare(&[line_item()]).await.unwrap();
    let mut sink = DynamodbSink::with_sdk_config(DynamodbConfig { indexes: vec![by_sku()], ..plain.clone() }, &sdk);
    assert!(sink.check(&[line_item()]).await.unwrap().warnings[0].contains("by_sku"));
    sink.prepare(&[line_item()]).await.unwrap();
    sink.write(&[change("1,1", 1, Some(&json!({"product": {"sku": "a"}, "total": "1"})))], None).await.unwrap();
    assert_eq!(query(&Client::new(&sdk), Some("by_sku"), "product.sku", "a").await, ["1,1"]);

    let other = IndexConfig { sort: None, ..by_sku() };
    let mut sink = DynamodbSink::with_sdk_config(DynamodbConfig { indexes: vec![other], ..plain.clone() }, &sdk);
    let error = sink.prepare(&[line_item()]).await.unwrap_err();
    assert!(error.class() == ErrorClass::Misconfigured && error.to_string().contains("by_sku"), "{error}");
    let nowhere = IndexConfig { partition: "product.name".into(), ..by_sku() };
    let mut sink = DynamodbSink::with_sdk_config(DynamodbConfig { indexes: vec![nowhere], ..plain }, &sdk);
    let error = sink.prepare(&[line_item()]).await.unwrap_err();
    assert!(error.class() == ErrorClass::Misconfigured && error.to_string().contains("product.name"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_documents_are_objects_that_items_point_to() {
    let stack = Ministack::start();
    stack.create_bucket("documents").await;
    let sdk = stack.sdk_config().await;
    let store = Config::S3(S3Options {
        bucket: "documents".into(),
        prefix: String::new(),
        region: None,
        endpoint: Some(stack.endpoint_url()),
        stand_in_credentials: true,
    });
    let large = |n: u32| json!({"n": n, "text": "x".repeat(500_000)});
    let mut sink = DynamodbSink::with_sdk_config(DynamodbConfig::new("entities"), &sdk);
    sink.prepare(&[line_item()]).await.unwrap();
    let rejected = sink.write(&[change("1,1", 1, Some(&large(1)))], None).await.unwrap();
    assert!(rejected[0].reason.contains("409600"), "{}", rejected[0].reason);

    let config = DynamodbConfig { oversize: Some(store.clone()), ..DynamodbConfig::new("entities") };
    let mut sink = DynamodbSink::with_sdk_config(config, &sdk);
    sink.prepare(&[line_item()]).await.unwrap();
    let objects = Objects::open(&store).await.unwrap();
    let listed = async || objects.list(&ObjectPath::parse("line-item").unwrap()).await.unwrap();
    let item = async || {
        let get = Client::new(&sdk).get_item().table_name("entities").key("pk", AttributeValue::S("line-item#1,1".into()));
        get.send().await.unwrap().item.unwrap()
    };
    for version in 1..=3u8 {
        // Twice: a batch that is handed over again takes nothing away.
        for _ in 0..2 {
            let rejected = sink.write(&[change("1,1", version, Some(&large(version.into())))], None).await.unwrap();
            assert_eq!(rejected, []);
        }
        let at = item().await["document_at"].as_s().unwrap().clone();
        let document = objects.get(&ObjectPath::parse(&at).unwrap()).await.unwrap().unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&document).unwrap(), large(version.into()));
        assert_eq!(listed().await.len(), 1, "those of earlier versions are removed");
    }
    sink.write(&[change("1,1", 2, Some(&large(2)))], None).await.unwrap();
    let at = item().await["document_at"].as_s().unwrap().clone();
    assert!(objects.get(&ObjectPath::parse(&at).unwrap()).await.unwrap().is_some(), "a stale write touches nothing newer");
    sink.write(&[change("1,1", 4, Some(&json!({"n": 4})))], None).await.unwrap();
    let held = item().await;
    assert!(held.contains_key("document") && !held.contains_key("document_at"));
    assert!(listed().await.iter().all(|object| !object.path.as_ref().contains(&at)));
}
