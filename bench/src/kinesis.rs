//! Kinesis, against the crate's own stub in a process of its own: what a core puts and gets, aggregated and one record per event, and what the way through the stream adds in time.
//!
//! [kinesis-put] and [kinesis-get] are events per second of processor time of the measured process, in which nothing else runs; the stub takes another core. The peer does what a producer
//! without aggregation does with the same SDK: 500 records of one event each in a PutRecords call, what was refused once more; its records are then read by the same reader. [aggregation-gain]
//! is what comes through one shard under AWS's quotas, 1 MB/s and 1,000 records/s, which the stub enforces. [kinesis-latency] is from `append` to where the reader hands the event over, with the
//! quotas kept by the writer.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use aws_sdk_kinesis::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use bytes::Bytes;
use clap::Args;
use schemas::progress::StreamName;
use streams::config::KinesisOptions;
use streams::kinesis::Kinesis;
use streams::stub::{Faults, Stub};
use streams::{Positions, Provider, Record};

use crate::joining::child;
use crate::process::{Measured, Served, input_ended, measure};
use crate::results::Figure;

const SHARDS: u32 = 2;
/// Enough for a second or two of a core.
const EVENTS: usize = 600_000;
/// One record each is slower, and takes more of the stub's memory.
const SINGLE_EVENTS: usize = 150_000;
const CALL_RECORDS: usize = 500;
const RUN_EVENTS: usize = 5000;
/// Long beside the second's worth that a shard grants at once.
const QUOTA_TIME: Duration = Duration::from_secs(10);
const REFUSED_PAUSE: Duration = Duration::from_millis(50);
const LATENCY_EVENTS: usize = 10_000;
const LATENCY_PACE: Duration = Duration::from_millis(1);
/// Events of the first second of the latency's run, in which connections are made.
const WARM_EVENTS: usize = 1000;

/// An event of about the usual size.
const EVENT: &[u8] = br#"{"before":null,"after":{"id":1000001,"customer_id":4711,"status":"shipped","total":"1234.50","placed":"2026-03-04T05:06:07.890Z","note":"leave it at the back door"},"source":{"db":"shop","schema":"dbo","table":"orders","commit_lsn":"0000002a:00000bb8:0003","change_lsn":"0000002a:00000bb8:0002","event_serial_no":1,"ts_ms":1772600767890,"snapshot":"false"},"op":"c","ts_ms":1772600768001}"#;

#[derive(Debug, Args)]
pub(crate) struct KinesisArgs {
    #[arg(value_enum)]
    part: Part,
    port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Put,
    PutSingle,
    Get,
    GetSingle,
    Quota,
    QuotaSingle,
    Latency,
}

#[derive(Debug, Args)]
pub(crate) struct StubArgs {
    /// Enforces AWS's quotas by shard.
    #[arg(long)]
    quotas: bool,
}

/// The stub: serves until its standard input ends.
pub(crate) async fn serve(args: &StubArgs) -> anyhow::Result<()> {
    let stub = Stub::start().await?;
    if args.quotas {
        let aws = KinesisOptions::default();
        stub.set_faults(Faults {
            shard_bytes_per_second: Some(aws.shard_bytes_per_second),
            shard_records_per_second: Some(aws.shard_records_per_second),
            ..Faults::default()
        });
    }
    let endpoint = stub.endpoint();
    println!("port={}", endpoint.rsplit(':').next().context("the stub's port")?);
    input_ended().await
}

/// A measured process.
pub(crate) async fn run(args: KinesisArgs) -> anyhow::Result<()> {
    let options = KinesisOptions::stand_in(format!("http://127.0.0.1:{}", args.port));
    match args.part {
        Part::Put => put(options).await,
        Part::PutSingle => put_single(&options, SHARDS, Some(SINGLE_EVENTS)).await,
        Part::Quota => quota(options).await,
        Part::QuotaSingle => put_single(&options, 1, None).await,
        Part::Get => get(options, EVENTS).await,
        Part::GetSingle => get(options, SINGLE_EVENTS).await,
        Part::Latency => latency(options).await,
    }
}

/// All of Kinesis's figures.
pub(crate) fn figures() -> anyhow::Result<Vec<Figure>> {
    let start = |arguments: &[&str]| Served::start(&mut child(arguments)?).context("the Kinesis stub");
    let part_of = |stub: &Served, part: &str| measure(&mut child(&["kinesis", part, &stub.get("port")?.to_string()])?);
    let stub = start(&["kinesis-stub"])?;
    let part = |part: &str| part_of(&stub, part);
    let (single_put, single_get) = (part("put-single")?, part("get-single")?);
    let (put, get) = (part("put")?, part("get")?);
    let latency = part("latency")?;
    stub.stop()?;
    let strict = start(&["kinesis-stub", "--quotas"])?;
    let (single_quota, quota) = (part_of(&strict, "quota-single")?, part_of(&strict, "quota")?);
    strict.stop()?;
    let per_second = |run: &Measured| -> anyhow::Result<f64> { Ok(run.get("events")? / run.get("seconds")?) };
    let per_core = |run: &Measured| -> anyhow::Result<f64> { Ok(run.get("events")? / run.get("core_seconds")?) };
    let peer = "one record per event";
    let memory = |figure: Figure, ours: &Measured, theirs: &Measured| figure.memory(Some(ours.peak_mb), Some(theirs.peak_mb));
    let (rate, unit) = (Figure::rate, "events/s/core");
    Ok(vec![
        memory(rate("kinesis-put", unit, per_core(&put)?, peer, Some(per_core(&single_put)?)), &put, &single_put),
        memory(rate("kinesis-get", unit, per_core(&get)?, peer, Some(per_core(&single_get)?)), &get, &single_get),
        rate(
            "aggregation-gain",
            "events/s a shard under AWS's quotas",
            per_second(&quota)?,
            peer,
            Some(per_second(&single_quota)?),
        ),
        Figure::time("kinesis-latency p50", "ms at 1000 events/s", latency.get("p50_ms")?),
        Figure::time("kinesis-latency p99", "ms at 1000 events/s", latency.get("p99_ms")?),
    ])
}

fn stream(name: &str) -> StreamName {
    StreamName(name.to_owned())
}

fn key(number: usize) -> String {
    format!("[{}]", number % 50_000)
}

/// The processor time of this process so far.
pub(crate) fn core_seconds() -> anyhow::Result<f64> {
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, rest) = stat.rsplit_once(')').context("/proc/self/stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |field: usize| -> anyhow::Result<f64> { Ok(fields.get(field).context("/proc/self/stat")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}

/// What has been used since it was made.
struct Meter {
    core: f64,
    since: Instant,
}

impl Meter {
    fn start() -> anyhow::Result<Self> {
        Ok(Self { core: core_seconds()?, since: Instant::now() })
    }

    fn report(&self, events: usize) -> anyhow::Result<()> {
        let (core, seconds) = (core_seconds()? - self.core, self.since.elapsed().as_secs_f64());
        println!("events={events} core_seconds={core:.3} seconds={seconds:.3}");
        Ok(())
    }
}

async fn put(options: KinesisOptions) -> anyhow::Result<()> {
    let kinesis = Kinesis::connect(options).await?;
    let stream = stream("aggregated");
    kinesis.ensure(&stream, SHARDS).await?;
    let mut runs: Vec<Vec<Record>> = Vec::new();
    for first in (0..EVENTS).step_by(RUN_EVENTS) {
        let records = (first..first + RUN_EVENTS)
            .map(|number| Record { partition_key: key(number), data: Bytes::from_static(EVENT) })
            .collect();
        runs.push(records);
    }
    let mut writer = kinesis.writer().await?;
    let meter = Meter::start()?;
    for run in runs {
        writer.append(&stream, run).await?;
    }
    writer.flush().await?;
    meter.report(EVENTS)
}

/// So many events, or as many as the quotas let through in a while, one record each.
async fn put_single(options: &KinesisOptions, shards: u32, events: Option<usize>) -> anyhow::Result<()> {
    let stream = stream("single");
    Kinesis::connect(options.clone()).await?.ensure(&stream, shards).await?;
    let config = aws_sdk_kinesis::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(options.endpoint.as_deref().unwrap_or_default())
        .credentials_provider(Credentials::new("stand-in", "stand-in", None, None, "stand-in"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    let client = aws_sdk_kinesis::Client::from_conf(config);
    let meter = Meter::start()?;
    let (mut number, mut written) = (0, 0);
    let mut waiting: Vec<PutRecordsRequestEntry> = Vec::new();
    while events.map_or(meter.since.elapsed() < QUOTA_TIME, |events| written < events) {
        while waiting.len() < CALL_RECORDS {
            waiting.push(PutRecordsRequestEntry::builder().partition_key(key(number)).data(Blob::new(EVENT)).build()?);
            number += 1;
        }
        let kept = events.is_none().then(|| waiting.clone());
        let records = std::mem::take(&mut waiting);
        let sent = records.len();
        let answer = client.put_records().stream_name(&stream.0).set_records(Some(records)).send().await?;
        if answer.failed_record_count.unwrap_or(0) > 0 {
            let refused = kept.context("a record was refused")?.into_iter().zip(&answer.records);
            waiting.extend(refused.filter(|(_, result)| result.error_code().is_some()).map(|(record, _)| record));
            // What producers do that know of nothing better: wait, and try what is left.
            tokio::time::sleep(REFUSED_PAUSE).await;
        }
        written += sent - waiting.len();
    }
    meter.report(written)
}

/// As many events as the quotas let through in a while.
async fn quota(options: KinesisOptions) -> anyhow::Result<()> {
    let kinesis = Kinesis::connect(KinesisOptions { queue_bytes: 1 << 20, ..with_quotas(options) }).await?;
    let stream = stream("aggregated");
    kinesis.ensure(&stream, 1).await?;
    let mut writer = kinesis.writer().await?;
    let meter = Meter::start()?;
    let mut written = 0;
    while meter.since.elapsed() < QUOTA_TIME {
        let records = (written..written + CALL_RECORDS)
            .map(|number| Record { partition_key: key(number), data: Bytes::from_static(EVENT) })
            .collect();
        writer.append(&stream, records).await?;
        written += CALL_RECORDS;
    }
    writer.flush().await?;
    meter.report(written)
}

/// The quotas that a writer keeps to by default.
fn with_quotas(options: KinesisOptions) -> KinesisOptions {
    let aws = KinesisOptions::default();
    KinesisOptions {
        shard_bytes_per_second: aws.shard_bytes_per_second,
        shard_records_per_second: aws.shard_records_per_second,
        ..options
    }
}

async fn get(options: KinesisOptions, events: usize) -> anyhow::Result<()> {
    let kinesis = Kinesis::connect(options).await?;
    let name = if events == EVENTS { "aggregated" } else { "single" };
    let mut reader = kinesis.reader(&stream(name), &Positions::new()).await?;
    let meter = Meter::start()?;
    let (mut count, mut bytes) = (0, 0);
    while count < events {
        let batch = reader.next().await?;
        count += batch.records.len();
        bytes += batch.records.iter().map(|(_, data)| data.len()).sum::<usize>();
    }
    ensure!((count, bytes) == (events, events * EVENT.len()), "{count} events of {bytes} bytes were read");
    meter.report(events)
}

/// One event each millisecond, with the time at which it was appended.
async fn latency(options: KinesisOptions) -> anyhow::Result<()> {
    let kinesis = Kinesis::connect(with_quotas(options)).await?;
    let stream = stream("latency");
    kinesis.ensure(&stream, SHARDS).await?;
    let mut reader = kinesis.reader(&stream, &Positions::new()).await?;
    let mut writer = kinesis.writer().await?;
    let began = Instant::now();
    let written = async {
        let mut pace = tokio::time::interval(LATENCY_PACE);
        for number in 0..LATENCY_EVENTS {
            pace.tick().await;
            let mut data = EVENT.to_vec();
            data.extend_from_slice(&(began.elapsed().as_nanos() as u64).to_be_bytes());
            writer.append(&stream, vec![Record { partition_key: key(number), data: data.into() }]).await?;
        }
        writer.flush().await?;
        anyhow::Ok(())
    };
    let read = async {
        let mut milliseconds = Vec::with_capacity(LATENCY_EVENTS);
        while milliseconds.len() < LATENCY_EVENTS {
            let batch = reader.next().await?;
            let now = began.elapsed().as_nanos() as u64;
            for (_, data) in batch.records {
                let appended = data.last_chunk().context("an event without its time")?;
                milliseconds.push(now.saturating_sub(u64::from_be_bytes(*appended)) as f64 / 1e6);
            }
        }
        anyhow::Ok(milliseconds)
    };
    let ((), mut milliseconds) = tokio::try_join!(written, read)?;
    let measured = &mut milliseconds[WARM_EVENTS..];
    measured.sort_by(f64::total_cmp);
    println!("p50_ms={:.3} p99_ms={:.3}", measured[measured.len() / 2], measured[measured.len() * 99 / 100]);
    Ok(())
}
