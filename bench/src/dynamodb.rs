//! [dynamodb-vs-raw]: documents into DynamoDB's stand-in by the sink, beside the AWS client alone making the same conditional puts with as many under way. Both take turns at one stand-in, each
//! with a table of its own; it is the stand-in that limits both, so the ratio says what the sink costs beside, and the rate says nothing about DynamoDB.

use std::time::Instant;

use anyhow::ensure;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use schemas::Lsn;
use schemas::change::{EntityChange, EntityKey};
use sinks::Sink as _;
use sinks::dynamodb::{DocumentForm, DynamodbConfig, DynamodbSink};
use sinks::test_support::Ministack;

use crate::results::Figure;

const ITEMS: u32 = 4000;
const BATCH: usize = 1000;
const RUNS: usize = 3;
const PEER: &str = "the AWS client, the same puts";

fn changes() -> Vec<EntityChange> {
    let document = |n: u32| format!(r#"{{"id":{n},"text":"{}"}}"#, "document ".repeat(80));
    let change = |n: u32| EntityChange {
        entity: "order".into(),
        key: EntityKey::from_text(n.to_string()),
        version: Lsn::MAX,
        commit_time_ms: 1,
        document: Some(document(n).into()),
    };
    (0..ITEMS).map(change).collect()
}

pub(crate) async fn figure() -> anyhow::Result<Figure> {
    let stack = Ministack::start();
    let sdk = stack.sdk_config().await;
    let changes = changes();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        // JSON text on both sides: what is made of a document is the sink's own affair.
        let config = |table: String| DynamodbConfig { document: DocumentForm::Json, ..DynamodbConfig::new(table) };
        let mut sink = DynamodbSink::with_sdk_config(config(format!("ours-{run}")), &sdk);
        sink.prepare(&[]).await?;
        let start = Instant::now();
        for batch in changes.chunks(BATCH) {
            ensure!(sink.write(batch, None).await?.is_empty(), "an item was rejected");
        }
        ours.push(start.elapsed().as_secs_f64());
        let raw = config(format!("raw-{run}"));
        DynamodbSink::with_sdk_config(raw.clone(), &sdk).prepare(&[]).await?;
        let client = Client::new(&sdk);
        let start = Instant::now();
        for batch in changes.chunks(BATCH) {
            let puts = stream::iter(batch.to_vec()).map(|change| put(&client, &raw.table, change));
            puts.buffer_unordered(raw.in_flight).try_collect::<()>().await?;
        }
        theirs.push(start.elapsed().as_secs_f64());
    }
    let rate = |mut seconds: Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        f64::from(ITEMS) / seconds[RUNS / 2]
    };
    Ok(Figure::rate("dynamodb-vs-raw", "items/s", rate(ours), PEER, Some(rate(theirs))))
}

async fn put(client: &Client, table: &str, change: EntityChange) -> anyhow::Result<()> {
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let version = AttributeValue::S(change.version.to_string());
    client
        .put_item()
        .table_name(table)
        .item("pk", AttributeValue::S(format!("{}#{}", change.entity, change.key)))
        .item("entity", text(&change.entity))
        .item("key", text(change.key.as_str()))
        .item("version", version.clone())
        .item("commit_time_ms", AttributeValue::N(change.commit_time_ms.to_string()))
        .item("document", text(change.document.as_deref().unwrap_or_default()))
        .condition_expression("attribute_not_exists(#version) OR #version <= :version")
        .expression_attribute_names("#version", "version")
        .expression_attribute_values(":version", version)
        .send()
        .await?;
    Ok(())
}
