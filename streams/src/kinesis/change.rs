//! Changing streams: when one has just been made, and when somebody asks for what is configured.
//!
//! Kinesis refuses a change while another is under way, and says that a change is done when the stream is active again; but what says so may lag. So a refused change is tried again, and of the shards
//! it is waited for until as many as were asked for are told. Everything goes on being written and read meanwhile.
//!
//! A stream is rescaled to no more than the double and no less than the half of its shards at once, as Kinesis has it; to go further takes several steps, of which there are ten a day.
//! Retention is never shortened here: that removes records.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use aws_sdk_kinesis::types::{EncryptionType, ScalingType, StreamMode, StreamModeDetails};
use schemas::progress::StreamName;

use super::client::{Client, Failure, Kind};
use super::operations::{CHANGE, capacity, existing, hours, until};
use crate::{Capacity, Error, Setting, StreamSettings};

/// How long a change of the number of shards may take; Kinesis needs about half a minute for each split or merge.
const RESCALING: Duration = Duration::from_secs(2 * 3600);
const RESCALE: &str = "UpdateShardCount";
/// Tags in one call.
const CALL_TAGS: usize = 10;

/// Brings one setting to what is asked for; answers whether it is that now.
pub(super) async fn apply(
    client: &Client,
    stream: &StreamName,
    settings: &StreamSettings,
    setting: Setting,
) -> Result<bool, Error> {
    let found = existing(client, stream).await?;
    match (setting, settings) {
        (Setting::Capacity, StreamSettings { capacity: Capacity::OnDemand, .. }) => {
            set_mode(client, stream, &found.stream_arn, StreamMode::OnDemand).await?;
        }
        (Setting::Capacity, StreamSettings { capacity: Capacity::Shards(count), .. }) => {
            if capacity(&found) == Capacity::OnDemand {
                set_mode(client, stream, &found.stream_arn, StreamMode::Provisioned).await?;
            }
            rescale(client, stream, *count).await?;
        }
        (Setting::Retention, StreamSettings { retention: Some(retention), .. }) => {
            let wanted = hours(*retention);
            if u64::try_from(found.retention_period_hours).is_ok_and(|found| found > wanted) {
                return Ok(false);
            }
            retain(client, stream, wanted).await?;
        }
        (Setting::Encryption, StreamSettings { encryption_key: Some(key), .. }) => encrypt(client, stream, key).await?,
        (Setting::RecordSize, StreamSettings { max_record_bytes: Some(bytes), .. }) => {
            resize(client, stream, &found.stream_arn, *bytes).await?;
        }
        (Setting::Tags, StreamSettings { tags, .. }) => tag(client, stream, tags).await?,
        // What nobody asks for is as asked for.
        (Setting::Retention | Setting::Encryption | Setting::RecordSize, _) => {}
    }
    Ok(true)
}

async fn set_mode(client: &Client, stream: &StreamName, arn: &str, mode: StreamMode) -> Result<(), Error> {
    let details = StreamModeDetails::builder().stream_mode(mode).build().ok();
    let call = client.sdk.update_stream_mode().stream_arn(arn).set_stream_mode_details(details);
    change(client, stream, "UpdateStreamMode", || async { Ok(call.clone().send().await.map(drop)?) }).await
}

async fn rescale(client: &Client, stream: &StreamName, target: u32) -> Result<(), Error> {
    loop {
        let Capacity::Shards(open) = capacity(&existing(client, stream).await?) else { return Ok(()) };
        if open == target {
            return Ok(());
        }
        let next = target.clamp(open.div_ceil(2), open.saturating_mul(2));
        tracing::info!(%stream, open, next, target, "rescaling the stream");
        let call = client.sdk.update_shard_count().stream_name(&stream.0).scaling_type(ScalingType::UniformScaling);
        let call = call.target_shard_count(i32::try_from(next).unwrap_or(i32::MAX));
        change(client, stream, RESCALE, || async { Ok(call.clone().send().await.map(drop)?) }).await?;
        until(client, stream, RESCALE, RESCALING, |summary| capacity(summary) == Capacity::Shards(next)).await?;
    }
}

pub(super) async fn retain(client: &Client, stream: &StreamName, hours: u64) -> Result<(), Error> {
    let call = client.sdk.increase_stream_retention_period().stream_name(&stream.0);
    let call = call.retention_period_hours(i32::try_from(hours).unwrap_or(i32::MAX));
    change(client, stream, "IncreaseStreamRetentionPeriod", || async { Ok(call.clone().send().await.map(drop)?) }).await
}

pub(super) async fn encrypt(client: &Client, stream: &StreamName, key: &str) -> Result<(), Error> {
    let call = client.sdk.start_stream_encryption().stream_name(&stream.0).encryption_type(EncryptionType::Kms).key_id(key);
    change(client, stream, "StartStreamEncryption", || async { Ok(call.clone().send().await.map(drop)?) }).await
}

pub(super) async fn resize(client: &Client, stream: &StreamName, arn: &str, bytes: usize) -> Result<(), Error> {
    let call = client.sdk.update_max_record_size().stream_arn(arn);
    let call = call.max_record_size_in_kib(i32::try_from(bytes.div_ceil(1024)).unwrap_or(i32::MAX));
    change(client, stream, "UpdateMaxRecordSize", || async { Ok(call.clone().send().await.map(drop)?) }).await
}

/// Tags that the stream has beside these stay.
pub(super) async fn tag(client: &Client, stream: &StreamName, tags: &BTreeMap<String, String>) -> Result<(), Error> {
    let tags: Vec<_> = tags.iter().collect();
    for tags in tags.chunks(CALL_TAGS) {
        let tags = tags.iter().map(|(tag, value)| ((*tag).clone(), (*value).clone())).collect();
        let call = client.sdk.add_tags_to_stream().stream_name(&stream.0).set_tags(Some(tags));
        change(client, stream, "AddTagsToStream", || async { Ok(call.clone().send().await.map(drop)?) }).await?;
    }
    Ok(())
}

/// Makes the call until it is carried out, and waits until the stream is active again.
async fn change<F: Future<Output = Result<(), Failure>>>(
    client: &Client,
    stream: &StreamName,
    operation: &'static str,
    mut call: impl FnMut() -> F,
) -> Result<(), Error> {
    let mut attempts = client.attempts_within(CHANGE);
    while let Err(failure) = call().await {
        // Another change is under way.
        let failure = if failure.kind == Kind::InUse { Failure { kind: Kind::Transient, ..failure } } else { failure };
        attempts.pause(operation, failure).await.map_err(|failure| failure.into_error(operation, stream))?;
    }
    until(client, stream, operation, CHANGE, |_| true).await.map(drop)
}
