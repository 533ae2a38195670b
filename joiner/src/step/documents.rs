//! Documents that may have changed, on several threads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rocksdb::WriteBatch;
use schemas::entity::Exceeded;
use xxhash_rust::xxh3::xxh3_128;

use crate::assemble::expired::Expired;
use crate::assemble::parts::{Kept, Stale};
use crate::assemble::{Assembler, Made as Outcome, Side, entity_key};
use crate::catalog::Catalog;
use crate::dead_letters::TooLarge;
use crate::error::Error;
use crate::state::meta::Standing;
use crate::state::outbox::{Entries, Entry, Picked};
use crate::state::row::Spans;
use crate::state::view::{Overlay, Reading, View, start_key};
use crate::state::writes::{Near, Was, Write};
use crate::state::{Family, Store};

/// Keys that a thread takes at a time, at most.
const LARGEST_PIECE: usize = 64;
/// For fewer keys another thread is not worth its start.
const KEYS_PER_THREAD: usize = 16;

/// How the work is shared out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    pub(crate) threads: usize,
    /// No more is begun once so many bytes have been made. What is under way is finished: up to a piece for each thread.
    pub(crate) bytes: usize,
}

/// What is known of a document as it was told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Known<'o> {
    /// It can be assembled from the database, seen through this instead of the step's overlay.
    Through(Option<&'o Overlay>),
    /// Its hash; `None`: there was none.
    Hash(Option<u128>),
    /// It was too large to be told.
    TooLarge,
    /// It may have been anything: it is told as it is.
    Nothing,
}

impl Known<'_> {
    /// What is kept with a pending key of whose document nothing is known.
    pub(crate) const NOTHING: [u8; 1] = [0];
    const TOO_LARGE: [u8; 1] = [1];

    /// From what is kept with a pending key.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [] => Some(Self::Hash(None)),
            [0] => Some(Self::Nothing),
            [1] => Some(Self::TooLarge),
            _ => bytes.try_into().ok().map(|hash| Self::Hash(Some(u128::from_be_bytes(hash)))),
        }
    }
}

/// Whose time was over when documents were told last, and whose is over now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times<'a> {
    pub(crate) told: &'a Expired,
    pub(crate) now: &'a Expired,
}

impl<'a> Times<'a> {
    /// Between steps.
    pub(crate) const fn of(expired: &'a Expired) -> Self {
        Self { told: expired, now: expired }
    }
}

/// What came of keys, as far as they were worked off: always the first so many.
#[derive(Debug, Default)]
pub(crate) struct Made {
    count: usize,
    pieces: Vec<Piece>,
}

/// Outbox entries of the documents of a piece that have changed.
#[derive(Debug, Default)]
struct Piece {
    keys: usize,
    entries: Entries,
    parts: Vec<Kept>,
    /// Where letters of documents that are too large stand, and those that there are.
    letters: Vec<(String, Option<TooLarge>)>,
    /// Whether any was found as it was told earlier than before the step.
    skips: bool,
}

impl Piece {
    fn bytes(&self) -> usize {
        self.entries.bytes() + self.parts.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>()
    }
}

impl Made {
    /// How many keys were worked off.
    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// At least the bytes that a batch of the entries takes.
    pub(crate) fn bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.bytes() + 24 * (piece.entries.len() + piece.parts.len())).sum()
    }

    /// Adds to a batch what was made besides entries: aggregates that are kept in parts, letters of documents that are too large.
    pub(crate) fn put_beside(&self, store: &Store, batch: &mut WriteBatch) -> Result<(), Error> {
        let family = store.family(Family::Parts)?;
        let parts = self.pieces.iter().flat_map(|piece| &piece.parts);
        parts.for_each(|(key, value)| batch.put_cf(family, key, value));
        for (place, letter) in self.pieces.iter().flat_map(|piece| &piece.letters) {
            TooLarge::settle(store, place, letter.as_ref(), batch)?;
        }
        Ok(())
    }

    /// Whether any document was found as it was told, and may have been another in between.
    pub(crate) fn skips(&self) -> bool {
        self.pieces.iter().any(|piece| piece.skips)
    }

    /// The letters of documents that are too large.
    pub(crate) fn set_aside(&self) -> impl Iterator<Item = &TooLarge> {
        self.pieces.iter().flat_map(|piece| &piece.letters).filter_map(|(_, letter)| letter.as_ref())
    }

    /// The entries of the documents that have changed, in the order of their keys.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().flat_map(|piece| piece.entries.iter())
    }

    /// What of the entries, which are being written behind the one with the number `tail`, is kept in memory.
    pub(crate) fn picked(self, store: &Store, tail: u64) -> Picked {
        store.recent().pick(tail, self.pieces.into_iter().map(|piece| piece.entries).collect())
    }
}

/// Assembles documents as they are, and makes outbox entries of those that differ from what they were. `stale`: what the state keeps of aggregates and does not hold after the step.
pub(crate) fn assemble<'a>(
    after: View<'a>,
    stale: &'a Stale,
    share: Share,
    keys: &[(&[u8], Known<'a>)],
    times: Times<'a>,
    standing: &Standing,
) -> Result<Made, Error> {
    let twice = keys.iter().any(|(_, known)| matches!(known, Known::Through(_)));
    let pieces = work_off(share, keys, || {
        let mut documents = Documents::new(after, if twice { Reading::Twice } else { Reading::Once }, times);
        documents.stale = Some(stale);
        let mut room = 0;
        move |keys: &[(&[u8], Known<'a>)], made: &AtomicUsize| {
            let mut piece = Piece { keys: keys.len(), entries: Entries::with_capacity(room, keys.len()), ..Piece::default() };
            for (key, known) in keys {
                documents.entry(key, *known, standing, &mut piece)?;
            }
            made.fetch_add(piece.bytes(), Ordering::Relaxed);
            // The next is likely to be as large.
            room = room.max(piece.entries.bytes());
            Ok(piece)
        }
    })?;
    Ok(Made { count: pieces.iter().map(|piece| piece.keys).sum(), pieces })
}

/// Calls `each` with the keys and the hashes of their documents as they were told, seen through what stands beside them; empty where there was none. `told`: whose time was over then.
pub(crate) fn known<'a>(
    before: View<'a>,
    told: &'a Expired,
    share: Share,
    keys: &[(&[u8], Option<&'a Overlay>)],
    mut each: impl FnMut(&[u8], &[u8]),
) -> Result<(), Error> {
    let hashes = work_off(share, keys, || {
        let mut documents = Documents::new(before, Reading::Once, Times::of(told));
        move |keys: &[(&[u8], Option<&'a Overlay>)], _: &AtomicUsize| {
            keys.iter().map(|(key, through)| documents.hash(key, *through)).collect::<Result<Vec<Vec<u8>>, Error>>()
        }
    })?;
    for ((key, _), hash) in keys.iter().zip(hashes.into_iter().flatten()) {
        each(key, &hash);
    }
    Ok(())
}

/// How many threads work off so many keys, where more than one is worth it.
fn threads(share: Share, keys: usize) -> usize {
    share.threads.min(keys / KEYS_PER_THREAD)
}

/// Whether all threads work off so many keys, and there are several.
pub(super) fn uses_all(share: Share, keys: usize) -> bool {
    share.threads > 1 && threads(share, keys) == share.threads
}

/// Works off keys piece by piece, on several threads where that is worth it; ends when there are none left, or when enough has been made. Each thread makes its own worker.
/// Answers what came of the pieces, in order: pieces are taken in order, and every one that was taken is finished.
fn work_off<K: Sync, T: Send, W>(share: Share, keys: &[K], worker: impl Fn() -> W + Sync) -> Result<Vec<T>, Error>
where
    W: FnMut(&[K], &AtomicUsize) -> Result<T, Error>,
{
    let piece = (keys.len() / (share.threads * 4)).clamp(1, LARGEST_PIECE);
    let (next, made) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let done: Mutex<BTreeMap<usize, Result<T, Error>>> = Mutex::default();
    let work = || {
        let mut worker = worker();
        while made.load(Ordering::Relaxed) < share.bytes {
            let nth = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = keys.chunks(piece).nth(nth) else { break };
            let result = worker(piece, &made);
            let failed = result.is_err();
            done.lock().unwrap_or_else(PoisonError::into_inner).insert(nth, result);
            if failed {
                break;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads(share, keys.len()) {
            scope.spawn(work);
        }
        work();
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

/// Documents of any entity, as they were told and as they are.
struct Documents<'a> {
    view: View<'a>,
    reading: Reading,
    times: Times<'a>,
    assemblers: Vec<Option<Assembler<'a>>>,
    /// What is kept of aggregates and does not hold any more; with it, what is made of them is kept.
    stale: Option<&'a Stale>,
    old: Vec<u8>,
    new: Vec<u8>,
    /// Where the root before it was found among what is written.
    near: Near,
}

impl<'a> Documents<'a> {
    fn new(view: View<'a>, reading: Reading, times: Times<'a>) -> Self {
        let assemblers = view.catalog.entities.iter().map(|_| None).collect();
        Self { view, reading, times, assemblers, stale: None, old: Vec::new(), new: Vec::new(), near: Near::default() }
    }

    /// Assembles a document.
    fn document(&mut self, key: &[u8], side: Side, overlay: Option<&'a Overlay>, out: &mut Vec<u8>) -> Result<Outcome, Error> {
        let (view, reading, times, stale) = (self.view, self.reading, self.times, self.stale);
        let (entity, parts) = split(view.store, view.catalog, key)?;
        let assembler = self.assemblers[entity].get_or_insert_with(|| {
            let mut assembler = Assembler::new(view, &view.catalog.entities[entity], reading, times.now);
            assembler.told_as_of(times.told);
            stale.into_iter().for_each(|stale| assembler.keep_parts(stale));
            assembler
        });
        assembler.look_through(side, overlay);
        out.clear();
        assembler.document(parts, out)
    }

    /// What is kept of a document as it was told.
    fn hash(&mut self, key: &[u8], through: Option<&'a Overlay>) -> Result<Vec<u8>, Error> {
        let mut old = std::mem::take(&mut self.old);
        let hash = match self.document(key, Side::Told, through, &mut old)? {
            Outcome::Document => xxh3_128(&old).to_be_bytes().to_vec(),
            Outcome::TooLarge => Known::TOO_LARGE.to_vec(),
            Outcome::LeftOut | Outcome::Incomplete => Vec::new(),
        };
        self.old = old;
        Ok(hash)
    }

    /// Appends the outbox entry of a document, if it is another than was told.
    fn entry(&mut self, key: &[u8], known: Known<'a>, standing: &Standing, piece: &mut Piece) -> Result<(), Error> {
        let (mut old, mut new) = (std::mem::take(&mut self.old), std::mem::take(&mut self.new));
        let made = self.document(key, Side::Now, self.view.overlay, &mut new)?;
        let present = made == Outcome::Document;
        let changed = match known {
            // It is told what it was, or nothing, until it fits.
            _ if made == Outcome::TooLarge => false,
            Known::Nothing | Known::TooLarge => true,
            Known::Hash(hash) => hash != present.then(|| xxh3_128(&new)),
            // Then what it was need not be known.
            Known::Through(None) if present && self.root_differs(key)? => true,
            Known::Through(through) => {
                let was = self.document(key, Side::Told, through, &mut old)?;
                was == Outcome::TooLarge || (was == Outcome::Document) != present || present && old != new
            }
        };
        piece.skips |= !changed && !matches!(known, Known::Through(None));
        if made == Outcome::TooLarge || changed {
            self.set_aside(key, made, standing, piece)?;
        }
        if changed {
            let (entity, parts) = split(self.view.store, self.view.catalog, key)?;
            let text = entity_key(&self.view.catalog.entities[entity], parts)
                .ok_or_else(|| self.view.store.corrupt("an entity key that cannot be read"))?;
            let document = present.then_some(new.as_slice());
            let entity = self.view.catalog.entities[entity].number;
            let (version, commit_time_ms) = (standing.frontier, standing.commit_time_ms);
            piece.entries.push(&Entry { entity, key: &text, version, commit_time_ms, document });
        }
        self.assemblers.iter_mut().flatten().for_each(|assembler| piece.parts.append(&mut assembler.made_parts()));
        (self.old, self.new) = (old, new);
        Ok(())
    }
}

impl Documents<'_> {
    /// Whether the changes of the step tell by themselves that a document which is there is another than before: its root is new, or a column of it that stands in every document is another. (False says nothing: the root may
    /// not have changed at all, or the changes not say what it was.)
    fn root_differs(&mut self, key: &[u8]) -> Result<bool, Error> {
        let View { store, catalog, overlay, .. } = self.view;
        let (entity, parts) = split(store, catalog, key)?;
        let entity = &catalog.entities[entity];
        let (Some(index), Some(overlay)) = (entity.root_index(&catalog.indexes), overlay) else { return Ok(false) };
        let mut place = Vec::with_capacity(parts.len() + 2);
        start_key(index, &mut place);
        place.extend_from_slice(parts);
        let Some(Write { row: Some(is), was, .. }) = overlay.get_near(index, &place, &mut self.near) else { return Ok(false) };
        let was = match was {
            Was::Unknown => return Ok(false),
            Was::Nothing => return Ok(true),
            Was::Row(was) => was,
        };
        let (mut old, mut new) = (Spans::default(), Spans::default());
        let (was, is) = (old.read(was), new.read(is));
        Ok(entity.nodes[0].fields.iter().any(|(_, slot)| was.get(*slot) != is.get(*slot)))
    }

    /// Takes note of a document that is too large, or that it is not, or not any more.
    fn set_aside(&self, key: &[u8], made: Outcome, standing: &Standing, piece: &mut Piece) -> Result<(), Error> {
        let View { store, catalog, .. } = self.view;
        let (entity, parts) = split(store, catalog, key)?;
        let entity = &catalog.entities[entity];
        let Some(limits) = entity.plan.definition.limits.filter(|limits| limits.exceeded == Exceeded::DeadLetter) else {
            return Ok(());
        };
        let key = entity_key(entity, parts).ok_or_else(|| store.corrupt("an entity key that cannot be read"))?;
        let place = TooLarge::place(&entity.name, &key);
        let letter = (made == Outcome::TooLarge).then(|| TooLarge::new(&entity.name, key, limits, standing));
        piece.letters.push((place, letter));
        Ok(())
    }
}

/// An entity and its key's parts.
fn split<'k>(store: &Store, catalog: &Catalog, key: &'k [u8]) -> Result<(usize, &'k [u8]), Error> {
    let (entity, parts) = key.split_first_chunk::<2>().ok_or_else(|| store.corrupt("an entity key without its entity"))?;
    let entity = catalog.numbered(u16::from_be_bytes(*entity));
    Ok((entity.ok_or_else(|| store.corrupt("a key of an unknown entity"))?, parts))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pieces_come_in_order_and_end_with_the_bytes() {
        let keys: Vec<usize> = (0..10_000).collect();
        let bytes = |share: Share| {
            let worker = || {
                |keys: &[usize], made: &AtomicUsize| {
                    made.fetch_add(keys.len(), Ordering::Relaxed);
                    Ok(keys.to_vec())
                }
            };
            work_off(share, &keys, worker).unwrap().concat()
        };
        assert_eq!(bytes(Share { threads: 4, bytes: usize::MAX }), keys);
        let some = bytes(Share { threads: 4, bytes: 1000 });
        assert!((1000..1000 + 4 * LARGEST_PIECE).contains(&some.len()), "{}", some.len());
        assert_eq!(some, keys[..some.len()]);
    }

    #[test]
    fn a_failure_is_told() {
        let worker = || {
            |keys: &[usize], _: &AtomicUsize| {
                if keys.contains(&7) { Err(Error::NoEntities) } else { Ok(()) }
            }
        };
        let keys: Vec<usize> = (0..1000).collect();
        assert!(matches!(work_off(Share { threads: 2, bytes: usize::MAX }, &keys, worker), Err(Error::NoEntities)));
    }
}
