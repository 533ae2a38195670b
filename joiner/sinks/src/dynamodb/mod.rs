//! Entities in one DynamoDB table, an item each.
//!
//! # Items
//! | attribute | value |
//! |---|---|
//! | `pk` (or what `key_attribute` says) | `entity#key`, the partition key; with `sort_key_attribute`, `entity#` and the first part of the entity key |
//! | what `sort_key_attribute` says | the other parts, so that one query gets the entities that share the first: the lines of an order in their order ([`keys`]) |
//! | `entity`, `key` | the entity's kind and its key's text |
//! | `version` | the LSN's text, which sorts as the LSN does |
//! | `commit_time_ms` | N |
//! | `document` | M, or S with the JSON text, as `document` says; absent in a tombstone |
//! | `document_at` | in place of `document`: the object in `oversize` that holds the JSON text of a document too large for an item |
//! | a member's path, as `customer.id` | the member, where an index of `indexes` is over it |
//! | `deleted`, `expires_at` | of a tombstone: `true`, and when DynamoDB's time-to-live removes it |
//!
//! The item `_tributary#frontier` (with a sort key, `-`) holds `lsn`: everything at or below it is in the table; absent before all has been loaded. It is the least of `parts`, a map of LSNs by the share that a writer has said
//! it of ([`frontier`]). No entity's name starts with an underscore.
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
//! An item and the frontier could share a transaction (`TransactWriteItems`), and so could up to a hundred items: at twice the price of each write and a tenth of the speed, for a promise that a batch of
//! thousands still does not get. So this stays as it is, and is told.
//!
//! # Types
//! A number of the document becomes N as it is written there; one that DynamoDB would not hold exactly (38 digits, 1e-130 to 9.99e125) makes its change a dead letter. The source's decimals are strings in the document and
//! stay strings, or become N with `decimals: number`. Binary values, base64 in the document, become B. An index is over N for numbers and decimals, B for binary values, S for what else is text.
//!
//! # Throttling
//! Requests that DynamoDB throttles are made again with growing pauses by the client. When that is not enough the batch fails as throttled and half as many puts are under way the next time; each batch that succeeds
//! adds some again, up to `in_flight`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue};
use futures_util::{StreamExt, TryStreamExt, stream};
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::{KeyRange, Lsn};
use serde::Deserialize;

use crate::aws::{self, Access};
use crate::shares::{self, Kept, Register, Share};
use crate::{Checked, Error, Held, Rejected, Sink, check};

mod frontier;
mod item;
mod keys;
mod oversize;
mod table;

pub use item::{DecimalForm, DocumentForm};
pub use keys::IndexConfig;

use item::Unfit;
use keys::Shapes;
use oversize::Oversize;

const SECONDS_PER_DAY: u64 = 86_400;
/// Of entities; SQL sinks take no longer ones.
const LONGEST_NAME_BYTES: usize = 63;
/// Vanished entities that are asked for at a time.
const VANISHED: usize = 1000;

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
    /// Its sort key: then the partition key holds the first part of the entity key, and this the others. Default: none.
    #[serde(default)]
    pub sort_key_attribute: Option<String>,
    /// Global secondary indexes over members of the document. Default: none.
    #[serde(default)]
    pub indexes: Vec<IndexConfig>,
    /// `string` (default) or `number`: how decimals are kept in a map.
    #[serde(default)]
    pub decimals: DecimalForm,
    /// Object storage for documents that are too large for an item. Without it, such a change is a dead letter.
    #[serde(default)]
    pub oversize: Option<objects::Config>,
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
            sort_key_attribute: None,
            indexes: Vec::new(),
            decimals: DecimalForm::default(),
            oversize: None,
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
    access: Access,
    client: Option<Client>,
    shapes: Shapes,
    oversize: Option<Oversize>,
    share: Share,
    /// The frontier's item as it was seen last.
    frontier: Option<Kept<Option<String>>>,
    /// Puts under way at once, at present.
    window: usize,
}

/// Puts that a batch without throttling adds to those under way.
const WINDOW_STEP: usize = 4;

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
        let window = config.in_flight.max(1);
        let access = Access::Found { region: config.region.clone(), endpoint_url: config.endpoint_url.clone() };
        let (client, shapes, oversize) = (None, Shapes::default(), None);
        Self { config, target, access, client, shapes, oversize, share: Share::WHOLE, frontier: None, window }
    }

    /// With an AWS configuration that the process has already.
    pub fn with_sdk_config(config: DynamodbConfig, sdk: &SdkConfig) -> Self {
        Self { access: Access::Given(Box::new(sdk.clone())), ..Self::new(config) }
    }

    async fn new_client(&mut self) -> Client {
        let client = Client::new(&self.access.sdk_config().await);
        self.client.insert(client).clone()
    }

    async fn client(&mut self) -> Client {
        match &self.client {
            Some(client) => client.clone(),
            None => self.new_client().await,
        }
    }

    /// What the configuration says of the entities, or what is wrong with it.
    fn shapes_of(&self, entities: &[EntityInfo]) -> Result<Shapes, Error> {
        Shapes::of(entities, &self.config.indexes)
            .map_err(|reason| Error::misconfigured(&self.target, reason, "Correct the sink's `indexes`"))
    }

    fn failed<E: ProvideErrorMetadata + std::error::Error + 'static, R: std::fmt::Debug + 'static>(
        &self,
        error: &SdkError<E, R>,
    ) -> Error {
        aws::classify(&self.target, error.code(), error.message(), &DisplayErrorContext(error).to_string())
    }

    async fn put(&self, client: &Client, change: &EntityChange) -> Result<Put, Error> {
        let make = |pointer: Option<&str>| item::from_change(change, &self.config, &self.shapes, self.expires_at(), pointer);
        let (mut made, mut pointer) = (make(None), None);
        if let (Err(Unfit::Large(_)), Some(oversize)) = (&made, &self.oversize) {
            let at = oversize.put(change).await?;
            made = make(Some(&at));
            pointer = Some(at);
        }
        let item = match made {
            Ok(item) => item,
            Err(unfit) => return Ok(Put::Refused(unfit.to_string())),
        };
        let answer = client
            .put_item()
            .table_name(&self.config.table)
            .set_item(Some(item))
            .set_return_values(self.oversize.is_some().then_some(ReturnValue::AllOld))
            .condition_expression("attribute_not_exists(#version) OR #version <= :version")
            .expression_attribute_names("#version", "version")
            .expression_attribute_values(":version", AttributeValue::S(change.version.to_string()))
            .send()
            .await;
        match answer {
            Ok(answer) => {
                if let Some(oversize) = &self.oversize {
                    oversize.replaced(answer.attributes(), pointer.as_deref()).await;
                }
                Ok(Put::Written)
            }
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
}

#[async_trait]
impl Sink for DynamodbSink {
    async fn prepare(&mut self, entities: &[EntityInfo]) -> Result<(), Error> {
        self.shapes = self.shapes_of(entities)?;
        self.oversize = match &self.config.oversize {
            Some(config) => Some(Oversize::open(config, &self.target).await?),
            None => None,
        };
        let client = self.new_client().await;
        self.ensure_table(&client).await?;
        let mut share = self.share;
        self.frontier = Some(shares::take_in(&self.frontier_item(&client), &mut share).await?);
        self.share = share;
        Ok(())
    }

    async fn held(&mut self) -> Result<Held, Error> {
        let client = self.client().await;
        let said = self.frontier_item(&client).read().await?;
        let held = shares::held(&said.parts, self.share.range);
        self.frontier = Some(said);
        Ok(held.into())
    }

    fn own(&mut self, range: KeyRange) -> bool {
        self.share.range = range;
        true
    }

    /// Whatever of it comes into the sort key, and however long the entity's name is.
    fn key_limit_bytes(&self) -> usize {
        match &self.config.sort_key_attribute {
            Some(_) => item::SORT_KEY_LIMIT_BYTES,
            None => item::KEY_LIMIT_BYTES - LONGEST_NAME_BYTES - 1,
        }
    }

    async fn check(&mut self, entities: &[EntityInfo]) -> Result<Checked, Error> {
        self.shapes = self.shapes_of(entities)?;
        let client = self.new_client().await;
        self.look(&client).await
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
        let mut puts = puts.buffer_unordered(self.window);
        let mut stale = 0u64;
        loop {
            let (change, put) = match puts.try_next().await {
                Ok(Some(done)) => done,
                Ok(None) => break,
                Err(error) => {
                    drop(puts);
                    if matches!(error, Error::Throttled { .. }) {
                        self.window = (self.window / 2).max(1);
                    }
                    return Err(error);
                }
            };
            match put {
                Put::Written => {}
                Put::Stale => stale += 1,
                Put::Refused(reason) => rejected.push(Rejected { change, reason }),
            }
        }
        drop(puts);
        self.window = (self.window + WINDOW_STEP).min(self.config.in_flight.max(1));
        if stale > 0 {
            tracing::debug!(target_name = %self.target, stale, "newer versions were there already");
        }
        if let Some(frontier) = frontier {
            let (mut share, mut said) = (self.share, self.frontier.take());
            shares::raise_in(&self.frontier_item(&client), &mut share, &mut said, frontier).await?;
            (self.share, self.frontier) = (share, said);
        }
        Ok(rejected)
    }

    /// Reads the whole table once: its cost is that of a scan.
    async fn end_load(&mut self, entity: &str, version: Lsn) -> Result<(), Error> {
        let client = self.client().await;
        let mut after: Option<EntityKey> = None;
        loop {
            let keys = self.older(entity, version, after.as_ref(), VANISHED).await?;
            let Some(last) = keys.last().cloned() else { return Ok(()) };
            after = Some(last);
            let this = &*self;
            let puts = stream::iter(keys).map(|key| {
                let client = &client;
                async move { this.put(client, &gone(entity, key, version)).await }
            });
            puts.buffer_unordered(this.window).try_for_each(|_| async { Ok(()) }).await?;
        }
    }

    /// In the order in which DynamoDB scans.
    async fn older(
        &mut self,
        entity: &str,
        version: Lsn,
        after: Option<&EntityKey>,
        limit: usize,
    ) -> Result<Vec<EntityKey>, Error> {
        let client = self.client().await;
        let mut start = after.map(|after| item::keys(&gone(entity, after.clone(), version), &self.config, &self.shapes));
        let mut keys = Vec::new();
        loop {
            let page = client
                .scan()
                .table_name(&self.config.table)
                .set_exclusive_start_key(start)
                .consistent_read(true)
                .filter_expression("entity = :entity AND #version < :version AND attribute_not_exists(deleted)")
                .projection_expression("#key")
                .expression_attribute_names("#version", "version")
                .expression_attribute_names("#key", "key")
                .expression_attribute_values(":entity", AttributeValue::S(entity.to_owned()))
                .expression_attribute_values(":version", AttributeValue::S(version.to_string()))
                .send()
                .await
                .map_err(|error| self.failed(&error))?;
            let found = page.items().iter().filter_map(|item| item.get("key")?.as_s().ok());
            keys.extend(found.take(limit - keys.len()).map(EntityKey::from_text));
            start = page.last_evaluated_key;
            if start.is_none() || keys.len() >= limit {
                return Ok(keys);
            }
        }
    }
}

/// An entity that a load has not found.
fn gone(entity: &str, key: EntityKey, version: Lsn) -> EntityChange {
    EntityChange { entity: entity.into(), key, version, commit_time_ms: 0, document: None }
}
