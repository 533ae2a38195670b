//! [lake-vs-arrow]: changes into a lake's table by the sink, each batch a commit, beside arrow-rs writing the same columns of the same batches to Parquet files and nothing else: no log, no look at what is there, its values typed
//! beforehand, where the sink reads them out of the documents. Both compress with zstd at level 1 and sync each file. The merge into the current entities happens once in `current_seconds` and is not in it.
//!
//! This module is built with the feature `arrow` alone, which `make bench` sets: nobody else has to compile Arrow.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use objects::{Config, LocalOptions};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use schemas::Lsn;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::table::SqlType;
use serde_json::json;
use sinks::Sink as _;
use sinks::lake::{LakeConfig, LakeSink};

use crate::SEED;
use crate::results::Figure;

const BATCHES: u64 = 40;
/// As many as the joiner hands over at once.
const BATCH: u64 = 5000;
const RUNS: usize = 3;

/// An entity, with the values that get columns of their own.
struct Order {
    id: i64,
    status: String,
    total: String,
    change: EntityChange,
}

fn batch(number: u64, random: &mut ChaCha8Rng) -> Vec<Order> {
    let lsn = |number: u64| {
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        Lsn::from_bytes(bytes)
    };
    let order = |n: u64| {
        let id = (number * BATCH + n) as i64;
        let status = ["NEW", "PAID", "SHIPPED"][random.random_range(0..3)].to_owned();
        let total = format!("{}.{:02}", random.random_range(0..100_000), random.random_range(0..100));
        let line = |random: &mut ChaCha8Rng| json!({"product": random.random_range(0..1_000_000), "quantity": random.random_range(1..50), "price": format!("{}.99", random.random_range(1..1000)), "comment": "as ordered"});
        let items: Vec<_> = (0..8).map(|_| line(random)).collect();
        let document = json!({"id": id, "status": status, "total": total, "items": items}).to_string();
        let change = EntityChange {
            entity: "order".into(),
            key: EntityKey::from_text(id.to_string()),
            version: lsn(number + 1),
            commit_time_ms: 1_760_000_000_000,
            document: Some(document.into()),
        };
        Order { id, status, total, change }
    };
    (0..BATCH).map(order).collect()
}

fn info() -> EntityInfo {
    let properties = json!({"id": {"type": "integer"}, "status": {"type": "string"}, "total": {"type": "string", "format": "decimal"}, "items": {"type": "array"}});
    let key = vec![("id".to_owned(), SqlType::BigInt)];
    EntityInfo { name: "order".into(), key, document_schema: json!({"type": "object", "properties": properties}) }
}

pub(crate) async fn figure(folder: &Path) -> anyhow::Result<Figure> {
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let batches: Vec<Vec<Order>> = (0..BATCHES).map(|number| batch(number, &mut random)).collect();
    let changes: Vec<Vec<EntityChange>> =
        batches.iter().map(|batch| batch.iter().map(|order| order.change.clone()).collect()).collect();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        ours.push(by_sink(&folder.join(format!("ours-{run}")), &changes).await?);
        theirs.push(peer::seconds(&folder.join(format!("arrow-{run}")), &batches[1..])?);
        std::fs::remove_dir_all(folder)?;
    }
    let rate = |mut seconds: Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        ((BATCHES - 1) * BATCH) as f64 / seconds[RUNS / 2]
    };
    Ok(Figure::rate("lake-vs-arrow", "changes/s", rate(ours), "arrow-rs, the same columns and files", Some(rate(theirs))))
}

/// The seconds in which the sink has written and committed all batches but the first, with which it merges.
async fn by_sink(folder: &Path, batches: &[Vec<EntityChange>]) -> anyhow::Result<f64> {
    let store = Config::Local(LocalOptions { path: folder.to_owned() });
    let mut sink = LakeSink::new(LakeConfig { commit_seconds: 0, current_seconds: 3600, ..LakeConfig::new(store) });
    sink.prepare(&[info()]).await?;
    let (first, rest) = batches.split_first().context("no batches")?;
    sink.write(first, None).await?;
    let start = Instant::now();
    for batch in rest {
        ensure!(sink.write(batch, None).await?.is_empty(), "a change was rejected");
    }
    Ok(start.elapsed().as_secs_f64())
}

mod peer {
    use std::fs::File;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Instant;

    use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
    use parquet::arrow::ArrowWriter;
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::file::properties::WriterProperties;

    use super::Order;

    pub(super) fn seconds(folder: &Path, batches: &[Vec<Order>]) -> anyhow::Result<f64> {
        std::fs::create_dir_all(folder)?;
        let start = Instant::now();
        for (nth, batch) in batches.iter().enumerate() {
            let batch = columns(batch)?;
            let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?)).build();
            let file = File::create(folder.join(format!("{nth}.parquet")))?;
            let mut writer = ArrowWriter::try_new(&file, batch.schema(), Some(properties))?;
            writer.write(&batch)?;
            writer.close()?;
            file.sync_all()?;
        }
        Ok(start.elapsed().as_secs_f64())
    }

    fn columns(batch: &[Order]) -> anyhow::Result<RecordBatch> {
        let texts = |of: &dyn Fn(&Order) -> String| Arc::new(StringArray::from_iter_values(batch.iter().map(of))) as ArrayRef;
        let document = StringArray::from_iter(batch.iter().map(|order| order.change.document.as_deref()));
        let times = |of: fn(&Order) -> i64| {
            Arc::new(TimestampMicrosecondArray::from_iter_values(batch.iter().map(of)).with_timezone("UTC")) as ArrayRef
        };
        Ok(RecordBatch::try_from_iter([
            ("_key", texts(&|order| order.change.key.to_string())),
            ("_version", texts(&|order| order.change.version.to_string())),
            ("_committed_at", times(|order| order.change.commit_time_ms * 1000)),
            ("_written_at", times(|order| order.change.commit_time_ms * 1000)),
            ("_operation", texts(&|_| "upsert".to_owned())),
            ("_document", Arc::new(document) as ArrayRef),
            ("id", Arc::new(Int64Array::from_iter_values(batch.iter().map(|order| order.id))) as ArrayRef),
            ("status", texts(&|order| order.status.clone())),
            ("total", texts(&|order| order.total.clone())),
        ])?)
    }
}
