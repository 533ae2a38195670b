//! What a second sink costs the joiner: [one-sink-more] is one that takes everything, [sink-down] one that was loaded and cannot be reached from then on. What waits for that one on the disk is [sink-down-disk], against the state of a
//! joiner without it; and what it is told when it comes back, [sink-down-told], writes for each change that it has missed, and [sink-down-catch-up], changes a second that it works off.
//!
//! It is away for as many changes as the run has, whatever time those take: the transactions of a run are what a busy shop makes in ten minutes and more.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use clap::ValueEnum;
use schemas::Lsn;
use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use sinks::{Rejected, Retry, Sink, Terms};

use crate::joining::{child, median_run, path};
use crate::process::{Measured, measure};
use crate::results::Figure;
use crate::stream::Input;

/// Runs of each; the median counts.
const RUNS: usize = 3;
/// How soon it is noticed that the sink is back: part of what is measured.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// What the second sink is like once it has been loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Second {
    Up,
    Down,
}

/// Takes everything and keeps nothing, while it can be reached.
#[derive(Clone)]
pub(crate) struct SecondSink {
    inner: Arc<Inner>,
    second: Second,
}

#[derive(Default)]
struct Inner {
    down: AtomicBool,
    loaded: AtomicBool,
    /// Changes that it was told since its load.
    told: AtomicU64,
}

impl SecondSink {
    pub(crate) fn new(second: Second) -> Self {
        Self { inner: Arc::default(), second }
    }

    pub(crate) fn come_back(&self) {
        self.inner.down.store(false, Ordering::SeqCst);
    }

    pub(crate) fn told(&self) -> u64 {
        self.inner.told.load(Ordering::SeqCst)
    }

    fn answer(&self) -> Result<(), sinks::Error> {
        let down = self.inner.down.load(Ordering::SeqCst);
        if down { Err(sinks::Error::unavailable("second", "connection refused")) } else { Ok(()) }
    }
}

#[async_trait]
impl Sink for SecondSink {
    async fn prepare(&mut self, _entities: &[EntityInfo]) -> Result<(), sinks::Error> {
        self.answer()
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, sinks::Error> {
        self.answer()?;
        if self.inner.loaded.load(Ordering::SeqCst) {
            self.inner.told.fetch_add(changes.len() as u64, Ordering::SeqCst);
        } else if frontier.is_some() {
            self.inner.loaded.store(true, Ordering::SeqCst);
            self.inner.down.store(self.second == Second::Down, Ordering::SeqCst);
        }
        Ok(Vec::new())
    }

    async fn end_load(&mut self, _entity: &str, _version: Lsn) -> Result<(), sinks::Error> {
        Ok(())
    }

    fn terms(&self) -> Terms {
        Terms { retry: Retry { longest_pause: LONGEST_PAUSE, ..Retry::default() }, ..Terms::default() }
    }
}

/// What the files below a folder take.
pub(crate) fn megabytes(folder: &Path) -> anyhow::Result<f64> {
    fn bytes(folder: &Path) -> std::io::Result<u64> {
        std::fs::read_dir(folder)?
            .map(|entry| {
                let path = entry?.path();
                // The database removes files while it works.
                if path.is_dir() { bytes(&path) } else { Ok(std::fs::metadata(&path).map_or(0, |file| file.len())) }
            })
            .sum()
    }
    Ok(bytes(folder)? as f64 / 1e6)
}

pub(crate) fn figures(input: &Input) -> anyhow::Result<Vec<Figure>> {
    let folder = path(&input.folder)?;
    let run = |second: &[&str]| {
        let arguments = [&["join", folder, "--updates"], second].concat();
        median_run(RUNS, "update_seconds", || measure(&mut child(&arguments)?))
    };
    let (alone, up, down) = (run(&[])?, run(&["--second", "up"])?, run(&["--second", "down"])?);
    let rate = |run: &Measured| run.get("update_seconds").map(|seconds| input.published.changes as f64 / seconds);
    let against = |name: &str, peer: &str, run: &Measured| -> anyhow::Result<Figure> {
        let figure = Figure::rate(name, "changes/s", rate(run)?, peer, Some(rate(&alone)?));
        Ok(figure.memory(Some(run.peak_mb), Some(alone.peak_mb)))
    };
    let (missed, told) = (down.get("missed")?, down.get("told")?);
    let disk = Some(alone.get("state_mb")?);
    Ok(vec![
        against("one-sink-more", "with one sink", &up)?,
        against("sink-down", "without the sink that is down", &down)?,
        Figure::rate("sink-down-disk", "MB", down.get("state_mb")?, "without the sink that is down", disk),
        Figure::time("sink-down-told", "writes a change", told / missed),
        Figure::rate("sink-down-catch-up", "changes/s", missed / down.get("catch_up_seconds")?, "", None),
    ])
}
