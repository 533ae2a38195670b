//! Making streams, listing them, describing them.
//!
//! A stream is made first and given its settings then, one after the other, each when the stream is active again: Kinesis refuses the next while the last is under way. Who dies in
//! between leaves a stream without some of its settings; whoever opens it later is told so by a warning, and by `tributary stream create`, since an existing stream is changed only where somebody asks for
//! that ([`change`](super::change)).
//!
//! Descriptions lag: a stream that has just been made may not be known for a moment to whoever is asked.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::types::{
    EncryptionType, RecordDistributionStrategy, StreamDescriptionSummary, StreamMode, StreamModeDetails, StreamStatus,
};
use schemas::ErrorClass;
use schemas::progress::StreamName;
use tokio::time::Instant;

use super::change;
use super::client::{Client, Failure, Kind, Shard};
use crate::{Capacity, Created, Description, Error, Setting, ShardDescription, StreamSettings, Summary};

/// How long a stream may take to become active.
pub(super) const CHANGE: Duration = Duration::from_secs(300);
const HOUR_SECONDS: u64 = 3600;
/// What Kinesis keeps records for unless it is told otherwise.
const DEFAULT_RETENTION_HOURS: u64 = 24;
const DEFAULT_RECORD_BYTES: usize = 1 << 20;
/// A stream that is younger has lost nothing: Kinesis keeps records for 24 hours at least.
const SURELY_KEPT: Duration = Duration::from_secs(23 * HOUR_SECONDS);

/// The stream as Kinesis sums it up; none when it does not exist.
async fn summary(client: &Client, stream: &StreamName) -> Result<Option<StreamDescriptionSummary>, Error> {
    const OPERATION: &str = "DescribeStreamSummary";
    let call = || async { Ok(client.sdk.describe_stream_summary().stream_name(&stream.0).send().await?) };
    match client.retry(OPERATION, call).await {
        Ok(answer) => Ok(answer.stream_description_summary),
        Err(Failure { kind: Kind::NotFound, .. }) => Ok(None),
        Err(failure) => Err(failure.into_error(OPERATION, stream)),
    }
}

/// The stream as Kinesis sums it up; an error when it does not exist.
pub(super) async fn existing(client: &Client, stream: &StreamName) -> Result<StreamDescriptionSummary, Error> {
    summary(client, stream).await?.ok_or_else(|| Error::NoSuchStream { stream: stream.clone() })
}

pub(super) async fn is_whole(client: &Client, stream: &StreamName) -> Result<bool, Error> {
    let created = existing(client, stream).await?.stream_creation_timestamp;
    let age = SystemTime::try_from(created).ok().and_then(|created| created.elapsed().ok());
    Ok(age.is_some_and(|age| age < SURELY_KEPT))
}

/// Waits until the stream is active; answers none when there is none.
async fn settled(
    client: &Client,
    stream: &StreamName,
    operation: &'static str,
) -> Result<Option<StreamDescriptionSummary>, Error> {
    match summary(client, stream).await? {
        None => Ok(None),
        Some(_) => until(client, stream, operation, CHANGE, |_| true).await.map(Some),
    }
}

/// Waits until a stream that there is, or that has just been made, is active and as it is to be.
pub(super) async fn until(
    client: &Client,
    stream: &StreamName,
    operation: &'static str,
    within: Duration,
    is_done: impl Fn(&StreamDescriptionSummary) -> bool,
) -> Result<StreamDescriptionSummary, Error> {
    let since = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(summary) = summary(client, stream).await?
            && summary.stream_status == StreamStatus::Active
            && is_done(&summary)
        {
            return Ok(summary);
        }
        if since.elapsed() > within {
            let message =
                format!("the stream is not active, or not changed, after {} s; what is under way goes on", within.as_secs());
            return Err(Error::Kinesis { operation, stream: stream.clone(), message, class: ErrorClass::Transient });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// Makes the stream where it does not exist. A stream that is being resharded is as good as one that is not.
pub(super) async fn ensure(client: &Client, stream: &StreamName, settings: &StreamSettings) -> Result<(), Error> {
    let found = match summary(client, stream).await? {
        Some(summary) if matches!(summary.stream_status, StreamStatus::Active | StreamStatus::Updating) => Some(summary),
        _ => make(client, stream, settings).await?,
    };
    let Some(summary) = found else { return Ok(()) };
    keeps_keys_together(&summary, stream)?;
    // The tags would need a permission and a call more, and how many shards there are by now is the operator's affair.
    let wanted = StreamSettings { tags: BTreeMap::new(), ..settings.clone() };
    let differs = described(stream, &summary, BTreeMap::new(), Vec::new()).differences(&wanted);
    for difference in differs.iter().filter(|difference| difference.setting != Setting::Capacity) {
        tracing::warn!(%stream, %difference, "the stream is not as it is configured");
    }
    Ok(())
}

pub(super) async fn create(client: &Client, stream: &StreamName, settings: &StreamSettings) -> Result<Created, Error> {
    if summary(client, stream).await?.is_none() && make(client, stream, settings).await?.is_none() {
        return Ok(Created::New);
    }
    Ok(Created::Existing { differs: describe(client, stream).await?.differences(settings) })
}

/// Makes the stream and gives it its settings. When somebody else has made it, or is making it, it is left to them, and answered when it is active.
async fn make(
    client: &Client,
    stream: &StreamName,
    settings: &StreamSettings,
) -> Result<Option<StreamDescriptionSummary>, Error> {
    const OPERATION: &str = "CreateStream";
    if let Some(theirs) = settled(client, stream, OPERATION).await? {
        return Ok(Some(theirs));
    }
    let call = || async {
        let request = client.sdk.create_stream().stream_name(&stream.0);
        let request = match settings.capacity {
            Capacity::Shards(count) => request.shard_count(i32::try_from(count.max(1)).unwrap_or(i32::MAX)),
            // By the partition key, as ever: with the strategy that Kinesis calls automatic a key's records are in several shards, in no order.
            Capacity::OnDemand => request
                .set_stream_mode_details(StreamModeDetails::builder().stream_mode(StreamMode::OnDemand).build().ok())
                .record_distribution_strategy(RecordDistributionStrategy::UserPartitionKey),
        };
        Ok(request.send().await?)
    };
    match client.retry(OPERATION, call).await {
        Ok(_) => {}
        Err(Failure { kind: Kind::InUse, .. }) => return settled(client, stream, OPERATION).await,
        Err(failure) => return Err(failure.into_error(OPERATION, stream)),
    }
    let made = until(client, stream, OPERATION, CHANGE, |_| true).await?;
    configure(client, stream, settings, &made).await?;
    Ok(None)
}

async fn configure(
    client: &Client,
    stream: &StreamName,
    settings: &StreamSettings,
    made: &StreamDescriptionSummary,
) -> Result<(), Error> {
    if let Some(retention) = settings.retention.map(hours).filter(|hours| *hours > DEFAULT_RETENTION_HOURS) {
        change::retain(client, stream, retention).await?;
    }
    if let Some(key) = &settings.encryption_key {
        change::encrypt(client, stream, key).await?;
    }
    if let Some(bytes) = settings.max_record_bytes.filter(|bytes| *bytes > DEFAULT_RECORD_BYTES) {
        change::resize(client, stream, &made.stream_arn, bytes).await?;
    }
    change::tag(client, stream, &settings.tags).await
}

pub(super) fn hours(retention: Duration) -> u64 {
    retention.as_secs().div_ceil(HOUR_SECONDS).max(DEFAULT_RETENTION_HOURS)
}

/// A stream may be told to spread records over its shards as it sees fit; then no key has an order, and it is of no use here.
fn keeps_keys_together(summary: &StreamDescriptionSummary, stream: &StreamName) -> Result<(), Error> {
    if summary.record_distribution_strategy != Some(RecordDistributionStrategy::Auto) {
        return Ok(());
    }
    Err(Error::Kinesis {
        operation: "DescribeStreamSummary",
        stream: stream.clone(),
        message: "the stream spreads records over its shards without regard to their partition keys (record distribution strategy AUTO): set it to USER_PARTITION_KEY".into(),
        class: ErrorClass::Misconfigured,
    })
}

/// All streams of the account and region are asked for: Kinesis has no search.
pub(super) async fn list(client: &Client, prefix: &str) -> Result<Vec<Summary>, Error> {
    const OPERATION: &str = "ListStreams";
    let named = StreamName(format!("{prefix}*"));
    let mut names = Vec::new();
    let mut last: Option<String> = None;
    loop {
        let call = client.sdk.list_streams().set_exclusive_start_stream_name(last.clone());
        let answer = client.retry(OPERATION, || async { Ok(call.clone().send().await?) }).await;
        let answer = answer.map_err(|failure| failure.into_error(OPERATION, &named))?;
        last = answer.stream_names.last().cloned();
        names.extend(answer.stream_names.into_iter().filter(|name| name.starts_with(prefix)).map(StreamName));
        if !answer.has_more_streams || last.is_none() {
            break;
        }
    }
    names.sort();
    let mut found = Vec::new();
    for stream in names {
        // One that has been deleted since is none.
        if let Some(summary) = summary(client, &stream).await? {
            found.push(Summary { stream, open_shards: u32::try_from(summary.open_shard_count).unwrap_or_default() });
        }
    }
    Ok(found)
}

pub(super) async fn describe(client: &Client, stream: &StreamName) -> Result<Description, Error> {
    let summary = existing(client, stream).await?;
    let shards = client.shards(stream).await?;
    Ok(described(stream, &summary, tags(client, stream).await?, shards))
}

async fn tags(client: &Client, stream: &StreamName) -> Result<BTreeMap<String, String>, Error> {
    const OPERATION: &str = "ListTagsForStream";
    let mut tags = BTreeMap::new();
    loop {
        let last = tags.last_key_value().map(|(tag, _): (&String, &String)| tag.clone());
        let call = client.sdk.list_tags_for_stream().stream_name(&stream.0).set_exclusive_start_tag_key(last);
        let answer = client.retry(OPERATION, || async { Ok(call.clone().send().await?) }).await;
        let answer = answer.map_err(|failure| failure.into_error(OPERATION, stream))?;
        let before = tags.len();
        tags.extend(answer.tags.into_iter().map(|tag| (tag.key, tag.value.unwrap_or_default())));
        if !answer.has_more_tags || tags.len() == before {
            return Ok(tags);
        }
    }
}

pub(super) fn capacity(summary: &StreamDescriptionSummary) -> Capacity {
    if summary.stream_mode_details.as_ref().is_some_and(|details| details.stream_mode == StreamMode::OnDemand) {
        Capacity::OnDemand
    } else {
        Capacity::Shards(u32::try_from(summary.open_shard_count).unwrap_or_default())
    }
}

fn described(
    stream: &StreamName,
    summary: &StreamDescriptionSummary,
    tags: BTreeMap<String, String>,
    mut shards: Vec<Shard>,
) -> Description {
    let encrypted = summary.encryption_type == Some(EncryptionType::Kms);
    shards.sort_by(|one, other| (one.first_hash, &one.starting).cmp(&(other.first_hash, &other.starting)));
    let shards = shards.into_iter().map(|shard| ShardDescription {
        hashes: shard.first_hash..=shard.last_hash,
        open: shard.ending.is_none(),
        shard: shard.id,
        parents: shard.parents,
        // Kinesis counts only what has come in, by minute, and elsewhere.
        records: None,
        bytes: None,
    });
    Description {
        stream: stream.clone(),
        capacity: capacity(summary),
        retention: u64::try_from(summary.retention_period_hours).ok().map(|hours| Duration::from_secs(hours * HOUR_SECONDS)),
        encryption_key: summary.key_id.clone().filter(|_| encrypted),
        tags,
        max_record_bytes: summary.max_record_size_in_kib.and_then(|kib| usize::try_from(kib).ok()).map(|kib| kib * 1024),
        shards: shards.collect(),
    }
}
