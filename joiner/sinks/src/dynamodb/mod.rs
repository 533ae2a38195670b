//! Entities in one DynamoDB table, an item each.
//!
//! # Items
//! | attribute | value |
//! |---|---|
//! | `pk` (or what `key_attribute` says) | `entity#key`; the partition key, no sort key |
//! | `entity`, `key` | the parts of `pk` |
//! | `version` | the LSN's text, which sorts as the LSN does |
//! | `commit_time_ms` | N |
//! | `document` | M, or S with the JSON text, as `document` says; absent in a tombstone |
//! | `deleted`, `expires_at` | of a tombstone: `true`, and when DynamoDB's time-to-live removes it |
//!
//! The item `_tributary#frontier` holds `lsn`: everything at or below it is in the table. No entity's name starts with an underscore.
//!
//! # Why an older version never replaces a newer one (INV-5)
//! Every item is written by itself, by a put that DynamoDB makes only if the item is not there or its version is not newer; in which order puts arrive does not matter. A
//! deletion is such a put too: of a tombstone, whose version guards the key against what comes late, until `expires_at`. What is handed over again after that long comes only
//! from a savepoint older than the tombstones' life; whoever goes back so far starts with an empty table.
//!
//! # What the frontier says here, and what it does not
//! DynamoDB has no transaction of a batch's size, so this frontier is weaker than that of the SQL sinks, which commits with its rows:
//! - It is put after every item of its batch has been acknowledged. It never says too much, and says too little from the batch's first put until its own. A put of the frontier
//!   that fails fails the batch, which is then handed over again.
//! - Items are seen one by one. Each is the join of the source as of one LSN, its `version` (INV-4), but items of one source transaction appear one after the other: whoever
//!   reads several may see some of a transaction before the frontier has reached it. Nothing tells a reader that a set of items is of one instant.
//! - Everything at or below the frontier is in the table only for one who reads the frontier first and then the items, both with `ConsistentRead`. An eventually consistent
//!   read, a global secondary index and a replica of a global table may be behind a frontier that was read elsewhere.
//! - It does not count changes that were answered as [`Rejected`]: these are dead letters at the joiner, and the frontier passes them.
//! - A load that is repeated over a table that has a frontier (after a changed definition) leaves it where it is: until the load's end, documents of both definitions stand
//!   beside each other under it.
//!
//! # Numbers
//! A number of the document becomes N as it is written there; DynamoDB keeps 38 digits. The source's decimals are strings in the document and stay strings.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::{StreamExt, TryStreamExt, stream};
use schemas::Lsn;
use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use serde::Deserialize;

use crate::{Error, Rejected, Sink, aws, check};

mod item;
mod table;

pub use item::DocumentForm;

const FRONTIER_KEY: &str = "_tributary#frontier";
const SECONDS_PER_DAY: u64 = 86_400;

/// The `dynamodb` sink.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamodbConfig {
    /// How status, logs and metrics call it. Default: `dynamodb`.
    #[serde(default = "default_name")]
    pub name: String,
    /// The table; made with on-demand capacity when it is not there.
    pub table: String,
    /// Its partition key. Default: `pk`.
    #[serde(default = "default_key_attribute")]
    pub key_attribute: String,
    /// `map` (default) or `json`.
    #[serde(default)]
    pub document: DocumentForm,
    /// How long a deleted entity's tombstone is kept. Default: 7.
    #[serde(default = "default_tombstone_days")]
    pub tombstone_days: u64,
    /// Puts under way at once. Default: 64.
    #[serde(default = "default_in_flight")]
    pub in_flight: usize,
    /// Default: as every AWS tool finds it.
    #[serde(default)]
    pub region: Option<String>,
    /// Another endpoint than AWS's own.
    #[serde(default)]
    pub endpoint_url: Option<String>,
}

fn default_name() -> String {
    "dynamodb".to_owned()
}

fn default_key_attribute() -> String {
    "pk".to_owned()
}

fn default_tombstone_days() -> u64 {
    7
}

fn default_in_flight() -> usize {
    64
}

impl DynamodbConfig {
    pub fn new(table: impl Into<String>) -> Self {
        Self {
            name: default_name(),
            table: table.into(),
            key_attribute: default_key_attribute(),
            document: DocumentForm::default(),
            tombstone_days: default_tombstone_days(),
            in_flight: default_in_flight(),
            region: None,
            endpoint_url: None,
        }
    }
}

pub struct DynamodbSink {
    config: DynamodbConfig,
    target: String,
    client: Option<Client>,
}

/// How one put ended.
enum Put {
    Written,
    /// The table holds a newer version.
    Stale,
    Refused(String),
}

impl DynamodbSink {
    pub fn new(config: DynamodbConfig) -> Self {
        let target = format!("DynamoDB table {}", config.table);
        Self { config, target, client: None }
    }

    /// With an AWS configuration that the process has already.
    pub fn with_sdk_config(config: DynamodbConfig, sdk: &SdkConfig) -> Self {
        let mut sink = Self::new(config);
        sink.client = Some(Client::new(sdk));
        sink
    }

    async fn client(&mut self) -> Client {
        if let Some(client) = &self.client {
            return client.clone();
        }
        let sdk = aws::load(self.config.region.as_deref(), self.config.endpoint_url.as_deref()).await;
        self.client.insert(Client::new(&sdk)).clone()
    }

    fn failed<E: ProvideErrorMetadata + std::error::Error + 'static, R: std::fmt::Debug + 'static>(
        &self,
        error: &SdkError<E, R>,
    ) -> Error {
        aws::classify(&self.target, error.code(), error.message(), &DisplayErrorContext(error).to_string())
    }

    async fn put(&self, client: &Client, change: &EntityChange) -> Result<Put, Error> {
        let item = match item::from_change(change, &self.config, self.expires_at()) {
            Ok(item) => item,
            Err(reason) => return Ok(Put::Refused(reason)),
        };
        let answer = client
            .put_item()
            .table_name(&self.config.table)
            .set_item(Some(item))
            .condition_expression("attribute_not_exists(#version) OR #version <= :version")
            .expression_attribute_names("#version", "version")
            .expression_attribute_values(":version", AttributeValue::S(change.version.to_string()))
            .send()
            .await;
        match answer {
            Ok(_) => Ok(Put::Written),
            Err(error) => match error.as_service_error() {
                Some(PutItemError::ConditionalCheckFailedException(_)) => Ok(Put::Stale),
                Some(refused) if refused.code() == Some("ValidationException") => {
                    Ok(Put::Refused(refused.message().unwrap_or("DynamoDB refuses it as not valid").to_owned()))
                }
                _ => Err(self.failed(&error)),
            },
        }
    }

    /// In seconds since 1970, as time-to-live wants it.
    fn expires_at(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        now.as_secs() + self.config.tombstone_days * SECONDS_PER_DAY
    }

    async fn put_frontier(&self, client: &Client, frontier: Lsn) -> Result<(), Error> {
        let lsn = AttributeValue::S(frontier.to_string());
        let answer = client
            .put_item()
            .table_name(&self.config.table)
            .item(&self.config.key_attribute, AttributeValue::S(FRONTIER_KEY.to_owned()))
            .item("lsn", lsn.clone())
            .condition_expression("attribute_not_exists(lsn) OR lsn < :lsn")
            .expression_attribute_values(":lsn", lsn)
            .send()
            .await;
        match answer {
            Err(error) if !matches!(error.as_service_error(), Some(PutItemError::ConditionalCheckFailedException(_))) => {
                Err(self.failed(&error))
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Sink for DynamodbSink {
    async fn prepare(&mut self, _entities: &[EntityInfo]) -> Result<(), Error> {
        let client = self.client().await;
        self.ensure_table(&client).await
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        let client = self.client().await;
        let (accepted, mut rejected) = check::sort(changes);
        let this = &*self;
        // The copies share their documents; borrowed ones would tie the stream to a lifetime that it cannot name.
        let owned: Vec<EntityChange> = accepted.into_iter().cloned().collect();
        let puts = stream::iter(owned).map(|change| {
            let client = &client;
            async move { this.put(client, &change).await.map(|put| (change, put)) }
        });
        let mut puts = puts.buffer_unordered(self.config.in_flight.max(1));
        let mut stale = 0u64;
        while let Some((change, put)) = puts.try_next().await? {
            match put {
                Put::Written => {}
                Put::Stale => stale += 1,
                Put::Refused(reason) => rejected.push(Rejected { change, reason }),
            }
        }
        drop(puts);
        if stale > 0 {
            tracing::debug!(target_name = %self.target, stale, "newer versions were there already");
        }
        if let Some(frontier) = frontier {
            self.put_frontier(&client, frontier).await?;
        }
        Ok(rejected)
    }

    /// Reads the whole table once: its cost is that of a scan.
    async fn end_load(&mut self, entity: &str, version: Lsn) -> Result<(), Error> {
        let client = self.client().await;
        let scan = client
            .scan()
            .table_name(&self.config.table)
            .filter_expression("entity = :entity AND #version < :version AND attribute_not_exists(deleted)")
            .projection_expression("#key")
            .expression_attribute_names("#version", "version")
            .expression_attribute_names("#key", "key")
            .expression_attribute_values(":entity", AttributeValue::S(entity.to_owned()))
            .expression_attribute_values(":version", AttributeValue::S(version.to_string()));
        let mut items = scan.into_paginator().items().send();
        while let Some(item) = items.next().await {
            let item = item.map_err(|error| self.failed(&error))?;
            let Some(Ok(key)) = item.get("key").map(AttributeValue::as_s) else { continue };
            let gone = EntityChange {
                entity: entity.into(),
                key: schemas::change::EntityKey::from_text(key),
                version,
                commit_time_ms: 0,
                document: None,
            };
            self.put(&client, &gone).await?;
        }
        Ok(())
    }
}
