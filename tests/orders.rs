//! TPC-H through the real binary: loaded into the stand-in, changed in random multi-table transactions while the pipeline runs, and equal in the end to the same join run in Postgres
//! over the same base tables.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use sinks::test_support::{Ministack, PostgresServer};
use streams::stub::Stub;
use streams::test_support::KinesisLocal;
use support::pipeline::{self, Pipeline};
use support::sqlserver::{SqlServer, capture};
use support::tpch_load::{Both, Changes, EXPECTED};
use support::wait_for;

const LIMIT: Duration = Duration::from_secs(180);

async fn expected(postgres: &tokio_postgres::Client) -> BTreeMap<String, Value> {
    let rows = postgres.query(EXPECTED, &[]).await.unwrap();
    rows.into_iter().map(|row| (row.get(0), serde_json::from_str(row.get(1)).unwrap())).collect()
}

/// An empty sum is compared as a number: Postgres and Tributary write it with different scales.
fn normal(document: &Value) -> Value {
    let mut document = document.clone();
    if document["item_count"] == 0 {
        document["items_total"] = Value::from(0);
    }
    document
}

/// Equal, entity by entity.
fn assert_equal(expected: &BTreeMap<String, Value>, actual: &BTreeMap<String, Value>) {
    for (key, document) in expected {
        let other = actual.get(key).unwrap_or_else(|| panic!("order {key} is missing"));
        assert_eq!(normal(document), normal(other), "order {key}");
    }
    let extra: Vec<_> = actual.keys().filter(|key| !expected.contains_key(*key)).collect();
    assert!(extra.is_empty(), "should not be there: {extra:?}");
}

async fn connect(server: &PostgresServer) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

struct Setting {
    scale: f64,
    server: SqlServer,
    postgres: PostgresServer,
}

impl Setting {
    async fn load(&self) -> tokio_postgres::Client {
        let postgres = connect(&self.postgres).await;
        let mut client = self.server.client().await;
        let mut both = Both { sqlserver: &mut client, postgres: &postgres };
        both.load(self.scale).await;
        let tables: Vec<&str> = tpch::TABLES.iter().map(|table| table.name).collect();
        capture(&mut client, &tables).await;
        postgres
    }

    /// Random transactions, and a last one that marks the end: an order that is seen with this comment is seen with all before it.
    async fn change(&self, postgres: &tokio_postgres::Client, seed: u64, count: usize, mark: &str) {
        let mut client = self.server.client().await;
        let mut both = Both { sqlserver: &mut client, postgres };
        let mut changes = Changes::new(seed, self.scale);
        for _ in 0..count {
            both.transaction(&changes.next()).await;
        }
        let end = format!(
            "UPDATE dbo.customer SET c_name = '{mark}' WHERE c_custkey = 1; INSERT INTO dbo.orders VALUES ({}, 1, 'O', 1.00, '1998-05-06', '1-URGENT', 'Clerk#1', 0, '{mark}')",
            1_000_000 + seed
        );
        both.transaction(&[end]).await;
    }
}

fn end_key(seed: u64) -> String {
    (1_000_000 + seed).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_stream_to_sqlite_equals_the_join_in_postgres() {
    over_embedded(0.01, ["", ""]).await;
}

/// Avro, then in the same streams Protobuf in zstd frames; one table stays with JSON.
#[tokio::test(flavor = "multi_thread")]
async fn other_encodings_come_to_the_same_and_may_follow_one_another() {
    let json = "  per_table: {dbo.part: {encoding: debezium_json}}\n";
    let folder = over_embedded(
        0.002,
        [&format!("\n  encoding: avro\n{json}"), &format!("\n  encoding: protobuf\n  compression: zstd\n{json}")],
    )
    .await;
    for file in ["dbo.orders.avsc", "dbo.orders.proto", "dbo.orders.dict", "dbo.part.dict"] {
        assert!(folder.path().join("schemas/tables").join(file).is_file(), "{file}");
    }
    assert!(!folder.path().join("schemas/tables/dbo.part.avsc").exists());
}

/// The pipeline stopped and started again, with more settings of `streams` the first time and the second.
async fn over_embedded(scale: f64, streams: [&str; 2]) -> tempfile::TempDir {
    let setting = Setting { scale, server: SqlServer::given_or_start("tpch").await, postgres: PostgresServer::start() };
    let postgres = setting.load().await;
    let pipeline = Pipeline::init(&setting.server, &[("order", tpch::FULL_ORDER)]);
    let configure = |streams: &str| {
        let provider = format!("{{embedded: {{path: data/streams, sync: false}}}}{streams}");
        pipeline.configure(&setting.server, &provider, "  - {type: sqlite, path: data/entities.db}\n");
    };
    configure(streams[0]);
    let (mut process, url) = pipeline.run();
    // Half of the changes fall into the snapshot and the first load.
    setting.change(&postgres, 1, 300, "first").await;
    pipeline::wait_for_document(&url, "order", &end_key(1), LIMIT, |document| document["comment"] == "first").await;
    assert_equal(&expected(&postgres).await, &pipeline::entities(&url, "order").await);
    // The other half meets a pipeline that was stopped properly and started again.
    assert!(process.terminate().success(), "{}", process.log());
    setting.change(&postgres, 2, 300, "second").await;
    configure(streams[1]);
    let (mut process, url) = pipeline.run();
    pipeline::wait_for_document(&url, "order", &end_key(2), LIMIT, |document| document["comment"] == "second").await;
    assert_equal(&expected(&postgres).await, &pipeline::entities(&url, "order").await);
    assert!(process.terminate().success(), "{}", process.log());
    pipeline.folder
}

/// Topic and queue on ministack, the queue subscribed with raw delivery: the topic's ARN and the queue's URL.
async fn topic_and_queue(stack: &Ministack) -> (String, String) {
    let sns = aws_sdk_sns::Client::new(&stack.sdk_config().await);
    let topic = sns.create_topic().name("entities").send().await.unwrap().topic_arn.unwrap();
    let queue =
        stack.call("AmazonSQS.CreateQueue", &json!({"QueueName": "entities"})).await["QueueUrl"].as_str().unwrap().to_owned();
    let wanted = json!({"QueueUrl": queue, "AttributeNames": ["QueueArn"]});
    let arn = stack.call("AmazonSQS.GetQueueAttributes", &wanted).await["Attributes"]["QueueArn"].as_str().unwrap().to_owned();
    let subscription = sns.subscribe().topic_arn(&topic).protocol("sqs").endpoint(arn).attributes("RawMessageDelivery", "true");
    subscription.send().await.unwrap();
    (topic, queue)
}

/// The notifications so far added to `latest`: the newest event of each key, by its version.
async fn receive(stack: &Ministack, queue: &str, latest: &mut BTreeMap<String, Value>) {
    loop {
        let answer = stack.call("AmazonSQS.ReceiveMessage", &json!({"QueueUrl": queue, "MaxNumberOfMessages": 10})).await;
        let messages = answer["Messages"].as_array().cloned().unwrap_or_default();
        if messages.is_empty() {
            return;
        }
        for message in messages {
            let event: Value = serde_json::from_str(message["Body"].as_str().unwrap()).unwrap();
            let key = event["partitionkey"].as_str().unwrap().to_owned();
            let newer = latest.get(&key).is_none_or(|known| known["lsn"].as_str() < event["lsn"].as_str());
            if newer {
                latest.insert(key, event);
            }
            stack.call("AmazonSQS.DeleteMessage", &json!({"QueueUrl": queue, "ReceiptHandle": message["ReceiptHandle"]})).await;
        }
    }
}

/// Everything that the DynamoDB table holds of the entity, documents as JSON text (`document: json`).
async fn dynamodb_documents(stack: &Ministack) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let mut start = Value::Null;
    loop {
        let mut request = json!({"TableName": "entities", "ConsistentRead": true});
        if !start.is_null() {
            request["ExclusiveStartKey"] = start;
        }
        let page = stack.call("DynamoDB_20120810.Scan", &request).await;
        for item in page["Items"].as_array().unwrap() {
            if let Some(text) = item["document"]["S"].as_str() {
                found.insert(item["key"]["S"].as_str().unwrap().to_owned(), serde_json::from_str(text).unwrap());
            }
        }
        start = page["LastEvaluatedKey"].clone();
        if start.is_null() {
            return found;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kinesis_to_postgres_dynamodb_and_sns_equals_the_join_in_postgres() {
    let kinesis = Stub::start().await.unwrap();
    over_kinesis(0.01, &kinesis.endpoint()).await;
}

/// The same over a Kinesis that we have not written. It takes and gives about 1 MB/s: a larger scale measures it, not us.
#[tokio::test(flavor = "multi_thread")]
async fn kinesis_local_to_postgres_dynamodb_and_sns_equals_the_join_in_postgres() {
    let folder = tempfile::tempdir().unwrap();
    let kinesis = KinesisLocal::start(folder.path()).unwrap();
    over_kinesis(0.003, &kinesis.endpoint()).await;
}

async fn over_kinesis(scale: f64, kinesis: &str) {
    let setting = Setting { scale, server: SqlServer::given_or_start("tpch").await, postgres: PostgresServer::start() };
    let stack = Ministack::start();
    let (topic, queue) = topic_and_queue(&stack).await;
    let postgres = setting.load().await;
    let pipeline = Pipeline::init(&setting.server, &[("order", tpch::FULL_ORDER)]);
    let (region, endpoint) = (stack.region(), stack.endpoint_url());
    std::fs::write(pipeline.path("postgres-url"), setting.postgres.url()).unwrap();
    pipeline.configure(
        &setting.server,
        &format!(
            "{{kinesis: {{region: us-east-1, endpoint: '{kinesis}', stand_in_credentials: true, read_interval_ms: 200, shard_bytes_per_second: 0, shard_records_per_second: 0}}}}\n  shards: 3"
        ),
        &format!(
            "  - {{type: postgres, url: {{file: {}}}}}\n  - {{type: dynamodb, table: entities, document: json, region: {region}, endpoint_url: '{endpoint}'}}\n  \
             - {{type: sns, topic_arn: '{topic}', region: {region}, endpoint_url: '{endpoint}'}}\n",
            pipeline.path("postgres-url").display()
        ),
    );
    let (_process, url) = pipeline.run();
    setting.change(&postgres, 1, 100, "first").await;
    pipeline::wait_for_document(&url, "order", &end_key(1), LIMIT, |document| document["comment"] == "first").await;
    // From here on every change is notified.
    setting.change(&postgres, 2, 200, "second").await;
    pipeline::wait_for_document(&url, "order", &end_key(2), LIMIT, |document| document["comment"] == "second").await;
    let expected = expected(&postgres).await;
    assert_equal(&expected, &pipeline::entities(&url, "order").await);

    wait_for("the last order in DynamoDB", LIMIT, async || {
        dynamodb_documents(&stack).await.contains_key(&end_key(2)).then_some(())
    })
    .await;
    assert_equal(&expected, &dynamodb_documents(&stack).await);

    let mut latest = BTreeMap::new();
    wait_for("the last order's notification", LIMIT, async || {
        receive(&stack, &queue, &mut latest).await;
        latest.contains_key(&end_key(2)).then_some(())
    })
    .await;
    for (key, event) in &latest {
        match expected.get(key) {
            Some(document) => assert_eq!(normal(&event["data"]), normal(document), "the last notification of order {key}"),
            None => assert!(event["data"].is_null(), "order {key} is gone, its last notification says otherwise"),
        }
    }
    assert!(latest.len() > 50, "{} keys were notified", latest.len());
}
