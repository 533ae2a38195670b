//! The outbox: entity changes by sequence number, kept for sinks and subscribers, each of which has its own cursor in it.
//!
//! Key: the sequence number, u64 big-endian. Value: entity (u16), version (10 bytes), commit time (i64), length of the key's text (u32), the key's text, then `1` and the
//! document, or `0` for a tombstone.
//!
//! Entries past the standing's head are those of a step that is still being assembled or written, or of one that a crash has cut off: they are not to be seen, and the next step puts its own there.
//!
//! What was written last is kept in memory ([`Recent`]), and read there by who follows.

use std::sync::Arc;

use rocksdb::{ColumnFamily, WriteBatch};
use schemas::change::{EntityChange, EntityKey};
use schemas::{Lsn, Vector};
use xxhash_rust::xxh3::Xxh3;

use super::meta::Standing;
use super::{Family, Store};
use crate::catalog::Catalog;
use crate::error::Error;

mod recent;

pub(crate) use recent::{Entries, Picked, Recent};

/// A change before it has been given its entity's name.
pub(crate) struct Entry<'a> {
    /// [`crate::catalog::Entity::number`].
    pub(crate) entity: u16,
    pub(crate) key: &'a EntityKey,
    pub(crate) version: Lsn,
    pub(crate) commit_time_ms: i64,
    pub(crate) document: Option<&'a [u8]>,
}

impl Entry<'_> {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let key = self.key.as_str().as_bytes();
        let document = self.document.unwrap_or_default();
        out.extend_from_slice(&self.entity.to_be_bytes());
        out.extend_from_slice(self.version.as_bytes());
        out.extend_from_slice(&self.commit_time_ms.to_be_bytes());
        out.extend_from_slice(&(key.len() as u32).to_be_bytes());
        out.extend_from_slice(key);
        out.push(u8::from(self.document.is_some()));
        out.extend_from_slice(document);
    }
}

pub(crate) fn decode(bytes: &[u8], catalog: &Catalog) -> Option<EntityChange> {
    let (entity, rest) = bytes.split_first_chunk::<2>()?;
    let (version, rest) = rest.split_first_chunk::<10>()?;
    let (time, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (key, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let (present, document) = rest.split_first()?;
    let document = match present {
        0 => None,
        _ => Some(Arc::from(simdutf8::basic::from_utf8(document).ok()?)),
    };
    // One that is no longer defined is called what it was.
    let entity = match catalog.numbers.get(usize::from(u16::from_be_bytes(*entity)))? {
        Ok(entity) => catalog.entities[*entity].name.clone(),
        Err(name) => name.clone(),
    };
    Some(EntityChange {
        entity,
        key: EntityKey::from_text(std::str::from_utf8(key).ok()?),
        version: Lsn::from_bytes(*version),
        commit_time_ms: i64::from_be_bytes(*time),
        document,
    })
}

/// Entries that are written in one batch, in bytes: so many stay in a core's own cache on their way.
const WRITTEN_AT_ONCE: usize = 512 << 10;

/// Adds an entry behind the one with the number `tail`, which it moves on.
fn put(family: &ColumnFamily, batch: &mut WriteBatch, tail: &mut u64, entry: &[u8]) {
    *tail += 1;
    batch.put_cf(family, tail.to_be_bytes(), entry);
}

/// Adds entries behind the one with the number `tail`; answers the number of the last.
pub(crate) fn append<'e>(
    store: &Store,
    batch: &mut WriteBatch,
    mut tail: u64,
    entries: impl Iterator<Item = &'e [u8]>,
) -> Result<u64, Error> {
    let family = store.family(Family::Outbox)?;
    entries.for_each(|entry| put(family, batch, &mut tail, entry));
    Ok(tail)
}

/// The same, written at once and bit by bit, before the batch whose standing lets them be seen. `log`: whether with the log. What a kill leaves of them stands past the head, and is written over.
pub(crate) fn write<'e>(store: &Store, mut tail: u64, entries: impl Iterator<Item = &'e [u8]>, log: bool) -> Result<u64, Error> {
    let family = store.family(Family::Outbox)?;
    let mut batch = WriteBatch::default();
    for entry in entries {
        put(family, &mut batch, &mut tail, entry);
        if batch.size_in_bytes() >= WRITTEN_AT_ONCE {
            store.write(std::mem::take(&mut batch), log)?;
        }
    }
    if !batch.is_empty() {
        store.write(batch, log)?;
    }
    Ok(tail)
}

/// Calls `each` with the entries in (`after`, `head`], until it answers false. `standing` names the head and must not be newer than what the database holds.
fn visit(
    store: &Store,
    standing: &Standing,
    after: u64,
    mut each: impl FnMut(u64, &[u8]) -> Result<bool, Error>,
) -> Result<(), Error> {
    let mut next = after + 1;
    let last = standing.head;
    loop {
        if !store.recent().visit(&mut next, last, &mut each)? || next > last {
            return Ok(());
        }
        // It comes as far as what is kept in memory, or to the end.
        let end = store.recent().first().filter(|first| *first > next);
        let mut iterator = store.db().raw_iterator_cf(store.family(Family::Outbox)?);
        iterator.seek(next.to_be_bytes());
        while let Some((key, value)) = iterator.item() {
            let sequence = self::sequence(store, key)?;
            if sequence > last || Some(sequence) == end {
                break;
            }
            if !each(sequence, value)? {
                return Ok(());
            }
            iterator.next();
        }
        iterator.status().map_err(|error| store.error(&error))?;
        let Some(end) = end else { return Ok(()) };
        next = end;
    }
}

/// The same with the changes that they are.
pub(crate) fn read(
    store: &Store,
    catalog: &Catalog,
    standing: &Standing,
    after: u64,
    each: &mut dyn FnMut(u64, EntityChange) -> bool,
) -> Result<(), Error> {
    visit(store, standing, after, |sequence, entry| {
        let change = decode(entry, catalog).ok_or_else(|| store.corrupt(format!("outbox entry {sequence} cannot be read")))?;
        Ok(each(sequence, change))
    })
}

/// Stands for an entity's key; see [`read_keys`].
pub(crate) fn key_hash(entity: u16, key: &[u8]) -> u128 {
    let mut hasher = Xxh3::with_seed(u64::from(entity));
    hasher.update(key);
    hasher.digest128()
}

/// Calls `each` with the numbers of the entries in (`after`, `head`] and the hashes of their keys, until it answers false. Entries that cannot be read are passed over: [`read`] says so.
pub(crate) fn read_keys(
    store: &Store,
    standing: &Standing,
    after: u64,
    each: &mut dyn FnMut(u64, u128) -> bool,
) -> Result<(), Error> {
    visit(store, standing, after, |sequence, entry| {
        let hash = named(entry).map(|change| key_hash(change.entity, change.key.as_bytes()));
        Ok(hash.is_none_or(|hash| each(sequence, hash)))
    })
}

/// Whose change an entry is.
pub(crate) struct Named<'e> {
    pub(crate) entity: u16,
    pub(crate) key: &'e str,
}

/// `None`: it is no entry.
pub(crate) fn named(entry: &[u8]) -> Option<Named<'_>> {
    let (entity, rest) = entry.split_first_chunk::<2>()?;
    let (length, rest) = rest.get(18..)?.split_first_chunk::<4>()?;
    let key = std::str::from_utf8(rest.get(..u32::from_be_bytes(*length) as usize)?).ok()?;
    Some(Named { entity: u16::from_be_bytes(*entity), key })
}

/// The number of the entry under a key.
pub(crate) fn sequence(store: &Store, key: &[u8]) -> Result<u64, Error> {
    key.try_into().map(u64::from_be_bytes).map_err(|_| store.corrupt("outbox: a key that is no sequence number"))
}

/// The entry behind which all changes after `lsn` stand; none where it is not known whether they all do.
pub(crate) fn position_of(store: &Store, standing: &Standing, lsn: Lsn) -> Result<Option<u64>, Error> {
    if lsn < standing.complete_after {
        return Ok(None);
    }
    last_that(store, standing, |version| Ok(version <= lsn)).map(Some)
}

/// The same of several sources: behind it stand all changes that are not within these LSNs.
pub(crate) fn position_within(store: &Store, standing: &Standing, reached: &Vector) -> Result<Option<u64>, Error> {
    let reached: Option<Vec<Lsn>> = standing.sources.iter().map(|source| reached.get(&source.source)).collect();
    let Some(reached) = reached else { return Ok(None) };
    // What is not known any more is told once more.
    let is_within = |version| {
        let vector = store.vector(version)?;
        Ok(vector.is_some_and(|vector| vector.iter().zip(&reached).all(|(lsn, reached)| lsn <= reached)))
    };
    if !is_within(standing.complete_after)? {
        return Ok(None);
    }
    last_that(store, standing, is_within).map(Some)
}

/// The last entry whose version `is_passed`, as are those of all before it.
fn last_that(store: &Store, standing: &Standing, is_passed: impl Fn(Lsn) -> Result<bool, Error>) -> Result<u64, Error> {
    let (mut first, mut end) = (standing.oldest, standing.head + 1);
    while first < end {
        let middle = first + (end - first) / 2;
        // What has been trimmed meanwhile was older than what was not.
        let passed = version(store, middle)?.map_or(Ok(true), &is_passed)?;
        if passed { first = middle + 1 } else { end = middle }
    }
    Ok(first - 1)
}

/// The LSN that an entry's document reflects.
pub(crate) fn version(store: &Store, sequence: u64) -> Result<Option<Lsn>, Error> {
    let Some(bytes) = store.get(Family::Outbox, &sequence.to_be_bytes())? else { return Ok(None) };
    Ok(bytes.get(2..12).and_then(|version| version.try_into().ok()).map(Lsn::from_bytes))
}

/// What the entries from `oldest` on take on the disk, as far as they are in files.
pub(crate) fn bytes(store: &Store, oldest: u64) -> Result<u64, Error> {
    let oldest = oldest.to_be_bytes();
    let range = rocksdb::Range::new(&oldest, &[0xff; 9]);
    Ok(store.db().get_approximate_sizes_cf(store.family(Family::Outbox)?, &[range]).iter().sum())
}

/// Removes entries below `oldest`.
pub(crate) fn trim(store: &Store, batch: &mut WriteBatch, oldest: u64) -> Result<(), Error> {
    batch.delete_range_cf(store.family(Family::Outbox)?, 0u64.to_be_bytes(), oldest.to_be_bytes());
    Ok(())
}

/// Gives back the space of files that hold nothing but entries below `oldest`, which have been removed; else compactions come to them much later. What says so is durable first: entries that a state after a power failure counts on must not be
/// missing.
pub(crate) fn reclaim(store: &Store, oldest: u64) -> Result<(), Error> {
    store.sync()?;
    let removed = store.db().delete_file_in_range_cf(store.family(Family::Outbox)?, 0u64.to_be_bytes(), oldest.to_be_bytes());
    removed.map_err(|error| store.error(&error))
}

/// The commit time of the first entry from `sequence` on.
pub(crate) fn commit_time_ms(store: &Store, sequence: u64) -> Result<Option<i64>, Error> {
    let Some(bytes) = store.get(Family::Outbox, &sequence.to_be_bytes())? else { return Ok(None) };
    Ok(bytes.get(12..20).and_then(|time| time.try_into().ok()).map(i64::from_be_bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::state::Memory;

    fn store(recent_bytes: usize) -> (tempfile::TempDir, Arc<Store>) {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory { write_buffer_bytes: 16 << 20, block_cache_bytes: 1 << 20, row_cache_bytes: 0, recent_bytes };
        let store = Store::open(dir.path(), 1, memory).unwrap();
        (dir, store)
    }

    fn entry(key: &str, document: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let key = &EntityKey::from_text(key);
        Entry { entity: 0, key, version: Lsn::ZERO, commit_time_ms: 0, document: Some(document) }.encode(&mut out);
        out
    }

    #[test]
    fn what_a_step_that_was_cut_off_has_written_is_not_seen_and_written_over() {
        let (_dir, store) = store(1 << 20);
        let mut standing = store.standing().unwrap();
        let seen = |standing: &Standing| {
            let mut seen = Vec::new();
            read_keys(&store, standing, 0, &mut |number, hash| {
                seen.push((number, hash));
                true
            })
            .unwrap();
            seen
        };
        let numbered =
            |keys: &[&str]| (1..).zip(keys).map(|(number, key)| (number, key_hash(0, key.as_bytes()))).collect::<Vec<_>>();
        // More than one write.
        let large = vec![b'x'; WRITTEN_AT_ONCE / 4];
        let of_cut_off: Vec<_> = (0..10).map(|number| entry(&format!("lost {number}"), &large)).collect();
        assert_eq!(write(&store, standing.head, of_cut_off.iter().map(Vec::as_slice), true).unwrap(), 10);
        assert_eq!(seen(&standing), []);
        let anew = [entry("a", b"1"), entry("b", b"2")];
        standing.head = write(&store, standing.head, anew.iter().map(Vec::as_slice), true).unwrap();
        assert_eq!(seen(&standing), numbered(&["a", "b"]));
        let mut batch = WriteBatch::default();
        let next = entry("c", b"3");
        standing.head = append(&store, &mut batch, standing.head, std::iter::once(next.as_slice())).unwrap();
        store.write(batch, true).unwrap();
        assert_eq!(seen(&standing), numbered(&["a", "b", "c"]));
        assert_eq!(write(&store, standing.head, std::iter::empty(), true).unwrap(), 3);
    }

    #[test]
    fn what_is_not_in_memory_any_more_is_read_from_the_database() {
        let (_dir, store) = store(2 << 10);
        let mut standing = store.standing().unwrap();
        let mut expected = Vec::new();
        for step in 0..10 {
            let keys: Vec<_> = (0..10).map(|number| format!("{step} {number}")).collect();
            let mut entries = Entries::default();
            for key in &keys {
                let key = &EntityKey::from_text(key);
                entries.push(&Entry { entity: 0, key, version: Lsn::ZERO, commit_time_ms: 0, document: Some(b"{}") });
            }
            expected.extend(keys.iter().map(|key| key_hash(0, key.as_bytes())));
            let tail = standing.head;
            standing.head = write(&store, tail, entries.iter(), true).unwrap();
            store.recent().keep(store.recent().pick(tail, vec![entries]));
        }
        let first = store.recent().first().unwrap();
        assert!(1 < first && first < 100, "all is in one place: {first}");
        let read = |after: u64, head: u64, limit: usize| {
            let mut hashes = Vec::new();
            let standing = Standing { head, ..standing.clone() };
            read_keys(&store, &standing, after, &mut |number, hash| {
                assert_eq!(number, after + 1 + hashes.len() as u64);
                hashes.push(hash);
                hashes.len() < limit
            })
            .unwrap();
            hashes
        };
        for after in 0..=100 {
            assert_eq!(read(after, 100, usize::MAX), expected[after as usize..]);
            assert_eq!(read(after, 95, usize::MAX), expected[after.min(95) as usize..95]);
            assert_eq!(read(after, 100, 3), expected[after as usize..100.min(after as usize + 3)]);
        }
    }

    #[test]
    fn an_empty_outbox_is_not_cleared_again() {
        let (_dir, store) = store(0);
        let cleared = || {
            let mut batch = WriteBatch::default();
            store.clear_in(&mut batch, Family::Outbox).unwrap();
            let count = batch.len();
            store.write(batch, true).unwrap();
            count
        };
        assert_eq!(cleared(), 0);
        write(&store, 0, std::iter::once(entry("a", b"1").as_slice()), true).unwrap();
        assert_eq!((cleared(), store.is_empty(Family::Outbox).unwrap(), cleared()), (1, true, 0));
    }
}
