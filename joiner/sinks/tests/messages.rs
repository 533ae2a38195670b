//! What the SNS and SQS sinks send, as it is received from queues of the AWS stand-in; and what they do with answers that a stand-in does not give. Not tested against AWS.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use schemas::change::{EntityChange, EntityKey};
use schemas::{ErrorClass, Lsn};
use serde_json::{Value, json};
use sinks::Sink;
use sinks::cloudevent::Detail;
use sinks::sns::{SnsConfig, SnsSink};
use sinks::sqs::{SqsConfig, SqsSink};
use sinks::test_support::{Ministack, sdk_config};

mod support;

use support::Script;

const JSON: &str = "application/x-amz-json-1.0";

fn change(key: &str, version: u8, document: Option<&Value>) -> EntityChange {
    EntityChange {
        entity: "order".into(),
        key: EntityKey::from_text(key),
        version: Lsn::from_bytes([0, 0, 0, 1, 0, 0, 0, version, 0, 1]),
        commit_time_ms: 1_700_000_000_000,
        document: document.map(|document| document.to_string().into()),
    }
}

fn upsert(key: &str, document: &Value) -> EntityChange {
    change(key, 1, Some(document))
}

/// Makes a queue. Answers its URL and its ARN.
async fn queue(stack: &Ministack, name: &str, attributes: &Value) -> (String, String) {
    let made = stack.call("AmazonSQS.CreateQueue", &json!({"QueueName": name, "Attributes": attributes})).await;
    let url = made["QueueUrl"].as_str().unwrap().to_owned();
    let asked = stack.call("AmazonSQS.GetQueueAttributes", &json!({"QueueUrl": url, "AttributeNames": ["QueueArn"]})).await;
    (url, asked["Attributes"]["QueueArn"].as_str().unwrap().to_owned())
}

/// Everything that is in a queue, taken out of it.
async fn received(stack: &Ministack, url: &str) -> Vec<Value> {
    let mut all = Vec::new();
    loop {
        let wanted =
            json!({"QueueUrl": url, "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"], "AttributeNames": ["All"]});
        let answer = stack.call("AmazonSQS.ReceiveMessage", &wanted).await;
        let Some(messages) = answer["Messages"].as_array().filter(|messages| !messages.is_empty()) else { return all };
        for message in messages {
            all.push(message.clone());
            stack.call("AmazonSQS.DeleteMessage", &json!({"QueueUrl": url, "ReceiptHandle": message["ReceiptHandle"]})).await;
        }
    }
}

fn event(message: &Value) -> Value {
    serde_json::from_str(message["Body"].as_str().unwrap()).unwrap()
}

fn paths(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, path)| ((*name).to_owned(), (*path).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filter_policies_route_by_members_of_the_document() {
    let stack = Ministack::start();
    let sdk = stack.sdk_config().await;
    let sns = aws_sdk_sns::Client::new(&sdk);
    let topic = sns.create_topic().name("orders").send().await.unwrap().topic_arn.unwrap();
    let mut urls = Vec::new();
    let policies = [
        json!({"status": ["PAID"], "total": [{"numeric": [">=", 100]}]}),
        json!({"city": ["Köln"]}),
        json!({"tags": ["express"]}),
        json!({"op": ["deleted"]}),
    ];
    for (number, policy) in policies.iter().enumerate() {
        let (url, arn) = queue(&stack, &format!("queue-{number}"), &json!({})).await;
        let subscribe = sns.subscribe().topic_arn(&topic).protocol("sqs").endpoint(arn);
        let subscribe = subscribe.attributes("RawMessageDelivery", "true").attributes("FilterPolicy", policy.to_string());
        subscribe.send().await.unwrap();
        urls.push(url);
    }
    let config = SnsConfig {
        attributes: paths(&[("status", "status"), ("city", "customer.city"), ("tags", "tags")]),
        number_attributes: paths(&[("total", "total")]),
        ..SnsConfig::new(&topic)
    };
    let mut sink = SnsSink::with_sdk_config(config, &sdk);
    sink.prepare(&[]).await.unwrap();
    let changes = [
        upsert("1", &json!({"status": "PAID", "total": "250.00", "customer": {"city": "Köln"}, "tags": []})),
        upsert("2", &json!({"status": "PAID", "total": "99.99", "customer": {"city": "Ulm"}, "tags": ["gift", "express"]})),
        upsert("3", &json!({"status": "OPEN", "total": "1000.00", "customer": null})),
        change("4", 1, None),
    ];
    assert_eq!(sink.write(&changes, None).await.unwrap(), []);
    let mut keys = Vec::new();
    for url in &urls {
        keys.push(received(&stack, url).await.iter().map(|message| event(message)["entitykey"].clone()).collect::<Vec<_>>());
    }
    assert_eq!(keys, [["1"], ["1"], ["2"], ["4"]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thin_event_carries_no_document_and_one_that_does_not_fit_becomes_thin() {
    let stack = Ministack::start();
    let sdk = stack.sdk_config().await;
    let (url, _) = queue(&stack, "orders", &json!({"MaximumMessageSize": "2048"})).await;
    let (small, large) = (upsert("1", &json!({"n": 1})), upsert("2", &json!({"text": "x".repeat(4000)})));
    for (detail, with_data, refused) in
        [(Detail::Full, vec!["1"], 1), (Detail::Thin, vec![], 0), (Detail::FullIfItFits, vec!["1"], 0)]
    {
        let mut sink = SqsSink::with_sdk_config(SqsConfig { event: detail, ..SqsConfig::new(&url) }, &sdk);
        sink.prepare(&[]).await.unwrap();
        let rejected = sink.write(&[small.clone(), large.clone()], None).await.unwrap();
        assert_eq!(rejected.len(), refused);
        assert!(rejected.iter().all(|rejected| rejected.reason.contains("2048")), "{rejected:?}");
        let messages: Vec<Value> = received(&stack, &url).await.iter().map(event).collect();
        assert_eq!(messages.len(), 2 - refused);
        let mut full: Vec<_> = messages.iter().filter(|event| event.get("data").is_some()).collect();
        full.sort_by_key(|event| event["entitykey"].to_string());
        assert_eq!(full.iter().map(|event| event["entitykey"].as_str().unwrap()).collect::<Vec<_>>(), with_data);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fifo_queue_keeps_the_order_of_each_key_and_drops_repeats() {
    let stack = Ministack::start();
    let sdk = stack.sdk_config().await;
    let (url, _) = queue(&stack, "orders.fifo", &json!({"FifoQueue": "true"})).await;
    let mut sink = SqsSink::with_sdk_config(SqsConfig::new(&url), &sdk);
    sink.prepare(&[]).await.unwrap();
    for version in 1..=3 {
        let changes: Vec<_> = (0..25).map(|key| change(&key.to_string(), version, Some(&json!({"version": version})))).collect();
        // The second time is a repeat, as after a lost answer.
        for _ in 0..2 {
            assert_eq!(sink.write(&changes, None).await.unwrap(), []);
        }
    }
    let messages = received(&stack, &url).await;
    assert_eq!(messages.len(), 75);
    let mut versions: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for message in &messages {
        let event = event(message);
        assert_eq!(message["Attributes"]["MessageGroupId"], format!("order:{}", event["entitykey"].as_str().unwrap()));
        assert_eq!(message["Attributes"]["MessageDeduplicationId"], event["id"]);
        let version = event["data"]["version"].as_u64().unwrap();
        versions.entry(event["entitykey"].to_string()).or_default().push(version);
    }
    assert!(versions.len() == 25 && versions.values().all(|versions| versions == &[1, 2, 3]), "{versions:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_is_sent_only_where_it_is_asked_for() {
    let stack = Ministack::start();
    let sdk = stack.sdk_config().await;
    let (url, _) = queue(&stack, "orders", &json!({})).await;
    for (notify_load, expected) in [(false, 0), (true, 1)] {
        let mut sink = SqsSink::with_sdk_config(SqsConfig { notify_load, ..SqsConfig::new(&url) }, &sdk);
        sink.prepare(&[]).await.unwrap();
        sink.begin_load().await.unwrap();
        sink.write(&[upsert("1", &json!({}))], None).await.unwrap();
        sink.write(&[], Some(Lsn::MAX)).await.unwrap();
        assert_eq!(received(&stack, &url).await.len(), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_set_up_wrongly_is_told() {
    let stack = Ministack::start();
    let sdk = stack.sdk_config().await;
    let url = format!("{}/000000000000/no-such-queue", stack.endpoint_url());
    let error = SqsSink::with_sdk_config(SqsConfig::new(&url), &sdk).prepare(&[]).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Misconfigured, "{error}");
    assert!(error.to_string().contains("no-such-queue"), "{error}");
    let (url, _) = queue(&stack, "orders", &json!({})).await;
    let config = SqsConfig { attributes: paths(&[("key", "id")]), ..SqsConfig::new(&url) };
    let error = SqsSink::with_sdk_config(config, &sdk).prepare(&[]).await.unwrap_err();
    assert!(error.class() == ErrorClass::Misconfigured && error.to_string().contains("\"key\""), "{error}");
    let looked = SqsSink::with_sdk_config(SqsConfig::new(&url), &sdk).check(&[]).await.unwrap();
    assert!(looked.detail.contains("1048576 bytes"), "{looked:?}");
    assert_eq!(received(&stack, &url).await, Vec::<Value>::new(), "a look sends nothing");
}

async fn scripted(script: &Script) -> SqsSink {
    SqsSink::with_sdk_config(SqsConfig::new("https://sqs.eu-west-1.amazonaws.com/1/orders"), &sdk_config(&script.url).await)
}

fn sent(successful: &[u32], failed: &[(u32, bool, &str)]) -> (u16, String) {
    let successful: Vec<_> =
        successful.iter().map(|id| json!({"Id": id.to_string(), "MessageId": "m", "MD5OfMessageBody": "x"})).collect();
    let failed: Vec<_> = failed
        .iter()
        .map(|(id, fault, code)| json!({"Id": id.to_string(), "Code": code, "Message": "because", "SenderFault": fault}))
        .collect();
    (200, json!({"Successful": successful, "Failed": failed}).to_string())
}

#[tokio::test]
async fn entries_that_sqs_failed_are_sent_again_and_those_at_fault_are_rejected() {
    let first = sent(&[0], &[(1, false, "InternalError"), (2, true, "InvalidMessageContents"), (3, true, "ThrottlingException")]);
    let script = Script::start(JSON, vec![first, sent(&[0, 1], &[])]).await;
    let changes: Vec<_> = (10..14).map(|key| upsert(&key.to_string(), &json!({}))).collect();
    let rejected = scripted(&script).await.write(&changes, None).await.unwrap();
    assert_eq!(rejected.iter().map(|rejected| rejected.change.key.as_str()).collect::<Vec<_>>(), ["12"]);
    assert!(rejected[0].reason.contains("because [InvalidMessageContents]"), "{}", rejected[0].reason);
    let asked = script.asked.lock().unwrap();
    let of = |request: &str| (10..14).filter(|key| request.contains(&format!("order:{key}:"))).collect::<Vec<u32>>();
    assert_eq!(asked.iter().map(|request| of(request)).collect::<Vec<_>>(), [vec![10, 11, 12, 13], vec![11, 13]]);
}

#[tokio::test]
async fn a_batch_that_is_refused_whole_is_sent_entry_by_entry() {
    let invalid =
        (400, json!({"__type": "com.amazonaws.sqs#InvalidParameterValue", "message": "One of them is bad."}).to_string());
    let script = Script::start(JSON, vec![invalid.clone(), sent(&[0], &[]), invalid, sent(&[0], &[])]).await;
    let changes: Vec<_> = (10..13).map(|key| upsert(&key.to_string(), &json!({}))).collect();
    let rejected = scripted(&script).await.write(&changes, None).await.unwrap();
    assert_eq!(rejected.iter().map(|rejected| rejected.change.key.as_str()).collect::<Vec<_>>(), ["11"]);
    assert!(rejected[0].reason.contains("One of them is bad."), "{}", rejected[0].reason);
    assert_eq!(script.asked.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn a_key_that_may_not_be_used_is_nobodys_poison() {
    let script = Script::start(JSON, vec![sent(&[], &[(0, true, "KmsAccessDenied")])]).await;
    let error = scripted(&script).await.write(&[upsert("1", &json!({}))], None).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Misconfigured, "{error}");
}
