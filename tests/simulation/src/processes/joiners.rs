//! Joiners: started on what is on a disk, or with checkpoints; killed, stopped, frozen.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use checkpoints::{Phase, Restored, Service, StatusHandle, begin_with};
use joiner::{Handle, Joiner, Memory, NamedSink};
use schemas::entity::EntityDefinition;
use schemas::plan::Plan as EntityPlan;
use schemas::table::{Column, Length, SqlType, TableName, TableSchema};
use schemas::{ErrorClass, KeyRange};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{SOURCE, Site, Task, ending, wait_ms};
use crate::dice::Dice;
use crate::disk::{self, Death, STATE};
use crate::faults::Sabotage;
use crate::freeze::Ice;
use crate::history::Event;
use crate::joined::Definitions;
use crate::lease::Leases;
use crate::shop::{Kind as ColumnKind, TABLES};
use crate::target::Kind;
use crate::turns::InTurn;

pub(crate) struct JoinerProcess {
    pub(crate) process: u32,
    pub(super) share: KeyRange,
    directory: TempDir,
    pub(super) handle: Handle,
    /// Whether it does not stand by.
    working: watch::Receiver<bool>,
    /// What its requests, and what its own tasks do not get past while it is frozen.
    hands: Ice,
    head: Ice,
    task: Task,
    /// Makes the checkpoints.
    saving: JoinHandle<()>,
    pub(super) saved: StatusHandle,
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

/// How the beginning of a joiner has ended.
enum Begun {
    With(Option<Restored>),
    Not(checkpoints::Error),
    Killed,
}

impl Site {
    pub(super) fn joiner_config(&self, directory: &Path, share: KeyRange) -> anyhow::Result<joiner::Config> {
        let mut config = joiner::Config::new(directory, entity_plans(self.definitions)?, SOURCE, SOURCE);
        config.range = share;
        config.layout = self.plan.layout;
        config.buffer_bytes = self.plan.joiner.buffer_bytes;
        config.chunk_entities = self.plan.joiner.chunk_entities;
        config.outbox_entries = self.plan.joiner.outbox_entries;
        config.step_changes = self.plan.joiner.step_changes;
        // Larger than anything that comes here: how far a flush in the background has come when the power fails does not follow from the seed.
        config.memory = Memory {
            write_buffer_bytes: 256 << 20,
            block_cache_bytes: 8 << 20,
            row_cache_bytes: 1 << 20,
            recent_bytes: 32 << 10,
        };
        config.threads = 0;
        Ok(config)
    }

    /// Makes what is on a disk the state of a joiner of a share; one that is empty begins with the newest checkpoints. Answers whether a joiner can start on it: not where these cannot be had, or where that takes longer than the process lives.
    async fn begin(&self, disk: &TempDir, share: KeyRange, lives_ms: Option<u64>) -> anyhow::Result<Begun> {
        let config = self.joiner_config(&disk.path().join(STATE), share)?;
        let checkpoints = self.storage.checkpoints(share);
        let beginning = begin_with(&checkpoints, &config, true);
        let begun = match lives_ms {
            Some(lives_ms) => tokio::time::timeout(Duration::from_millis(lives_ms), beginning).await,
            None => Ok(beginning.await),
        };
        Ok(match begun {
            Ok(Ok(restored)) => {
                if let Some(Restored { number, frontier, .. }) = restored {
                    self.history.add(Event::Restored { share, number, frontier });
                }
                Begun::With(restored)
            }
            Ok(Err(error)) => Begun::Not(error),
            Err(_) => {
                self.history.fault("a joiner was killed while it began");
                Begun::Killed
            }
        })
    }

    pub(super) fn not_restored(&self, error: &checkpoints::Error) {
        let why = disk::without_directory(&error.to_string());
        self.history.add(Event::NotRestored { why, transient: error.class() == ErrorClass::Transient });
    }

    /// Starts a joiner of a share on a disk, which is what is answered where it cannot start.
    pub(crate) async fn start_joiner(
        &mut self,
        disk: TempDir,
        share: KeyRange,
        lives_ms: Option<u64>,
    ) -> anyhow::Result<Result<JoinerProcess, TempDir>> {
        match self.begin(&disk, share, lives_ms).await? {
            Begun::With(restored) => self.run_joiner(disk, share, restored).map(Ok),
            Begun::Not(error) => {
                self.not_restored(&error);
                Ok(Err(disk))
            }
            Begun::Killed => Ok(Err(disk)),
        }
    }

    /// Starts joiners of these shares, on disks that are empty, with the checkpoints of those of others; either all of them or none.
    pub(crate) async fn start_reshaped(&mut self, shares: &[KeyRange]) -> anyhow::Result<Option<Vec<JoinerProcess>>> {
        let mut begun = Vec::new();
        for share in shares {
            let disk = disk::directory()?;
            match self.begin(&disk, *share, None).await? {
                Begun::With(restored) => begun.push((disk, *share, restored)),
                Begun::Not(error) => {
                    // It was made in the middle of something: another will do.
                    if matches!(error, checkpoints::Error::Refused { source: joiner::Error::NotMerged { .. }, .. }) {
                        self.history.add(Event::NotReshaped { why: disk::without_directory(&error.to_string()) });
                    } else {
                        self.not_restored(&error);
                    }
                    return Ok(None);
                }
                Begun::Killed => return Ok(None),
            }
        }
        self.history.add(Event::Reshaped { shares: shares.to_vec() });
        let started = begun.into_iter().map(|(disk, share, restored)| self.run_joiner(disk, share, restored));
        started.collect::<anyhow::Result<_>>().map(Some)
    }

    fn run_joiner(&mut self, disk: TempDir, share: KeyRange, restored: Option<Restored>) -> anyhow::Result<JoinerProcess> {
        let state = disk.path().join(STATE);
        let process = self.next_process();
        let joiner = Joiner::open(self.joiner_config(&state, share)?).context("opening the joiner's state")?;
        let handle = joiner.handle();
        let head = *handle.outbox().head().borrow();
        let (definitions, frontier) = (self.definitions, head.frontier);
        self.history.add(Event::JoinerStarted { process, share, definitions, frontier, head: head.sequence });
        let ice = Ice::default();
        let sink = |kind: Kind| {
            let sink = self.targets[kind as usize].sink(process, ice.clone());
            NamedSink { name: kind.name().to_owned(), sink }
        };
        let (sinks, hands, head) = (Kind::ALL.map(sink).into(), ice.clone(), Ice::default());
        let (stop, streams, frozen) = (CancellationToken::new(), self.streams.of(process), head.clone());
        let worked = watch::Sender::new(!self.plan.stands_by);
        let working = worked.subscribe();
        let task = if self.plan.stands_by {
            let in_turn = InTurn { joiner, store: Arc::new(self.leases(share)), working: worked };
            let running = Box::pin(in_turn.run(streams, sinks, stop.clone()));
            tokio::spawn(async move { frozen.around(running).await.map_err(|error| format!("{error:#}")) })
        } else {
            let running = Box::pin(joiner.run(streams, sinks, stop.clone()));
            tokio::spawn(async move { running.await.map_err(|error| error.to_string()) })
        };
        let plan = &self.plan.checkpoints;
        let local = objects::LocalOptions { path: PathBuf::new() };
        let mut keeping = checkpoints::Config::new(objects::Config::Local(local));
        (keeping.every_seconds, keeping.keep) = (plan.every_seconds, plan.keep);
        let service = Service::new(self.storage.checkpoints(share), &keeping, handle.clone(), &state, restored)
            .in_turn(self.plan.stands_by);
        let saved = service.status();
        let saving = self.saving(process, service, working.clone(), head.clone(), stop.clone());
        let joiner = JoinerProcess { process, share, directory: disk, handle, working, hands, head, task, saving, saved, stop };
        self.tell_state(&joiner)?;
        Ok(joiner)
    }

    /// Checkpoints are made by the one that works.
    fn saving(
        &self,
        process: u32,
        service: Service,
        mut working: watch::Receiver<bool>,
        head: Ice,
        stop: CancellationToken,
    ) -> JoinHandle<()> {
        let (stands_by, history) = (self.plan.stands_by, self.history.clone());
        tokio::spawn(async move {
            let saving = async {
                if stands_by {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        turn = working.wait_for(|working| *working) => if turn.is_err() { return },
                    }
                    history.add(Event::Turn { process });
                }
                service.run(stop.clone()).await;
            };
            head.around(saving).await;
        })
    }

    fn leases(&mut self, share: KeyRange) -> Leases {
        let Self { leases, dice, faults, history, .. } = self;
        leases.entry(share).or_insert_with(|| Leases::new(faults.clone(), dice.split(), history.clone())).clone()
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

    /// Has a joiner end, and answers its disk.
    pub(crate) async fn stop_joiner(&self, joiner: JoinerProcess) -> TempDir {
        let JoinerProcess { process, directory, task, saving, stop, .. } = joiner;
        stop.cancel();
        let how = ending(task).await;
        let _ = saving.await;
        self.history.add(Event::JoinerEnded { process, how });
        directory
    }

    /// Has a joiner stand still: what it asks of targets goes nowhere any more, and `late_ms` later nothing goes on in it.
    pub(crate) fn freeze(&self, joiner: &JoinerProcess, late_ms: u64) {
        self.history.add(Event::Frozen { process: joiner.process });
        joiner.hands.freeze();
        let (head, hands) = (joiner.head.clone(), joiner.hands.clone());
        tokio::spawn(async move {
            wait_ms(late_ms).await;
            if hands.is_frozen() {
                head.freeze();
            }
        });
    }

    /// Has it go on: at first it writes, and finds out `late_ms` later that it has been frozen.
    pub(crate) fn thaw(&self, joiner: &JoinerProcess, late_ms: u64) {
        self.history.add(Event::Thawed { process: joiner.process });
        joiner.hands.thaw();
        let head = joiner.head.clone();
        tokio::spawn(async move {
            wait_ms(late_ms).await;
            head.thaw();
        });
    }
}

impl JoinerProcess {
    pub(crate) fn status(&self) -> joiner::Status {
        self.handle.status()
    }

    pub(crate) fn is_working(&self) -> bool {
        *self.working.borrow()
    }

    /// Whether it is not about to make a checkpoint, nor to remove old ones.
    pub(crate) fn saves_nothing(&self) -> bool {
        self.saved.get().phase == Phase::Waiting
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
}
