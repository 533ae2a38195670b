//! [log-append] and [log-read]: the embedded log with events of 390 bytes, on one core, beside raw writes and reads of the same bytes in a file. Both make them durable equally often, and both read what the
//! file cache holds.
//!
//! Everything is done in one process that is held to one processor: threads that work ahead of each other gain nothing.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use bytes::Bytes;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use schemas::progress::StreamName;
use streams::embedded::{Embedded, Options};
use streams::{Positions, Provider as _, Record};

use crate::SEED;
use crate::joining::{child, median_run};
use crate::process::{Measured, measure};
use crate::results::Figure;

const EVENTS: usize = 1_000_000;
const EVENT_BYTES: usize = 390;
/// As the importer hands them over.
const BATCH: usize = 500;
/// Events between two flushes: a tick of a busy source.
const TICK: usize = 20_000;
const BLOCK_BYTES: usize = 1 << 20;
const RUNS: usize = 3;
const PEER: &str = "a file, the same bytes";

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LogArgs {
    folder: PathBuf,
}

/// The figures, from processes of their own.
pub(crate) fn figures(folder: &Path) -> anyhow::Result<Vec<Figure>> {
    let run = || -> anyhow::Result<Measured> {
        let program = child(&["log", folder.to_str().context("the folder's name")?])?;
        let measured = measure(
            Command::new("taskset").arg("--cpu-list").arg(processor()?).arg(program.get_program()).args(program.get_args()),
        )?;
        std::fs::remove_dir_all(folder)?;
        Ok(measured)
    };
    // Appending takes longest, and the disk makes it vary.
    let run = median_run(RUNS, "append", run)?;
    let rate = |key| run.get(key).map(|seconds| EVENTS as f64 / seconds);
    let figure = |name: &str, ours, raw| -> anyhow::Result<Figure> {
        Ok(Figure::rate(name, "events/s", rate(ours)?, PEER, Some(rate(raw)?)).memory(Some(run.peak_mb), None))
    };
    Ok(vec![figure("log-append", "append", "raw_append")?, figure("log-read", "read", "raw_read")?])
}

/// One that this process may run on.
fn processor() -> anyhow::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let allowed =
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).context("no processors in /proc/self/status")?;
    Ok(allowed.trim().chars().take_while(char::is_ascii_digit).collect())
}

/// Appends and reads, in the log and in a file; reports the seconds of each.
pub(crate) async fn run(args: LogArgs) -> anyhow::Result<()> {
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let events: Vec<Bytes> =
        (0..BATCH).map(|_| (0..EVENT_BYTES).map(|_| random.random_range(b' '..b'~')).collect::<Vec<u8>>().into()).collect();
    std::fs::create_dir_all(&args.folder)?;
    let file = args.folder.join("raw");
    let raw_append = append_raw(&file, &events)?;
    let store = Embedded::open(Options::new(args.folder.join("log")))?;
    let stream = StreamName("bench.dbo.orders".to_owned());
    let append = append(&store, &stream, &events).await?;
    let read = read(&store, &stream).await?;
    let raw_read = read_raw(&file)?;
    println!("append={append:.4} raw_append={raw_append:.4} read={read:.4} raw_read={raw_read:.4}");
    Ok(())
}

async fn append(store: &Embedded, stream: &StreamName, events: &[Bytes]) -> anyhow::Result<f64> {
    store.ensure(stream, 1).await?;
    let mut writer = store.writer().await?;
    let started = Instant::now();
    for batch in 0..EVENTS / BATCH {
        let keyed = events.iter().zip(batch * BATCH..);
        writer
            .append(stream, keyed.map(|(data, key)| Record { partition_key: format!("[{key}]"), data: data.clone() }).collect())
            .await?;
        if ((batch + 1) * BATCH).is_multiple_of(TICK) {
            writer.flush().await?;
        }
    }
    writer.flush().await?;
    Ok(started.elapsed().as_secs_f64())
}

async fn read(store: &Embedded, stream: &StreamName) -> anyhow::Result<f64> {
    let mut reader = store.reader(stream, &Positions::new()).await?;
    let (mut count, mut bytes) = (0, 0);
    let started = Instant::now();
    while count < EVENTS {
        let batch = reader.next().await?;
        count += batch.records.len();
        bytes += batch.records.iter().map(|(_, data)| data.len()).sum::<usize>();
    }
    ensure!(count == EVENTS && bytes == EVENTS * EVENT_BYTES, "{count} events of {bytes} bytes were read");
    Ok(started.elapsed().as_secs_f64())
}

fn append_raw(path: &Path, events: &[Bytes]) -> anyhow::Result<f64> {
    let batch = events.concat();
    let started = Instant::now();
    let mut file = File::create(path)?;
    let mut block = Vec::with_capacity(BLOCK_BYTES + batch.len());
    for number in 1..=EVENTS / BATCH {
        block.extend_from_slice(&batch);
        let tick = (number * BATCH).is_multiple_of(TICK);
        if block.len() >= BLOCK_BYTES || tick {
            file.write_all(&block)?;
            block.clear();
        }
        if tick {
            file.sync_data()?;
        }
    }
    file.write_all(&block)?;
    file.sync_data()?;
    Ok(started.elapsed().as_secs_f64())
}

fn read_raw(path: &Path) -> anyhow::Result<f64> {
    let started = Instant::now();
    let mut file = File::open(path)?;
    let (mut block, mut bytes) = (vec![0; BLOCK_BYTES], 0);
    loop {
        match file.read(&mut block)? {
            0 => break,
            count => bytes += count,
        }
    }
    ensure!(bytes == EVENTS * EVENT_BYTES, "{bytes} bytes were read");
    Ok(started.elapsed().as_secs_f64())
}
