//! The documents that the joiner hands to a sink, kept in files batch by batch, and the raw guarded COPY upsert of them: the least that any sink has to do.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use async_trait::async_trait;
use clap::Args;
use schemas::Lsn;
use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use sinks::test_support::RawCopy;
use sinks::{Rejected, Sink};

const LOAD: &str = "load.tsv";
const UPDATES: &str = "updates.tsv";

/// Writes key, version and document, a line each; an empty line ends a batch. (JSON holds neither tabs nor line ends.)
pub(crate) struct RecordingSink {
    load: BufWriter<File>,
    updates: BufWriter<File>,
    /// The version of the first load's documents.
    loaded: Lsn,
}

impl RecordingSink {
    pub(crate) fn new(folder: &Path, loaded: Lsn) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let create = |name| File::create(folder.join(name)).map(BufWriter::new);
        Ok(Self { load: create(LOAD)?, updates: create(UPDATES)?, loaded })
    }

    fn record(&mut self, changes: &[EntityChange]) -> std::io::Result<()> {
        let Some(first) = changes.first() else { return Ok(()) };
        let file = if first.version <= self.loaded { &mut self.load } else { &mut self.updates };
        for change in changes {
            writeln!(file, "{}\t{}\t{}", change.key, change.version, change.document.as_deref().unwrap_or("null"))?;
        }
        writeln!(file)?;
        file.flush()
    }
}

#[async_trait]
impl Sink for RecordingSink {
    async fn prepare(&mut self, _entities: &[EntityInfo]) -> Result<(), sinks::Error> {
        Ok(())
    }

    async fn write(&mut self, changes: &[EntityChange], _frontier: Option<Lsn>) -> Result<Vec<Rejected>, sinks::Error> {
        self.record(changes)
            .map_err(|error| sinks::Error::misconfigured("recorded documents", error.to_string(), "Free some space"))?;
        Ok(Vec::new())
    }

    async fn end_load(&mut self, _entity: &str, _version: Lsn) -> Result<(), sinks::Error> {
        Ok(())
    }
}

/// What a copying process does.
#[derive(Debug, Clone, Args)]
pub(crate) struct CopyArgs {
    /// The folder that was recorded.
    folder: PathBuf,
    /// The Postgres to write to.
    url: String,
}

/// Key, version, document.
type Row = (String, String, String);

/// Upserts what was recorded, a transaction a batch; reports the seconds of load and updates.
pub(crate) async fn copy(args: CopyArgs) -> anyhow::Result<()> {
    let mut raw = RawCopy::connect(&args.url).await?;
    let mut seconds = Vec::new();
    let mut rows = 0;
    for name in [LOAD, UPDATES] {
        let batches = read(&args.folder.join(name))?;
        let started = Instant::now();
        for batch in &batches {
            raw.upsert(batch.iter().map(|(key, version, document)| [key.as_str(), version, document])).await?;
            rows += batch.len();
        }
        seconds.push(started.elapsed().as_secs_f64());
    }
    println!("load_seconds={:.4} update_seconds={:.4} documents={rows}", seconds[0], seconds[1]);
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<Vec<Row>>> {
    let file = BufReader::new(File::open(path).with_context(|| path.display().to_string())?);
    let (mut batches, mut batch) = (Vec::new(), Vec::new());
    for line in file.lines() {
        let line = line?;
        if line.is_empty() {
            batches.push(std::mem::take(&mut batch));
            continue;
        }
        let mut fields = line.splitn(3, '\t').map(str::to_owned);
        let (Some(key), Some(version), Some(document)) = (fields.next(), fields.next(), fields.next()) else {
            anyhow::bail!("{}: a line without three fields", path.display());
        };
        batch.push((key, version, document));
    }
    Ok(batches)
}
