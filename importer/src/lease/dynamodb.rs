//! The lease and the progress in an item of a DynamoDB table.
//!
//! The item `source` (S, the partition key) has `epoch` (N), `beat` (N, one more with each renewal), `held` (BOOL) and `progress` (B). DynamoDB has no clock that a condition could ask, so one that waits
//! watches: an item whose epoch and beat have not moved for a [`TERM`], by the watcher's own clock, has no living holder. It then takes the lease on the condition that both are still what
//! it saw, so that of several that watch one succeeds. A holder gives up before a term without a renewal is over. An item holds 400 KB, which is the progress of some thousand
//! tables.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{DisplayErrorContext, ProvideErrorMetadata};
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use schemas::ErrorClass;

use super::{Store, TERM, next_epoch};
use crate::error::Error;

pub(super) struct DynamoStore {
    client: Client,
    table: String,
    source: String,
    /// What was last seen of the holder, and since when.
    seen: Mutex<Option<(Holder, Instant)>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    epoch: u64,
    beat: u64,
}

impl DynamoStore {
    pub(super) async fn open(table: &str, region: Option<&str>, endpoint: Option<&str>, source: &str) -> Self {
        let tls = Provider::rustls(CryptoMode::AwsLc);
        let http = aws_smithy_http_client::Builder::new().tls_provider(tls).build_https();
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http);
        if let Some(region) = region {
            loader = loader.region(Region::new(region.to_owned()));
        }
        if let Some(endpoint) = endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        Self::over(Client::new(&loader.load().await), table, source)
    }

    pub(super) fn over(client: Client, table: &str, source: &str) -> Self {
        Self { client, table: table.to_owned(), source: source.to_owned(), seen: Mutex::default() }
    }

    async fn item(&self) -> Result<Option<std::collections::HashMap<String, AttributeValue>>, Error> {
        let get = self.client.get_item().table_name(&self.table).consistent_read(true);
        let got = get.key("source", AttributeValue::S(self.source.clone())).send().await;
        got.map(|got| got.item).map_err(|error| self.failed(error.code(), &DisplayErrorContext(&error).to_string()))
    }

    fn update(&self, expression: &str, condition: &str) -> UpdateItemFluentBuilder {
        let update = self.client.update_item().table_name(&self.table).key("source", AttributeValue::S(self.source.clone()));
        update.update_expression(expression).condition_expression(condition)
    }

    /// Whether the condition held.
    async fn send(&self, update: UpdateItemFluentBuilder) -> Result<bool, Error> {
        match update.send().await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(false),
            Err(error) => Err(self.failed(error.code(), &DisplayErrorContext(&error).to_string())),
        }
    }

    async fn send_held(&self, epoch: u64, update: UpdateItemFluentBuilder) -> Result<(), Error> {
        let update = update.expression_attribute_values(":epoch", number(epoch));
        if self.send(update).await? { Ok(()) } else { Err(Error::LeaseLost { place: self.place(), epoch }) }
    }

    fn failed(&self, code: Option<&str>, what: &str) -> Error {
        let class = match code {
            Some(
                "ResourceNotFoundException" | "ValidationException" | "AccessDeniedException" | "UnrecognizedClientException",
            ) => ErrorClass::Misconfigured,
            _ => ErrorClass::Transient,
        };
        Error::LeaseStore { place: self.place(), what: what.to_owned(), class }
    }

    /// Whether a holder has shown no sign of life for a term.
    fn is_gone(&self, holder: Holder, now: Instant) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match *seen {
            Some((known, since)) if known == holder => now.duration_since(since) >= TERM,
            _ => {
                *seen = Some((holder, now));
                false
            }
        }
    }

    /// Takes the lease if nobody has it at `now`.
    pub(super) async fn acquire_at(&self, now: Instant) -> Result<Option<u64>, Error> {
        let Some(item) = self.item().await? else {
            let epoch = next_epoch(0);
            let first = self.update("SET epoch = :new, beat = :one, held = :true", "attribute_not_exists(epoch)");
            let first = first.expression_attribute_values(":new", number(epoch)).expression_attribute_values(":one", number(1));
            let taken = self.send(first.expression_attribute_values(":true", AttributeValue::Bool(true))).await?;
            return Ok(taken.then_some(epoch));
        };
        let holder = Holder { epoch: read(item.get("epoch")), beat: read(item.get("beat")) };
        let held = item.get("held").and_then(|held| held.as_bool().ok()).copied().unwrap_or(false);
        if held && !self.is_gone(holder, now) {
            return Ok(None);
        }
        let epoch = next_epoch(holder.epoch);
        let take = self.update("SET epoch = :new, beat = beat + :one, held = :true", "epoch = :epoch AND beat = :beat");
        let take = take
            .expression_attribute_values(":new", number(epoch))
            .expression_attribute_values(":one", number(1))
            .expression_attribute_values(":true", AttributeValue::Bool(true))
            .expression_attribute_values(":epoch", number(holder.epoch))
            .expression_attribute_values(":beat", number(holder.beat));
        Ok(self.send(take).await?.then_some(epoch))
    }
}

fn number(number: u64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

fn read(value: Option<&AttributeValue>) -> u64 {
    value.and_then(|value| value.as_n().ok()).and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[async_trait]
impl Store for DynamoStore {
    async fn acquire(&self) -> Result<Option<u64>, Error> {
        self.acquire_at(Instant::now()).await
    }

    async fn renew(&self, epoch: u64) -> Result<(), Error> {
        let renew = self.update("SET beat = beat + :one", "epoch = :epoch");
        self.send_held(epoch, renew.expression_attribute_values(":one", number(1))).await
    }

    async fn release(&self, epoch: u64) -> Result<(), Error> {
        let release = self.update("SET held = :false", "epoch = :epoch");
        let release = release.expression_attribute_values(":false", AttributeValue::Bool(false));
        // Another has it already: then there is nothing to give back.
        self.send(release.expression_attribute_values(":epoch", number(epoch))).await.map(drop)
    }

    async fn load(&self) -> Result<Option<Vec<u8>>, Error> {
        let item = self.item().await?;
        let progress = item.as_ref().and_then(|item| item.get("progress")).and_then(|progress| progress.as_b().ok());
        Ok(progress.map(|progress| progress.as_ref().to_vec()))
    }

    async fn save(&self, epoch: u64, progress: &[u8]) -> Result<(), Error> {
        let save = self.update("SET progress = :progress, beat = beat + :one", "epoch = :epoch");
        let progress = AttributeValue::B(Blob::new(progress));
        let save = save.expression_attribute_values(":progress", progress).expression_attribute_values(":one", number(1));
        self.send_held(epoch, save).await
    }

    fn place(&self) -> String {
        format!("DynamoDB table {}, source {}", self.table, self.source)
    }
}
