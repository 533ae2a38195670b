//! A DynamoDB table in ministack; not tested against AWS.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use sinks::dynamodb::{DynamodbConfig, DynamodbSink};
use sinks::test_support::Ministack;

use super::*;

pub(super) struct Table {
    /// Ends with this.
    _stack: Ministack,
    gate: Gate,
    /// Past the gate.
    sdk: aws_config::SdkConfig,
    name: String,
    /// Whether the table has a sort key.
    parted: bool,
}

impl Table {
    pub(super) async fn start(parted: bool) -> Self {
        let stack = Ministack::start();
        let (sdk, gate) = (stack.sdk_config().await, Gate::before(&stack).await);
        Self { _stack: stack, gate, sdk, name: String::new(), parted }
    }
}

fn from_attribute(value: &AttributeValue) -> Value {
    match value {
        AttributeValue::S(text) => json!(text),
        AttributeValue::N(number) => serde_json::from_str(number).unwrap(),
        AttributeValue::Bool(value) => json!(value),
        AttributeValue::Null(_) => Value::Null,
        AttributeValue::L(items) => items.iter().map(from_attribute).collect(),
        AttributeValue::M(members) => members.iter().map(|(name, value)| (name.clone(), from_attribute(value))).collect(),
        other => panic!("{other:?}"),
    }
}

#[async_trait::async_trait]
impl Target for Table {
    async fn fresh(&mut self, case: &str) {
        case.clone_into(&mut self.name);
    }

    async fn sink(&self) -> Box<dyn Sink> {
        let sort_key_attribute = self.parted.then(|| "sk".to_owned());
        let config = DynamodbConfig { sort_key_attribute, ..DynamodbConfig::new(&self.name) };
        Box::new(DynamodbSink::with_sdk_config(config, &self.gate.sdk_config().await))
    }

    async fn held(&self) -> Held {
        let mut items =
            Client::new(&self.sdk).scan().table_name(&self.name).consistent_read(true).into_paginator().items().send();
        let mut held = Held::new();
        while let Some(item) = items.next().await {
            let item = item.unwrap();
            let text = |name: &str| item.get(name).and_then(|value| value.as_s().ok()).cloned();
            let (Some(entity), Some(document)) = (text("entity"), item.get("document")) else { continue };
            let key = text("key").unwrap();
            let of_key = if self.parted { key.split(',').next().unwrap() } else { &key };
            assert_eq!(text("pk").unwrap(), format!("{entity}#{of_key}"));
            held.insert(format!("{entity}/{key}"), (text("version").unwrap().parse().unwrap(), from_attribute(document)));
        }
        held
    }

    async fn frontier(&self) -> Option<Option<Lsn>> {
        let key = AttributeValue::S("_tributary#frontier".to_owned());
        let mut get = Client::new(&self.sdk).get_item().table_name(&self.name).key("pk", key);
        if self.parted {
            get = get.key("sk", AttributeValue::S("-".to_owned()));
        }
        let answer = get.consistent_read(true).send().await.unwrap();
        Some(answer.item.and_then(|item| Some(item.get("lsn")?.as_s().unwrap().parse().unwrap())))
    }

    fn gate(&self) -> Option<&Gate> {
        Some(&self.gate)
    }

    async fn remove(&mut self) -> bool {
        Client::new(&self.sdk).delete_table().table_name(&self.name).send().await.unwrap();
        true
    }
}
