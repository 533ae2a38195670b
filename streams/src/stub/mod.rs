//! A small Kinesis of our own, for what no other stand-in does: entries that fail in the middle of a request, throttling by call and by shard, answers that are lost
//! after the write, iterators that expire, trimming; and for benchmarks, where the others measure themselves.
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

mod store;

use store::{Failed, Store};

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
    /// Bytes that a shard takes in a second; more is throttled by entry.
    pub shard_bytes_per_second: Option<u64>,
    /// How long every call takes at least.
    pub latency: Duration,
}

/// How often each kind of call has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Calls {
    pub puts: u64,
    pub entries: u64,
    pub gets: u64,
    /// Entries and calls that were made to fail.
    pub failed: u64,
}

#[derive(Default)]
struct Stand {
    store: Store,
    faults: Faults,
    calls: Calls,
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

    /// Forgets the oldest `count` Kinesis records of a shard, as retention would.
    pub fn trim(&self, stream: &StreamName, shard: &ShardId, count: usize) {
        lock(&self.stand).store.trim(&stream.0, &shard.0, count);
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
    let answer = serde_json::from_slice(&body)
        .map_err(|error| Failed::new("SerializationException", error.to_string()))
        .and_then(|request| carry_out(&mut lock(&stand), operation, &request));
    match answer {
        Ok(Answer::Value(value)) => {
            (StatusCode::OK, [(header::CONTENT_TYPE, "application/x-amz-json-1.1")], value.to_string()).into_response()
        }
        // A body that fails before its first byte breaks the connection.
        Ok(Answer::Cut) => axum::body::Body::from_stream(Broken).into_response(),
        Err(error) => failed(&error),
    }
}

enum Answer {
    Value(Value),
    Cut,
}

fn carry_out(stand: &mut Stand, operation: &str, request: &Value) -> Result<Answer, Failed> {
    match operation {
        "PutRecords" => put_records(stand, request),
        "GetRecords" => get_records(stand, request).map(Answer::Value),
        "CreateStream" => stand.store.create(request).map(Answer::Value),
        "DescribeStreamSummary" => stand.store.describe(request).map(Answer::Value),
        "ListShards" => stand.store.list_shards(request).map(Answer::Value),
        "GetShardIterator" => stand.store.iterator(request).map(Answer::Value),
        "SplitShard" => stand.store.split(request).map(Answer::Value),
        "MergeShards" => stand.store.merge(request).map(Answer::Value),
        _ => Err(Failed::new("UnknownOperationException", format!("the stub does not know {operation:?}"))),
    }
}

fn throttled() -> Failed {
    Failed::new("ProvisionedThroughputExceededException", "Rate exceeded, by order of the test")
}

fn put_records(stand: &mut Stand, request: &Value) -> Result<Answer, Failed> {
    let Stand { store, faults, calls } = stand;
    calls.puts += 1;
    if hits(calls.puts, faults.every_put) {
        calls.failed += 1;
        return Err(throttled());
    }
    let answer = store.put_records(request, faults.shard_bytes_per_second, || {
        calls.entries += 1;
        if !hits(calls.entries, faults.every_entry) {
            return None;
        }
        calls.failed += 1;
        Some(if calls.failed % 2 == 0 {
            throttled()
        } else {
            Failed::new("InternalFailure", "Internal service failure, by order of the test")
        })
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

fn get_records(stand: &mut Stand, request: &Value) -> Result<Value, Failed> {
    let Stand { store, faults, calls } = stand;
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

/// A body that breaks off.
struct Broken;

impl futures_util::Stream for Broken {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionAborted.into())))
    }
}
