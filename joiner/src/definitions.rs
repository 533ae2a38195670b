//! Which definitions a state serves, and how it comes to serve others.
//!
//! A state keeps what it was made for under `definitions` in its `meta` column family: how rows are kept ([`Layout`]), and of each entity its number and the hash of what its documents depend on (its *shape*). When it is
//! opened with other definitions, they are compiled within that layout.
//! - What they need is all there: they are served from the rows as they stand. One batch writes the new definitions, drops indexes that nothing uses any more, and forgets what was pending of entities whose shape is another; so
//!   after a kill the state serves the old ones or the new ones.
//! - Something is lacking: nothing is touched, and [`Error::OtherDefinitions`] says what. It takes another state, built from the streams' beginning.
//!
//! # What others see of a change in place
//! Documents of an entity that is new or whose shape has changed differ without any change of the source. The change has a number, which the entity carries ([`Entity::changed`]). A sink's cursor names the numbers that it was loaded with,
//! and a sink is loaded anew, of those entities alone, when they differ (`deliver::load`). Outbox entries up to the change are of what the entities were before: sinks are not handed them any more (the load is newer than all of them), and subscribers
//! are told that the outbox is another one ([`crate::Head::incarnation`]), because documents that they hold may not be what a definition now makes of the same rows. Documents keep the frontier as their version, and sinks take one of the same version that
//! differs; INV-4 holds for either definition.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use rocksdb::WriteBatch;
use schemas::TableName;
use schemas::entity::EntityDefinition;
use schemas::plan::Plan;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Config;
use crate::assemble::parts;
use crate::catalog::{Catalog, Entity, Lacking, Layout, fingerprint, shape};
use crate::checkpoint::Facts;
use crate::dead_letters::TooLarge;
use crate::error::Error;
use crate::state::meta::{Stage, Standing};
use crate::state::row::{Row, Spans};
use crate::state::view::start_key;
use crate::state::{Family, Store, key, meta};

/// What a state knows of the definitions that it serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definitions {
    pub(crate) layout: Layout,
    /// Counts the changes.
    changes: u32,
    /// The last outbox entry before the last of them.
    changed_at: u64,
    /// By number.
    entities: Vec<Known>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    name: String,
    shape: String,
    changed: u32,
    since: u64,
    /// None of an entity that is no longer defined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    definition: Option<EntityDefinition>,
}

impl Definitions {
    /// What a new state knows.
    fn new(catalog: &Catalog) -> Self {
        Self { layout: catalog.layout.clone(), ..Self::default() }.followed_by(catalog, 0, 0, false)
    }

    /// The same after a change to what a catalog holds; `tail`: the last outbox entry so far; `all`: every entity counts as changed, if any has.
    fn followed_by(&self, catalog: &Catalog, change: u32, tail: u64, all: bool) -> Self {
        let mut next = Self { layout: catalog.layout.clone(), ..self.clone() };
        let mut changed = false;
        for known in &mut next.entities {
            if known.definition.is_some() && catalog.entity(&known.name).is_none() {
                (known.definition, known.shape, known.changed, known.since) = (None, String::new(), change, tail);
                changed = true;
            }
        }
        for entity in &catalog.entities {
            let shape = shape(&entity.plan);
            let (name, definition) = (entity.name.to_string(), Some(entity.plan.definition.clone()));
            match next.entities.iter_mut().find(|known| known.name == name) {
                Some(known) if known.shape == shape => known.definition = definition,
                Some(known) => {
                    (known.definition, known.shape, known.changed, known.since) = (definition, shape, change, tail);
                    changed = true;
                }
                None => {
                    next.entities.push(Known { name, shape, changed: change, since: tail, definition });
                    changed = true;
                }
            }
        }
        if changed {
            (next.changes, next.changed_at) = (change, tail);
        }
        for known in next.entities.iter_mut().filter(|_| changed && all) {
            (known.changed, known.since) = (change, tail);
        }
        next
    }

    /// Gives the entities of a catalog their numbers.
    fn number(&self, catalog: &mut Catalog) {
        let Catalog { entities, numbers, .. } = catalog;
        let place = |known: &Known| {
            entities.iter().position(|entity| *entity.name == *known.name).ok_or_else(|| Arc::from(known.name.as_str()))
        };
        *numbers = self.entities.iter().map(place).collect();
        for (number, known) in self.entities.iter().enumerate() {
            if let Some(Entity { number: own, changed, since, .. }) =
                entities.iter_mut().find(|entity| *entity.name == *known.name)
            {
                (*own, *changed, *since) = (number as u16, known.changed, known.since);
            }
        }
        (catalog.changes, catalog.changed_at) = (self.changes, self.changed_at);
    }

    /// What points into the outbox.
    pub(crate) fn places(&mut self) -> impl Iterator<Item = &mut u64> {
        self.entities.iter_mut().map(|known| &mut known.since).chain([&mut self.changed_at])
    }

    fn definition(&self, name: &str) -> Option<&EntityDefinition> {
        self.entities.iter().find(|known| known.name == name)?.definition.as_ref()
    }

    /// Stands for the definitions and for how rows are kept.
    pub(crate) fn fingerprint(&self) -> String {
        let shapes: Vec<_> = self.entities.iter().map(|known| (&known.name, &known.shape)).collect();
        let text = serde_json::to_string(&(&self.layout, shapes)).unwrap_or_default();
        format!("{:032x}", xxhash_rust::xxh3::xxh3_128(text.as_bytes()))
    }

    fn served(&self) -> impl Iterator<Item = &EntityDefinition> {
        self.entities.iter().filter_map(|known| known.definition.as_ref())
    }
}

/// Compiles definitions for a state, which comes to serve them; `claimed`: by which definitions the directory was claimed.
pub(crate) fn settle(store: &Store, claimed: &str, config: &Config) -> Result<Catalog, Error> {
    let Some(known) = store.definitions()? else {
        let standing = store.standing()?;
        let is_ours = claimed == meta::IN_STATE || claimed == fingerprint(&config.plans);
        let is_empty = standing.stage() == Stage::Empty && standing.positions.is_empty();
        if !is_ours && !is_empty {
            return Err(Error::OtherDefinitions { path: store.path().to_owned(), lacking: Vec::new() });
        }
        let mut catalog = Catalog::new(&config.plans)?.with_share(config.range);
        let known = Definitions::new(&catalog);
        let mut batch = WriteBatch::default();
        store.put_definitions(&mut batch, &known)?;
        store.write(batch, true)?;
        store.sync()?;
        if claimed != meta::IN_STATE {
            meta::is_in_state(store.path())?;
        }
        known.number(&mut catalog);
        return Ok(catalog);
    };
    let catalog = Catalog::within(&config.plans, &known.layout)?.map_err(|lacking| refused(store.path(), lacking))?;
    let mut catalog = catalog.with_share(config.range);
    check_rows(store, &catalog)?;
    let standing = store.standing()?;
    let tail = standing.pending.map_or(0, |pending| pending.tail).max(standing.head);
    let waiting = is_waiting(store)?;
    let next = known.followed_by(&catalog, known.changes + 1, tail, waiting);
    if next != known {
        if next.changes != known.changes && !known.keeps_as(&catalog, config)? {
            return Err(refused(store.path(), BTreeSet::from([Lacking::Others])));
        }
        switch(store, &known, &next, standing, waiting)?;
    }
    next.number(&mut catalog);
    Ok(catalog)
}

/// Whether a state of these facts can come to serve the definitions of a configuration.
pub(crate) fn check(place: &Path, facts: &Facts, config: &Config) -> Result<(), Error> {
    let other = |lacking| Error::OtherDefinitions { path: place.to_owned(), lacking };
    match &facts.served {
        None if facts.definitions == fingerprint(&config.plans) => Ok(()),
        None => Err(other(Vec::new())),
        Some(served) => match served.difference(config)?.way {
            Way::Rebuild { lacking } => Err(other(lacking)),
            Way::Nothing | Way::InPlace { .. } => Ok(()),
        },
    }
}

fn refused(path: &Path, lacking: BTreeSet<Lacking>) -> Error {
    Error::OtherDefinitions { path: path.to_owned(), lacking: lacking.into_iter().collect() }
}

/// Whether fan-outs wait ([`crate::step`]). What they go by is what was told of documents so far, which says nothing any more once sinks have been loaded with some that are later: then all entities are.
pub(crate) fn is_waiting(store: &Store) -> Result<bool, Error> {
    Ok(!store.is_empty(Family::Walks)?)
}

/// Makes the new definitions those of the state, in one batch.
fn switch(store: &Store, known: &Definitions, next: &Definitions, mut standing: Standing, waiting: bool) -> Result<(), Error> {
    let mut batch = WriteBatch::default();
    if waiting && next.changes != known.changes {
        for family in [Family::Walks, Family::Past, Family::Told, Family::Pending] {
            store.clear_in(&mut batch, family)?;
        }
        standing.head = next.changed_at;
        standing.pending = None;
        if standing.is_consistent() {
            (standing.head_frontier, standing.head_commit_time_ms) = (standing.frontier, standing.commit_time_ms);
        }
    }
    for id in dropped(known, next) {
        let (mut start, mut end) = (Vec::new(), Vec::new());
        start_key(id, &mut start);
        start_key(id + 1, &mut end);
        for family in [Family::Rows, Family::Links, Family::Seen] {
            batch.delete_range_cf(store.family(family)?, &start, &end);
        }
    }
    for (number, entity) in next.entities.iter().enumerate() {
        let same = known.entities.get(number).is_some_and(|known| known.shape == entity.shape);
        if !same {
            // What is pending of it would be compared with what it was before; every sink is told all of it.
            let (start, end) = ((number as u16).to_be_bytes(), (number as u32 + 1).to_be_bytes());
            batch.delete_range_cf(store.family(Family::Pending)?, &start[..], &end[2..]);
            parts::remove_entity(store, number as u16, &mut batch)?;
            TooLarge::forget(store, &entity.name, &mut batch)?;
            tracing::info!(entity = entity.name, defined = entity.definition.is_some(), "the entity's definition has changed");
        }
    }
    let made_anew = |(number, entity): &(usize, &Known)| {
        let made_first = |definition: &EntityDefinition| definition.of.is_some() || definition.sets_aside();
        entity.definition.as_ref().is_some_and(made_first)
            && known.entities.get(*number).is_none_or(|known| known.shape != entity.shape)
    };
    let defined = |number: &u16| next.entities.get(usize::from(*number)).is_some_and(|entity| entity.definition.is_some());
    standing.unmade.retain(defined);
    standing.unmade.extend(next.entities.iter().enumerate().filter(made_anew).map(|(number, _)| number as u16));
    let used = |table: &str| next.layout.tables.iter().any(|kept| kept.name.to_string() == table);
    standing.sources.iter_mut().for_each(|source| source.rereads.retain(used));
    store.put_definitions(&mut batch, next)?;
    store.write_with(batch, &standing)?;
    store.sync()
}

/// The indexes that a change takes out.
fn dropped(known: &Definitions, next: &Definitions) -> impl Iterator<Item = usize> {
    let gone = known.layout.indexes.iter().zip(&next.layout.indexes).enumerate();
    gone.filter(|(_, (was, is))| was.is_some() && is.is_none()).map(|(id, _)| id)
}

/// Holds rows against what is asked of those that come in: parts of keys and orders that nothing used so far.
fn check_rows(store: &Store, catalog: &Catalog) -> Result<(), Error> {
    let (mut spans, mut bytes) = (Spans::default(), Vec::new());
    for (table, part) in &catalog.unchecked {
        let of_table = &catalog.tables[*table];
        for &index in of_table.indexes.iter().filter(|&&index| catalog.indexes[index].kind == crate::catalog::IndexKind::Rows) {
            let (mut start, mut end) = (Vec::new(), Vec::new());
            start_key(index, &mut start);
            start_key(index + 1, &mut end);
            let mut options = rocksdb::ReadOptions::default();
            options.set_iterate_upper_bound(end);
            options.fill_cache(false);
            let mut rows = store.db().raw_iterator_cf_opt(store.family(Family::Rows)?, options);
            rows.seek(&start);
            while let Some((_, row)) = rows.item() {
                let row: Row<'_> = spans.read(row);
                bytes.clear();
                if key::encode(row.get(part.slot), part.key_type, &mut bytes).is_err() {
                    let by = "a column that one of its rows has no comparable value in".to_owned();
                    let lacking = Lacking::Index { table: of_table.schema.name.clone(), by };
                    return Err(refused(store.path(), BTreeSet::from([lacking])));
                }
                rows.next();
            }
            rows.status().map_err(|error| store.error(&error))?;
        }
    }
    Ok(())
}

/// How definitions differ from those that a state serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub entities: Vec<Change>,
    pub way: Way,
}

/// An entity that becomes another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub entity: String,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Added,
    Removed,
    /// In these members of the definition; none where only the contracts of its tables have changed.
    Changed(Vec<String>),
}

/// How a state comes to serve other definitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// It serves them already.
    Nothing,
    /// From the rows as they stand. `dropped`: ways in which rows are kept that nothing uses any more.
    InPlace { dropped: usize },
    /// Not at all: another state has to be built. Without anything in `lacking`, nothing is known of what the state was built for.
    Rebuild { lacking: Vec<Lacking> },
}

/// Whether a directory is one of ours.
pub fn is_state(state_dir: &Path) -> bool {
    meta::recognize(state_dir).is_ok()
}

/// Removes a state, so that what a kill leaves of it is still known as one.
pub fn remove(state_dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(state_dir)? {
        let path = entry?.path();
        if path.is_dir() {
            std::fs::remove_dir_all(path)?;
        } else if !path.ends_with(meta::IDENTITY_FILE) {
            std::fs::remove_file(path)?;
        }
    }
    std::fs::remove_dir_all(state_dir)
}

/// The definitions that a state serves; none of one that an earlier version made and nobody has opened since. Reads beside a joiner that runs.
pub fn served(state_dir: &Path) -> Result<Vec<EntityDefinition>, Error> {
    let known = if is_state(state_dir) { Store::read_definitions(state_dir)? } else { None };
    Ok(known.iter().flat_map(Definitions::served).cloned().collect())
}

/// What a start with this configuration would come to; none where there is no state yet. Reads beside a joiner that runs.
pub fn compare(config: &Config) -> Result<Option<Difference>, Error> {
    if !config.state_dir.join(meta::IDENTITY_FILE).exists() {
        return Ok(None);
    }
    let claimed = meta::claimed(&config.state_dir)?;
    let Some(known) = Store::read_definitions(&config.state_dir)? else {
        let way = if claimed == fingerprint(&config.plans) { Way::Nothing } else { Way::Rebuild { lacking: Vec::new() } };
        return Ok(Some(Difference { entities: Vec::new(), way }));
    };
    known.difference(config).map(Some)
}

impl Definitions {
    /// Whether an instance of a range leaves out the same rows for the definitions of a catalog, which has its share, as for those that are served. What was left out is not there, and what another instance's entities
    /// needed is kept up to date no longer: so neither more nor less will do. Which rows are left out follows from the entities' keys and from the edges that lead to them, and from nothing else in a definition.
    fn keeps_as(&self, catalog: &Catalog, config: &Config) -> Result<bool, Error> {
        if config.range.is_all() {
            return Ok(true);
        }
        let nodes = || config.plans.iter().flat_map(|plan| &plan.nodes);
        let contract = |name: &TableName| nodes().map(|node| &node.table).find(|table| table.name == *name).cloned();
        let resolved = self.served().map(|definition| Plan::resolve(definition, &contract).map(Arc::new));
        // Of a table that is used no longer nothing is known.
        let Ok(plans) = resolved.collect::<Result<Vec<_>, _>>() else { return Ok(false) };
        let Ok(served) = Catalog::within(&plans, &self.layout)? else { return Ok(false) };
        let served = served.with_share(config.range);
        Ok(catalog.live_indexes().all(|index| catalog.kept_by(index) == served.kept_by(index)))
    }

    pub(crate) fn difference(&self, config: &Config) -> Result<Difference, Error> {
        let plans = &config.plans;
        let catalog = Catalog::within(plans, &self.layout)?.map(|catalog| catalog.with_share(config.range));
        let mut entities = Vec::new();
        for known in self.entities.iter().filter(|known| known.definition.is_some()) {
            if !plans.iter().any(|plan| *plan.entity == *known.name) {
                entities.push(Change { entity: known.name.clone(), kind: Kind::Removed });
            }
        }
        for plan in plans {
            let kind = match self.entities.iter().find(|known| *plan.entity == *known.name && known.definition.is_some()) {
                Some(known) if known.shape == shape(plan) => continue,
                Some(_) => {
                    Kind::Changed(self.definition(&plan.entity).map_or_else(Vec::new, |was| members(was, &plan.definition)))
                }
                None => Kind::Added,
            };
            entities.push(Change { entity: plan.entity.to_string(), kind });
        }
        let way = match catalog {
            Err(lacking) => Way::Rebuild { lacking: lacking.into_iter().collect() },
            Ok(_) if entities.is_empty() => Way::Nothing,
            Ok(catalog) if !self.keeps_as(&catalog, config)? => Way::Rebuild { lacking: vec![Lacking::Others] },
            Ok(catalog) => Way::InPlace { dropped: dropped(self, &self.followed_by(&catalog, 1, 0, false)).count() },
        };
        Ok(Difference { entities, way })
    }
}

/// The paths of the members in which two definitions differ.
fn members(was: &EntityDefinition, is: &EntityDefinition) -> Vec<String> {
    fn walk(was: Option<&Value>, is: Option<&Value>, path: &str, found: &mut Vec<String>) {
        match (was, is) {
            (Some(Value::Object(a)), Some(Value::Object(b))) => {
                let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
                for name in names {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    walk(a.get(name), b.get(name), &path, found);
                }
            }
            (a, b) if a != b => found.push(path.to_owned()),
            _ => {}
        }
    }
    let mut found = Vec::new();
    let (was, is) = (serde_json::to_value(was).ok(), serde_json::to_value(is).ok());
    walk(was.as_ref(), is.as_ref(), "", &mut found);
    found
}
