//! The processes: importers and joiners, started, watched, killed, and started anew by what they left.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use checkpoints::{Phase, Restored, Service, StatusHandle, begin_with};
use importer::{AskedRange, Importer, ImporterHandle};
use joiner::{Engine, Handle, Head, Joiner, Memory, NamedSink, Page};
use schemas::change::EntityKey;
use schemas::entity::EntityDefinition;
use schemas::plan::Plan as EntityPlan;
use schemas::table::{Column, Length, SqlType, TableName, TableSchema};
use schemas::{ErrorClass, Lsn};
use source::network::Network;
use source::{Encryption, Password, Source};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::dice::Dice;
use crate::disk::{self, Death, STATE};
use crate::faults::{Faults, Sabotage};
use crate::history::{Document, Event, History};
use crate::joined::Definitions;
use crate::network::{SourceNetwork, ToSource};
use crate::plan::Plan;
use crate::server::DATABASE;
use crate::shop::{Kind as ColumnKind, Shop, TABLES};
use crate::storage::Storage;
use crate::streams::Streams;
use crate::target::{Kind, Target};

const SOURCE: &str = "shop";

type Task = JoinHandle<Result<(), String>>;

/// All that the processes share, and the directories that they leave to their successors.
pub(crate) struct Site {
    pub(crate) plan: Plan,
    pub(crate) faults: Faults,
    pub(crate) history: History,
    pub(crate) shop: Arc<Mutex<Shop>>,
    pub(crate) streams: Streams,
    pub(crate) targets: Vec<Arc<Target>>,
    network: Arc<SourceNetwork>,
    /// What is served.
    pub(crate) definitions: Definitions,
    pub(crate) storage: Storage,
    /// The number of the newest checkpoint that is known of.
    pub(crate) newest: u64,
    processes: u32,
    /// Where a subscriber of the outbox stands.
    subscriber: Option<(u64, u64)>,
}

pub(crate) struct ImporterProcess {
    process: u32,
    pub(crate) directory: Arc<TempDir>,
    handle: ImporterHandle,
    task: Task,
    stop: CancellationToken,
    saved: Option<(Lsn, bool)>,
}

pub(crate) struct JoinerProcess {
    process: u32,
    directory: TempDir,
    handle: Handle,
    task: Task,
    /// Makes the checkpoints.
    saving: JoinHandle<()>,
    saved: StatusHandle,
    stop: CancellationToken,
}

fn schema(table: &crate::shop::Table) -> Arc<TableSchema> {
    let column = |(name, kind): &(&str, ColumnKind)| Column {
        name: (*name).to_owned(),
        sql_type: match kind {
            ColumnKind::Text => SqlType::NVarChar(Length::Limited(20)),
            ColumnKind::Int | ColumnKind::Reference => SqlType::Int,
            ColumnKind::Moment => SqlType::DateTime2 { scale: 3 },
        },
        nullable: *kind != ColumnKind::Int,
        case_insensitive: *kind == ColumnKind::Text,
    };
    let columns = table.columns.iter().map(column).collect();
    Arc::new(TableSchema { name: TableName::new("dbo", table.name), columns, key: (0..table.key).collect() })
}

fn entity_plans(definitions: Definitions) -> anyhow::Result<Vec<Arc<EntityPlan>>> {
    let schemas: Vec<Arc<TableSchema>> = TABLES.iter().map(schema).collect();
    let lookup = |name: &TableName| schemas.iter().find(|schema| schema.name == *name).cloned();
    let plan = |text: &str| -> anyhow::Result<Arc<EntityPlan>> {
        Ok(Arc::new(EntityPlan::resolve(&EntityDefinition::from_yaml("entity.yaml", text)?, &lookup)?))
    };
    definitions.texts().into_iter().map(plan).collect()
}

/// How a task has ended.
async fn ending(task: Task) -> String {
    match task.await {
        Ok(Ok(())) => "done".to_owned(),
        Ok(Err(error)) => disk::without_directory(&error),
        Err(error) if error.is_cancelled() => "killed".to_owned(),
        Err(error) => format!("panicked: {error}"),
    }
}

impl Site {
    pub(crate) fn new(plan: Plan, faults: Faults, dice: &mut Dice, history: History) -> anyhow::Result<Self> {
        let shop = Arc::new(Mutex::new(Shop::new(dice.split(), history.clone())));
        let server = crate::server::ShopServer { shop: Arc::clone(&shop), history: history.clone() };
        let network = Arc::new(SourceNetwork::new(server, faults.clone(), dice.split(), history.clone()));
        let streams = Streams::new(faults.clone(), dice.split(), history.clone());
        let targets = Kind::ALL.into_iter().map(|kind| Target::new(kind, faults.clone(), dice.split(), history.clone()));
        let targets = targets.collect::<anyhow::Result<_>>()?;
        let storage = Storage::new(SOURCE, faults.clone(), dice.split(), history.clone());
        Ok(Self {
            plan,
            faults,
            history,
            shop,
            streams,
            targets,
            network,
            definitions: Definitions::default(),
            storage,
            newest: 0,
            processes: 0,
            subscriber: None,
        })
    }

    pub(crate) fn shop(&self) -> MutexGuard<'_, Shop> {
        self.shop.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_process(&mut self) -> u32 {
        self.processes += 1;
        self.processes
    }

    pub(crate) fn start_importer(&mut self, directory: Arc<TempDir>) -> ImporterProcess {
        let process = self.next_process();
        let mut source = Source::sql_login("source", 1433, DATABASE, "tributary", Password::new("secret"));
        source.encrypt = Encryption::Off;
        source.network = Network::of(Arc::new(ToSource(Arc::clone(&self.network))));
        let mut config = importer::Config::new(SOURCE, source, directory.path());
        let plan = &self.plan.importer;
        config.output.layout = self.plan.layout;
        config.output.shards = self.plan.shards;
        config.on_gap = importer::GapPolicy::Resnapshot;
        config.snapshot.chunk_rows = plan.chunk_rows;
        config.snapshot.split_rows = plan.split_rows;
        config.snapshot.connections = plan.connections;
        config.page_rows = plan.page_rows;
        config.tick_transactions = plan.tick_transactions;
        config.tail_connections = plan.connections;
        config.time_zone = Some("UTC".to_owned());
        let (importer, stop) = (Importer::new(config, self.streams.of(process)), CancellationToken::new());
        let handle = importer.handle();
        let running = Box::pin(importer.run(stop.clone()));
        let task = tokio::spawn(async move { running.await.map_err(|error| error.to_string()) });
        let saved = read_saved(directory.path());
        self.history.add(Event::ImporterStarted { process, saved: saved.map(|(lsn, _)| lsn) });
        ImporterProcess { process, directory, handle, task, stop, saved }
    }

    /// Tells of saved progress that has moved.
    pub(crate) fn look_at_saved(&self, importer: &mut ImporterProcess) {
        let saved = read_saved(importer.directory.path());
        if saved != importer.saved {
            importer.saved = saved;
            if let Some((lsn, tail)) = saved {
                self.history.add(Event::Saved { process: importer.process, lsn, tail });
            }
        }
    }

    pub(crate) async fn kill_importer(&self, mut importer: ImporterProcess) {
        self.look_at_saved(&mut importer);
        importer.task.abort();
        let how = ending(importer.task).await;
        self.history.add(Event::ImporterEnded { process: importer.process, how });
    }

    pub(crate) async fn stop_importer(&self, importer: ImporterProcess) {
        importer.stop.cancel();
        let how = ending(importer.task).await;
        self.history.add(Event::ImporterEnded { process: importer.process, how });
    }

    /// Moves saved progress ahead of what was published: sabotage. Answers whether there was any to move.
    pub(crate) fn move_saved_ahead(&self, directory: &Path) -> anyhow::Result<bool> {
        let path = directory.join("progress.json");
        let (Ok(text), Some(captured)) = (std::fs::read(&path), self.shop().captured()) else { return Ok(false) };
        let mut saved: serde_json::Value = serde_json::from_slice(&text)?;
        let behind = read_saved(directory).is_some_and(|(lsn, tail)| tail && lsn < captured);
        if behind {
            saved["phase"]["tail"]["lsn"] = captured.to_string().into();
            std::fs::write(&path, saved.to_string())?;
        }
        Ok(behind)
    }

    fn joiner_config(&self, directory: &Path) -> anyhow::Result<joiner::Config> {
        let mut config = joiner::Config::new(directory, entity_plans(self.definitions)?, SOURCE, SOURCE);
        config.layout = self.plan.layout;
        config.buffer_bytes = self.plan.joiner.buffer_bytes;
        config.chunk_entities = self.plan.joiner.chunk_entities;
        config.outbox_entries = self.plan.joiner.outbox_entries;
        // Larger than anything that comes here: how far a flush in the background has come when the power fails does not follow from the seed.
        config.memory = Memory { write_buffer_bytes: 256 << 20, block_cache_bytes: 8 << 20, row_cache_bytes: 1 << 20 };
        config.threads = 0;
        Ok(config)
    }

    /// Starts a joiner on a disk; one that is empty begins with the newest checkpoint. Where that cannot be had, or takes longer than the process lives, the disk is what is answered.
    pub(crate) async fn start_joiner(
        &mut self,
        disk: TempDir,
        lives_ms: Option<u64>,
    ) -> anyhow::Result<Result<JoinerProcess, TempDir>> {
        let state = disk.path().join(STATE);
        let config = self.joiner_config(&state)?;
        let checkpoints = self.storage.checkpoints();
        let beginning = begin_with(&checkpoints, &config, true);
        let begun = match lives_ms {
            Some(lives_ms) => tokio::time::timeout(Duration::from_millis(lives_ms), beginning).await,
            None => Ok(beginning.await),
        };
        let restored = match begun {
            Ok(Ok(restored)) => restored,
            Ok(Err(error)) => {
                let (why, transient) = (disk::without_directory(&error.to_string()), error.class() == ErrorClass::Transient);
                self.history.add(Event::NotRestored { why, transient });
                return Ok(Err(disk));
            }
            Err(_) => {
                self.history.fault("a joiner was killed while it began");
                return Ok(Err(disk));
            }
        };
        if let Some(Restored { number, frontier, .. }) = restored {
            self.history.add(Event::Restored { number, frontier });
        }
        let process = self.next_process();
        let joiner = Joiner::open(config).context("opening the joiner's state")?;
        let handle = joiner.handle();
        let head = *handle.outbox().head().borrow();
        let definitions = self.definitions;
        self.history.add(Event::JoinerStarted { process, definitions, frontier: head.frontier, head: head.sequence });
        let sink = |kind: Kind| NamedSink { name: kind.name().to_owned(), sink: self.targets[kind as usize].sink(process) };
        let sinks = Kind::ALL.map(sink);
        let stop = CancellationToken::new();
        let running = Box::pin(joiner.run(self.streams.of(process), sinks.into(), stop.clone()));
        let task = tokio::spawn(async move { running.await.map_err(|error| error.to_string()) });
        let plan = &self.plan.checkpoints;
        let local = objects::LocalOptions { path: PathBuf::new() };
        let mut keeping = checkpoints::Config::new(objects::Config::Local(local));
        (keeping.every_seconds, keeping.keep) = (plan.every_seconds, plan.keep);
        let service = Service::new(checkpoints, &keeping, handle.clone(), &state, restored);
        let saved = service.status();
        let saving = tokio::spawn(service.run(stop.clone()));
        let joiner = JoinerProcess { process, directory: disk, handle, task, saving, saved, stop };
        self.tell_state(&joiner)?;
        Ok(Ok(joiner))
    }

    /// Takes note of a checkpoint that a joiner has made. The streams may then forget what it has passed.
    pub(crate) async fn look_at_checkpoints(&mut self, joiner: &JoinerProcess, trims: bool) -> anyhow::Result<()> {
        let Some(last) = joiner.saved.get().last.filter(|last| last.number > self.newest) else { return Ok(()) };
        self.newest = last.number;
        let (process, number, frontier) = (joiner.process, last.number, last.frontier);
        self.history.add(Event::Checkpoint { process, number, frontier });
        if trims && let Some((_disk, engine)) = self.restored().await? {
            self.streams.trim(engine.positions());
        }
        Ok(())
    }

    /// What the newest checkpoint is, restored on a disk of its own.
    async fn restored(&self) -> anyhow::Result<Option<(TempDir, Engine)>> {
        let disk = disk::directory()?;
        let config = self.joiner_config(&disk.path().join(STATE))?;
        let restored = begin_with(&self.storage.untroubled(), &config, true).await;
        if let Err(error) = &restored {
            self.history.add(Event::NotRestored { why: disk::without_directory(&error.to_string()), transient: false });
        }
        Ok(if let Ok(Some(_)) = restored { Some((disk, Engine::open(&config)?)) } else { None })
    }

    /// Tells what is in the object storage, and what the newest checkpoint holds.
    pub(crate) async fn tell_checkpoints(&self, joiner: &JoinerProcess) -> anyhow::Result<()> {
        let found = self.storage.found().await?;
        let (keep, unnamed) = (self.plan.checkpoints.keep.get(), found.unnamed);
        self.history.add(Event::Stored { numbers: found.numbers, keep, unnamed });
        if let Some((_disk, mut engine)) = self.restored().await? {
            // It is looked at as of where it stands.
            engine.await_published(Vec::new());
            engine.advance()?;
            if let Some((head, documents)) = Self::documents(&engine.handle())? {
                self.history.add(Event::State { process: joiner.process, as_of: head.frontier, documents });
            }
        }
        Ok(())
    }

    /// Whether no request of any process is on its way to a target.
    pub(crate) fn is_quiet(&self) -> bool {
        self.targets.iter().all(|target| target.is_quiet())
    }

    /// Ends a joiner without a word, and answers what it leaves.
    pub(crate) async fn kill_joiner(&self, joiner: JoinerProcess, death: Death, dice: &mut Dice) -> anyhow::Result<TempDir> {
        let JoinerProcess { process, directory, handle, task, saving, .. } = joiner;
        let lies = death == Death::PowerFailure && self.faults.is(Sabotage::LyingDisk);
        let death = if lies { Death::LyingDisk } else { death };
        // As of this instant: what its tasks still do while they are ended is seen by nobody.
        let left = disk::leave(directory.path(), death, dice)?;
        task.abort();
        saving.abort();
        drop(handle);
        let _ = saving.await;
        let how = format!("{death:?}, {}", ending(task).await);
        self.history.add(Event::JoinerEnded { process, how });
        Ok(left)
    }

    pub(crate) async fn stop_joiner(&self, joiner: JoinerProcess) {
        joiner.stop.cancel();
        let how = ending(joiner.task).await;
        let _ = joiner.saving.await;
        self.history.add(Event::JoinerEnded { process: joiner.process, how });
    }

    /// All entities as the state has them, if it can be read now.
    fn documents(handle: &Handle) -> anyhow::Result<Option<(Head, Vec<Document>)>> {
        let head = *handle.outbox().head().borrow();
        if !head.live {
            return Ok(None);
        }
        let mut documents = Vec::new();
        for (entity, most) in [("order", 20), ("customer", 10)] {
            for key in (1..=most).map(|key| key.to_string()) {
                if let Some((_, document)) = handle.get(entity, &EntityKey::from_text(key.clone()))? {
                    documents.push(Document { entity: entity.to_owned(), key, document: Some(document) });
                }
            }
        }
        Ok(Some((head, documents)))
    }

    pub(crate) fn tell_state(&self, joiner: &JoinerProcess) -> anyhow::Result<()> {
        if let Some((head, documents)) = Self::documents(&joiner.handle)? {
            self.history.add(Event::State { process: joiner.process, as_of: head.frontier, documents });
        }
        Ok(())
    }

    /// A subscriber reads on in the outbox.
    pub(crate) fn subscribe(&mut self, joiner: &JoinerProcess) -> anyhow::Result<()> {
        let (outbox, process) = (joiner.handle.outbox(), joiner.process);
        let head = *outbox.head().borrow();
        if !head.live {
            return Ok(());
        }
        let incarnation = head.incarnation;
        let cursor = self.subscriber.filter(|(of, _)| *of == incarnation).map(|(_, sequence)| sequence);
        let page = cursor.map(|sequence| outbox.read_bounded(sequence, usize::MAX, usize::MAX)).transpose()?;
        let Some(Page::Changes { changes, head }) = page else {
            // What is seen is to be on the disk first.
            outbox.read_bounded(head.sequence, 0, 0)?;
            if let Some((head, documents)) = Self::documents(&joiner.handle)? {
                let (sequence, as_of) = (head.sequence, head.frontier);
                self.history.add(Event::ToldAnew { process, incarnation, sequence, as_of, documents });
                self.subscriber = Some((incarnation, sequence));
            }
            return Ok(());
        };
        for (sequence, change) in changes {
            let (version, document) = (change.version, change.document.map(|text| text.to_string()));
            let change = Document { entity: change.entity.to_string(), key: change.key.to_string(), document };
            self.history.add(Event::Told { process, incarnation, sequence, version, change });
        }
        self.subscriber = Some((incarnation, head.sequence));
        self.history.add(Event::ToldUpTo { process, incarnation, sequence: head.sequence, frontier: head.frontier });
        Ok(())
    }
}

impl ImporterProcess {
    /// Asks for a table, or a range of the first column of its key, to be read again.
    pub(crate) fn ask(&self, table: usize, range: Option<(u64, u64)>) {
        let handle = self.handle.clone();
        let bound = |bound: fn((u64, u64)) -> u64| range.map(|range| vec![bound(range).to_string()]);
        let range = AskedRange { from: bound(|(from, _)| from), to: bound(|(_, to)| to) };
        tokio::spawn(async move {
            // It may well be refused: the table is being read, or the importer is gone.
            let _ = handle.resnapshot(TableName::new("dbo", TABLES[table].name), range).await;
        });
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Another machine's copy of its directory, without the lock. From here on the importer can save nothing any more, as one that has lost its lease; it goes on until it finds that out.
    pub(crate) fn give_up_directory(&self) -> anyhow::Result<TempDir> {
        let copy = disk::directory()?;
        std::fs::create_dir(self.directory.path().join("progress.json.new"))?;
        for name in ["progress.json", "epoch"] {
            let from: PathBuf = self.directory.path().join(name);
            if from.is_file() {
                std::fs::copy(&from, copy.path().join(name))?;
            }
        }
        Ok(copy)
    }
}

impl JoinerProcess {
    pub(crate) fn status(&self) -> joiner::Status {
        self.handle.status()
    }

    /// Whether it is not about to make a checkpoint, nor to remove old ones.
    pub(crate) fn saves_nothing(&self) -> bool {
        self.saved.get().phase == Phase::Waiting
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
}

/// What a directory says of its importer's progress, and whether that is in the tail.
fn read_saved(directory: &Path) -> Option<(Lsn, bool)> {
    let text = std::fs::read(directory.join("progress.json")).ok()?;
    let saved: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let phase = &saved["phase"];
    let lsn = |phase: &serde_json::Value| phase["lsn"].as_str()?.parse().ok();
    match phase.get("tail") {
        Some(tail) => Some((lsn(tail)?, true)),
        None => Some((lsn(&phase["snapshot"])?, false)),
    }
}

/// A wait that the clock alone ends.
pub(crate) async fn wait_ms(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}
