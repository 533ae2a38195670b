//! [sns-vs-raw]: the SNS sink beside the AWS SDK's own client, which publishes the same messages to the same stand-in (ministack) with as many batches under way. Nobody is subscribed, so what is
//! measured is the sending; the raw client's messages are made before its time begins, the sink's within.
//!
//! Both take turns in one process: the stand-in costs most of the time, and has to be equally warm for both.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use aws_sdk_sns::Client;
use aws_sdk_sns::types::{MessageAttributeValue, PublishBatchRequestEntry};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use schemas::Lsn;
use schemas::change::{EntityChange, EntityKey};
use sinks::Sink as _;
use sinks::cloudevent::{self, Origin};
use sinks::sns::{SnsConfig, SnsSink};
use sinks::test_support::Ministack;
use tokio::task::JoinSet;

use crate::SEED;
use crate::joining::{child, median_run};
use crate::process::measure;
use crate::results::Figure;

const CHANGES: u32 = 20_000;
/// As delivery hands them over.
const PAGE: usize = 5000;
const TEXT_BYTES: usize = 400;
/// The limit of a request, and as many requests at once as the sink has.
const BATCH: usize = 10;
const IN_FLIGHT: usize = 16;
const RUNS: usize = 3;

/// The figure, from a process of its own.
pub(crate) fn figure() -> anyhow::Result<Figure> {
    let run = median_run(RUNS, "ours", || measure(&mut child(&["sns"])?))?;
    let rate = |key| run.get(key).map(|seconds| f64::from(CHANGES) / seconds);
    let figure = Figure::rate("sns-vs-raw", "messages/s", rate("ours")?, "the AWS SDK's client", Some(rate("raw")?));
    Ok(figure.memory(Some(run.peak_mb), None))
}

/// Publishes with both; reports the seconds of each.
pub(crate) async fn run() -> anyhow::Result<()> {
    let stack = Ministack::start();
    let sdk = stack.sdk_config().await;
    let client = Client::new(&sdk);
    let topic = async |name: &str| -> anyhow::Result<String> {
        client.create_topic().name(name).send().await?.topic_arn.context("the topic's name")
    };
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let changes: Vec<EntityChange> = (0..CHANGES).map(|key| change(key, &mut random)).collect();
    let mut sink = SnsSink::with_sdk_config(SnsConfig::new(topic("ours").await?), &sdk);
    sink.prepare(&[]).await?;
    let raw_topic = topic("raw").await?;
    // Connections are made, and the stand-in is warm.
    ensure!(sink.write(&changes[..BATCH * IN_FLIGHT], None).await?.is_empty(), "a message was refused");
    publish(&client, &raw_topic, entries(&changes[..BATCH * IN_FLIGHT])?).await?;
    let (mut ours, mut raw) = (0.0, 0.0);
    for page in changes.chunks(PAGE) {
        let started = Instant::now();
        ensure!(sink.write(page, None).await?.is_empty(), "a message was refused");
        ours += started.elapsed().as_secs_f64();
        let batches = entries(page)?;
        let started = Instant::now();
        publish(&client, &raw_topic, batches).await?;
        raw += started.elapsed().as_secs_f64();
    }
    println!("ours={ours:.4} raw={raw:.4}");
    Ok(())
}

fn change(key: u32, random: &mut ChaCha8Rng) -> EntityChange {
    let text: String = (0..TEXT_BYTES).map(|_| random.random_range('a'..='z')).collect();
    EntityChange {
        entity: "order".into(),
        key: EntityKey::from_text(key.to_string()),
        version: Lsn::from_bytes([0, 0, 0, 1, 0, 0, 0, 1, 0, 1]),
        commit_time_ms: 1_700_000_000_000,
        document: Some(format!(r#"{{"id":{key},"text":"{text}"}}"#).into()),
    }
}

/// The batches, with the messages and attributes that the sink sends.
fn entries(changes: &[EntityChange]) -> anyhow::Result<VecDeque<Vec<PublishBatchRequestEntry>>> {
    let entry = |(index, change): (usize, &EntityChange)| -> anyhow::Result<PublishBatchRequestEntry> {
        let mut entry =
            PublishBatchRequestEntry::builder().id(index.to_string()).message(cloudevent::to_json(change, &Origin::default()));
        for (name, value) in [("entity", "order"), ("op", "upserted"), ("key", change.key.as_str())] {
            entry =
                entry.message_attributes(name, MessageAttributeValue::builder().data_type("String").string_value(value).build()?);
        }
        Ok(entry.build()?)
    };
    changes.chunks(BATCH).map(|batch| batch.iter().enumerate().map(entry).collect()).collect()
}

async fn publish(client: &Client, topic: &str, mut batches: VecDeque<Vec<PublishBatchRequestEntry>>) -> anyhow::Result<()> {
    let mut under_way = JoinSet::new();
    loop {
        while under_way.len() < IN_FLIGHT
            && let Some(batch) = batches.pop_front()
        {
            let request = client.publish_batch().topic_arn(topic).set_publish_batch_request_entries(Some(batch));
            under_way.spawn(request.send());
        }
        let Some(answer) = under_way.join_next().await else { return Ok(()) };
        ensure!(answer??.failed().is_empty(), "a message was refused");
    }
}
