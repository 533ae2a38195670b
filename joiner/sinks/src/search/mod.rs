//! Entities in Elasticsearch or OpenSearch, an index for each kind and a document for each entity.
//!
//! # Documents
//! The index is `index_prefix` and the entity's name, the id the entity key (its SHA-256 where that is longer than 512 bytes). The document's members stand at the top; beside them `tributary` holds `entity`, `key`,
//! `version` (the LSN's text, which sorts as the LSN does) and `commit_time`. Indices that are not there are made, typed by the definition ([`mapping`]).
//!
//! # Why an older version never replaces a newer one (INV-5)
//! Every operation carries its LSN as an external version ([`bulk`] says how it is packed), and the cluster refuses what is older than what it holds; in which order operations arrive does not matter. A deletion is
//! such an operation too, and its version guards the id against what comes late for `tombstone_hours` (the index's `gc_deletes`, in the memory of the shards). What is handed over again after that long
//! comes from a savepoint that old, and is followed by the deletion itself.
//!
//! # What the frontier says here, and what it does not
//! The document `frontier` of the index `tributary_frontier` (behind the prefix) holds `lsn`, which is the least of `parts`: what each writer says of its share of the keys. It is replaced only where it still is what was read
//! (`if_seq_no`), after every operation of its batch has been acknowledged: it never says too much. A cluster has no
//! transactions: documents of one source transaction appear one after the other, and searches see them when their shard has been refreshed (a second, by default).
//!
//! A cluster that has lost an index says less than it once confirmed, and is loaded anew ([`Sink::held`]): a frontier that is gone with its index says nothing, and before another index is made again the frontier is taken
//! back. A cluster that makes indices by itself when they are written to (`action.auto_create_index`, the products' default) makes one of another shape, which the next `prepare` refuses and names.
//!
//! Not tested against either product: against a stub that follows the documented protocol (`test_support::SearchStub`).

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::{KeyRange, Lsn};
use serde::Deserialize;

use crate::shares::{self, Kept, Register, Share};
use crate::{Checked, Error, Held, Rejected, SecretReference, Sink, UrlSource, check};

mod bulk;
mod cluster;
mod frontier;
mod mapping;

use bulk::{Fate, Operation};
use cluster::{Bulk, Cluster};
use frontier::{Edition, FrontierDocument};

const FRONTIER_INDEX: &str = "tributary_frontier";
/// Where an index's mapping shows that it is ours.
const ENTITY_MARK: &str = "/mappings/properties/tributary/properties/version";
const FRONTIER_MARK: &str = "/mappings/properties/lsn";
/// Attempts at operations that the cluster has no room for, and the pause before the second.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);
/// Vanished documents that are deleted in one request.
const VANISHED: usize = 1000;
/// Bits of the LSN's log block that a version can spare.
const BLOCK_BITS: std::ops::RangeInclusive<u32> = 16..=32;

/// The `search` sink.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchConfig {
    /// How status, logs and metrics call it. Default: `search`.
    #[serde(default = "default_name")]
    pub name: String,
    /// `https://host:9200`, or a secret that holds it.
    pub url: UrlSource,
    /// Default: none.
    #[serde(default)]
    pub username: Option<String>,
    /// Its password.
    #[serde(default)]
    pub password: Option<SecretReference>,
    /// An API key, as Elasticsearch encodes it, instead of a user. Default: none.
    #[serde(default)]
    pub api_key: Option<SecretReference>,
    /// A file of PEM certificates of the authorities that are trusted instead of the system's. Default: none.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// What stands before the entity's name in the name of its index. Default: nothing.
    #[serde(default)]
    pub index_prefix: String,
    /// For so long a deleted entity's version guards it, in an index that the sink makes. Default: 24.
    #[serde(default = "default_tombstone_hours")]
    pub tombstone_hours: u64,
    /// Bits of a document's version that are for the log block of the LSN. Default: 25, enough for virtual log files of 16 GiB, and for 67 million of them.
    #[serde(default = "default_lsn_block_bits")]
    pub lsn_block_bits: u32,
    /// Bytes of one request. Default: 4194304.
    #[serde(default = "default_batch_bytes")]
    pub batch_bytes: usize,
    /// Requests under way at once. Default: 2.
    #[serde(default = "default_in_flight")]
    pub in_flight: usize,
    /// How long one request may take. Default: 60000.
    #[serde(default = "default_request_limit_ms")]
    pub request_limit_ms: u64,
}

fn default_name() -> String {
    "search".to_owned()
}

fn default_tombstone_hours() -> u64 {
    24
}

fn default_lsn_block_bits() -> u32 {
    25
}

fn default_batch_bytes() -> usize {
    4 << 20
}

fn default_in_flight() -> usize {
    2
}

fn default_request_limit_ms() -> u64 {
    60_000
}

impl SearchConfig {
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            name: default_name(),
            url: UrlSource::Text(url.into()),
            username: None,
            password: None,
            api_key: None,
            ca_file: None,
            index_prefix: String::new(),
            tombstone_hours: default_tombstone_hours(),
            lsn_block_bits: default_lsn_block_bits(),
            batch_bytes: default_batch_bytes(),
            in_flight: default_in_flight(),
            request_limit_ms: default_request_limit_ms(),
        }
    }
}

pub struct SearchSink {
    config: SearchConfig,
    target: String,
    cluster: Option<Cluster>,
    share: Share,
    /// The frontier's document as it was seen last.
    frontier: Option<Kept<Edition>>,
}

impl SearchSink {
    pub fn new(config: SearchConfig) -> Self {
        let target = format!("search cluster of sink {}", config.name);
        Self { config, target, cluster: None, share: Share::WHOLE, frontier: None }
    }

    fn cluster(&self) -> Result<&Cluster, Error> {
        self.cluster.as_ref().ok_or_else(|| Error::unavailable(&self.target, "it has not been prepared"))
    }

    fn open(&self) -> Result<Cluster, Error> {
        let prefix = &self.config.index_prefix;
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-' | '.');
        if !prefix.chars().all(legal) || prefix.starts_with(['_', '-', '.']) || prefix.len() > 100 {
            let remedy = "Use lower-case letters, digits, `_`, `-` and `.`, and begin with a letter";
            return Err(Error::misconfigured(
                &self.target,
                format!("index_prefix {prefix:?} cannot begin an index's name"),
                remedy,
            ));
        }
        if !BLOCK_BITS.contains(&self.config.lsn_block_bits) {
            let message = format!("lsn_block_bits is {}", self.config.lsn_block_bits);
            return Err(Error::misconfigured(&self.target, message, "Set it from 16 to 32"));
        }
        Cluster::open(&self.config, &self.target)
    }

    fn index(&self, entity: &str) -> String {
        format!("{}{entity}", self.config.index_prefix)
    }

    /// The indices that are wanted, with their marks and, where one has to be made, what it is made as.
    fn indices(&self, entities: &[EntityInfo]) -> Vec<(String, &'static str, serde_json::Value)> {
        let hours = self.config.tombstone_hours;
        let of_entity =
            |entity: &EntityInfo| (self.index(&entity.name), ENTITY_MARK, mapping::index(&entity.document_schema, hours));
        let mut all: Vec<_> = entities.iter().map(of_entity).collect();
        all.push((self.index(FRONTIER_INDEX), FRONTIER_MARK, mapping::frontier_index(hours)));
        all
    }

    /// Carries out operations until each is done, stale or refused.
    async fn apply(&self, operations: Vec<Operation>) -> Result<Vec<Rejected>, Error> {
        let cluster = self.cluster()?;
        let mut rejected = Vec::new();
        let (mut left, mut pause, mut reason) = (operations, PAUSE, String::new());
        for _ in 0..ATTEMPTS {
            let lines = left.iter().map(|operation| operation.lines.as_str()).collect();
            let fates = match cluster.bulk(lines, left.len()).await? {
                Bulk::Fates(fates) => fates,
                Bulk::TooLarge(said) if left.len() == 1 => vec![Fate::Refused(said)],
                Bulk::TooLarge(_) => {
                    let second = left.split_off(left.len() / 2);
                    for half in [left, second] {
                        rejected.extend(Box::pin(self.apply(half)).await?);
                    }
                    return Ok(rejected);
                }
            };
            let mut again = Vec::new();
            for (operation, fate) in left.into_iter().zip(fates) {
                match fate {
                    Fate::Done | Fate::Stale => {}
                    Fate::Refused(reason) => rejected.push(Rejected { change: operation.change, reason }),
                    Fate::Forbidden(said) => {
                        return Err(Error::misconfigured(&self.target, said, "Allow it to write to the sink's indices"));
                    }
                    Fate::Missing(said) => return Err(self.missing(&said)),
                    Fate::Again(said) => {
                        reason = said;
                        again.push(operation);
                    }
                }
            }
            if again.is_empty() {
                return Ok(rejected);
            }
            left = again;
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        let message = format!("{} operations were not taken in {ATTEMPTS} attempts; last: {reason}", left.len());
        Err(Error::throttled(&self.target, message, None))
    }

    fn missing(&self, said: &str) -> Error {
        let remedy = "Somebody has removed an index: it is made again, and loaded";
        Error::misconfigured(&self.target, said, remedy)
    }

    fn frontier_document<'s>(&'s self, cluster: &'s Cluster) -> FrontierDocument<'s> {
        FrontierDocument { target: &self.target, cluster, index: self.index(FRONTIER_INDEX) }
    }
}

/// Requests of so many bytes at most, but for an operation that is larger by itself.
fn requests(operations: Vec<Operation>, limit: usize) -> Vec<Vec<Operation>> {
    let mut requests = Vec::new();
    let (mut request, mut bytes) = (Vec::new(), 0);
    for operation in operations {
        if !request.is_empty() && bytes + operation.lines.len() > limit {
            requests.push(std::mem::take(&mut request));
            bytes = 0;
        }
        bytes += operation.lines.len();
        request.push(operation);
    }
    if !request.is_empty() {
        requests.push(request);
    }
    requests
}

#[async_trait]
impl Sink for SearchSink {
    async fn prepare(&mut self, entities: &[EntityInfo]) -> Result<(), Error> {
        let cluster = self.open()?;
        let mut missing = Vec::new();
        for (index, mark, definition) in self.indices(entities) {
            if !cluster.has_index(&index, mark).await? {
                missing.push((index, definition));
            }
        }
        if !missing.is_empty() {
            // First: once they are there, nothing else tells that they are empty.
            self.frontier_document(&cluster).remove().await?;
        }
        for (index, definition) in missing {
            cluster.create_index(&index, &definition).await?;
        }
        let mut share = self.share;
        self.frontier = Some(shares::take_in(&self.frontier_document(&cluster), &mut share).await?);
        (self.share, self.cluster) = (share, Some(cluster));
        Ok(())
    }

    async fn held(&mut self) -> Result<Held, Error> {
        let said = self.frontier_document(self.cluster()?).read().await?;
        let held = shares::held(&said.parts, self.share.range);
        self.frontier = Some(said);
        Ok(held.into())
    }

    fn own(&mut self, range: KeyRange) -> bool {
        self.share.range = range;
        true
    }

    /// In the order of the documents' ids.
    async fn older(
        &mut self,
        entity: &str,
        version: Lsn,
        after: Option<&EntityKey>,
        limit: usize,
    ) -> Result<Vec<EntityKey>, Error> {
        let behind = after.map(EntityKey::as_str);
        let found = self.cluster()?.older_than(&self.index(entity), &version.to_string(), behind, limit).await?;
        Ok(found.into_iter().map(|found| EntityKey::from_text(found.key)).collect())
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        let (accepted, mut rejected) = check::sort(changes);
        let mut operations = Vec::with_capacity(accepted.len());
        for change in accepted {
            match Operation::new(change, &self.index(&change.entity), self.config.lsn_block_bits) {
                Ok(operation) => operations.push(operation),
                Err(reason) => rejected.push(Rejected { change: change.clone(), reason }),
            }
        }
        let this = &*self;
        let requests = requests(operations, self.config.batch_bytes);
        let applying = stream::iter(requests).map(|request| this.apply(request));
        let refused: Vec<Vec<Rejected>> = applying.buffer_unordered(self.config.in_flight.max(1)).try_collect().await?;
        rejected.extend(refused.into_iter().flatten());
        if let Some(frontier) = frontier {
            let (mut share, mut said) = (self.share, self.frontier.take());
            shares::raise_in(&self.frontier_document(self.cluster()?), &mut share, &mut said, frontier).await?;
            (self.share, self.frontier) = (share, said);
        }
        Ok(rejected)
    }

    /// Looks for what is older than the load, and deletes it under the load's version.
    async fn end_load(&mut self, entity: &str, version: Lsn) -> Result<(), Error> {
        let (cluster, index) = (self.cluster()?, self.index(entity));
        let number = bulk::version(version, self.config.lsn_block_bits);
        let number = number.map_err(|reason| Error::unexpected(&self.target, reason))?;
        loop {
            let found = cluster.older_than(&index, &version.to_string(), None, VANISHED).await?;
            if found.is_empty() {
                return Ok(());
            }
            let lines = found.iter().map(|found| bulk::deletion(&index, &found.id, number)).collect();
            // One page after the other, as long as each makes the next one shorter.
            match cluster.bulk(lines, found.len()).await? {
                Bulk::Fates(fates) if fates.contains(&Fate::Done) => {}
                Bulk::Fates(fates) => {
                    let message =
                        format!("none of {} vanished documents of {index} could be deleted: {:?}", found.len(), fates.first());
                    return Err(Error::unavailable(&self.target, message));
                }
                Bulk::TooLarge(said) => return Err(Error::unexpected(&self.target, said)),
            }
        }
    }

    async fn check(&mut self, entities: &[EntityInfo]) -> Result<Checked, Error> {
        let cluster = self.open()?;
        let about = cluster.about().await?;
        let (mut there, mut missing) = (0, Vec::new());
        for (index, mark, _) in self.indices(entities) {
            if cluster.has_index(&index, mark).await? {
                there += 1;
            } else {
                missing.push(index);
            }
        }
        let made = if missing.is_empty() { String::new() } else { format!(", {} will be made", missing.join(", ")) };
        Ok(Checked { detail: format!("{about}: {there} indices are there{made}"), warnings: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::change::EntityKey;

    use super::*;

    #[test]
    fn requests_keep_their_limit_and_large_documents_go_alone() {
        let change = |key: u32, bytes: usize| EntityChange {
            entity: "order".into(),
            key: EntityKey::from_text(key.to_string()),
            version: Lsn::ZERO,
            commit_time_ms: 0,
            document: Some(format!("{{\"text\":\"{}\"}}", "x".repeat(bytes)).into()),
        };
        let changes: Vec<_> = [300, 300, 5000, 300].iter().zip(0..).map(|(bytes, key)| change(key, *bytes)).collect();
        let operations = changes.iter().map(|change| Operation::new(change, "order", 25).unwrap()).collect();
        let sizes: Vec<_> = requests(operations, 1500).iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 1, 1]);
    }

    #[tokio::test]
    async fn options_that_will_not_do_are_refused() {
        let refused = async |config: SearchConfig| SearchSink::new(config).prepare(&[]).await.unwrap_err().to_string();
        let good = SearchConfig::new("http://127.0.0.1:1");
        assert!(refused(SearchConfig { index_prefix: "Shop-".into(), ..good.clone() }).await.contains("index_prefix"));
        assert!(refused(SearchConfig { lsn_block_bits: 50, ..good.clone() }).await.contains("lsn_block_bits"));
        assert!(refused(SearchConfig { username: Some("u".into()), ..good }).await.contains("incomplete"));
        assert!(refused(SearchConfig::new("http://u:hunter2@h/")).await.contains("username"));
        assert!(!refused(SearchConfig::new("http://u:hunter2@h/")).await.contains("hunter2"));
    }
}
