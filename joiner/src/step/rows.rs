//! What the changes of a step make of the rows, before anything is written ([`super`] argues why it is right).

use schemas::Lsn;

use super::{Report, Tools};
use crate::buffer::{ChangeRef, Kind, Taken};
use crate::catalog::{Catalog, IndexId, IndexKind};
use crate::error::Error;
use crate::reread::{self, Counting};
use crate::route::stored;
use crate::state::row::{self, Row, Spans};
use crate::state::view::{Overlay, View, place};

/// The rows of a step, applied but not written.
pub(crate) struct Applied {
    pub(super) overlay: Overlay,
    /// Whether these are all. Else there were more than was asked for, and there are none.
    pub(super) whole: bool,
    /// By table: whose rows count that were read again.
    pub(super) counting: Vec<Option<Counting>>,
    pub(crate) report: Report,
}

/// Applies changes to an overlay, in total order, and counts them. `counting`: by table, what counts of it while it is read again: the rest is left out. `ticks`: where each
/// tick of the step ends. `most`: what the overlay may take; where that is too little, the rest is only counted. `again`: rows may be newer than the changes.
pub(crate) fn apply(
    tools: &Tools,
    taken: &Taken,
    counting: Vec<Option<Counting>>,
    ticks: &[Lsn],
    most: usize,
    again: bool,
) -> Result<Applied, Error> {
    let snapshot = tools.store.db().snapshot();
    let before = tools.view(&snapshot);
    let tables = tools.catalog.tables.len();
    let none = vec![0; tables];
    let received = vec![0; tables * ticks.len().max(1)];
    let mut report = Report { received, applied: none.clone(), dead: none.clone(), reread: none, ..Report::default() };
    let (mut tick, mut whole) = (0, true);
    let mut rows = Rows::new(&tools.catalog);
    taken.for_each(|change| {
        if !reread::counts(counting[change.table], change.reader, change.commit_lsn) {
            return Ok(());
        }
        if change.reader.is_some() {
            report.reread[change.table] += 1;
        } else {
            while ticks.get(tick).is_some_and(|end| change.commit_lsn > *end) && tick + 1 < ticks.len() {
                tick += 1;
            }
            report.received[tick * tables + change.table] += 1;
            let counts = if change.kind == Kind::Dead { &mut report.dead } else { &mut report.applied };
            counts[change.table] += 1;
        }
        if whole && change.kind == Kind::Rows {
            rows.apply(before, change, again || counting[change.table].is_some())?;
            if rows.overlay.bytes() > most {
                (whole, rows) = (false, Rows::new(&tools.catalog));
            }
        }
        Ok(())
    })?;
    Ok(Applied { overlay: rows.overlay, whole, counting, report })
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

/// What changes make of the rows.
pub(super) struct Rows {
    pub(super) overlay: Overlay,
    buffers: Buffers,
}

impl Rows {
    pub(super) fn new(catalog: &Catalog) -> Self {
        Self { overlay: Overlay::new(catalog), buffers: Buffers::default() }
    }

    /// Takes in the next change. `before`: the state without any of them; `doubtful`: the before image need not be what stands in it.
    pub(super) fn apply(&mut self, before: View<'_>, change: ChangeRef<'_>, doubtful: bool) -> Result<(), Error> {
        let catalog = before.catalog;
        let table = &catalog.tables[change.table];
        let mut buffers = std::mem::take(&mut self.buffers);
        let mut after = change.after;
        if let Some(image) = change.after
            && row::columns(image).any(row::is_unavailable)
        {
            buffers.filled = self.fill(before, change, image)?;
            after = Some(&buffers.filled);
        }
        let old = change.before.map(|image| buffers.old_spans.read(image));
        let new = after.map(|image| (buffers.new_spans.read(image), image));
        // Every image has been checked when it came in: keys can be made of it.
        let refused = |_| before.store.corrupt("a buffered change that no key can be made of");
        for &id in &table.indexes {
            let index = &catalog.indexes[id];
            let kept = |row: Row<'_>| catalog.share.keeps(&catalog.entities, id, |slot| row.get(slot));
            let has_old = match old {
                Some(row) => place(id, index, row, &mut buffers.old_key).map_err(refused)? && kept(row),
                None => false,
            };
            let has_new = match new {
                Some((row, _)) => place(id, index, row, &mut buffers.new_key).map_err(refused)? && kept(row),
                None => false,
            };
            if !doubtful {
                let was = change.before.filter(|_| has_old);
                let place = if was.is_some() { Some(&buffers.old_key) } else { has_new.then_some(&buffers.new_key) };
                self.note(id, place, was);
            }
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

    /// Takes note of what stood at a place, if this is the first change there and tells all of it.
    fn note(&mut self, id: IndexId, place: Option<&Vec<u8>>, was: Option<&[u8]>) {
        if let Some(key) = place
            && self.overlay.asks(id, key)
            && !was.is_some_and(|image| row::columns(image).any(row::is_unavailable))
        {
            self.overlay.set_was(id, key, was);
        }
    }

    /// The after image with what the source did not record taken from the rows that stand.
    fn fill(&self, before: View<'_>, change: ChangeRef<'_>, image: &[u8]) -> Result<Vec<u8>, Error> {
        let places = [self.standing(before, change, change.before)?, self.standing(before, change, Some(image))?];
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
    fn standing(&self, before: View<'_>, change: ChangeRef<'_>, image: Option<&[u8]>) -> Result<Option<Vec<u8>>, Error> {
        let Some(image) = image else { return Ok(None) };
        let view = View { overlay: Some(&self.overlay), ..before };
        let (mut spans, mut key) = (Spans::default(), Vec::new());
        let row: Row<'_> = spans.read(image);
        for &id in &view.catalog.tables[change.table].indexes {
            let index = &view.catalog.indexes[id];
            if index.kind == IndexKind::Rows && place(id, index, row, &mut key).unwrap_or(false) {
                return view.get(id, &key, <[u8]>::to_vec);
            }
        }
        Ok(None)
    }
}
