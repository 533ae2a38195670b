//! Object storage, in which checkpoints of the joiner's state are.
//!
//! Requests take their time, are refused, or have their effect and lose their answer; all of it is out of reach for a while. A process that dies in the middle of an upload leaves what it had uploaded. Which files a state consists of
//! depends on threads in the background, so nothing that is decided here follows from how many there are: of the parts that are uploaded together, the first alone has a fate of its own.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use checkpoints::{Checkpoints, Which};
use futures_util::TryStreamExt;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};
use objects::test_support::{Control, Controlled, Fate, Operation};
use objects::{ObjectPath, Objects};
use schemas::KeyRange;

use crate::dice::Dice;
use crate::faults::Faults;
use crate::history::History;

const FILES: &str = "files";

pub(crate) struct Storage {
    kept: Arc<InMemory>,
    way: Arc<Way>,
    source: &'static str,
}

/// The way there.
struct Way {
    dice: Mutex<Dice>,
    faults: Faults,
    history: History,
    /// Folders that have been written to.
    folders: Mutex<BTreeSet<String>>,
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Way").finish_non_exhaustive()
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(what: &str) -> object_store::Error {
    object_store::Error::Generic { store: "simulated", source: what.to_owned().into() }
}

impl Way {
    fn is_down(&self) -> bool {
        self.faults.levels().storage_down
    }

    /// Whether a request is one of many whose number does not follow from the seed.
    fn is_one_of_many(&self, operation: Operation<'_>) -> bool {
        match operation {
            Operation::Get | Operation::Remove => true,
            Operation::Put(path) => match path.as_ref().rsplit_once('/') {
                Some((folder, _)) if folder.split('/').any(|part| part == FILES) => {
                    !held(&self.folders).insert(folder.to_owned())
                }
                _ => false,
            },
            Operation::Create(_) | Operation::List => false,
        }
    }
}

#[async_trait]
impl Control for Way {
    async fn fate(&self, operation: Operation<'_>) -> Fate {
        if self.is_one_of_many(operation) {
            return if self.is_down() { Fate::Refused(failed("out of reach")) } else { Fate::Done };
        }
        let (permille, most) = {
            let levels = self.faults.levels();
            (levels.storage, levels.storage_delay_ms)
        };
        let (wait, refused, lost) = {
            let mut dice = held(&self.dice);
            (Duration::from_millis(dice.below(most + 1)), dice.chance(permille), dice.chance(permille))
        };
        tokio::time::sleep(wait).await;
        if self.is_down() || refused {
            self.history.fault("a request to the object storage was refused");
            return Fate::Refused(failed("refused"));
        }
        if lost {
            self.history.fault("an answer of the object storage was lost");
            return Fate::Lost(failed("no answer came"));
        }
        Fate::Done
    }
}

/// What is there of checkpoints, by who sees all of it.
pub(crate) struct Found {
    pub(crate) numbers: Vec<u64>,
    /// Objects of files that no checkpoint names.
    pub(crate) unnamed: usize,
}

/// Where a share's checkpoints are, as the beginning of a path.
fn folder(share: KeyRange) -> String {
    if share.is_all() { String::new() } else { format!("ranges/{share}/") }
}

impl Storage {
    pub(crate) fn new(source: &'static str, faults: Faults, dice: Dice, history: History) -> Self {
        let way = Way { dice: Mutex::new(dice), faults, history, folders: Mutex::default() };
        Self { kept: Arc::new(InMemory::new()), way: Arc::new(way), source }
    }

    /// The checkpoints of a share as a process reaches them.
    pub(crate) fn checkpoints(&self, share: KeyRange) -> Checkpoints {
        let objects = Controlled::objects(self.kept.clone(), self.way.clone());
        Checkpoints::open(objects, self.source).in_place().of_range(share)
    }

    /// The same without any trouble.
    pub(crate) fn untroubled(&self, share: KeyRange) -> Checkpoints {
        Checkpoints::open(Objects::over(self.kept.clone(), "object storage"), self.source).in_place().of_range(share)
    }

    async fn files(&self, share: KeyRange) -> anyhow::Result<Vec<ObjectPath>> {
        let folder = ObjectPath::from(folder(share) + FILES);
        Ok(self.kept.list(Some(&folder)).map_ok(|meta| meta.location).try_collect().await?)
    }

    pub(crate) async fn found(&self, share: KeyRange) -> anyhow::Result<Found> {
        let (listed, folder) = (self.untroubled(share).list().await?, folder(share));
        let named: Vec<String> =
            listed.iter().flat_map(|one| &one.checkpoint.files).map(|file| format!("{folder}{}.", file.object)).collect();
        let files = self.files(share).await?;
        let unnamed = files.iter().filter(|path| !named.iter().any(|file| path.as_ref().starts_with(file)));
        Ok(Found { unnamed: unnamed.count(), numbers: listed.iter().map(|one| one.number).collect() })
    }

    /// Forgets a part of a share's newest checkpoint: sabotage. Answers whether there was one.
    pub(crate) async fn lose_a_part(&self, share: KeyRange) -> anyhow::Result<bool> {
        let Some(newest) = self.untroubled(share).find(&Which::Latest).await? else { return Ok(false) };
        let Some(file) = newest.checkpoint.as_ref().and_then(|checkpoint| checkpoint.files.first()) else { return Ok(false) };
        let (files, object) = (self.files(share).await?, folder(share) + &file.object);
        let Some(part) = files.iter().find(|path| path.as_ref().starts_with(&object)) else { return Ok(false) };
        self.kept.delete(part).await?;
        Ok(true)
    }
}
