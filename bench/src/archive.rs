//! [archive-write] and [archive-replay]: TPC-H's rows and transactions from an embedded log to an archive in a folder, and back out of it in the source's order, on one core; beside the same lines compressed by zstd alone and written to the same object
//! storage, and read and unpacked again.
//!
//! What counts is the processor time of the process, in which nothing else runs: waiting for the disk is left out on both sides.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::archive::{Archive, Archiver, Config, Range};
use anyhow::{Context, ensure};
use bytes::Bytes;
use objects::{LocalOptions, ObjectPath, Objects};
use schemas::encoding::{Registry, Schemas};
use streams::Layout;
use tokio_util::sync::CancellationToken;

use crate::joining::{child, median_run};
use crate::kinesis::core_seconds;
use crate::process::{Measured, measure};
use crate::results::Figure;
use crate::stream::{Input, Published, SOURCE, Shape, provider};

/// TPC-H's scale: 76,000 rows, and the changes of the transactions.
const SCALE: f64 = 0.01;
const TRANSACTIONS: usize = 60_000;
const RUNS: usize = 3;
/// The archive's own.
const LEVEL: i32 = 3;
const LIMIT: Duration = Duration::from_secs(600);
const PEER: &str = "zstd and the object storage, the same lines";

#[derive(Debug, clap::Args)]
pub(crate) struct ArchiveArgs {
    /// With the streams that are archived.
    folder: PathBuf,
}

/// The figures, from processes of their own.
pub(crate) async fn figures(folder: &Path) -> anyhow::Result<Vec<Figure>> {
    let shape = Shape { layout: Layout::Table, scale: SCALE, transactions: TRANSACTIONS, packed: false, skewed: false };
    let input = Input::write(folder.to_owned(), shape).await?;
    let run = || -> anyhow::Result<Measured> {
        let measured = measure(&mut child(&["archive", input.folder.to_str().context("the folder's name")?])?)?;
        for place in ["archive", "raw"] {
            std::fs::remove_dir_all(input.folder.join(place))?;
        }
        Ok(measured)
    };
    let run = median_run(RUNS, "write", run)?;
    let rate = |key| anyhow::Ok(run.get("events")? / run.get(key)?);
    let figure = |name: &str, ours, raw| -> anyhow::Result<Figure> {
        Ok(Figure::rate(name, "events/s/core", rate(ours)?, PEER, Some(rate(raw)?)).memory(Some(run.peak_mb), None))
    };
    Ok(vec![figure("archive-write", "write", "raw_write")?, figure("archive-replay", "replay", "raw_read")?])
}

async fn storage(path: PathBuf) -> anyhow::Result<Objects> {
    Ok(Objects::open(&objects::Config::Local(LocalOptions { path })).await?)
}

/// Archives and replays, then the same bytes raw; reports the seconds of each.
pub(crate) async fn run(args: ArchiveArgs) -> anyhow::Result<()> {
    let published = Published::read(&args.folder)?;
    let events = published.rows + published.changes;
    let place = args.folder.join("archive");
    let objects = storage(place.clone()).await?;
    let schemas = Arc::new(Schemas::fixed(Registry::default()));
    let archive = Archive::open(objects.clone(), SOURCE, SOURCE, schemas).await?;

    let (started, started_at) = (Instant::now(), core_seconds()?);
    let config = Config { interval_seconds: 1, ..Config::new(objects::Config::Local(LocalOptions { path: place })) };
    let archiver = Archiver::new(archive.clone(), &config);
    let (status, shutdown) = (archiver.status(), CancellationToken::new());
    let work = tokio::spawn(archiver.run(Arc::new(provider(&args.folder)?), shutdown.clone()));
    while status.get().frontier < published.last && !work.is_finished() {
        ensure!(started.elapsed() < LIMIT, "the archive takes too long: {:?}", status.get());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shutdown.cancel();
    work.await??;
    let write = core_seconds()? - started_at;
    ensure!(status.get().frontier == published.last, "{:?} is archived, of {}", status.get(), published.last);

    let started_at = core_seconds()?;
    let mut replay = archive.replay(Range::default()).await?;
    let mut replayed = 0;
    while let Some(batch) = replay.next().await? {
        replayed += batch.len() as u64;
    }
    let replay = core_seconds()? - started_at;
    ensure!(replayed == events, "{replayed} of {events} events were replayed");

    let texts = texts(&objects).await?;
    let raw = storage(args.folder.join("raw")).await?;
    let raw_write = write_raw(&raw, &texts).await?;
    let raw_read = read_raw(&raw, &texts).await?;
    println!("events={events} write={write:.4} raw_write={raw_write:.4} replay={replay:.4} raw_read={raw_read:.4}");
    Ok(())
}

/// What the archive's event objects hold, unpacked.
async fn texts(objects: &Objects) -> anyhow::Result<Vec<Bytes>> {
    let mut texts = Vec::new();
    for listed in objects.list(&ObjectPath::from("events")).await? {
        let data = objects.get(&listed.path).await?.context("an object of the archive")?;
        texts.push(zstd::stream::decode_all(&data[..])?.into());
    }
    Ok(texts)
}

fn path(number: usize) -> ObjectPath {
    ObjectPath::from(format!("{number}.jsonl.zst"))
}

async fn write_raw(objects: &Objects, texts: &[Bytes]) -> anyhow::Result<f64> {
    let started_at = core_seconds()?;
    for (number, text) in texts.iter().enumerate() {
        objects.put(&path(number), zstd::bulk::compress(text, LEVEL)?.into()).await?;
    }
    Ok(core_seconds()? - started_at)
}

async fn read_raw(objects: &Objects, texts: &[Bytes]) -> anyhow::Result<f64> {
    let started_at = core_seconds()?;
    for (number, text) in texts.iter().enumerate() {
        let data = objects.get(&path(number)).await?.context("an object written before")?;
        ensure!(zstd::bulk::decompress(&data, text.len())?.len() == text.len(), "another text was read");
    }
    Ok(core_seconds()? - started_at)
}
