//! Changes of several tables, brought into one order while further pages of them are being read.
//!
//! Each table is read by a task of its own ([`fetch`]), at most one page ahead of what is being published, on a connection of the pool that it holds for the time of a page. [`Merge`] takes the least
//! change by (commit LSN, command id, seqval, operation) of those at the tables' heads. At most two pages of each table are in memory for each part of a range that is
//! being read ([`super::read`]), and all pages share one limit ([`Cursor`]).

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use schemas::{Lsn, Position};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::pool::Pool;
use crate::session::Table;
use crate::snapshot::previous;
use source::changes::Change;
use source::cursor::Cursor;

/// Pages that a favoured table is read ahead of what is merged.
const FAVOURED_PAGES: usize = 16;

type Page = Result<VecDeque<Change>, source::Error>;

/// One table's changes.
struct Pages {
    page: VecDeque<Change>,
    more: mpsc::Receiver<Page>,
}

pub(super) struct Merge {
    pages: Vec<Pages>,
    heads: BinaryHeap<Reverse<(Position, usize)>>,
    begun: bool,
    /// Stopped when this is dropped.
    _readers: JoinSet<()>,
}

/// A range of the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    /// Exclusive.
    pub(super) from: Lsn,
    /// Inclusive.
    pub(super) to: Lsn,
}

impl Merge {
    /// Begins to read the tables' changes in a range. `share`: how many ranges are read side by side.
    /// `favoured`: tables that are read first and further ahead.
    pub(super) fn begin(
        tables: &[Table],
        moved: &[usize],
        favoured: &[usize],
        range: Range,
        share: usize,
        pool: &Arc<Pool>,
    ) -> Self {
        let mut readers = JoinSet::new();
        let mut pages: Vec<Option<Pages>> = moved.iter().map(|_| None).collect();
        for which in in_line(moved, favoured) {
            let table = moved[which];
            let ahead = if favoured.contains(&table) { FAVOURED_PAGES } else { 1 };
            let (send, more) = mpsc::channel(ahead);
            let changes = &tables[table].changes;
            // Before the floor, cleanup may have left a part of what it was removing.
            let from = range.from.max(previous(changes.floor));
            let cursor = Cursor::new(Arc::clone(changes), from, range.to, moved.len() * 2 * share);
            readers.spawn(fetch(cursor, Arc::clone(pool), send));
            pages[which] = Some(Pages { page: VecDeque::new(), more });
        }
        let pages = pages.into_iter().flatten().collect();
        Self { pages, heads: BinaryHeap::new(), begun: false, _readers: readers }
    }

    /// Waits for the first change of each table.
    async fn heads(&mut self) -> Result<(), source::Error> {
        for index in 0..self.pages.len() {
            if let Some(position) = self.pages[index].head().await? {
                self.heads.push(Reverse((position, index)));
            }
        }
        self.begun = true;
        Ok(())
    }

    /// The next change, and which of the tables it is of.
    pub(super) async fn next(&mut self) -> Result<Option<(usize, Change)>, source::Error> {
        if !self.begun {
            self.heads().await?;
        }
        let Some(mut least) = self.heads.peek_mut() else { return Ok(None) };
        let Reverse((_, index)) = *least;
        let pages = &mut self.pages[index];
        let change = pages.page.pop_front();
        match pages.head().await? {
            // Replacing the head in place costs less than taking it out and putting another in.
            Some(position) => *least = Reverse((position, index)),
            None => drop(PeekMut::pop(least)),
        }
        Ok(change.map(|change| (index, change)))
    }
}

/// Who of the tables that moved asks first: places among them.
fn in_line(moved: &[usize], favoured: &[usize]) -> Vec<usize> {
    let mut line: Vec<usize> = (0..moved.len()).collect();
    line.sort_by_key(|&which| favoured.iter().position(|table| *table == moved[which]).unwrap_or(usize::MAX));
    line
}

impl Pages {
    /// Where the next change stands; `None` at the end.
    async fn head(&mut self) -> Result<Option<Position>, source::Error> {
        while self.page.is_empty() {
            match self.more.recv().await {
                Some(page) => self.page = page?,
                None => return Ok(None),
            }
        }
        Ok(self.page.front().map(|change| change.position))
    }
}

/// Reads a table's pages, as soon as there is room for the next.
async fn fetch(mut cursor: Cursor, pool: Arc<Pool>, pages: mpsc::Sender<Page>) {
    // Nobody wants them any more once the receiver is gone.
    while let Ok(room) = pages.reserve().await {
        match page(&mut cursor, &pool).await {
            Ok(Some(page)) => room.send(Ok(page)),
            Ok(None) => return,
            Err(error) => {
                room.send(Err(error));
                return;
            }
        }
    }
}

async fn page(cursor: &mut Cursor, pool: &Arc<Pool>) -> Result<Option<VecDeque<Change>>, source::Error> {
    let mut loan = pool.take().await?;
    let page = cursor.page(&mut loan.client).await?;
    loan.give_back();
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn favoured_tables_ask_first() {
        assert_eq!(in_line(&[3, 5, 8], &[]), [0, 1, 2]);
        assert_eq!(in_line(&[3, 5, 8], &[8, 4, 5]), [2, 1, 0]);
    }
}
