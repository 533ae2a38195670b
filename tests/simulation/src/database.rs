//! A SQLite database that the real sink writes.
//!
//! Its driver works on threads of its own, in real time. So all that is done to the database is done on one thread beside the simulation, which stands still meanwhile: its clock moves only when nothing is left to do, and to wait for that thread is to do something.
//! What comes of it follows from what was asked for, in the order in which it was asked.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, mpsc};

use anyhow::Context;
use schemas::Lsn;
use sinks::sqlite::{SqliteConfig, SqliteReader, SqliteSink};
use sinks::{EntityReader, Error, Held, Query, Sink};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use crate::disk;
use crate::target::{Done, Older, Work};

/// Entities of a kind; there are never as many.
const MOST: usize = 1000;

type Task = Box<dyn FnOnce(&Runtime) + Send>;

/// By entity and key: version and document.
pub(crate) type Stored = BTreeMap<(String, String), (Lsn, String)>;

/// A process's connection.
pub(crate) type Writer = Arc<Mutex<SqliteSink>>;

pub(crate) struct Database {
    config: SqliteConfig,
    reader: Arc<SqliteReader>,
    beside: mpsc::Sender<Task>,
    _directory: TempDir,
}

fn lost() -> Error {
    Error::unavailable("database", "the thread that works on it is gone")
}

impl Database {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let directory = disk::directory()?;
        let config = SqliteConfig::new(directory.path().join("entities.db"));
        let reader = Arc::new(SqliteReader::new(&config));
        let (beside, tasks) = mpsc::channel::<Task>();
        let work = move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            tasks.into_iter().for_each(|task| task(&runtime));
        };
        std::thread::Builder::new().name("database".to_owned()).spawn(work).context("a thread for the database")?;
        Ok(Self { config, reader, beside, _directory: directory })
    }

    pub(crate) fn writer(&self) -> Writer {
        Arc::new(Mutex::new(SqliteSink::new(self.config.clone())))
    }

    /// Has something done, and waits for it.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = mpsc::sync_channel(1);
        let task = move |runtime: &Runtime| {
            // Whoever asked waits for the answer.
            let _ = answer.send(runtime.block_on(work));
        };
        self.beside.send(Box::new(task)).map_err(|_| lost())?;
        answered.recv().unwrap_or_else(|_| Err(lost()))
    }

    /// All that it holds.
    pub(crate) fn documents(&self) -> Result<Stored, Error> {
        let reader = Arc::clone(&self.reader);
        self.ask(async move {
            let mut stored = Stored::new();
            for entity in ["order", "customer"] {
                let query = Query { entity: entity.to_owned(), filters: Vec::new(), after: None, limit: MOST };
                let found = reader.list(&query).await?.into_iter();
                stored.extend(found.map(|one| ((entity.to_owned(), one.key.to_string()), (one.version, one.document))));
            }
            Ok(stored)
        })
    }

    /// What the sink says that the database holds.
    pub(crate) fn held(&self, writer: &Writer) -> Result<Held, Error> {
        let writer = Arc::clone(writer);
        self.ask(async move { writer.lock().await.held().await })
    }

    /// The entities of which the sink says that not all is there.
    pub(crate) fn lacking(&self, writer: &Writer) -> Result<Vec<String>, Error> {
        let writer = Arc::clone(writer);
        self.ask(async move { writer.lock().await.lacking().await })
    }

    pub(crate) fn work(&self, writer: &Writer, work: Work) -> Result<Done, Error> {
        let writer = Arc::clone(writer);
        self.ask(async move {
            let (mut sink, mut done) = (writer.lock().await, Done::default());
            match work {
                Work::Prepare(entities) => sink.prepare(&entities).await?,
                Work::BeginLoad => sink.begin_load().await?,
                Work::EndLoad(entity, version) => sink.end_load(&entity, version).await?,
                Work::Write(changes, frontier) => done.rejected = sink.write(&changes, frontier).await?,
                Work::Older(Older { entity, version, after, limit, .. }) => {
                    done.older = sink.older(&entity, version, after.as_ref(), limit).await?;
                }
            }
            Ok(done)
        })
    }

    /// As a reader sees it.
    pub(crate) fn frontier(&self) -> Result<Option<Lsn>, Error> {
        let reader = Arc::clone(&self.reader);
        self.ask(async move { reader.frontier().await })
    }
}
