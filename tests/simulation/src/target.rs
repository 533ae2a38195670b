//! Two targets behind the sinks' trait: a table, which keeps the guard by version and its frontier in one transaction, and a topic, which takes whatever it is sent.
//!
//! A request goes on when its caller is gone: a write that a process sent before it died may arrive after those of its successor. It may fail before or after its effect, and at the topic in the middle of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use schemas::Lsn;
use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use sinks::{Error, Held, Rejected, Retry, Sink, Terms};
use tokio::sync::oneshot;

use crate::dice::Dice;
use crate::faults::{Faults, Sabotage};
use crate::history::{Document, Event, History};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Table,
    Topic,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Table, Self::Topic];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Topic => "topic",
        }
    }
}

#[derive(Default)]
struct Content {
    /// By entity and key: the version, also of what is gone, and the document.
    entities: BTreeMap<(String, String), (Lsn, Option<String>)>,
    frontier: Option<Lsn>,
}

/// A target, wherever it runs.
pub(crate) struct Target {
    kind: Kind,
    content: Mutex<Content>,
    dice: Mutex<Dice>,
    faults: Faults,
    history: History,
}

impl Target {
    pub(crate) fn new(kind: Kind, faults: Faults, dice: Dice, history: History) -> Arc<Self> {
        Arc::new(Self { kind, content: Mutex::default(), dice: Mutex::new(dice), faults, history })
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
    pub(crate) fn tell(&self) {
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
    }

    fn is_down(&self) -> bool {
        self.faults.levels().targets_down[self.kind as usize]
    }

    fn take(&self, changes: &[EntityChange], frontier: Option<Lsn>) {
        let mut content = self.content();
        let guarded = self.kind == Kind::Table && !self.faults.is(Sabotage::NoGuard);
        for change in changes {
            let place = (change.entity.to_string(), change.key.to_string());
            let document = change.document.as_ref().map(ToString::to_string);
            let replaced = content.entities.get(&place).map(|(version, _)| *version);
            let taken = !guarded || replaced.is_none_or(|replaced| replaced <= change.version);
            if taken {
                content.entities.insert(place.clone(), (change.version, document.clone()));
            }
            let (entity, key) = place;
            let (target, version) = (self.kind.name().to_owned(), change.version);
            self.history.add(Event::Written { target, version, replaced, taken, change: Document { entity, key, document } });
        }
        if let Some(frontier) = frontier {
            content.frontier = content.frontier.max(Some(frontier));
            self.history.add(Event::Reached { target: self.kind.name().to_owned(), frontier });
        }
    }

    fn end_load(&self, entity: &str, load: Lsn) {
        if self.kind == Kind::Topic {
            return;
        }
        let mut content = self.content();
        for ((of, key), (version, document)) in &mut content.entities {
            if of == entity && *version < load {
                if document.take().is_some() {
                    let (target, entity, key) = (self.kind.name().to_owned(), of.clone(), key.clone());
                    self.history.add(Event::Vanished { target, entity, key, version: load });
                }
                *version = load;
            }
        }
    }

    /// A request to it: how long it takes, and what becomes of it.
    async fn request(self: Arc<Self>, work: Work) -> Result<(), Error> {
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
        match work {
            Work::Write(mut changes, frontier) => {
                if let Some(part) = part.filter(|_| !changes.is_empty()) {
                    changes.truncate((part % changes.len() as u64) as usize);
                    self.history.fault(format!("the {name} took {} changes and then broke off", changes.len()));
                    self.take(&changes, None);
                    return Err(Error::unavailable(name, "the connection broke"));
                }
                self.take(&changes, frontier);
            }
            Work::EndLoad(entity, version) => self.end_load(&entity, version),
        }
        if lost {
            self.history.fault(format!("the {name}'s answer was lost"));
            return Err(Error::unavailable(name, "no answer came"));
        }
        Ok(())
    }
}

enum Work {
    Write(Vec<EntityChange>, Option<Lsn>),
    EndLoad(String, Lsn),
}

/// A sink that writes to a target.
pub(crate) struct ToTarget(pub(crate) Arc<Target>);

impl ToTarget {
    /// Sends a request. Once it is sent it takes its course, whoever still waits for the answer.
    async fn send(&self, work: Work) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        let target = Arc::clone(&self.0);
        tokio::spawn(async move {
            // Nobody listens where the caller has died.
            let _ = answer.send(target.request(work).await);
        });
        answered.await.unwrap_or_else(|_| Err(Error::unavailable(self.0.kind.name(), "the request is gone")))
    }
}

#[async_trait]
impl Sink for ToTarget {
    async fn prepare(&mut self, _entities: &[EntityInfo]) -> Result<(), Error> {
        if self.0.is_down() { Err(Error::unavailable(self.0.kind.name(), "no connection")) } else { Ok(()) }
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        self.send(Work::Write(changes.to_vec(), frontier)).await.map(|()| Vec::new())
    }

    async fn end_load(&mut self, entity: &str, version: Lsn) -> Result<(), Error> {
        self.send(Work::EndLoad(entity.to_owned(), version)).await
    }

    fn terms(&self) -> Terms {
        let retry = Retry { longest_pause: Duration::from_secs(2), ..Retry::default() };
        Terms { retry, ..Terms::default() }
    }

    async fn held(&mut self) -> Result<Held, Error> {
        Ok(match self.0.kind {
            Kind::Table => self.0.frontier().map_or(Held::Nothing, Held::UpTo),
            Kind::Topic => Held::Unknown,
        })
    }
}
