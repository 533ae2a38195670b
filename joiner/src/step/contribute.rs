//! Roll-ups of documents: what documents that have changed make of the rows that others are rolled up of.
//!
//! The rows stand in the state as those of any table, by the roll-up's group and by the key of the document's entity, and are written wherever a document is told: in the write that holds its entry of the outbox. The groups that they
//! leave and come to are left for later ([`Pending`](crate::state::meta::Pending)) with the hash of what they were, and are drained after all that the step has touched itself, because what is pending is worked off in the order of
//! entities' numbers, and a roll-up's is greater than that of what it rolls up. (No batch of it holds both: a group is assembled of rows that have been written.)
//!
//! # Why a roll-up is of the same LSN as what it rolls up (INV-4)
//! The head of the outbox moves when nothing is pending any more, and then each document's row is what the document is: when the rows were made (below) that was so, each later change of a document has replaced its row, and documents that have not been told of a change (`lazy`) there are none, because
//! an entity that is rolled up has only strict fan-outs. The old row is not told by anybody, but read: whatever was told twice, or is told without having changed, comes to nothing.
//!
//! # Documents that are set aside
//! One that is past its limits (`exceeded: dead_letter`) makes no row. What was told of it last would be another choice, but that is not kept, and it is no function of the rows: a state that is built anew, and a sink that is loaded, know
//! nothing of it. So a roll-up is over the documents that fit as of its LSN, whatever anybody was told before.
//!
//! # The first rows
//! When a load has ended, or the definition of what is rolled up is another, the rows are made of all documents at once, before anything is told or read ([`Standing::unmade`]). A kill begins that anew.

use std::sync::{Mutex, PoisonError};

use rocksdb::{Snapshot, WriteBatch};
use schemas::Lsn;
use schemas::change::{EntityChange, EntityKey};
use schemas::plan::{InputColumn, KeyType};
use serde_json::Value as Json;

use super::dirty::{Dirty, Room, Touched};
use super::documents::Made;
use super::rows::Rows;
use super::{Tools, put_pending};
use crate::assemble::expired::Expired;
use crate::assemble::parts::{Stale, remove_entity};
use crate::buffer::{ChangeRef, Kind};
use crate::catalog::{Catalog, Entity, OfDocuments, TableId};
use crate::dead_letters::TooLarge;
use crate::error::Error;
use crate::metrics;
use crate::scan::{As, Wanted, scan};
use crate::state::meta::Standing;
use crate::state::view::{Overlay, View, family, start_key};
use crate::state::{key, outbox, row};

/// Whether an entity, by its key, rolls up another one.
pub(super) fn rolls_up(tools: &Tools, key: &[u8]) -> bool {
    let number = key.first_chunk().and_then(|number| tools.catalog.numbered(u16::from_be_bytes(*number)));
    number.is_some_and(|entity| tools.catalog.entities[entity].of.is_some())
}

/// Rows made of documents, and the groups that they touch.
pub(super) struct Contributed(Option<(Overlay, Touched)>);

/// Of documents that are told, and of those that are set aside.
pub(super) fn contribute(tools: &Tools, snapshot: &Snapshot<'_>, made: &Made) -> Result<Contributed, Error> {
    let catalog = &*tools.catalog;
    if catalog.entities.iter().all(|entity| entity.of.is_none()) {
        return Ok(Contributed(None));
    }
    let (view, mut rows, mut changes) = (tools.view(snapshot), Rows::new(catalog), Vec::new());
    for entry in made.entries() {
        let Some(of) = outbox::named(entry).and_then(|change| catalog.numbered(change.entity)) else { continue };
        if catalog.entities[of].rolled_up_by.is_empty() {
            continue;
        }
        let change = outbox::decode(entry, catalog).ok_or_else(|| tools.store.corrupt("an outbox entry that cannot be read"))?;
        rows_of(view, &catalog.entities[of], &change.key, change.document.as_deref(), &mut changes)?;
    }
    for letter in made.set_aside() {
        if let Some(of) = catalog.entity(&letter.entity) {
            rows_of(view, &catalog.entities[of], &letter.key, None, &mut changes)?;
        }
    }
    for (table, before, after) in &changes {
        rows.apply(view, change(*table, before.as_deref(), after.as_deref()), true)?;
    }
    let mut dirty = Dirty::new(View { overlay: Some(&rows.overlay), ..view }, Room::ALL);
    for (table, before, after) in &changes {
        dirty.add(change(*table, before.as_deref(), after.as_deref()), false)?;
    }
    let touched = dirty.finish()?;
    Ok(Contributed(Some((rows.overlay, touched))))
}

/// By table of a roll-up: the row that a document made, and the one that it makes.
type Changes = Vec<(TableId, Option<Vec<u8>>, Option<Vec<u8>>)>;

/// Adds what a document, or that there is none, changes of the rows that it makes.
fn rows_of(view: View<'_>, entity: &Entity, key: &EntityKey, document: Option<&str>, changes: &mut Changes) -> Result<(), Error> {
    for &roll_up in &entity.rolled_up_by {
        let roll_up = &view.catalog.entities[roll_up];
        let Some(of) = &roll_up.of else { continue };
        let before = standing_row(view, of, roll_up, key)?;
        let after = made_of(view.catalog, roll_up, of, key, document);
        if before != after {
            changes.push((of.table, before, after));
        }
    }
    Ok(())
}

const fn change<'r>(table: usize, before: Option<&'r [u8]>, after: Option<&'r [u8]>) -> ChangeRef<'r> {
    ChangeRef { table, kind: Kind::Rows, commit_lsn: Lsn::ZERO, before, after, reader: None }
}

impl Contributed {
    pub(super) fn has_touched(&self) -> bool {
        self.0.as_ref().is_some_and(|(_, touched)| !touched.owners.is_empty())
    }

    /// Has a batch write the rows, and leaves the groups for later. `tail`: the last outbox entry of the step so far.
    pub(super) fn write(
        &self,
        tools: &Tools,
        snapshot: &Snapshot<'_>,
        tail: u64,
        standing: &mut Standing,
        batch: &mut WriteBatch,
    ) -> Result<(), Error> {
        let Some((overlay, touched)) = &self.0 else { return Ok(()) };
        overlay.write(&tools.catalog, &tools.store, None, batch)?;
        let stale = match &touched.rows {
            Some(rows) => Stale::of(tools.view(snapshot), rows, Default::default())?,
            None => Stale::all(),
        };
        stale.remove(&tools.store, batch)?;
        let owners = touched.owners.iter().map(|key| (key.as_slice(), None)).collect();
        // Groups have no time of their own.
        put_pending(tools, (snapshot, &Expired::default()), owners, false, (standing, tail), batch)
    }

    pub(super) fn is_written(&self, tools: &Tools) {
        if let Some((overlay, _)) = &self.0 {
            tools.cache.apply(&tools.catalog, overlay);
        }
    }
}

/// The row that a document has now.
fn standing_row(view: View<'_>, of: &OfDocuments, roll_up: &Entity, key: &EntityKey) -> Result<Option<Vec<u8>>, Error> {
    let mut place = Vec::new();
    start_key(of.by_key, &mut place);
    let corrupt = |error: key::KeyError| view.store.corrupt(format!("{}: {error}", roll_up.name));
    for (part, text) in view.catalog.tables[of.table].own_key.iter().zip(key.parts()) {
        key::encode_text(&text, part.key_type, &mut place).map_err(corrupt)?;
    }
    view.get(of.by_key, &place, <[u8]>::to_vec)
}

/// The row that a document makes; none where there is no document.
fn made_of(catalog: &Catalog, roll_up: &Entity, of: &OfDocuments, key: &EntityKey, document: Option<&str>) -> Option<Vec<u8>> {
    let (text, input) = document.zip(roll_up.plan.input.as_ref())?;
    // It was written by the assembler; of one that is no JSON every value is null.
    let document: Json = serde_json::from_str(text).unwrap_or_default();
    let (own_key, parts) = (&catalog.tables[of.table].own_key, key.parts());
    let (mut out, mut value) = (Vec::new(), Vec::new());
    for (slot, &column) in of.columns.iter().enumerate() {
        value.clear();
        let part = own_key.iter().zip(&parts).find(|(part, _)| part.slot == slot);
        match (part, column.checked_sub(own_key.len()).and_then(|nth| input.columns.get(nth))) {
            (Some((part, text)), _) => match part.key_type {
                KeyType::Bool | KeyType::Int | KeyType::Float | KeyType::Decimal => value.extend_from_slice(text.as_bytes()),
                _ => value.extend_from_slice(Json::from(text.as_str()).to_string().as_bytes()),
            },
            (None, Some(InputColumn::Member(name))) => {
                let member = document.get(name).unwrap_or(&Json::Null);
                value.extend_from_slice(member.to_string().as_bytes());
            }
            (None, Some(InputColumn::Expression(expression))) => match expression.evaluate(&expression.over(&document)) {
                Ok(result) => result.write_json(&mut value),
                Err(error) => {
                    metrics::expression_failed(&roll_up.name);
                    tracing::debug!(entity = %roll_up.name, expression = expression.text(), %error, "an expression fails on a document");
                    value.extend_from_slice(b"null");
                }
            },
            // A column that no definition uses any more.
            (None, None) => value.extend_from_slice(b"null"),
        }
        row::put(&value, &mut out);
    }
    Some(out)
}

/// Makes what entities need of all documents that there are, before anything of them is told: rows of those that they roll up, letters of those that are too large. What there is of it is of another load, or of other definitions.
pub(crate) fn make_first(tools: &Tools, standing: &mut Standing) -> Result<(), Error> {
    let (store, catalog) = (&*tools.store, &*tools.catalog);
    for (id, entity) in catalog.entities.iter().enumerate() {
        if !standing.unmade.contains(&entity.number) {
            continue;
        }
        tracing::info!(entity = %entity.name, "what is needed of all documents is made");
        if let Some(of) = &entity.of {
            forget_rows(tools, entity, of)?;
            let put = |snapshot: &Snapshot<'_>, changes: &[EntityChange]| put_rows(tools, snapshot, entity, of, changes);
            of_all(tools, standing, (of.entity, Wanted::Documents), &put)?;
        }
        if let Some(limits) = entity.plan.definition.limits.filter(|_| entity.plan.definition.sets_aside()) {
            let mut batch = WriteBatch::default();
            TooLarge::forget(store, &entity.name, &mut batch)?;
            store.write(batch, true)?;
            let put = |_: &Snapshot<'_>, changes: &[EntityChange]| {
                let mut batch = WriteBatch::default();
                for change in changes {
                    let letter = TooLarge::new(&entity.name, change.key.clone(), limits, standing);
                    TooLarge::settle(store, &TooLarge::place(&entity.name, &change.key), Some(&letter), &mut batch)?;
                }
                store.write(batch, true)
            };
            of_all(tools, standing, (id, Wanted::TooLarge), &put)?;
        }
        standing.unmade.remove(&entity.number);
        store.write_with(WriteBatch::default(), standing)?;
    }
    Ok(())
}

/// Writes what a batch of an entity makes; it is given the state that the batch was read from.
type Put<'p> = &'p (dyn Fn(&Snapshot<'_>, &[EntityChange]) -> Result<(), Error> + Sync);

/// Calls `put` with all of an entity, batch by batch, from several threads.
fn of_all(tools: &Tools, standing: &Standing, wanted: (usize, Wanted), put: Put<'_>) -> Result<(), Error> {
    let snapshot = tools.store.db().snapshot();
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let version = As { version: standing.frontier, commit_time_ms: standing.commit_time_ms };
    let receive = |changes: Vec<EntityChange>| {
        let written = put(&snapshot, &changes);
        let is_written = written.is_ok();
        if let Err(error) = written {
            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
        is_written
    };
    scan(&tools.store, &tools.catalog, &snapshot, wanted, version, tools.share.threads, &receive)?;
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn forget_rows(tools: &Tools, roll_up: &Entity, of: &OfDocuments) -> Result<(), Error> {
    let (store, catalog) = (&*tools.store, &*tools.catalog);
    let mut batch = WriteBatch::default();
    for &index in &catalog.tables[of.table].indexes {
        let (mut start, mut end) = (Vec::new(), Vec::new());
        start_key(index, &mut start);
        start_key(index + 1, &mut end);
        batch.delete_range_cf(store.family(family(catalog.indexes[index].kind))?, start, end);
    }
    remove_entity(store, roll_up.number, &mut batch)?;
    store.write(batch, true)?;
    tools.cache.clear();
    Ok(())
}

fn put_rows(
    tools: &Tools,
    snapshot: &Snapshot<'_>,
    roll_up: &Entity,
    of: &OfDocuments,
    changes: &[EntityChange],
) -> Result<(), Error> {
    let mut rows = Rows::new(&tools.catalog);
    for one in changes {
        let row = made_of(&tools.catalog, roll_up, of, &one.key, one.document.as_deref());
        rows.apply(tools.view(snapshot), change(of.table, None, row.as_deref()), true)?;
    }
    let mut batch = WriteBatch::default();
    rows.overlay.write(&tools.catalog, &tools.store, None, &mut batch)?;
    tools.store.write(batch, true)
}
