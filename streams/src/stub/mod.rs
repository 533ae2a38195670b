//! A small Kinesis of our own, for what no other stand-in does: entries that fail in the middle of a request, throttling by call and by shard, answers that are lost
//! after the write, iterators that expire, subscriptions that end in every way in which they may, a shard map that lags, permissions that are missing, AWS's quotas by shard, trimming; and for
//! benchmarks, where the others measure themselves.
//!
//! It speaks the JSON protocol over HTTP on a free port of the loopback interface, checks no signatures, and keeps everything in memory. Faults come by
//! count, so a run can be repeated.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use schemas::progress::{ShardId, StreamName};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::config::KinesisOptions;

mod shards;
mod store;
mod subscription;

use shards::{Lag, Quota};
use store::{Failed, Store};
use subscription::{Subscription, Subscriptions};

/// A request may carry 10 MiB of data, a third more in base64.
const REQUEST_BYTES: usize = 16 << 20;

/// What goes wrong. An `every_…` of n fails the nth, 2nth, … of its kind, over all streams; 0 fails none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// Entries of PutRecords that are reported as failed, and not written; by turns as throttled and as an internal failure.
    pub every_entry: u64,
    /// Whole PutRecords calls that are refused as throttled.
    pub every_put: u64,
    /// PutRecords calls that are carried out and then answered as an internal failure.
    pub every_put_lost: u64,
    /// PutRecords calls that are carried out and then never answered: the connection breaks.
    pub every_put_cut: u64,
    /// GetRecords calls that are refused as throttled.
    pub every_get: u64,
    /// GetRecords calls whose iterator is said to have expired.
    pub every_iterator: u64,
    /// Bytes that a shard takes in a second; more is throttled by entry. AWS's quota is 1 MB/s.
    pub shard_bytes_per_second: Option<u64>,
    /// Records that a shard takes in a second; more is throttled by entry. AWS's quota is 1,000.
    pub shard_records_per_second: Option<u64>,
    /// SubscribeToShard calls that are refused: by turns because a subscription is too young, and as an internal failure.
    pub every_subscribe: u64,
    /// Events after which a subscription ends; 0: none does by itself. By turns as after five minutes, as taken over, as an internal failure, in the middle of a frame and then the connection's
    /// end, and in the middle of a frame and broken off.
    pub subscription_events: u64,
    /// A subscription sends an event without records, as one that has been on its way, before what has come since to a shard that has been closed since.
    pub stale_idle: bool,
    /// Subscriptions do not name the children of a shard that has ended.
    pub children_untold: bool,
    /// What subscriptions are refused with as soon as they are made.
    pub subscription_refused: Option<&'static str>,
    /// Calls for the shard map, and for a stream's description, that are answered as it was before the last reshard.
    pub every_map: u64,
    /// Calls for the shard map that leave out the children that the last reshard made.
    pub every_children: u64,
    /// How often a stream that has just been made is not known yet to whoever asks for its description.
    pub unknown_at_first: u64,
    /// The operation that the caller is not allowed.
    pub forbidden: Option<&'static str>,
    /// How long every call takes at least.
    pub latency: Duration,
}

/// How often each kind of call has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Calls {
    pub puts: u64,
    pub entries: u64,
    pub gets: u64,
    /// For a stream's shard map or description.
    pub looks: u64,
    pub subscribes: u64,
    /// Subscriptions that were made to end.
    pub ended: u64,
    /// Entries and calls that were made to fail by count.
    pub failed: u64,
    /// Entries that were over a shard's quota.
    pub over_quota: u64,
}

#[derive(Default)]
struct Stand {
    store: Store,
    faults: Faults,
    calls: Calls,
    subscriptions: Subscriptions,
}

type Shared = Arc<Mutex<Stand>>;

/// A running stub, which ends with this value.
#[derive(Debug)]
pub struct Stub {
    address: SocketAddr,
    stand: Shared,
    server: JoinHandle<()>,
}

impl std::fmt::Debug for Stand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stand").field("faults", &self.faults).field("calls", &self.calls).finish_non_exhaustive()
    }
}

fn lock(stand: &Shared) -> MutexGuard<'_, Stand> {
    stand.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stub {
    pub async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let stand = Shared::default();
        let router =
            Router::new().route("/", post(call)).layer(DefaultBodyLimit::max(REQUEST_BYTES)).with_state(Arc::clone(&stand));
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the Kinesis stub has stopped");
            }
        });
        Ok(Self { address, stand, server })
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Options that reach it.
    pub fn options(&self) -> KinesisOptions {
        KinesisOptions::stand_in(self.endpoint())
    }

    /// Sets what goes wrong from now on, and starts counting anew.
    pub fn set_faults(&self, faults: Faults) {
        let mut stand = lock(&self.stand);
        stand.faults = faults;
        stand.calls = Calls::default();
    }

    pub fn calls(&self) -> Calls {
        lock(&self.stand).calls
    }

    /// Forgets the oldest `count` Kinesis records of a shard, as retention would. The stream is older than any retention from then on.
    pub fn trim(&self, stream: &StreamName, shard: &ShardId, count: usize) {
        lock(&self.stand).store.trim(&stream.0, &shard.0, count);
    }

    /// Removes a stream, as somebody by mistake.
    pub fn remove_stream(&self, stream: &StreamName) {
        lock(&self.stand).store.remove_stream(&stream.0);
    }

    /// Whether subscriptions keep back what there is.
    pub fn hold_subscriptions(&self, hold: bool) {
        lock(&self.stand).subscriptions.hold(hold);
    }

    /// Removes all consumers of all streams, as whoever may deregister them would.
    pub fn remove_consumers(&self) {
        lock(&self.stand).subscriptions.remove_consumers();
    }

    /// Forgets a closed shard with all its records, as retention does in the end.
    pub fn expire(&self, stream: &StreamName, shard: &ShardId) {
        lock(&self.stand).store.expire(&stream.0, &shard.0);
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn failed(error: &Failed) -> Response {
    let body = json!({"__type": error.code, "message": error.message}).to_string();
    let status = if error.code == "InternalFailure" { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::BAD_REQUEST };
    (status, [(header::CONTENT_TYPE, "application/x-amz-json-1.1")], body).into_response()
}

/// Whether the `count`th is one of every `every`.
fn hits(count: u64, every: u64) -> bool {
    every > 0 && count.is_multiple_of(every)
}

async fn call(State(stand): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    let operation = target.rsplit('.').next().unwrap_or_default();
    let latency = lock(&stand).faults.latency;
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let answer = {
        let mut stand = lock(&stand);
        let answer = carry_out(&mut stand, operation, &body);
        stand.subscriptions.wake();
        answer
    };
    let good = |text: String| (StatusCode::OK, [(header::CONTENT_TYPE, "application/x-amz-json-1.1")], text).into_response();
    match answer {
        Ok(Answer::Value(value)) => good(value.to_string()),
        Ok(Answer::Text(text)) => good(text),
        Ok(Answer::Subscription(subscription)) => subscription.response(stand),
        // A body that fails before its first byte breaks the connection.
        Ok(Answer::Cut) => axum::body::Body::from_stream(futures_util::stream::iter([Err::<Bytes, _>(broken())])).into_response(),
        Err(error) => failed(&error),
    }
}

enum Answer {
    Value(Value),
    /// JSON, written.
    Text(String),
    Subscription(Subscription),
    Cut,
}

fn carry_out(stand: &mut Stand, operation: &str, body: &[u8]) -> Result<Answer, Failed> {
    let malformed = |error: serde_json::Error| Failed::new("SerializationException", error.to_string());
    if stand.faults.forbidden == Some(operation) {
        return Err(forbidden(operation));
    }
    if operation == "PutRecords" {
        return put_records(stand, &serde_json::from_slice(body).map_err(malformed)?);
    }
    let request = &serde_json::from_slice(body).map_err(malformed)?;
    match operation {
        "GetRecords" => return get_records(stand, request).map(Answer::Text),
        "SubscribeToShard" => return subscribe(stand, request).map(Answer::Subscription),
        _ => {}
    }
    let lag = look(stand, operation);
    let Stand { store, faults, subscriptions, .. } = stand;
    let answer = match operation {
        "CreateStream" => store.create(request, faults.unknown_at_first),
        "ListStreams" => store.list(request),
        "IncreaseStreamRetentionPeriod" => store.retain(request),
        "StartStreamEncryption" => store.encrypt(request),
        "UpdateMaxRecordSize" => store.resize(request),
        "UpdateShardCount" => store.rescale(request),
        "UpdateStreamMode" => store.set_mode(request),
        "AddTagsToStream" => store.tag(request),
        "ListTagsForStream" => store.tags(request),
        "DescribeStreamSummary" => store.describe(request, lag),
        "ListShards" => store.list_shards(request, lag),
        "GetShardIterator" => store.iterator(request),
        "PutRecord" => store.put_record(body),
        "SplitShard" => store.split(request),
        "MergeShards" => store.merge(request),
        "RegisterStreamConsumer" => subscriptions.register(request),
        "DescribeStreamConsumer" => subscriptions.describe(request),
        _ => Err(Failed::new("UnknownOperationException", format!("the stub does not know {operation:?}"))),
    };
    answer.map(Answer::Value)
}

/// How far behind the answer to a call for the shard map or the description is.
fn look(stand: &mut Stand, operation: &str) -> Lag {
    let Stand { faults, calls, .. } = stand;
    if operation != "ListShards" && operation != "DescribeStreamSummary" {
        return Lag::None;
    }
    calls.looks += 1;
    if hits(calls.looks, faults.every_map) {
        Lag::Before
    } else if hits(calls.looks, faults.every_children) {
        Lag::Childless
    } else {
        Lag::None
    }
}

fn subscribe(stand: &mut Stand, request: &Value) -> Result<Subscription, Failed> {
    let Stand { store, faults, calls, subscriptions } = stand;
    calls.subscribes += 1;
    if hits(calls.subscribes, faults.every_subscribe) {
        calls.failed += 1;
        return Err(if calls.failed.is_multiple_of(2) { internal_failure() } else { subscription::too_young() });
    }
    subscriptions.subscribe(store, request)
}

fn internal_failure() -> Failed {
    Failed::new("InternalFailure", "Internal service failure, by order of the test")
}

fn broken() -> std::io::Error {
    std::io::ErrorKind::ConnectionAborted.into()
}

fn throttled() -> Failed {
    Failed::new("ProvisionedThroughputExceededException", "Rate exceeded, by order of the test")
}

/// As AWS words it.
fn forbidden(operation: &str) -> Failed {
    let message = format!(
        "User: arn:aws:iam::000000000000:user/test is not authorized to perform: kinesis:{operation} on resource: \
         arn:aws:kinesis:us-east-1:000000000000:stream/x because no identity-based policy allows the kinesis:{operation} action"
    );
    Failed::new("AccessDeniedException", message)
}

fn put_records(stand: &mut Stand, request: &store::Put<'_>) -> Result<Answer, Failed> {
    let Stand { store, faults, calls, .. } = stand;
    calls.puts += 1;
    if hits(calls.puts, faults.every_put) {
        calls.failed += 1;
        return Err(throttled());
    }
    let quota = Quota { bytes: faults.shard_bytes_per_second, records: faults.shard_records_per_second };
    let answer = store.put_records(request, quota, |over_quota| {
        calls.entries += 1;
        if over_quota {
            calls.over_quota += 1;
            return Some(throttled());
        }
        if !hits(calls.entries, faults.every_entry) {
            return None;
        }
        calls.failed += 1;
        Some(if calls.failed.is_multiple_of(2) { throttled() } else { internal_failure() })
    })?;
    if hits(calls.puts, faults.every_put_lost) {
        calls.failed += 1;
        return Err(Failed::new("InternalFailure", "Written, and the answer lost, by order of the test"));
    }
    if hits(calls.puts, faults.every_put_cut) {
        calls.failed += 1;
        return Ok(Answer::Cut);
    }
    Ok(Answer::Value(answer))
}

fn get_records(stand: &mut Stand, request: &Value) -> Result<String, Failed> {
    let Stand { store, faults, calls, .. } = stand;
    calls.gets += 1;
    if hits(calls.gets, faults.every_get) {
        calls.failed += 1;
        return Err(throttled());
    }
    if hits(calls.gets, faults.every_iterator) {
        calls.failed += 1;
        return Err(Failed::new("ExpiredIteratorException", "Iterator expired, by order of the test"));
    }
    store.get_records(request)
}
