//! The item that says up to which LSN everything is in the table.
//!
//! It is put whole, and only where it still is what was read: its `revision` is one more with each put. So several writers, each of its own share, keep one item with what each of them says (`parts`) and the least of it (`lsn`), and a
//! reader sees both as of one instant. One writer alone finds it as it has left it: a put is all that it takes.

use std::collections::HashMap;

use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::AttributeValue;
use schemas::KeyRange;

use super::DynamodbSink;
use super::item::Item;
use crate::Error;
use crate::shares::{self, Kept, Register};

const KEY: &str = "_tributary#frontier";
/// Its sort key, where the table has one.
const SORT: &str = "-";

pub(super) struct FrontierItem<'s> {
    sink: &'s DynamodbSink,
    client: &'s Client,
}

impl DynamodbSink {
    pub(super) fn frontier_item<'s>(&'s self, client: &'s Client) -> FrontierItem<'s> {
        FrontierItem { sink: self, client }
    }
}

impl FrontierItem<'_> {
    pub(super) fn key(&self) -> Item {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let mut key = HashMap::from([(self.sink.config.key_attribute.clone(), text(KEY))]);
        if let Some(sort) = &self.sink.config.sort_key_attribute {
            key.insert(sort.clone(), text(SORT));
        }
        key
    }
}

/// What an item says. One that a single writer has written before there were parts says it of all.
fn parts(item: &Item) -> Option<Vec<(String, String)>> {
    match (item.get("parts"), item.get("lsn")) {
        (Some(parts), _) => {
            let parts = parts.as_m().ok()?.iter();
            parts.map(|(part, lsn)| Some((part.clone(), lsn.as_s().ok()?.clone()))).collect()
        }
        (None, Some(lsn)) => Some(vec![(shares::part(KeyRange::ALL), lsn.as_s().ok()?.clone())]),
        (None, None) => None,
    }
}

#[async_trait]
impl Register for FrontierItem<'_> {
    /// The item's revision, if there is an item that has one.
    type Edition = Option<String>;

    fn target(&self) -> &str {
        &self.sink.target
    }

    async fn read(&self) -> Result<Kept<Option<String>>, Error> {
        let get = self.client.get_item().table_name(&self.sink.config.table).set_key(Some(self.key())).consistent_read(true);
        let answer = get.send().await.map_err(|error| self.sink.failed(&error))?;
        let Some(item) = answer.item else { return Ok(Kept { parts: Vec::new(), edition: None }) };
        let unreadable = || Error::unexpected(&self.sink.target, format!("its item {KEY} holds no LSN"));
        let edition = item.get("revision").and_then(|revision| revision.as_n().ok().cloned());
        Ok(Kept { parts: parts(&item).ok_or_else(unreadable)?, edition })
    }

    async fn replace(&self, parts: &[(String, String)], read: Option<String>) -> Result<Option<Option<String>>, Error> {
        let text = |text: &String| AttributeValue::S(text.clone());
        let next = read.as_deref().and_then(|read| read.parse::<u64>().ok()).map_or(1, |read| read + 1).to_string();
        let mut item = self.key();
        item.insert("parts".to_owned(), AttributeValue::M(parts.iter().map(|(part, lsn)| (part.clone(), text(lsn))).collect()));
        item.insert("revision".to_owned(), AttributeValue::N(next.clone()));
        if let Some(least) = shares::held(parts, KeyRange::ALL) {
            item.insert("lsn".to_owned(), AttributeValue::S(least.to_string()));
        }
        let put = self.client.put_item().table_name(&self.sink.config.table).set_item(Some(item));
        let put = put.expression_attribute_names("#revision", "revision");
        let put = match read {
            None => put.condition_expression("attribute_not_exists(#revision)"),
            Some(read) => put
                .condition_expression("#revision = :revision")
                .expression_attribute_values(":revision", AttributeValue::N(read)),
        };
        match put.send().await {
            Ok(_) => Ok(Some(Some(next))),
            Err(error) if matches!(error.as_service_error(), Some(PutItemError::ConditionalCheckFailedException(_))) => Ok(None),
            Err(error) => Err(self.sink.failed(&error)),
        }
    }
}
