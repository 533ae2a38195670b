//! What only the AWS sinks do: set-up that is wrong, answers that are half a failure, throttling, the JSON form. Not tested against AWS.

#![allow(clippy::unwrap_used)]

use aws_sdk_dynamodb::types::{AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType};
use schemas::change::{EntityChange, EntityKey};
use schemas::{ErrorClass, Lsn};
use sinks::Sink;
use sinks::dynamodb::{DocumentForm, DynamodbConfig, DynamodbSink};
use sinks::sns::{SnsConfig, SnsSink};
use sinks::test_support::{Ministack, sdk_config};

mod support;

use support::Script;

fn change(key: u32) -> EntityChange {
    let document = Some(format!(r#"{{"n":{key}}}"#).into());
    EntityChange {
        entity: "order".into(),
        key: EntityKey::from_text(key.to_string()),
        version: Lsn::MAX,
        commit_time_ms: 0,
        document,
    }
}

/// PublishBatch's answer: which entries are in, and which failed, by whose fault.
fn published(successful: &[u32], failed: &[(u32, bool)]) -> (u16, String) {
    let successful: String =
        successful.iter().map(|id| format!("<member><Id>{id}</Id><MessageId>m{id}</MessageId></member>")).collect();
    let member = |(id, fault): &(u32, bool)| {
        format!("<member><Id>{id}</Id><Code>Reason</Code><Message>because</Message><SenderFault>{fault}</SenderFault></member>")
    };
    let failed: String = failed.iter().map(member).collect();
    let result =
        format!("<PublishBatchResult><Successful>{successful}</Successful><Failed>{failed}</Failed></PublishBatchResult>");
    (200, format!(r#"<PublishBatchResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/">{result}</PublishBatchResponse>"#))
}

async fn topic(script: &Script) -> SnsSink {
    SnsSink::with_sdk_config(SnsConfig::new("arn:aws:sns:eu-west-1:000000000000:orders"), &sdk_config(&script.url).await)
}

#[tokio::test]
async fn entries_that_sns_failed_are_sent_again_and_those_at_fault_are_rejected() {
    // Of four: 0 is in, 1 failed, 2 is at fault, 3 is not named at all. Then the two that are left are 0 and 1.
    let script = Script::start(
        "text/xml",
        vec![published(&[0], &[(1, false), (2, true)]), published(&[0], &[(1, false)]), published(&[0], &[])],
    )
    .await;
    let changes: Vec<_> = (10..14).map(change).collect();
    let rejected = topic(&script).await.write(&changes, None).await.unwrap();
    assert_eq!(rejected.iter().map(|rejected| rejected.change.key.as_str()).collect::<Vec<_>>(), ["12"]);
    assert!(rejected[0].reason.contains("because [Reason]"), "{}", rejected[0].reason);
    let asked = script.asked.lock().unwrap();
    let of = |request: &str| (10..14).filter(|key| request.contains(&format!("order%3A{key}%3A"))).collect::<Vec<u32>>();
    assert_eq!(asked.iter().map(|request| of(request)).collect::<Vec<_>>(), [vec![10, 11, 12, 13], vec![11, 13], vec![13]]);
}

#[tokio::test]
async fn entries_that_keep_failing_are_a_transient_error() {
    let script = Script::start("text/xml", vec![published(&[], &[(0, false)])]).await;
    let error = topic(&script).await.write(&[change(1)], None).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
}

#[tokio::test]
async fn throttling_is_waited_out_or_told_as_transient() {
    let throttled = (
        400,
        r#"{"__type":"com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException","message":"slow down"}"#
            .to_owned(),
    );
    let stale =
        (400, r#"{"__type":"com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException","message":"no"}"#.to_owned());
    let invalid =
        (400, r#"{"__type":"com.amazon.coral.validate#ValidationException","message":"Item size has exceeded"}"#.to_owned());
    let json = "application/x-amz-json-1.0";

    let script = Script::start(json, vec![throttled.clone(), (200, "{}".to_owned())]).await;
    let mut sink = DynamodbSink::with_sdk_config(DynamodbConfig::new("t"), &sdk_config(&script.url).await);
    assert_eq!(sink.write(&[change(1)], None).await.unwrap(), []);
    assert_eq!(script.asked.lock().unwrap().len(), 2, "asked twice");

    let script = Script::start(json, vec![throttled]).await;
    let mut sink = DynamodbSink::with_sdk_config(DynamodbConfig::new("t"), &sdk_config(&script.url).await);
    let error = sink.write(&[change(1)], Some(Lsn::MAX)).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    assert!(!script.asked.lock().unwrap().iter().any(|request| request.contains("frontier")), "the frontier waits for its rows");

    let script = Script::start(json, vec![stale]).await;
    let mut sink = DynamodbSink::with_sdk_config(DynamodbConfig::new("t"), &sdk_config(&script.url).await);
    assert_eq!(sink.write(&[change(1)], None).await.unwrap(), [], "a newer version is there: all is well");

    let script = Script::start(json, vec![invalid]).await;
    let mut sink = DynamodbSink::with_sdk_config(DynamodbConfig::new("t"), &sdk_config(&script.url).await);
    let rejected = sink.write(&[change(1)], None).await.unwrap();
    assert!(rejected[0].reason.contains("Item size"), "{}", rejected[0].reason);
}

#[tokio::test]
async fn a_look_at_a_table_tells_that_nothing_may_be_put_there() {
    let table = r#"{"Table":{"TableName":"t","TableStatus":"ACTIVE","KeySchema":[{"AttributeName":"pk","KeyType":"HASH"}],"AttributeDefinitions":[{"AttributeName":"pk","AttributeType":"S"}]}}"#;
    let refused = |code: &str, message: &str| {
        (400, format!(r#"{{"__type":"com.amazonaws.dynamodb.v20120810#{code}","message":"{message}"}}"#))
    };
    let denied = refused("AccessDeniedException", "not authorized to perform: dynamodb:PutItem");
    let held = refused("ConditionalCheckFailedException", "The conditional request failed");
    let looked = async |put: (u16, String)| {
        // The last answer is given to whoever asks again.
        let script = Script::start("application/x-amz-json-1.0", vec![(200, table.to_owned()), put]).await;
        let mut sink = DynamodbSink::with_sdk_config(DynamodbConfig::new("t"), &sdk_config(&script.url).await);
        sink.check(&[]).await
    };
    let error = looked(denied).await.unwrap_err();
    assert!(error.class() == ErrorClass::Misconfigured && error.to_string().contains("dynamodb:PutItem"), "{error}");
    looked(held).await.unwrap();
}

/// An index of the table has no room, which DynamoDB says of the put to the table: with provisioned capacity by its old code, on demand by its new one.
#[tokio::test]
async fn an_index_without_room_is_waited_for_and_nothing_is_set_aside() {
    let full =
        "The level of configured provisioned throughput for one or more global secondary indexes of the table was exceeded";
    for code in ["ProvisionedThroughputExceededException", "ThrottlingException"] {
        let throttled = (400, format!(r#"{{"__type":"com.amazonaws.dynamodb.v20120810#{code}","message":"{full}"}}"#));
        let taken = (200, "{}".to_owned());
        // As often as the client asks by itself; then the index has room again.
        let script = Script::start("application/x-amz-json-1.0", [vec![throttled; 2], vec![taken]].concat()).await;
        let index = sinks::dynamodb::IndexConfig { name: "by_n".into(), partition: "n".into(), sort: None };
        let config = DynamodbConfig { indexes: vec![index], in_flight: 1, ..DynamodbConfig::new("t") };
        let mut sink = DynamodbSink::with_sdk_config(config, &sdk_config(&script.url).await);
        let error = sink.write(&[change(1)], None).await.unwrap_err();
        assert!(matches!(error, sinks::Error::Throttled { .. }), "{error}");
        assert!(error.to_string().contains("global secondary indexes") && error.to_string().contains(code), "{error}");
        assert_eq!(sink.write(&[change(1)], None).await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_set_up_wrongly_is_told() {
    let stack = Ministack::start();
    let sdk = stack.sdk_config().await;
    let mut sink = SnsSink::with_sdk_config(SnsConfig::new("arn:aws:sns:eu-west-1:000000000000:no-such-topic"), &sdk);
    let error = sink.prepare(&[]).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Misconfigured, "{error}");
    assert!(error.to_string().contains("no-such-topic"), "{error}");

    let dynamodb = aws_sdk_dynamodb::Client::new(&sdk);
    let attribute = AttributeDefinition::builder().attribute_name("id").attribute_type(ScalarAttributeType::N).build().unwrap();
    let key = KeySchemaElement::builder().attribute_name("id").key_type(KeyType::Hash).build().unwrap();
    let create = dynamodb.create_table().table_name("taken").attribute_definitions(attribute).key_schema(key);
    create.billing_mode(BillingMode::PayPerRequest).send().await.unwrap();
    let error = DynamodbSink::with_sdk_config(DynamodbConfig::new("taken"), &sdk).prepare(&[]).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Misconfigured, "{error}");
    assert!(error.to_string().contains("id HASH") && error.to_string().contains("key_attribute"), "{error}");

    let config =
        DynamodbConfig { document: DocumentForm::Json, key_attribute: "entity_key".to_owned(), ..DynamodbConfig::new("as-json") };
    let mut sink = DynamodbSink::with_sdk_config(config, &sdk);
    sink.prepare(&[]).await.unwrap();
    sink.write(&[change(1)], Some(Lsn::MAX)).await.unwrap();
    let get = dynamodb.get_item().table_name("as-json").key("entity_key", AttributeValue::S("order#1".to_owned()));
    let item = get.send().await.unwrap().item.unwrap();
    assert_eq!(item["document"], AttributeValue::S(r#"{"n":1}"#.to_owned()));
}
