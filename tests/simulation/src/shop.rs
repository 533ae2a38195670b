//! The source: a model of a SQL Server database with change data capture. What the importer sees of it is answered by [`crate::server`].
//!
//! Transactions commit at once and are captured later, as the capture job does it: a transaction's rows and its entry in the mapping of LSNs to times come together, in the order of commits. Cleanup moves a table's low
//! watermark and removes what is below.

use std::collections::BTreeMap;

use schemas::Lsn;

use crate::dice::Dice;
use crate::history::{Cell, Change, Event, History, Row};
use crate::kernel;

/// A table: its name, its columns (those that hold text are named so) and how many of them, from the first on, are the key.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) columns: &'static [(&'static str, Kind)],
    pub(crate) key: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Int,
    /// May be NULL.
    Reference,
    /// nvarchar(20), may be NULL.
    Text,
    /// datetime2(3), may be NULL: milliseconds since 1970.
    Moment,
}

use Kind::{Int, Moment, Reference, Text};

pub(crate) const CUSTOMERS: usize = 0;
pub(crate) const ORDERS: usize = 1;
pub(crate) const ITEMS: usize = 2;
pub(crate) const PRODUCTS: usize = 3;

pub(crate) const TABLES: [Table; 4] = [
    Table { name: "customers", columns: &[("id", Int), ("name", Text)], key: 1 },
    Table {
        name: "orders",
        columns: &[("id", Int), ("customer_id", Reference), ("status", Int), ("rev", Int), ("ends", Moment)],
        key: 1,
    },
    Table { name: "items", columns: &[("order_id", Int), ("line", Int), ("product_id", Reference), ("qty", Int)], key: 2 },
    Table { name: "products", columns: &[("id", Int), ("name", Text)], key: 1 },
];

/// SQL Server captures something every five minutes, even where nothing happens.
const IDLE_ENTRY_MS: i64 = 300_000;

pub(crate) type Key = Vec<Cell>;

/// A row of a change table.
#[derive(Debug, Clone)]
pub(crate) struct ChangeRow {
    pub(crate) lsn: Lsn,
    pub(crate) command: i64,
    pub(crate) seqval: Lsn,
    pub(crate) operation: i64,
    pub(crate) row: Row,
}

struct Committed {
    lsn: Lsn,
    time_ms: i64,
    changes: Vec<(usize, ChangeRow)>,
}

pub(crate) struct Shop {
    dice: Dice,
    history: History,
    pub(crate) rows: [BTreeMap<Key, Row>; 4],
    /// Committed and not captured yet.
    waiting: Vec<Committed>,
    /// By table, in order.
    pub(crate) changes: [Vec<ChangeRow>; 4],
    /// Captured transactions and when they were committed, by the server's clock.
    pub(crate) mapping: Vec<(Lsn, i64)>,
    /// By table, where its change table begins.
    pub(crate) begins: [Lsn; 4],
    /// How many scans of the capture job have found nothing, and when the last of them ended, by the server's clock.
    pub(crate) empty_scan: Option<(i64, i64)>,
    /// Whether the importer may see where an entry of its own stands in the log.
    pub(crate) marks: bool,
    /// By how much the server's clock is off.
    pub(crate) skew_ms: i64,
    pub(crate) capturing: bool,
    number: u64,
    revision: i64,
    last_commit: Lsn,
}

pub(crate) fn lsn(number: u64) -> Lsn {
    let mut bytes = [0; 10];
    bytes[2..].copy_from_slice(&number.to_be_bytes());
    Lsn::from_bytes(bytes)
}

pub(crate) fn key_of(table: usize, row: &Row) -> Key {
    row[..TABLES[table].key].to_vec()
}

impl Shop {
    pub(crate) fn new(mut dice: Dice, history: History) -> Self {
        let first = lsn(1 << 20);
        let marks = dice.chance(700);
        Self {
            dice,
            history,
            marks,
            rows: Default::default(),
            waiting: Vec::new(),
            changes: Default::default(),
            mapping: Vec::new(),
            begins: [first; 4],
            empty_scan: None,
            skew_ms: 0,
            capturing: true,
            number: 1 << 20,
            revision: 0,
            last_commit: Lsn::ZERO,
        }
    }

    pub(crate) fn clock_ms(&self) -> i64 {
        kernel::true_time_ms() + self.skew_ms
    }

    /// How far capture has come.
    pub(crate) fn captured(&self) -> Option<Lsn> {
        self.mapping.last().map(|(lsn, _)| *lsn)
    }

    pub(crate) fn last_commit(&self) -> Lsn {
        self.last_commit
    }

    /// An entry in the log that changes nothing.
    pub(crate) fn mark(&mut self) -> Lsn {
        self.number += 1;
        lsn(self.number)
    }

    /// Whether everything that was committed has been captured.
    pub(crate) fn is_captured(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A transaction over one table or several.
    pub(crate) fn commit(&mut self) {
        self.number += self.dice.within(1, 60);
        self.revision += 1;
        let mut transaction = Transaction { lsn: lsn(self.number), command: 0, seqval: 0, rows: Vec::new(), told: Vec::new() };
        let changes = if self.dice.chance(30) { self.dice.within(20, 120) } else { self.dice.within(1, 5) };
        for _ in 0..changes {
            self.change(&mut transaction);
        }
        if transaction.rows.is_empty() {
            return;
        }
        let Transaction { lsn, rows, told, .. } = transaction;
        self.history.add(Event::Committed { lsn, changes: told });
        self.last_commit = lsn;
        self.waiting.push(Committed { lsn, time_ms: self.clock_ms(), changes: rows });
    }

    fn row(&mut self, table: usize) -> Row {
        let now = self.clock_ms();
        let dice = &mut self.dice;
        let id = |dice: &mut Dice, most| Cell::Int(dice.within(1, most).cast_signed());
        let reference =
            |dice: &mut Dice, most| if dice.chance(150) { Cell::Null } else { Cell::Int(dice.within(1, most).cast_signed()) };
        let name = |dice: &mut Dice| match dice.below(8) {
            0 => Cell::Null,
            1 => Cell::Text("Zoë \"Ø\" 中".to_owned()),
            n => Cell::Text(format!("name {n} {}", dice.below(1000))),
        };
        match table {
            CUSTOMERS => vec![id(dice, 5), name(dice)],
            ORDERS => {
                let ends = match dice.below(4) {
                    0 => Cell::Int(now + dice.within(0, 30_000).cast_signed()),
                    1 => Cell::Int(now + dice.within(0, 1_000_000).cast_signed()),
                    _ => Cell::Null,
                };
                vec![id(dice, 14), reference(dice, 6), Cell::Int(dice.below(4).cast_signed()), Cell::Int(self.revision), ends]
            }
            ITEMS => vec![id(dice, 15), id(dice, 4), reference(dice, 5), Cell::Int(dice.within(1, 99).cast_signed())],
            _ => vec![id(dice, 5), name(dice)],
        }
    }

    fn change(&mut self, transaction: &mut Transaction) {
        let table =
            *self.dice.pick(&[CUSTOMERS, ORDERS, ORDERS, ORDERS, ITEMS, ITEMS, ITEMS, ITEMS, PRODUCTS]).unwrap_or(&ORDERS);
        let known: Vec<Key> = self.rows[table].keys().cloned().collect();
        let new = self.row(table);
        let choice = self.dice.below(10);
        let some = self.dice.pick(&known).cloned();
        match some {
            Some(key) if choice >= 8 => {
                let old = self.rows[table].remove(&key);
                transaction.push(table, old, None);
            }
            // The row gets another key, where that is free.
            Some(key) if choice == 7 => {
                if !self.rows[table].contains_key(&key_of(table, &new)) {
                    let old = self.rows[table].remove(&key);
                    self.rows[table].insert(key_of(table, &new), new.clone());
                    transaction.push(table, old, Some(new));
                }
            }
            Some(key) if choice >= 3 => {
                let mut updated = new;
                updated[..key.len()].clone_from_slice(&key);
                let old = self.rows[table].insert(key, updated.clone());
                transaction.push(table, old, Some(updated));
            }
            _ => {
                let old = self.rows[table].insert(key_of(table, &new), new.clone());
                transaction.push(table, old, Some(new));
            }
        }
    }

    /// A scan of the capture job, which takes in at most so many transactions.
    pub(crate) fn scan(&mut self, most: usize) {
        if !self.capturing {
            return;
        }
        let now = self.clock_ms();
        if self.waiting.is_empty() {
            self.empty_scan = Some((self.empty_scan.map_or(0, |(number, _)| number) + 1, now));
            if self.mapping.last().is_none_or(|(_, time)| now - time >= IDLE_ENTRY_MS) {
                self.number += 1;
                self.mapping.push((lsn(self.number), now));
                self.history.add(Event::Captured { up_to: lsn(self.number) });
            }
            return;
        }
        let most = most.min(self.waiting.len());
        for Committed { lsn, time_ms, changes } in self.waiting.drain(..most) {
            self.mapping.push((lsn, time_ms));
            for (table, row) in changes {
                self.changes[table].push(row);
            }
        }
        if let Some(up_to) = self.captured() {
            self.history.add(Event::Captured { up_to });
        }
    }

    /// Cleanup: keeps the last `keep` captured transactions of a table.
    pub(crate) fn purge(&mut self, table: usize, keep: usize) {
        let Some(at) = self.mapping.len().checked_sub(keep + 1) else { return };
        let before = self.mapping[at].0;
        if before <= self.begins[table] {
            return;
        }
        self.begins[table] = before;
        self.changes[table].retain(|change| change.lsn >= before);
        let least = self.begins.iter().min().copied().unwrap_or(before);
        self.mapping.retain(|(lsn, _)| *lsn >= least);
        self.history.add(Event::Purged { table: TABLES[table].name.to_owned(), before });
    }
}

/// A transaction while it is made.
struct Transaction {
    lsn: Lsn,
    command: i64,
    seqval: u64,
    rows: Vec<(usize, ChangeRow)>,
    told: Vec<Change>,
}

impl Transaction {
    fn push(&mut self, table: usize, before: Option<Row>, after: Option<Row>) {
        self.command += 1;
        self.seqval += 3;
        let (lsn, command, seqval) = (self.lsn, self.command, lsn(self.seqval));
        let same_key = match (&before, &after) {
            (Some(before), Some(after)) => key_of(table, before) == key_of(table, after),
            _ => false,
        };
        // An update that changes the key is recorded as a delete and an insert of one seqval.
        let (old, new) = if same_key { (3, 4) } else { (1, 2) };
        for (operation, row) in [(old, &before), (new, &after)] {
            if let Some(row) = row {
                self.rows.push((table, ChangeRow { lsn, command, seqval, operation, row: row.clone() }));
            }
        }
        self.told.push(Change { table: TABLES[table].name.to_owned(), before, after });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_captured_is_what_was_committed_in_its_order() {
        let history = History::new(false);
        let mut shop = Shop::new(Dice::new(7), history.clone());
        for round in 0..200 {
            shop.commit();
            if round % 3 == 0 {
                shop.scan(2);
            }
        }
        shop.scan(usize::MAX);
        let mut replayed: [BTreeMap<Key, Row>; 4] = Default::default();
        for (table, changes) in shop.changes.iter().enumerate() {
            assert!(changes.windows(2).all(|pair| {
                let order = |change: &ChangeRow| (change.lsn, change.command, change.seqval, change.operation);
                order(&pair[0]) < order(&pair[1])
            }));
            for change in changes {
                match change.operation {
                    1 => drop(replayed[table].remove(&key_of(table, &change.row))),
                    2 | 4 => drop(replayed[table].insert(key_of(table, &change.row), change.row.clone())),
                    _ => {}
                }
            }
        }
        assert_eq!(replayed, shop.rows);
        let committed = history.entries().iter().filter(|entry| matches!(entry.event, Event::Committed { .. })).count();
        assert_eq!(shop.mapping.len(), committed);
    }
}
