//! The processes: importers and joiners ([`joiners`]), started, watched ([`looking`]), killed, and started anew by what they left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use importer::{AskedRange, Importer, ImporterHandle};
use schemas::progress::ShardPositions;
use schemas::table::TableName;
use schemas::{KeyRange, Lsn};
use source::network::Network;
use source::{Encryption, Password, Source};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::dice::Dice;
use crate::disk;
use crate::faults::Faults;
use crate::history::{Event, History};
use crate::joined::Definitions;
use crate::lease::Leases;
use crate::network::{SourceNetwork, ToSource};
use crate::plan::Plan;
use crate::server::DATABASE;
use crate::shop::{Shop, TABLES};
use crate::storage::Storage;
use crate::streams::Streams;
use crate::target::{Kind, Target};

mod joiners;
mod looking;

pub(crate) use joiners::JoinerProcess;

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
    /// The number of the newest checkpoint of each share that is known of.
    pub(crate) newest: BTreeMap<KeyRange, u64>,
    /// Up to where checkpoints of each share have read the streams, as far as was looked.
    passed: BTreeMap<KeyRange, ShardPositions>,
    /// By share, whose turn it is.
    leases: BTreeMap<KeyRange, Leases>,
    dice: Dice,
    processes: u32,
}

pub(crate) struct ImporterProcess {
    process: u32,
    pub(crate) directory: Arc<TempDir>,
    handle: ImporterHandle,
    task: Task,
    stop: CancellationToken,
    saved: Option<(Lsn, bool)>,
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
    /// `joiners`: chooses what there is to choose of leases.
    pub(crate) fn new(plan: Plan, faults: Faults, dice: &mut Dice, joiners: Dice, history: History) -> anyhow::Result<Self> {
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
            newest: BTreeMap::new(),
            passed: BTreeMap::new(),
            leases: BTreeMap::new(),
            dice: joiners,
            processes: 0,
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

    /// Whether no request of any process is on its way to a target.
    pub(crate) fn is_quiet(&self) -> bool {
        self.targets.iter().all(|target| target.is_quiet())
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
