//! Changes that have been read and wait for their step.
//!
//! They are kept in memory up to a bound and in the `spill` column family past it, because a transaction may be larger than memory. Spilled changes need not survive a restart: input positions never pass a
//! change that is not applied, so what was lost is read again.
//!
//! Spill key: the source's number (u16), `00`, commit LSN (10), command id (i32, sign bit turned), seqval (10), operation (1), table (u16), all big-endian: the total order. Value: kind (1), length of the before image plus one (u32; 0: none), the
//! before image, then the after image in the same way. Beside it, of what is no row that was read again: the source's number, `01`, commit LSN, table, seqval, operation, command id, and no value: repeats of an identity stand side by side there,
//! so that they are found by going through these keys once, and not by remembering all the identities of a transaction.

use std::collections::HashSet;
use std::sync::Arc;

use rocksdb::WriteBatch;
use schemas::{Lsn, Position};

use crate::catalog::TableId;
use crate::error::Error;
use crate::reread::{self, Covered, is_reread, reader};
use crate::state::{Family, Store};

/// What a change asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To put and remove rows.
    Rows,
    /// Nothing: no used column changed.
    Nothing,
    /// Nothing: it could not be read, and has been dead-lettered.
    Dead,
}

/// A change to one row; images hold the used columns as [`crate::state::row`] keeps them.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) position: Position,
    pub(crate) table: u16,
    pub(crate) kind: Kind,
    pub(crate) before: Option<(u32, u32)>,
    pub(crate) after: Option<(u32, u32)>,
    /// Shared by the changes that were read together.
    pub(crate) arena: Arc<Vec<u8>>,
}

/// A change, wherever it is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChangeRef<'a> {
    pub(crate) table: TableId,
    pub(crate) kind: Kind,
    pub(crate) commit_lsn: Lsn,
    pub(crate) before: Option<&'a [u8]>,
    pub(crate) after: Option<&'a [u8]>,
    /// Who has read it, if it is a row that was read again.
    pub(crate) reader: Option<i32>,
}

impl Change {
    fn image(&self, span: Option<(u32, u32)>) -> Option<&[u8]> {
        span.map(|(start, end)| &self.arena[start as usize..end as usize])
    }

    fn borrow(&self) -> ChangeRef<'_> {
        let (before, after) = (self.image(self.before), self.image(self.after));
        let (table, commit_lsn) = (usize::from(self.table), self.position.commit_lsn);
        ChangeRef { table, kind: self.kind, commit_lsn, before, after, reader: reader(&self.position) }
    }

    fn bytes(&self) -> usize {
        let length = |span: Option<(u32, u32)>| span.map_or(0, |(start, end)| (end - start) as usize);
        std::mem::size_of::<Self>() + length(self.before) + length(self.after)
    }
}

/// Written at once, about.
const BATCH_BYTES: usize = 8 << 20;
/// What a key of the family begins with.
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
    let key = key.get(2..)?.strip_prefix(&[IN_ORDER])?;
    let command = u32::from_be_bytes(*key.get(10..14)?.first_chunk()?) ^ 1 << 31;
    let position = Position {
        commit_lsn: Lsn::from_slice(key.get(..10)?)?,
        command_id: command.cast_signed(),
        seqval: Lsn::from_slice(key.get(14..24)?)?,
        operation: *key.get(24)?,
    };
    Some((position, u16::from_be_bytes(*key.get(25..27)?.first_chunk()?)))
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
    let command = u32::from_be_bytes(*key.last_chunk()?) ^ 1 << 31;
    let position = Position {
        commit_lsn: Lsn::from_slice(&key[..10])?,
        command_id: command.cast_signed(),
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

/// What a step takes.
#[derive(Debug, Clone)]
pub(crate) struct Due {
    /// Changes at or below.
    pub(crate) to: Lsn,
    /// Rows that were read again, as far as they are covered.
    pub(crate) covered: Covered,
}

impl Due {
    /// Changes at or below an LSN alone.
    pub(crate) fn changes(to: Lsn) -> Self {
        Self { to, covered: Covered::default() }
    }

    fn holds(&self, position: &Position) -> bool {
        if is_reread(position) { self.covered.holds(position) } else { position.commit_lsn <= self.to }
    }
}

/// Changes of a source past its frontier.
#[derive(Debug)]
pub(crate) struct Buffer {
    store: Arc<Store>,
    source: u16,
    changes: Vec<Change>,
    bytes: usize,
    limit_bytes: usize,
    spilled: bool,
}

impl Buffer {
    /// `source`: its number.
    pub(crate) fn new(store: Arc<Store>, source: u16, limit_bytes: usize) -> Self {
        Self { store, source, changes: Vec::new(), bytes: 0, limit_bytes, spilled: false }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether changes have been moved to the disk, because there was no room for them.
    pub(crate) const fn has_spilled(&self) -> bool {
        self.spilled
    }

    pub(crate) fn push(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        self.bytes += changes.iter().map(Change::bytes).sum::<usize>();
        self.changes.extend(changes);
        if self.bytes > self.limit_bytes { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<(), Error> {
        let cf = self.store.family(Family::Spill)?;
        let mut batch = WriteBatch::default();
        for change in self.changes.drain(..) {
            batch.put_cf(cf, spill_key(self.source, &change.position, change.table), spill_value(change.borrow()));
            if !is_reread(&change.position) {
                batch.put_cf(cf, identity_key(self.source, &change.position, change.table), b"");
            }
            if batch.size_in_bytes() > BATCH_BYTES {
                self.store.write(std::mem::take(&mut batch), false)?;
            }
        }
        self.store.write(batch, false)?;
        self.bytes = 0;
        self.spilled = true;
        Ok(())
    }

    /// Takes what is `due`. When some have been spilled, all are, and the taken ones must be given back with [`forget`](Self::forget) when their step is written.
    pub(crate) fn take(&mut self, due: &Due) -> Result<Taken, Error> {
        if self.spilled {
            self.spill()?;
            self.drop_repeats(due.to)?;
            return Ok(Taken::Spilled { store: self.store.clone(), source: self.source, due: due.clone() });
        }
        let mut taken: Vec<Change> = self.changes.extract_if(.., |change| due.holds(&change.position)).collect();
        self.bytes -= taken.iter().map(Change::bytes).sum::<usize>();
        taken.sort_unstable_by_key(|change| (change.position, change.table));
        Ok(Taken::Memory(taken))
    }

    /// Removes spilled repeats of an identity: the first in the total order stays. (Those that agree in the command id as well are one key.)
    fn drop_repeats(&self, to: Lsn) -> Result<(), Error> {
        let cf = self.store.family(Family::Spill)?;
        let mut batch = WriteBatch::default();
        let mut first: Vec<u8> = Vec::new();
        let mut identities = self.store.db().raw_iterator_cf(cf);
        let begin = begins(self.source, BY_IDENTITY);
        identities.seek(begin);
        while let Some(key) = identities.key().filter(|key| key.starts_with(&begin)) {
            let (position, table) =
                read_identity_key(key).ok_or_else(|| self.store.corrupt("spill: a key that is no identity"))?;
            if position.commit_lsn > to {
                break;
            }
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
            identities.next();
        }
        identities.status().map_err(|error| self.store.error(&error))?;
        self.store.write(batch, false)
    }

    /// Drops what was `due`.
    pub(crate) fn forget(&mut self, due: &Due) -> Result<(), Error> {
        self.changes.retain(|change| !due.holds(&change.position));
        self.bytes = self.changes.iter().map(Change::bytes).sum();
        if !self.spilled {
            return Ok(());
        }
        let cf = self.store.family(Family::Spill)?;
        let mut batch = WriteBatch::default();
        // No change has the LSN zero: rows that were read again stand there, those of each shard together.
        let first = Position { commit_lsn: Lsn::ZERO.next(), command_id: i32::MIN, ..Position::default() };
        let behind = Position { commit_lsn: due.to.next(), ..first };
        batch.delete_range_cf(cf, spill_key(self.source, &first, 0), spill_key(self.source, &behind, 0));
        let identities = |from: Lsn| [begins(self.source, BY_IDENTITY).as_slice(), from.as_bytes().as_slice()].concat();
        batch.delete_range_cf(cf, identities(Lsn::ZERO), identities(behind.commit_lsn));
        for (shard, &covered) in due.covered.0.iter().enumerate() {
            let bound = |arrival| spill_key(self.source, &reread::position(shard as u16, arrival, 0), 0);
            batch.delete_range_cf(cf, bound(0), bound(covered + 1));
        }
        self.store.write(batch, false)?;
        let mut rest = self.store.db().raw_iterator_cf(cf);
        rest.seek(self.source.to_be_bytes());
        self.spilled = rest.key().is_some_and(|key| key.starts_with(&self.source.to_be_bytes()));
        rest.status().map_err(|error| self.store.error(&error))
    }
}

/// The changes of one step.
#[derive(Debug)]
pub(crate) enum Taken {
    Memory(Vec<Change>),
    Spilled { store: Arc<Store>, source: u16, due: Due },
}

impl Taken {
    /// Calls `each` with the changes in total order, each identity once. An identity is (table, commit LSN, seqval, operation): the command id is no part of it,
    /// because two capture instances of a table may give it differently. (Of what was spilled, repeats have been removed.)
    pub(crate) fn for_each(&self, mut each: impl FnMut(ChangeRef<'_>) -> Result<(), Error>) -> Result<(), Error> {
        match self {
            Self::Memory(changes) => {
                let mut seen: HashSet<(u16, Lsn, u8)> = HashSet::new();
                let mut transaction = Lsn::ZERO;
                for change in changes {
                    let Position { commit_lsn, seqval, operation, .. } = change.position;
                    if commit_lsn != transaction {
                        transaction = commit_lsn;
                        seen.clear();
                    }
                    if seen.insert((change.table, seqval, operation)) {
                        each(change.borrow())?;
                    }
                }
                Ok(())
            }
            Self::Spilled { store, source, due } => {
                let mut iterator = store.db().raw_iterator_cf(store.family(Family::Spill)?);
                let begin = begins(*source, IN_ORDER);
                iterator.seek(begin);
                while let Some((key, value)) = iterator.item().filter(|(key, _)| key.starts_with(&begin)) {
                    let (position, table) =
                        read_spill_key(key).ok_or_else(|| store.corrupt("spill: a key that is no position"))?;
                    if position.commit_lsn > due.to {
                        break;
                    }
                    if due.holds(&position) {
                        each(
                            read_spill_value(value, &position, table)
                                .ok_or_else(|| store.corrupt("spill: a change that cannot be read"))?,
                        )?;
                    }
                    iterator.next();
                }
                iterator.status().map_err(|error| store.error(&error))
            }
        }
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
