//! A sink that is new, or that has fallen behind what is kept for it, is told every entity as it stands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use schemas::Lsn;
use schemas::change::{EntityChange, EntityKey};
use sinks::{Held, Versions};
use tokio::sync::mpsc;

use super::single::as_it_stands;
use super::versions::Told;
use super::{Delivery, Interrupted, blocking};
use crate::error::Error;
use crate::handle::Shared;
use crate::metrics;
use crate::scan::{As, Wanted, count, scan};
use crate::state::meta::{Cursor, Standing};
use crate::state::outbox;
use crate::status::{SinkLoad, SinkState};
use crate::step::Found;

/// Batches between the scan and the sink.
const BATCHES: usize = 4;
/// The same where the scan cannot wait for the sink: it is a small state then.
const BATCHES_IN_PLACE: usize = 1 << 16;

/// Entities that are loaded beside what the sink holds up to its cursor.
pub(super) struct Part {
    pub(super) cursor: Cursor,
    pub(super) entities: Vec<usize>,
}

/// What a target said before a load began.
struct Before {
    held: Held,
    /// Entities of which it may hold documents as others have defined them.
    otherwise: Vec<usize>,
}

enum Loaded {
    Batch(Vec<EntityChange>),
    End { entity: Arc<str>, of: As },
}

impl Delivery {
    /// Writes all entities as of one snapshot, and sets the cursor. Answers false when it has to be done again: the state was no longer live, or a batch had to be taken apart.
    ///
    /// Of a part, the cursor stays where it is, and so does the frontier that the sink confirms: what lies between the cursor and the snapshot has yet to be told of the other entities. Of these, it is told once more, in versions that the
    /// load's are not older than.
    pub(super) async fn load(&mut self, part: Option<Part>) -> Result<bool, Interrupted> {
        self.state(SinkState::Loading, None);
        metrics::sink_load(&self.name);
        let (shared, name) = (self.shared.clone(), self.name.clone());
        shared.with_sink(&name, |sink| sink.load = Some(SinkLoad::default()));
        let entities: Vec<usize> = match &part {
            Some(part) => part.entities.clone(),
            None => (0..shared.catalog.entities.len()).collect(),
        };
        let counting = tokio::spawn(expect(shared.clone(), name.clone(), entities.clone()));
        let loaded = self.load_entities(entities, part.map(|part| part.cursor)).await;
        counting.abort();
        shared.with_sink(&name, |sink| sink.load = None);
        loaded
    }

    async fn load_entities(&mut self, entities: Vec<usize>, at: Option<Cursor>) -> Result<bool, Interrupted> {
        let held = self.or_stop(async |delivery| delivery.sink.held().await).await??;
        let held = Before { held, otherwise: self.lacking().await? };
        self.or_stop(async |delivery| delivery.sink.begin_load().await).await??;
        let (out, mut batches) = mpsc::channel(if self.shared.in_place { BATCHES_IN_PLACE } else { BATCHES });
        let (shared, threads) = (self.shared.clone(), self.threads);
        let told = self.told.clone();
        let scanning = self.shared.beside(move || load_scan(&shared, &entities, threads, told.as_deref(), &out));
        let began = Instant::now();
        while let Some(loaded) = batches.recv().await {
            match loaded {
                Loaded::Batch(mut changes) => {
                    let count = changes.len() as u64;
                    if !self.left_out.is_empty() {
                        changes.retain(|change| !self.left_out.contains(&(change.entity.clone(), change.key.clone())));
                    }
                    if !self.write(&changes, None).await? {
                        // Preparing the sink anew has ended the load.
                        return Ok(false);
                    }
                    let milliseconds = began.elapsed().as_millis().max(1) as u64;
                    self.shared.with_sink(&self.name, |sink| {
                        if let Some(load) = &mut sink.load {
                            load.entities += count;
                            load.entities_per_second = load.entities * 1000 / milliseconds;
                        }
                    });
                }
                Loaded::End { entity, of } => {
                    if !self.end_load(&entity, of, &held).await? {
                        return Ok(false);
                    }
                }
            }
        }
        let scanned = scanning.await.map_err(|error| Error::Task { what: error.to_string() })??;
        let Some(scanned) = scanned else { return Ok(false) };
        let cursor = at.unwrap_or(scanned);
        self.write(&[], Some(cursor.frontier)).await?;
        self.left_out.clear();
        self.no_trouble()?;
        let changes = self.shared.catalog.changes_by_entity();
        let cursor = Cursor { form: self.terms.form.clone(), changes, ..cursor };
        self.shared.store.put_cursor(&self.name, &cursor)?;
        self.shared.with_sink(&self.name, |sink| (sink.cursor, sink.error) = (Some(cursor.sequence), None));
        Ok(true)
    }
}

/// Keys that are asked for at a time.
const OLDER: usize = 1000;

impl Delivery {
    /// What is older than a load's documents has vanished. Where others write to the target as well, only what is of this instance's share has; it is deleted as any entity is. Answers false when it has to be done again.
    async fn end_load(&mut self, entity: &Arc<str>, of: As, held: &Before) -> Result<bool, Interrupted> {
        if self.shared.catalog.share.range.is_all() {
            self.or_stop(async |delivery| delivery.sink.end_load(entity, of.version).await).await??;
        } else if !self.delete_vanished(entity, of, of.version).await? {
            return Ok(false);
        }
        Ok(!self.may_hold(entity, of.version, held)? || self.delete_vanished(entity, of, of.version.next()).await?)
    }

    /// Whether the target may have been told of entities as of the version of a load before it began, as other definitions had them: what these leave out is not older, and has vanished all the same.
    fn may_hold(&self, entity: &str, version: Lsn, before: &Before) -> Result<bool, Error> {
        let catalog = &self.shared.catalog;
        let Some(id) = catalog.entity(entity) else { return Ok(false) };
        let entity = &catalog.entities[id];
        let store = &self.shared.store;
        // What was told first since it has been defined like that is no older than what was loaded before.
        let told = outbox::version(store, entity.since + 1)?;
        let is_of_before = told.map_or(store.standing()?.head <= entity.since, |told| told >= version);
        // A load that was cut short has confirmed nothing of what it has written.
        let otherwise = before.otherwise.contains(&id);
        Ok(otherwise
            || entity.changed > 0 && is_of_before
            || match before.held {
                Held::Nothing => false,
                Held::Unknown => true,
                Held::UpTo(frontier) => frontier >= version,
            })
    }

    /// Deletes what the target holds below a version and is not there.
    async fn delete_vanished(&mut self, entity: &Arc<str>, of: As, below: Lsn) -> Result<bool, Interrupted> {
        let range = self.shared.catalog.share.range;
        let mut after: Option<EntityKey> = None;
        loop {
            let keys = self.or_stop(async |delivery| delivery.sink.older(entity, below, after.as_ref(), OLDER).await).await??;
            let Some(last) = keys.last().cloned() else { return Ok(true) };
            after = Some(last);
            let mut keys: Vec<_> = keys.into_iter().filter(|key| range.holds(entity, key)).collect();
            if below > of.version {
                let (shared, entity) = (self.shared.clone(), entity.clone());
                let absent = blocking(&self.shared, move || absent(&shared, &entity, of.version, keys)).await?;
                // Where the state has gone on, there is a later version to load: all of this one is older then.
                let Some(absent) = absent else { return Ok(false) };
                keys = absent;
            }
            let (version, commit_time_ms) = (of.version, of.commit_time_ms);
            let vanished = |key| EntityChange { entity: entity.clone(), key, version, commit_time_ms, document: None };
            let vanished: Vec<_> = keys.into_iter().map(vanished).collect();
            if !self.write(&vanished, None).await? {
                return Ok(false);
            }
        }
    }
}

/// Those of the keys that have no document as of a version; none when the state does not stand there any more.
fn absent(shared: &Shared, entity: &Arc<str>, version: Lsn, keys: Vec<EntityKey>) -> Result<Option<Vec<EntityKey>>, Error> {
    let mut absent = Vec::new();
    for key in keys {
        let Some((standing, found)) = as_it_stands(shared, entity, &key)? else { return Ok(None) };
        if standing.frontier != version {
            return Ok(None);
        }
        if matches!(found, Found::Nothing) {
            absent.push(key);
        }
    }
    Ok(Some(absent))
}

/// A load that is over sooner needs nobody to count what it will come to.
const COUNT_AFTER: std::time::Duration = std::time::Duration::from_secs(3);

/// Says how many entities a load will come to, once it has taken a while.
async fn expect(shared: Arc<Shared>, name: String, entities: Vec<usize>) {
    tokio::time::sleep(COUNT_AFTER).await;
    let counted = shared.clone();
    let count = blocking(&shared, move || {
        let snapshot = counted.store.db().snapshot();
        entities.into_iter().map(|entity| count(&counted.store, &counted.catalog, &snapshot, entity)).sum::<Result<u64, Error>>()
    });
    match count.await {
        Ok(count) => shared.with_sink(&name, |sink| {
            if let Some(load) = &mut sink.load {
                load.entities_expected = Some(count);
            }
        }),
        Err(error) => tracing::debug!(sink = name, %error, "the entities to be loaded cannot be counted"),
    }
}

/// Scans entities; answers the cursor of a sink that holds all of them. `None`: the state cannot be read as it stands any more, or nobody listens any more.
fn load_scan(
    shared: &Shared,
    entities: &[usize],
    threads: usize,
    told: Option<&Told>,
    out: &mpsc::Sender<Loaded>,
) -> Result<Option<Cursor>, Error> {
    let Shared { store, catalog, .. } = shared;
    let snapshot = store.db().snapshot();
    let standing = store.standing_at(&snapshot)?;
    if !standing.is_consistent() {
        return Ok(None);
    }
    store.sync()?;
    let of = As { version: standing.frontier, commit_time_ms: standing.commit_time_ms };
    if let Some(told) = told {
        told.remember(of.version);
    }
    // In place there is nobody who would take anything meanwhile.
    let send = |loaded| if shared.in_place { out.try_send(loaded).is_ok() } else { out.blocking_send(loaded).is_ok() };
    for &id in entities {
        let entity = &catalog.entities[id];
        scan(store, catalog, &snapshot, (id, Wanted::Documents), of, threads, &|batch| send(Loaded::Batch(batch)))?;
        if !send(Loaded::End { entity: entity.name.clone(), of }) {
            return Ok(None);
        }
    }
    // Rows of a step that is still being assembled are in the snapshot; its outbox entries come after the head, and are written once more.
    let Standing { load, head: sequence, frontier, .. } = standing;
    let sources = told.and_then(|told| told.sources(frontier)).unwrap_or_default();
    Ok(Some(Cursor { load, sequence, form: String::new(), frontier, sources, lifted: None, changes: BTreeMap::new() }))
}
