//! A step: all changes up to a new frontier are applied, the entities that they touched are assembled, and everything is written at once. Pure but for the database: no clock, no network, no async.
//!
//! # Blind puts
//! A change is applied without reading: its before image tells every place where the old row stands, its after image every place where the new one goes. This is right as long as the state holds the row of the
//! before image, which holds once the state is the source's as of the frontier (by induction over the total order).
//!
//! # Why snapshot rows and a tail that overlaps them converge
//! A snapshot row was read at some LSN between the snapshot's start S and the time it was read; the tail is replayed from S over it, so a change may meet a row that is newer than its before
//! image. Consider one own key and its versions v0 (at S, perhaps none), v1, … vn (at some LSN at or past every read; perhaps none), and let p(v) be the places of a version in an index. Before the tail, the state holds the
//! row at p(vi) for some of the i (each time it was read, once or more, left it there). The event from vi to vi+1 removes what stands at p(vi), unless vi+1 stands there too, and puts vi+1 at p(vi+1). So after all
//! events: p(vn) holds vn, which was put last; and every other p(vi) was removed by the event that follows vi, and no later event puts anything there unless it is removed again or is p(vn). Nothing else was ever
//! put. Hence from `consistent_from` on (the captured maximum after the last read) the rows are those of the source. The same holds for a tail that is replayed over its own results.
//!
//! # Values that were not recorded
//! An update that leaves a `max` column as it was does not say its value: it is taken from the row at the before image's place, or else (a row that the snapshot saw further on) from the one at the after
//! image's place.
//!
//! # What changed
//! A document is compared with the last one by hash. Where no hash is kept yet (since the first load), the old document is assembled from the state as it was.

use rocksdb::{Snapshot, WriteBatch};
use schemas::Lsn;
use xxhash_rust::xxh3::xxh3_128;

mod dirty;

use dirty::Dirty;

use crate::assemble::{Assembler, entity_key};
use crate::buffer::{ChangeRef, Kind, Taken};
use crate::catalog::{Catalog, IndexKind};
use crate::error::Error;
use crate::route::stored;
use crate::state::meta::{Pending, Standing};
use crate::state::outbox::{self, Entry};
use crate::state::row::{self, Row, Spans};
use crate::state::view::{Overlay, View, place};
use crate::state::{Family, Store};

/// What a step did.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// By table: changes applied, changes that had been dead-lettered.
    pub(crate) applied: Vec<u64>,
    pub(crate) dead: Vec<u64>,
    /// Entities assembled, entities changed.
    pub(crate) assembled: u64,
    pub(crate) changed: u64,
}

/// The rows of a step, applied but not written.
pub(crate) struct Applied {
    overlay: Overlay,
    pub(crate) report: Report,
}

/// Applies changes to an overlay, in total order.
pub(crate) fn apply(store: &Store, catalog: &Catalog, taken: &Taken) -> Result<Applied, Error> {
    let snapshot = store.db().snapshot();
    let none = vec![0; catalog.tables.len()];
    let report = Report { applied: none.clone(), dead: none, ..Report::default() };
    let mut writer = Writer { store, catalog, snapshot: &snapshot, overlay: Overlay::new(catalog), buffers: Default::default() };
    let mut report = report;
    taken.for_each(|change| {
        match change.kind {
            Kind::Dead => report.dead[change.table] += 1,
            Kind::Nothing => report.applied[change.table] += 1,
            Kind::Rows => {
                report.applied[change.table] += 1;
                writer.apply(change)?;
            }
        }
        Ok(())
    })?;
    Ok(Applied { overlay: writer.overlay, report })
}

#[derive(Default)]
struct Buffers {
    old_key: Vec<u8>,
    new_key: Vec<u8>,
    value: Vec<u8>,
    filled: Vec<u8>,
    old_spans: Spans,
    new_spans: Spans,
}

struct Writer<'a> {
    store: &'a Store,
    catalog: &'a Catalog,
    snapshot: &'a Snapshot<'a>,
    overlay: Overlay,
    buffers: Buffers,
}

impl Writer<'_> {
    fn apply(&mut self, change: ChangeRef<'_>) -> Result<(), Error> {
        let catalog = self.catalog;
        let table = &catalog.tables[change.table];
        let mut buffers = std::mem::take(&mut self.buffers);
        let mut after = change.after;
        if let Some(image) = change.after
            && row::columns(image).any(row::is_unavailable)
        {
            buffers.filled = self.fill(change, image)?;
            after = Some(&buffers.filled);
        }
        let old = change.before.map(|image| buffers.old_spans.read(image));
        let new = after.map(|image| (buffers.new_spans.read(image), image));
        // Every image has been checked when it came in: keys can be made of it.
        let refused = |_| self.store.corrupt("a buffered change that no key can be made of");
        for &id in &table.indexes {
            let index = &catalog.indexes[id];
            let has_old = match old {
                Some(row) => place(id, index, row, &mut buffers.old_key).map_err(refused)?,
                None => false,
            };
            let has_new = match new {
                Some((row, _)) => place(id, index, row, &mut buffers.new_key).map_err(refused)?,
                None => false,
            };
            if has_old && !(has_new && buffers.old_key == buffers.new_key) {
                self.overlay.set(id, &buffers.old_key, None);
            }
            if let Some((row, image)) = new.filter(|_| has_new) {
                let value = stored(table, &index.stored, row, image, &mut buffers.value);
                self.overlay.set(id, &buffers.new_key, Some(value));
            }
        }
        self.buffers = buffers;
        Ok(())
    }

    /// The after image with what the source did not record taken from the rows that stand.
    fn fill(&self, change: ChangeRef<'_>, image: &[u8]) -> Result<Vec<u8>, Error> {
        let places = [self.standing(change, change.before)?, self.standing(change, Some(image))?];
        let mut out = Vec::with_capacity(image.len());
        for (slot, fragment) in row::columns(image).enumerate() {
            let known = || {
                let rows = places.iter().flatten();
                rows.filter_map(|row| row::columns(row).nth(slot)).find(|known| !row::is_unavailable(known)).unwrap_or(fragment)
            };
            row::put(if row::is_unavailable(fragment) { known() } else { fragment }, &mut out);
        }
        Ok(out)
    }

    /// The row that stands at an image's place.
    fn standing(&self, change: ChangeRef<'_>, image: Option<&[u8]>) -> Result<Option<Vec<u8>>, Error> {
        let Some(image) = image else { return Ok(None) };
        let view = View { catalog: self.catalog, store: self.store, snapshot: self.snapshot, overlay: Some(&self.overlay) };
        let (mut spans, mut key) = (Spans::default(), Vec::new());
        let row: Row<'_> = spans.read(image);
        for &id in &self.catalog.tables[change.table].indexes {
            let index = &self.catalog.indexes[id];
            if index.kind == IndexKind::Rows && place(id, index, row, &mut key).unwrap_or(false) {
                return view.get(id, &key, <[u8]>::to_vec);
            }
        }
        Ok(None)
    }
}

/// Writes rows and standing, and assembles nothing: while the first load catches up.
pub(crate) fn write_rows(store: &Store, catalog: &Catalog, applied: &Applied, standing: &Standing) -> Result<(), Error> {
    let mut batch = WriteBatch::default();
    applied.overlay.write(catalog, store, &mut batch)?;
    store.put_standing(&mut batch, standing)?;
    store.write(batch, true)
}

/// A document and what it replaces.
struct Outcome {
    hash: Option<u128>,
    changed: bool,
}

/// Assembles what the changes touched and writes everything. `standing` is the new one; its head is set here. With more than `chunk` entities the rows are written first, with
/// the list of entities, and [`drain`] goes on from there.
pub(crate) fn finish(
    store: &Store,
    catalog: &Catalog,
    taken: &Taken,
    applied: &mut Applied,
    standing: &mut Standing,
    chunk: usize,
) -> Result<(), Error> {
    let snapshot = store.db().snapshot();
    let before = View { catalog, store, snapshot: &snapshot, overlay: None };
    let after = View { overlay: Some(&applied.overlay), ..before };
    let mut dirty = Dirty::new(after);
    taken.for_each(|change| dirty.add(change))?;
    let dirty = dirty.finish();
    let mut batch = WriteBatch::default();
    applied.overlay.write(catalog, store, &mut batch)?;
    let large = dirty.len() > chunk;
    let mut old = Documents::new(before);
    let mut new = Documents::new(after);
    for key in &dirty {
        let known = match store.get(Family::Hashes, key)? {
            Some(bytes) => Some(read_hash(store, &bytes)?),
            None => old.document(key)?.then(|| xxh3_128(&old.text)),
        };
        if large {
            let bytes = known.map(u128::to_be_bytes);
            batch.put_cf(store.family(Family::Pending)?, key, bytes.as_ref().map_or(&[][..], |hash| &hash[..]));
            continue;
        }
        let present = new.document(key)?;
        let outcome = compare(known, present.then_some(&new.text));
        let tail = standing.head;
        standing.head = emit(store, catalog, &mut batch, standing, tail, key, present.then_some(&new.text), &outcome)?;
        applied.report.assembled += 1;
        applied.report.changed += u64::from(outcome.changed);
    }
    if large {
        standing.pending = Some(Pending { tail: standing.head });
    } else {
        (standing.head_frontier, standing.head_commit_time_ms) = (standing.frontier, standing.commit_time_ms);
    }
    store.put_standing(&mut batch, standing)?;
    store.write(batch, true)
}

/// Assembles the next `chunk` entities of a step whose rows have been written. Answers false when none are left: then the step is done, and its outbox entries are to be seen.
pub(crate) fn drain(
    store: &Store,
    catalog: &Catalog,
    standing: &mut Standing,
    chunk: usize,
    report: &mut Report,
) -> Result<bool, Error> {
    let Some(Pending { mut tail }) = standing.pending else { return Ok(false) };
    let snapshot = store.db().snapshot();
    let mut documents = Documents::new(View { catalog, store, snapshot: &snapshot, overlay: None });
    let mut batch = WriteBatch::default();
    let family = store.family(Family::Pending)?;
    let mut pending = snapshot.raw_iterator_cf(family);
    pending.seek_to_first();
    let mut done = 0;
    while let Some((key, known)) = pending.item().filter(|_| done < chunk) {
        let known = if known.is_empty() { None } else { Some(read_hash(store, known)?) };
        let present = documents.document(key)?;
        let outcome = compare(known, present.then_some(&documents.text));
        tail = emit(store, catalog, &mut batch, standing, tail, key, present.then_some(&documents.text), &outcome)?;
        batch.delete_cf(family, key);
        report.assembled += 1;
        report.changed += u64::from(outcome.changed);
        done += 1;
        pending.next();
    }
    pending.status().map_err(|error| store.error(&error))?;
    let more = done == chunk;
    if more {
        standing.pending = Some(Pending { tail });
    } else {
        standing.pending = None;
        standing.head = tail;
        (standing.head_frontier, standing.head_commit_time_ms) = (standing.frontier, standing.commit_time_ms);
    }
    store.put_standing(&mut batch, standing)?;
    store.write(batch, true)?;
    Ok(more)
}

fn read_hash(store: &Store, bytes: &[u8]) -> Result<u128, Error> {
    bytes.try_into().map(u128::from_be_bytes).map_err(|_| store.corrupt("a document's hash that is not 16 bytes long"))
}

fn compare(known: Option<u128>, document: Option<&Vec<u8>>) -> Outcome {
    let hash = document.map(|text| xxh3_128(text));
    Outcome { hash, changed: hash != known }
}

/// Adds a changed document to the outbox, and its hash; answers the last sequence number.
#[allow(clippy::too_many_arguments)]
fn emit(
    store: &Store,
    catalog: &Catalog,
    batch: &mut WriteBatch,
    standing: &Standing,
    tail: u64,
    key: &[u8],
    document: Option<&Vec<u8>>,
    outcome: &Outcome,
) -> Result<u64, Error> {
    if !outcome.changed {
        return Ok(tail);
    }
    let hashes = store.family(Family::Hashes)?;
    match outcome.hash {
        Some(hash) => batch.put_cf(hashes, key, hash.to_be_bytes()),
        None => batch.delete_cf(hashes, key),
    }
    let (entity, parts) = split(store, catalog, key)?;
    let text = entity_key(&catalog.entities[entity], parts).ok_or_else(|| store.corrupt("an entity key that cannot be read"))?;
    let entry = Entry {
        entity,
        key: &text,
        version: standing.frontier,
        commit_time_ms: standing.commit_time_ms,
        document: document.map(Vec::as_slice),
    };
    outbox::append(store, batch, tail + 1, &entry)?;
    Ok(tail + 1)
}

/// An entity's number and its key's parts.
fn split<'k>(store: &Store, catalog: &Catalog, key: &'k [u8]) -> Result<(usize, &'k [u8]), Error> {
    let (entity, parts) = key.split_first_chunk::<2>().ok_or_else(|| store.corrupt("an entity key without its entity"))?;
    let entity = usize::from(u16::from_be_bytes(*entity));
    if entity >= catalog.entities.len() {
        return Err(store.corrupt("a key of an unknown entity"));
    }
    Ok((entity, parts))
}

/// Documents of any entity, of one view.
struct Documents<'a> {
    view: View<'a>,
    assemblers: Vec<Option<Assembler<'a>>>,
    text: Vec<u8>,
}

impl<'a> Documents<'a> {
    fn new(view: View<'a>) -> Self {
        Self { view, assemblers: view.catalog.entities.iter().map(|_| None).collect(), text: Vec::new() }
    }

    /// Assembles into `text`; false when there is no such entity.
    fn document(&mut self, key: &[u8]) -> Result<bool, Error> {
        let (entity, parts) = split(self.view.store, self.view.catalog, key)?;
        self.text.clear();
        let view = self.view;
        let assembler =
            self.assemblers[entity].get_or_insert_with(|| Assembler::new(view, &view.catalog.entities[entity], false));
        assembler.document(parts, &mut self.text)
    }
}

/// The frontier that a document assembled from the state right now reflects.
pub(crate) fn assemble_now(
    store: &Store,
    catalog: &Catalog,
    entity: usize,
    parts: &[u8],
) -> Result<(Standing, Option<(Lsn, String)>), Error> {
    let snapshot = store.db().snapshot();
    let standing = store.standing_at(&snapshot)?;
    let view = View { catalog, store, snapshot: &snapshot, overlay: None };
    let mut text = Vec::new();
    let present = Assembler::new(view, &catalog.entities[entity], false).document(parts, &mut text)?;
    let text = String::from_utf8(text).map_err(|_| store.corrupt("a document that is not UTF-8"))?;
    let version = standing.frontier;
    Ok((standing, present.then_some((version, text))))
}
