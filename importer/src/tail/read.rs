//! The tail's reader: finds what has been captured, reads it and hands it over in order, range by range, ahead of what is being published.
//!
//! It runs as a task of its own, so that reading and decoding go on while earlier changes are encoded, published and acknowledged, and works on nothing but what it
//! was given when the session was opened. Whenever the catalog is not what it was then, it says so and ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::Lsn;
use tiberius::ColumnData;
use tokio::sync::{mpsc, watch};

use super::merge::{Merge, Range};
use crate::error::Error;
use crate::pool::Pool;
use crate::session::Table;
use crate::snapshot::{Look, previous};
use source::changes::{CaptureState, Change, Probe};
use source::clock::Commits;
use source::decode::Columns;
use source::{Client, sql};

/// Changes that are handed over at a time.
const BATCH: usize = 256;
/// Parts of a range that are read at once.
const ABREAST: usize = 3;
/// How many changes of each table that moved a part should have: about a page, so that a part that has to wait for its turn is read to its end meanwhile and several
/// cores decode.
const PART_CHANGES: usize = 2000;
/// How many transactions the first part has, of which nobody knows how large they are.
const FIRST_PART: usize = 100;
/// The first wait after something was found; then twice as long each time, up to the poll interval.
const FIRST_WAIT: Duration = Duration::from_millis(2);
/// How often the catalog is looked at while nothing happens.
const CATALOG_LOOK: Duration = Duration::from_secs(1);

/// What the reader hands over.
pub(super) enum Item {
    /// Changes of the range that is being read, in order.
    Changes(Vec<Read>),
    /// The range has been read to its end.
    End { from: Lsn, to: Lsn, last: Option<Transaction>, took: Duration },
    /// There was nothing new.
    Idle,
    /// The catalog has moved: the reader has ended.
    Moved,
}

/// A change of one of the session's tables.
pub(super) struct Read {
    pub(super) table: usize,
    pub(super) change: Change,
    pub(super) commit_time_ms: i64,
}

/// A captured transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Transaction {
    pub(super) lsn: Lsn,
    pub(super) commit_time_ms: i64,
}

pub(super) struct Reader {
    pub(super) client: Client,
    pub(super) pool: Arc<Pool>,
    pub(super) tables: Arc<Vec<Table>>,
    /// What was captured when the session was opened.
    pub(super) known: CaptureState,
    pub(super) commits: Commits,
    pub(super) from: Lsn,
    pub(super) tick_transactions: usize,
    pub(super) poll_interval: Duration,
    /// Asks what has moved, over the instances of `tables` in their order; `None`: there are none.
    pub(super) probe: Option<Probe>,
    /// How large transactions have been lately.
    pub(super) sizes: Sizes,
    /// Tables that are to be read first and far ahead ([`crate::headroom`]).
    pub(super) favoured: watch::Receiver<Vec<usize>>,
}

impl Reader {
    /// Reads until the catalog has moved, something fails, or nobody listens any more.
    pub(super) async fn run(mut self, items: mpsc::Sender<Item>) -> Result<(), Error> {
        let mut wait = FIRST_WAIT;
        let mut catalog = Look::new(CATALOG_LOOK);
        loop {
            let next = match self.tick(&items).await? {
                Tick::Gone => return Ok(()),
                Tick::Moved => Item::Moved,
                Tick::Done => {
                    wait = FIRST_WAIT;
                    continue;
                }
                Tick::Nothing if catalog.is_due() && CaptureState::read(&mut self.client).await? != self.known => Item::Moved,
                Tick::Nothing => Item::Idle,
            };
            let ended = matches!(next, Item::Moved);
            if items.send(next).await.is_err() || ended {
                return Ok(());
            }
            tokio::time::sleep(wait.min(self.poll_interval)).await;
            wait = (wait * 2).min(self.poll_interval);
        }
    }

    /// Reads the next range, if anything has been captured.
    async fn tick(&mut self, items: &mpsc::Sender<Item>) -> Result<Tick, Error> {
        let started = Instant::now();
        let mut transactions = self.transactions().await?;
        let Some(last) = transactions.last().copied() else { return Ok(Tick::Nothing) };
        let Some(moved) = self.moved().await? else { return Ok(Tick::Moved) };
        let mut range = Range { from: self.from, to: last.lsn };
        let until = self.tables.iter().filter_map(|table| table.until).min();
        if let Some(until) = until.filter(|until| *until <= last.lsn) {
            // From there on another capture instance is read: the range ends right before it, and the tables are opened again.
            transactions.retain(|transaction| transaction.lsn < until);
            range.to = previous(until);
        }
        let favoured = self.favoured.borrow().clone();
        let mut parts = Parts { range, transactions: &transactions, at: 0, ended: false };
        let mut merges = VecDeque::new();
        let mut times = CommitTimes { transactions: &transactions, at: 0 };
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            while merges.len() < ABREAST
                && let Some(part) = parts.next(if favoured.is_empty() {
                    self.sizes.transactions_of(PART_CHANGES * moved.len())
                } else {
                    usize::MAX
                })
            {
                merges.push_back((
                    Merge::begin(&self.tables, &moved, &favoured, part.range, ABREAST, &self.pool),
                    part.transactions,
                ));
            }
            let Some((mut merge, transactions)) = merges.pop_front() else { break };
            let mut changes = 0;
            while let Some((which, change)) = merge.next().await? {
                changes += 1;
                let commit_time_ms = times.of(change.position.commit_lsn);
                batch.push(Read { table: moved[which], change, commit_time_ms });
                if batch.len() == BATCH {
                    let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
                    if items.send(Item::Changes(full)).await.is_err() {
                        return Ok(Tick::Gone);
                    }
                }
            }
            self.sizes.saw(changes, transactions);
        }
        if !batch.is_empty() && items.send(Item::Changes(batch)).await.is_err() {
            return Ok(Tick::Gone);
        }
        let end = Item::End { from: range.from, to: range.to, last: transactions.last().copied(), took: started.elapsed() };
        if items.send(end).await.is_err() {
            return Ok(Tick::Gone);
        }
        self.from = range.to;
        Ok(if until.is_some_and(|until| until <= last.lsn) { Tick::Moved } else { Tick::Done })
    }

    async fn transactions(&mut self) -> Result<Vec<Transaction>, Error> {
        let doing = "listing captured transactions";
        let most = self.tick_transactions.max(1);
        let parameters = vec![
            ColumnData::I64(Some(most.try_into().unwrap_or(i64::MAX))),
            ColumnData::Binary(Some(self.from.as_bytes().to_vec().into())),
        ];
        let mut transactions = Vec::new();
        let commits = &mut self.commits;
        self.client
            .for_each(doing, sql::TRANSACTIONS, parameters, |_, row| {
                let mut row = Columns::new(doing, row);
                let (lsn, time, offset) = (row.lsn()?, row.value()?, row.int()?);
                if let Some(lsn) = lsn {
                    transactions.push(Transaction { lsn, commit_time_ms: commits.unix_ms(&time, offset)? });
                }
                Ok(())
            })
            .await?;
        Ok(transactions)
    }

    /// The tables that hold changes after `from`, by index; `None` if the catalog has moved. Fails if any table, moved or not, has lost some.
    async fn moved(&mut self) -> Result<Option<Vec<usize>>, Error> {
        let Some(probe) = &self.probe else { return Ok(Some(Vec::new())) };
        let found = probe.ask(&mut self.client).await?;
        if found.state != self.known {
            return Ok(None);
        }
        for table in self.tables.iter() {
            // An instance that is listed but has no beginning is as good as gone.
            let min = found.begins.get(&table.changes.instance).copied().flatten();
            table.changes.check_watermark(self.from, min)?;
        }
        Ok(Some(found.newest.into_iter().filter(|(_, newest)| *newest > self.from).map(|(table, _)| table).collect()))
    }
}

/// A range in parts that follow each other and end with transactions: several are read at once, so that not one core decodes everything.
struct Parts<'a> {
    range: Range,
    transactions: &'a [Transaction],
    /// Transactions in parts so far.
    at: usize,
    ended: bool,
}

struct Part {
    range: Range,
    transactions: usize,
}

impl Parts<'_> {
    /// The next part, of about so many transactions; the last one goes to the end of the range, and a range without transactions is one part.
    fn next(&mut self, most: usize) -> Option<Part> {
        if self.ended {
            return None;
        }
        let from = self.at.checked_sub(1).map_or(self.range.from, |before| self.transactions[before].lsn);
        let end = self.at.saturating_add(most.max(1)).min(self.transactions.len());
        let transactions = end - self.at;
        self.ended = end == self.transactions.len();
        self.at = end;
        let to = if self.ended { self.range.to } else { self.transactions[end - 1].lsn };
        Some(Part { range: Range { from, to }, transactions })
    }
}

/// How many changes transactions have had lately.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    changes: usize,
    transactions: usize,
}

impl Sizes {
    fn saw(&mut self, changes: usize, transactions: usize) {
        // What was longer ago counts half as much each time.
        self.changes = self.changes / 2 + changes;
        self.transactions = self.transactions / 2 + transactions;
    }

    /// How many transactions have about so many changes.
    fn transactions_of(&self, changes: usize) -> usize {
        if self.transactions == 0 { FIRST_PART } else { (changes * self.transactions / self.changes.max(1)).max(1) }
    }
}

enum Tick {
    Done,
    Nothing,
    Moved,
    Gone,
}

/// Commit times of ascending LSNs.
struct CommitTimes<'a> {
    transactions: &'a [Transaction],
    at: usize,
}

impl CommitTimes<'_> {
    fn of(&mut self, lsn: Lsn) -> i64 {
        while self.at + 1 < self.transactions.len() && self.transactions[self.at].lsn < lsn {
            self.at += 1;
        }
        self.transactions.get(self.at).map_or(0, |transaction| transaction.commit_time_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_range_follow_each_other_and_end_with_it() {
        let lsn = |n: u32| {
            let mut bytes = [0; 10];
            bytes[6..].copy_from_slice(&n.to_be_bytes());
            Lsn::from_bytes(bytes)
        };
        for (count, most) in [(0, 10), (1, 10), (999, 1000), (1000, 1000), (1001, 1000), (2500, 7), (3, 0)] {
            let transactions: Vec<Transaction> =
                (1..=count).map(|n| Transaction { lsn: lsn(n * 2), commit_time_ms: 0 }).collect();
            let range = Range { from: lsn(0), to: lsn(6000) };
            let mut rest = Parts { range, transactions: &transactions, at: 0, ended: false };
            let parts: Vec<Part> = std::iter::from_fn(|| rest.next(most)).collect();
            assert_eq!((parts[0].range.from, parts[parts.len() - 1].range.to), (range.from, range.to));
            assert!(parts.windows(2).all(|pair| pair[0].range.to == pair[1].range.from));
            assert_eq!(parts.iter().map(|part| part.transactions).sum::<usize>(), transactions.len());
            assert_eq!(parts.len(), transactions.len().div_ceil(most.max(1)).max(1));
        }
    }

    #[test]
    fn parts_are_as_large_as_transactions_turn_out_to_be() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.transactions_of(4000), FIRST_PART);
        sizes.saw(2000, 100);
        assert_eq!(sizes.transactions_of(4000), 200);
        sizes.saw(1_000_000, 1);
        assert_eq!(sizes.transactions_of(4000), 1);
        sizes.saw(0, 10_000);
        assert!(sizes.transactions_of(4000) > 50);
    }
}
