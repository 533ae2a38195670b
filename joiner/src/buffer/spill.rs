//! Changes that wait on the disk, in the `spill` column family.
//!
//! Spill key: the source's number (u16), `00`, commit LSN (10), command id (i32, sign bit turned), seqval (10), operation (1), table (u16), all big-endian: the total order. Value: kind (1), length of the before image plus one (u32; 0: none), the
//! before image, then the after image in the same way. Beside it, of what is no row that was read again: the source's number, `01`, commit LSN, table, seqval, operation, command id, and no value: repeats of an identity stand side by side there,
//! so that they are found by going through these keys once, and not by remembering all the identities of a transaction.
//!
//! # What taking costs
//! As much as is taken, whatever else waits. Reading begins at the least LSN that is still there ([`Spilled::least`]) and at the first row of each shard that is, never at the family's beginning, because what has been taken lies there: RocksDB passes over
//! removed keys one by one, and looks at every removed range for each iterator. For the same reason what was taken is not removed with each step, but once it has become [`GONE_ROWS`], or everything is gone. That it lies there until then changes nothing: it is
//! below where reading begins, and what comes later and is lower moves that down again.

use std::collections::BTreeMap;
use std::sync::Arc;

use rocksdb::{DBRawIterator, ReadOptions, WriteBatch};
use schemas::{Lsn, Position};

use super::{Change, ChangeRef, Due, Kind};
use crate::error::Error;
use crate::reread::{self, is_reread, reader};
use crate::state::{Family, Store};

/// Written at once, about.
const BATCH_BYTES: usize = 8 << 20;
/// Rows that have been taken are removed when they are as many.
const GONE_ROWS: u64 = 20_000;
/// What a key of the family begins with, behind the source.
const IN_ORDER: u8 = 0;
const BY_IDENTITY: u8 = 1;

/// What the keys of a kind begin with.
fn begins(source: u16, kind: u8) -> [u8; 3] {
    let [a, b] = source.to_be_bytes();
    [a, b, kind]
}

fn ordered(command_id: i32) -> [u8; 4] {
    (command_id.cast_unsigned() ^ 1 << 31).to_be_bytes()
}

fn command_id(ordered: [u8; 4]) -> i32 {
    (u32::from_be_bytes(ordered) ^ 1 << 31).cast_signed()
}

fn spill_key(source: u16, position: &Position, table: u16) -> Vec<u8> {
    let mut key = Vec::with_capacity(30);
    key.extend_from_slice(&begins(source, IN_ORDER));
    key.extend_from_slice(position.commit_lsn.as_bytes());
    key.extend_from_slice(&ordered(position.command_id));
    key.extend_from_slice(position.seqval.as_bytes());
    key.push(position.operation);
    key.extend_from_slice(&table.to_be_bytes());
    key
}

fn read_spill_key(key: &[u8]) -> Option<(Position, u16)> {
    let key: &[u8; 27] = key.get(2..)?.strip_prefix(&[IN_ORDER])?.try_into().ok()?;
    let position = Position {
        commit_lsn: Lsn::from_slice(&key[..10])?,
        command_id: command_id(*key[10..].first_chunk()?),
        seqval: Lsn::from_slice(&key[14..24])?,
        operation: key[24],
    };
    Some((position, u16::from_be_bytes([key[25], key[26]])))
}

/// The identity, and behind it what tells repeats of it apart.
fn identity_key(source: u16, position: &Position, table: u16) -> Vec<u8> {
    let mut key = Vec::with_capacity(30);
    key.extend_from_slice(&begins(source, BY_IDENTITY));
    key.extend_from_slice(position.commit_lsn.as_bytes());
    key.extend_from_slice(&table.to_be_bytes());
    key.extend_from_slice(position.seqval.as_bytes());
    key.push(position.operation);
    key.extend_from_slice(&ordered(position.command_id));
    key
}

fn read_identity_key(key: &[u8]) -> Option<(Position, u16)> {
    let key: &[u8; 27] = key.get(2..)?.strip_prefix(&[BY_IDENTITY])?.try_into().ok()?;
    let position = Position {
        commit_lsn: Lsn::from_slice(&key[..10])?,
        command_id: command_id(*key.last_chunk()?),
        seqval: Lsn::from_slice(&key[12..22])?,
        operation: key[22],
    };
    Some((position, u16::from_be_bytes([key[10], key[11]])))
}

fn spill_value(change: ChangeRef<'_>) -> Vec<u8> {
    let mut out = vec![match change.kind {
        Kind::Rows => 0,
        Kind::Nothing => 1,
        Kind::Dead => 2,
    }];
    for image in [change.before, change.after] {
        out.extend_from_slice(&image.map_or(0, |image| image.len() as u32 + 1).to_be_bytes());
        out.extend_from_slice(image.unwrap_or_default());
    }
    out
}

fn read_spill_value<'a>(bytes: &'a [u8], position: &Position, table: u16) -> Option<ChangeRef<'a>> {
    let (kind, rest) = bytes.split_first()?;
    let kind = match kind {
        0 => Kind::Rows,
        1 => Kind::Nothing,
        2 => Kind::Dead,
        _ => return None,
    };
    let image = |bytes| -> Option<(Option<&[u8]>, &[u8])> {
        let (length, rest): (&[u8; 4], &[u8]) = <[u8]>::split_first_chunk(bytes)?;
        match (u32::from_be_bytes(*length) as usize).checked_sub(1) {
            None => Some((None, rest)),
            Some(length) => rest.split_at_checked(length).map(|(image, rest)| (Some(image), rest)),
        }
    };
    let (before, rest) = image(rest)?;
    let (after, _) = image(rest)?;
    let (table, commit_lsn) = (usize::from(table), position.commit_lsn);
    Some(ChangeRef { table, kind, commit_lsn, before, after, reader: reader(position) })
}

/// Where the changes of an LSN begin.
fn first_of(source: u16, commit_lsn: Lsn) -> Vec<u8> {
    spill_key(source, &Position { commit_lsn, command_id: i32::MIN, ..Position::default() }, 0)
}

/// Where the identities of an LSN begin.
fn identities_of(source: u16, commit_lsn: Lsn) -> Vec<u8> {
    [begins(source, BY_IDENTITY).as_slice(), commit_lsn.as_bytes()].concat()
}

/// Where a row of a shard that was read again stands.
fn row_of(source: u16, shard: u16, arrival: u64) -> Vec<u8> {
    spill_key(source, &reread::position(shard, arrival, 0), 0)
}

/// The keys from one on that are below another.
fn between<'s>(store: &'s Store, from: &[u8], to: Vec<u8>) -> Result<DBRawIterator<'s>, Error> {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(to);
    options.fill_cache(false);
    let mut iterator = store.db().raw_iterator_cf_opt(store.family(Family::Spill)?, options);
    iterator.seek(from);
    Ok(iterator)
}

/// Changes of a source that have been moved to the disk.
#[derive(Debug)]
pub(super) struct Spilled {
    store: Arc<Store>,
    source: u16,
    /// Whether there are changes; and no one that waits is below this LSN.
    changes: bool,
    least: Lsn,
    /// By shard, the numbers of the first and the last row that was read again and waits: they come in their order, and none is left out.
    rows: BTreeMap<u16, (u64, u64)>,
    /// How many were taken and not forgotten yet, where any were.
    taken: Option<u64>,
    /// How many have been forgotten, and still lie there.
    gone: u64,
}

impl Spilled {
    pub(super) fn new(store: Arc<Store>, source: u16) -> Self {
        Self { store, source, changes: false, least: Lsn::MAX, rows: BTreeMap::new(), taken: None, gone: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.changes && self.rows.is_empty()
    }

    /// Those of a shard that were read again come in their order.
    pub(super) fn add(&mut self, changes: impl Iterator<Item = Change>) -> Result<(), Error> {
        let store = self.store.clone();
        let cf = store.family(Family::Spill)?;
        let mut batch = WriteBatch::default();
        for change in changes {
            let position = &change.position;
            if position.commit_lsn < self.least && self.gone > 0 {
                // What lies there and has been taken must not be read again.
                self.remove_gone()?;
            }
            batch.put_cf(cf, spill_key(self.source, position, change.table), spill_value(change.borrow()));
            if is_reread(position) {
                let (shard, arrival) = reread::numbers(position);
                self.rows.entry(shard).or_insert((arrival, arrival)).1 = arrival;
            } else {
                batch.put_cf(cf, identity_key(self.source, position, change.table), b"");
                (self.changes, self.least) = (true, self.least.min(position.commit_lsn));
            }
            if batch.size_in_bytes() > BATCH_BYTES {
                self.store.write(std::mem::take(&mut batch), false)?;
            }
        }
        if batch.is_empty() { Ok(()) } else { self.store.write(batch, false) }
    }

    /// What is due; it has to be forgotten when its step is written.
    pub(super) fn take(&mut self, due: &Due) -> Result<Stretches, Error> {
        let waiting = self.rows.iter();
        let rows = waiting.map(|(&shard, &(first, last))| (shard, first, last.min(due.covered.up_to(shard))));
        let rows: Vec<_> = rows.filter(|(_, first, last)| first <= last).collect();
        let changes = (self.changes && self.least <= due.to).then_some((self.least, due.to));
        let mut taken = rows.iter().map(|(_, first, last)| last - first + 1).sum();
        if let Some((from, to)) = changes {
            taken += self.drop_repeats(from, to)?;
        }
        self.taken = Some(taken);
        Ok(Stretches { store: self.store.clone(), source: self.source, rows, changes })
    }

    /// Removes repeats of an identity: the first in the total order stays. (Those that agree in the command id as well are one key.) Answers how many changes there were.
    fn drop_repeats(&self, from: Lsn, to: Lsn) -> Result<u64, Error> {
        let cf = self.store.family(Family::Spill)?;
        let mut batch = WriteBatch::default();
        let mut first: Vec<u8> = Vec::new();
        let mut count = 0;
        let mut identities = between(&self.store, &identities_of(self.source, from), identities_of(self.source, to.next()))?;
        while let Some(key) = identities.key() {
            let (position, table) =
                read_identity_key(key).ok_or_else(|| self.store.corrupt("spill: a key that is no identity"))?;
            let identity = &key[..key.len() - 4];
            if identity == first {
                batch.delete_cf(cf, key);
                batch.delete_cf(cf, spill_key(self.source, &position, table));
            } else {
                first.clear();
                first.extend_from_slice(identity);
            }
            if batch.size_in_bytes() > BATCH_BYTES {
                self.store.write(std::mem::take(&mut batch), false)?;
            }
            count += 1;
            identities.next();
        }
        identities.status().map_err(|error| self.store.error(&error))?;
        if !batch.is_empty() {
            self.store.write(batch, false)?;
        }
        Ok(count)
    }

    /// Drops what was due.
    pub(super) fn forget(&mut self, due: &Due) -> Result<(), Error> {
        let taken = self.taken.take();
        let mut dropped = false;
        self.rows.retain(|&shard, (first, last)| {
            let next = due.covered.up_to(shard).saturating_add(1);
            dropped |= next > *first;
            *first = next.max(*first);
            first <= last
        });
        if self.changes && self.least <= due.to {
            dropped = true;
            self.least = due.to.next();
            let behind = begins(self.source, BY_IDENTITY).to_vec();
            let rest = between(&self.store, &first_of(self.source, self.least), behind)?;
            self.changes = rest.valid();
            rest.status().map_err(|error| self.store.error(&error))?;
        }
        if !self.changes {
            self.least = Lsn::MAX;
        }
        self.gone += match taken {
            Some(taken) => taken,
            // How many were dropped that nobody had looked at is not known.
            None => u64::from(dropped) * GONE_ROWS,
        };
        if self.gone >= GONE_ROWS || (self.gone > 0 && self.is_empty()) { self.remove_gone() } else { Ok(()) }
    }

    /// Removes what lies below everything that waits.
    fn remove_gone(&mut self) -> Result<(), Error> {
        let cf = self.store.family(Family::Spill)?;
        let mut batch = WriteBatch::default();
        let mut from = begins(self.source, IN_ORDER).to_vec();
        for (&shard, &(first, last)) in &self.rows {
            batch.delete_range_cf(cf, &from, &row_of(self.source, shard, first));
            from = row_of(self.source, shard, last + 1);
        }
        batch.delete_range_cf(cf, from, first_of(self.source, self.least));
        batch.delete_range_cf(cf, identities_of(self.source, Lsn::ZERO), identities_of(self.source, self.least));
        self.store.write(batch, false)?;
        self.gone = 0;
        Ok(())
    }
}

/// What was taken of them.
#[derive(Debug)]
pub(crate) struct Stretches {
    store: Arc<Store>,
    source: u16,
    /// Shard, first and last.
    rows: Vec<(u16, u64, u64)>,
    changes: Option<(Lsn, Lsn)>,
}

impl Stretches {
    pub(super) fn for_each(&self, mut each: impl FnMut(ChangeRef<'_>) -> Result<(), Error>) -> Result<(), Error> {
        let source = self.source;
        let rows = self.rows.iter();
        let rows = rows.map(|&(shard, first, last)| (row_of(source, shard, first), row_of(source, shard, last + 1)));
        let changes = self.changes.iter().map(|(from, to)| (first_of(source, *from), first_of(source, to.next())));
        for (from, to) in rows.chain(changes) {
            let mut iterator = between(&self.store, &from, to)?;
            while let Some((key, value)) = iterator.item() {
                let (position, table) =
                    read_spill_key(key).ok_or_else(|| self.store.corrupt("spill: a key that is no position"))?;
                each(
                    read_spill_value(value, &position, table)
                        .ok_or_else(|| self.store.corrupt("spill: a change that cannot be read"))?,
                )?;
                iterator.next();
            }
            iterator.status().map_err(|error| self.store.error(&error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn positions() -> impl Strategy<Value = Position> {
        (any::<[u8; 10]>(), any::<i32>(), any::<[u8; 10]>(), any::<u8>()).prop_map(|(commit, command_id, seqval, operation)| {
            Position { commit_lsn: Lsn::from_bytes(commit), command_id, seqval: Lsn::from_bytes(seqval), operation }
        })
    }

    proptest! {
        #[test]
        fn spill_keys_keep_the_total_order(a in positions(), b in positions(), source: u16, table: u16) {
            prop_assert_eq!(spill_key(source, &a, table).cmp(&spill_key(source, &b, table)), a.cmp(&b));
            prop_assert_eq!(read_spill_key(&spill_key(source, &a, table)), Some((a, table)));
        }

        #[test]
        fn repeats_stand_side_by_side_the_first_before_the_others(a in positions(), b in positions(), command_id: i32, source: u16, table: u16, other: u16) {
            let identity_key = |position: &Position, table| identity_key(source, position, table);
            prop_assert_eq!(read_identity_key(&identity_key(&a, table)), Some((a, table)));
            let repeat = Position { command_id, ..a };
            prop_assert_eq!(identity_key(&a, table).cmp(&identity_key(&repeat, table)), a.cmp(&repeat));
            let order = |position: &Position, table: u16| (position.commit_lsn, table, position.seqval, position.operation);
            if order(&a, table) != order(&b, other) {
                prop_assert_eq!(identity_key(&a, table).cmp(&identity_key(&b, other)), order(&a, table).cmp(&order(&b, other)));
            }
        }

        #[test]
        fn spill_values_round_trip(before: Option<Vec<u8>>, after: Option<Vec<u8>>, damage: Vec<u8>) {
            let position = Position { operation: 2, ..Position::default() };
            let (before, after) = (before.as_deref(), after.as_deref());
            let change = ChangeRef { table: 7, kind: Kind::Rows, commit_lsn: Lsn::ZERO, before, after, reader: None };
            let value = spill_value(change);
            let read = read_spill_value(&value, &position, 7).unwrap();
            prop_assert_eq!((read.kind, read.before, read.after), (Kind::Rows, before, after));
            let _ = read_spill_value(&damage, &Position::default(), 7);
        }
    }
}
