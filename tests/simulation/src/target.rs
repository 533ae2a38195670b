//! Three targets behind the sinks' trait: a table, which keeps the guard by version and its frontier in one transaction, a topic, which takes whatever it is sent, and a SQLite database, which the real sink writes ([`database`](crate::database)).
//!
//! A request goes on when its caller is gone: a write that a process sent before it died may arrive after those of its successor. It may fail before or after its effect, and at the topic in the middle of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::{KeyRange, Lsn};
use sinks::{Error, Held, Rejected, Retry, Sink, Terms};
use tokio::sync::oneshot;

use crate::database::{Database, Writer};
use crate::dice::Dice;
use crate::faults::{Faults, Sabotage};
use crate::freeze::Ice;
use crate::history::{Document, Event, History};
use crate::shares::Pieces;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Table,
    Topic,
    Database,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Table, Self::Topic, Self::Database];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Topic => "topic",
            Self::Database => "database",
        }
    }
}

struct Content {
    /// By entity and key: the version, also of what is gone, and the document.
    entities: BTreeMap<(String, String), (Lsn, Option<String>)>,
    /// By entity, the version of each share's last load: what is older and not here has vanished.
    floors: BTreeMap<String, Pieces<Lsn>>,
    /// What was said of each share: everything up to there is here.
    said: Pieces<Option<Lsn>>,
    /// The least of that; of the database, what it says itself.
    frontier: Option<Lsn>,
    /// What documents follow from, by entity; and of those of which some may follow from something else, the shares that have been loaded since.
    made_of: BTreeMap<Arc<str>, String>,
    lacking: BTreeMap<String, Pieces<bool>>,
    /// How many requests are on their way.
    requests: usize,
}

impl Default for Content {
    fn default() -> Self {
        let (entities, floors, made_of, lacking) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { entities, floors, said: Pieces::new(None), frontier: None, made_of, lacking, requests: 0 }
    }
}

impl Content {
    /// A load of a share's entities has ended.
    fn settle(&mut self, entity: &str, share: KeyRange, load: Lsn) {
        self.floors.entry(entity.to_owned()).or_insert_with(|| Pieces::new(Lsn::ZERO)).raise(share, load);
    }
}

/// Who writes, and which entities.
#[derive(Clone, Copy)]
struct Sender {
    process: u32,
    share: KeyRange,
}

/// What a request brings back.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) rejected: Vec<Rejected>,
    /// Keys of what is older than a load.
    pub(crate) older: Vec<EntityKey>,
}

/// A target, wherever it runs.
pub(crate) struct Target {
    kind: Kind,
    content: Mutex<Content>,
    dice: Mutex<Dice>,
    faults: Faults,
    history: History,
    /// What the database is.
    database: Option<Database>,
}

impl Target {
    pub(crate) fn new(kind: Kind, faults: Faults, dice: Dice, history: History) -> anyhow::Result<Arc<Self>> {
        let database = (kind == Kind::Database).then(Database::new).transpose()?;
        Ok(Arc::new(Self { kind, content: Mutex::default(), dice: Mutex::new(dice), faults, history, database }))
    }

    /// A sink of a process that writes to it.
    pub(crate) fn sink(self: &Arc<Self>, process: u32, ice: Ice) -> Box<dyn Sink> {
        let (writer, from) = (self.database.as_ref().map(Database::writer), Sender { process, share: KeyRange::ALL });
        Box::new(ToTarget { target: Arc::clone(self), from, ice, writer, made_of: BTreeMap::new(), loaded: Vec::new() })
    }

    /// Whether nothing is on its way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.content().requests == 0
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dice(&self) -> MutexGuard<'_, Dice> {
        self.dice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn frontier(&self) -> Option<Lsn> {
        self.content().frontier
    }

    /// Tells what it holds.
    pub(crate) fn tell(&self) -> anyhow::Result<()> {
        if let Some(database) = &self.database {
            let documents = database.documents()?.into_iter().map(|((entity, key), (_, text))| Document {
                entity,
                key,
                document: Some(text),
            });
            let documents = documents.collect();
            self.history.add(Event::Holds { target: self.kind.name().to_owned(), frontier: self.frontier(), documents });
            return Ok(());
        }
        let content = self.content();
        let documents = content.entities.iter().filter(|(_, (_, document))| document.is_some());
        let documents = documents.map(|((entity, key), (_, document))| Document {
            entity: entity.clone(),
            key: key.clone(),
            document: document.clone(),
        });
        let event =
            Event::Holds { target: self.kind.name().to_owned(), frontier: content.frontier, documents: documents.collect() };
        self.history.add(event);
        Ok(())
    }

    fn is_down(&self) -> bool {
        self.faults.levels().targets_down[self.kind as usize]
    }

    /// The table takes note of what documents follow from, as SQL sinks do.
    fn prepare(&self, made_of: &BTreeMap<Arc<str>, String>) {
        let mut content = self.content();
        for (entity, is) in made_of {
            let was = content.made_of.insert(entity.clone(), is.clone());
            if was.is_some_and(|was| was != *is) {
                content.lacking.insert(entity.to_string(), Pieces::new(false));
            }
        }
    }

    fn take(&self, from: Sender, changes: &[EntityChange], frontier: Option<Lsn>) {
        let mut content = self.content();
        let guarded = self.kind == Kind::Table && !self.faults.is(Sabotage::NoGuard);
        for change in changes {
            let place = (change.entity.to_string(), change.key.to_string());
            let document = change.document.as_ref().map(ToString::to_string);
            let replaced = content.entities.get(&place).map(|(version, _)| *version);
            let floor = content.floors.get(&place.0).map(|floors| floors.of(&place.0, &place.1));
            let taken = !guarded || replaced.max(floor) <= Some(change.version);
            if taken {
                content.entities.insert(place.clone(), (change.version, document.clone()));
            }
            let (entity, key) = place;
            let (target, version) = (self.kind.name().to_owned(), change.version);
            let (process, change) = (from.process, Document { entity, key, document });
            self.history.add(Event::Written { process, target, version, replaced, taken, change });
        }
        if let Some(frontier) = frontier {
            let share = if self.faults.is(Sabotage::WideFrontier) { KeyRange::ALL } else { from.share };
            content.said.raise(share, Some(frontier));
            content.frontier = content.said.least(KeyRange::ALL).flatten();
            let (target, share, all) = (self.kind.name().to_owned(), from.share, content.frontier);
            self.history.add(Event::Reached { target, share, frontier, all });
        }
    }

    /// Tells that a load has ended.
    fn loaded(&self, entity: &str, share: KeyRange, version: Lsn) {
        let (target, entity) = (self.kind.name().to_owned(), entity.to_owned());
        self.history.add(Event::Loaded { target, entity, share, version });
    }

    fn end_load(&self, process: u32, entity: &str, load: Lsn) {
        if self.kind == Kind::Topic {
            return;
        }
        let mut content = self.content();
        content.settle(entity, KeyRange::ALL, load);
        self.loaded(entity, KeyRange::ALL, load);
        for ((of, key), (version, document)) in &mut content.entities {
            if of == entity && *version < load {
                if document.take().is_some() {
                    let (target, entity, key) = (self.kind.name().to_owned(), of.clone(), key.clone());
                    self.history.add(Event::Vanished { process, target, entity, key, version: load });
                }
                *version = load;
            }
        }
    }

    /// A request to the database. What was written and what has vanished is told by what it held before, and holds then.
    fn in_database(&self, database: &Database, writer: &Writer, from: Sender, work: Work) -> Result<Done, Error> {
        let (changes, frontier, load) = match &work {
            Work::Write(changes, frontier) => (changes.clone(), *frontier, None),
            Work::EndLoad(entity, version) => (Vec::new(), None, Some((entity.clone(), *version))),
            Work::Older(Older { entity, version, ends, .. }) => {
                let (entity, version, ends) = (entity.clone(), *version, *ends && !from.share.is_all());
                let done = database.work(writer, work)?;
                if ends && done.older.is_empty() {
                    self.loaded(&entity, from.share, version);
                }
                return Ok(done);
            }
            Work::Prepare(_) | Work::BeginLoad => return database.work(writer, work),
        };
        let before = database.documents()?;
        let done = database.work(writer, work)?;
        let now = database.documents()?;
        let (process, target) = (from.process, || self.kind.name().to_owned());
        for change in changes {
            let place = (change.entity.to_string(), change.key.to_string());
            let document = change.document.as_ref().map(ToString::to_string);
            let (replaced, stands) = (before.get(&place).map(|(version, _)| *version), now.get(&place));
            let taken = match stands {
                Some((version, _)) => document.is_some() && *version == change.version,
                None => document.is_none() && replaced.is_some(),
            };
            let (version, (entity, key)) = (change.version, place);
            let change = Document { entity, key, document };
            self.history.add(Event::Written { process, target: target(), version, replaced, taken, change });
        }
        if let Some((loaded, version)) = load {
            self.loaded(&loaded, KeyRange::ALL, version);
            for (entity, key) in before.into_keys().filter(|place| !now.contains_key(place)) {
                self.history.add(Event::Vanished { process, target: target(), entity, key, version });
            }
        }
        let all = database.frontier()?;
        if let Some(frontier) = frontier {
            self.history.add(Event::Reached { target: target(), share: from.share, frontier, all });
        }
        self.content().frontier = all;
        Ok(done)
    }

    /// What a request does, once it has come that far.
    fn work(&self, from: Sender, writer: Option<&Writer>, work: Work) -> Result<Done, Error> {
        if let (Some(database), Some(writer)) = (&self.database, writer) {
            return self.in_database(database, writer, from, work);
        }
        let mut done = Done::default();
        match work {
            Work::Write(changes, frontier) => self.take(from, &changes, frontier),
            Work::EndLoad(entity, version) => self.end_load(from.process, &entity, version),
            Work::Older(older) => done.older = self.older(from.share, &older),
            Work::Prepare(_) | Work::BeginLoad => {}
        }
        Ok(done)
    }

    /// What a topic has been sent is nowhere.
    fn older(&self, share: KeyRange, Older { entity, version, after, limit, ends }: &Older) -> Vec<EntityKey> {
        let mut content = self.content();
        let is_older = |(of, key): &(String, String), (held, document): &(Lsn, Option<String>)| {
            of == entity
                && held < version
                && document.is_some()
                && after.as_ref().is_none_or(|after| key.as_str() > after.as_str())
        };
        let older = content.entities.iter().filter(|(place, held)| self.kind == Kind::Table && is_older(place, held));
        let older: Vec<EntityKey> = older.take(*limit).map(|((_, key), _)| EntityKey::from_text(key.clone())).collect();
        if *ends && older.is_empty() {
            content.settle(entity, share, *version);
            if self.kind == Kind::Table {
                self.loaded(entity, share, *version);
            }
        }
        older
    }

    /// A request to it: how long it takes, and what becomes of it.
    async fn request(&self, from: Sender, writer: Option<&Writer>, mut work: Work) -> Result<Done, Error> {
        let (permille, most) = {
            let levels = self.faults.levels();
            (levels.targets, levels.target_delay_ms)
        };
        let (wait, refused, part, lost, throttled) = {
            let mut dice = self.dice();
            let wait = Duration::from_millis(dice.below(most + 1));
            let part = (self.kind == Kind::Topic && dice.chance(permille)).then(|| dice.next());
            (wait, dice.chance(permille), part, dice.chance(permille), dice.chance(permille / 4))
        };
        tokio::time::sleep(wait).await;
        let name = self.kind.name();
        if self.is_down() || refused {
            self.history.fault(format!("a request to the {name} was refused"));
            return Err(Error::unavailable(name, "no connection"));
        }
        if throttled {
            self.history.fault(format!("the {name} asked for a pause"));
            return Err(Error::throttled(name, "too many requests", Some(Duration::from_millis(700))));
        }
        let breaks = match (&mut work, part) {
            (Work::Write(changes, _), Some(part)) if !changes.is_empty() => {
                changes.truncate((part % changes.len() as u64) as usize);
                self.history.fault(format!("the {name} took {} changes and then broke off", changes.len()));
                self.take(from, changes, None);
                true
            }
            _ => false,
        };
        if breaks {
            return Err(Error::unavailable(name, "the connection broke"));
        }
        let done = self.work(from, writer, work)?;
        if lost {
            self.history.fault(format!("the {name}'s answer was lost"));
            return Err(Error::unavailable(name, "no answer came"));
        }
        Ok(done)
    }
}

/// What a sink is asked to do.
pub(crate) enum Work {
    Prepare(Vec<EntityInfo>),
    BeginLoad,
    Write(Vec<EntityChange>, Option<Lsn>),
    EndLoad(String, Lsn),
    Older(Older),
}

/// Which keys are asked for at the end of a load.
pub(crate) struct Older {
    pub(crate) entity: String,
    pub(crate) version: Lsn,
    pub(crate) after: Option<EntityKey>,
    pub(crate) limit: usize,
    /// The last question stands for the load's end, where nothing has said so yet.
    pub(crate) ends: bool,
}

/// A sink that writes to a target.
struct ToTarget {
    target: Arc<Target>,
    from: Sender,
    /// What the process does not get past while it is frozen.
    ice: Ice,
    /// Of the database, this process's connection.
    writer: Option<Writer>,
    made_of: BTreeMap<Arc<str>, String>,
    /// Entities that have been loaded, while a load goes on.
    loaded: Vec<String>,
}

impl ToTarget {
    /// Sends a request. Once it is sent it takes its course, whoever still waits for the answer.
    async fn send(&self, work: Work) -> Result<Done, Error> {
        self.ice.pass().await;
        let (answer, answered) = oneshot::channel();
        let (target, from, writer) = (Arc::clone(&self.target), self.from, self.writer.clone());
        target.content().requests += 1;
        tokio::spawn(async move {
            let done = target.request(from, writer.as_ref(), work).await;
            target.content().requests -= 1;
            // Nobody listens where the caller has died.
            let _ = answer.send(done);
        });
        let done = answered.await.unwrap_or_else(|_| Err(Error::unavailable(self.target.kind.name(), "the request is gone")));
        self.ice.pass().await;
        done
    }
}

#[async_trait]
impl Sink for ToTarget {
    async fn prepare(&mut self, entities: &[EntityInfo]) -> Result<(), Error> {
        self.ice.pass().await;
        if self.target.is_down() {
            return Err(Error::unavailable(self.target.kind.name(), "no connection"));
        }
        self.loaded.clear();
        self.target.prepare(&self.made_of);
        self.target.work(self.from, self.writer.as_ref(), Work::Prepare(entities.to_vec())).map(drop)
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        let done = self.send(Work::Write(changes.to_vec(), frontier)).await?;
        if frontier.is_some() {
            let mut content = self.target.content();
            for entity in self.loaded.drain(..) {
                let Some(loaded) = content.lacking.get_mut(&entity) else { continue };
                loaded.raise(self.from.share, true);
                if loaded.least(KeyRange::ALL) == Some(true) {
                    content.lacking.remove(&entity);
                }
            }
        }
        Ok(done.rejected)
    }

    async fn begin_load(&mut self) -> Result<(), Error> {
        self.ice.pass().await;
        self.loaded.clear();
        self.target.work(self.from, self.writer.as_ref(), Work::BeginLoad).map(drop)
    }

    async fn end_load(&mut self, entity: &str, version: Lsn) -> Result<(), Error> {
        self.send(Work::EndLoad(entity.to_owned(), version)).await?;
        self.loaded.push(entity.to_owned());
        Ok(())
    }

    fn own(&mut self, range: KeyRange) -> bool {
        self.from.share = range;
        // Nobody has asked it for anything yet.
        self.writer.as_ref().and_then(|writer| writer.try_lock().ok()).is_none_or(|mut sink| sink.own(range))
    }

    async fn older(
        &mut self,
        entity: &str,
        version: Lsn,
        after: Option<&EntityKey>,
        limit: usize,
    ) -> Result<Vec<EntityKey>, Error> {
        let ends = !self.loaded.iter().any(|loaded| loaded == entity);
        let older = Older { entity: entity.to_owned(), version, after: after.cloned(), limit, ends };
        let keys = self.send(Work::Older(older)).await?.older;
        if ends && keys.is_empty() {
            self.loaded.push(entity.to_owned());
        }
        Ok(keys)
    }

    fn describe(&mut self, made_of: &BTreeMap<Arc<str>, String>) -> bool {
        // Nobody has asked it for anything yet.
        if let Some(mut sink) = self.writer.as_ref().and_then(|writer| writer.try_lock().ok()) {
            return sink.describe(made_of);
        }
        let keeps = self.target.kind == Kind::Table;
        if keeps {
            self.made_of.clone_from(made_of);
        }
        keeps
    }

    async fn lacking(&mut self) -> Result<Vec<String>, Error> {
        self.ice.pass().await;
        match (&self.target.database, &self.writer) {
            (Some(database), Some(writer)) => database.lacking(writer),
            _ => {
                let content = self.target.content();
                let lacking = content.lacking.iter().filter(|(_, loaded)| loaded.least(self.from.share) == Some(false));
                Ok(lacking.map(|(entity, _)| entity.clone()).collect())
            }
        }
    }

    fn terms(&self) -> Terms {
        let retry = Retry { longest_pause: Duration::from_secs(2), ..Retry::default() };
        Terms { retry, ..Terms::default() }
    }

    async fn held(&mut self) -> Result<Held, Error> {
        self.ice.pass().await;
        let target = &self.target;
        match (target.kind, &target.database, &self.writer) {
            (Kind::Topic, ..) => Ok(Held::Unknown),
            (_, Some(database), Some(writer)) => database.held(writer),
            _ => Ok(target.content().said.least(self.from.share).flatten().map_or(Held::Nothing, Held::UpTo)),
        }
    }
}
