//! Reading tables in chunks, several side by side, while earlier chunks are being published.
//!
//! A [`Reading`] is a range of a table's key and how far it has been read; [`Readers`] read the next chunk of several of them at once, each on a connection of its own and on
//! whatever core is free. Who uses them decides when a chunk may be asked for ([`crate::snapshot`]: always; [`crate::reread`]: only while the tail stands still), and goes on with a
//! range by starting what [`Chunk::next`] holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::event::Row;
use tokio::task::JoinSet;

use crate::error::Error;
use crate::pool::Pool;
use crate::session::Table;
use source::changes::{first_rows, size};
use source::rows::{KeyRange, SourceTable};

/// Rows of the first chunk of a table without large columns; later ones follow from how large the rows turned out to be.
const FIRST_CHUNK_ROWS: usize = 2000;
/// About how many bytes a chunk should have in memory.
const CHUNK_BYTES: usize = 4 << 20;

/// A range of a table, and how far it has been read.
#[derive(Clone)]
pub(crate) struct Reading {
    pub(crate) table: usize,
    /// The range's number among those of its table.
    pub(crate) range: usize,
    pub(crate) left: KeyRange,
    rows: Arc<SourceTable>,
    limit: usize,
    most_rows: usize,
}

impl Reading {
    pub(crate) fn new(index: usize, table: &Table, range: usize, left: KeyRange, most_rows: usize) -> Self {
        let most_rows = most_rows.max(1);
        let limit = first_rows(&table.schema, FIRST_CHUNK_ROWS).min(most_rows);
        Self { table: index, range, left, rows: Arc::clone(&table.rows), limit, most_rows }
    }
}

/// Rows that were read.
pub(crate) struct Chunk {
    pub(crate) rows: Vec<Row>,
    /// The range ends with them.
    pub(crate) done: bool,
    pub(crate) took: Duration,
    /// What is left of the range; to be started again unless it is done.
    pub(crate) next: Reading,
}

pub(crate) struct Readers {
    pool: Arc<Pool>,
    most: usize,
    running: JoinSet<Result<Chunk, Error>>,
}

impl Readers {
    pub(crate) fn new(pool: Arc<Pool>, most: usize) -> Self {
        Self { pool, most: most.max(1), running: JoinSet::new() }
    }

    pub(crate) fn may_start(&self) -> bool {
        self.running.len() < self.most
    }

    pub(crate) fn start(&mut self, reading: Reading) {
        self.running.spawn(read(Arc::clone(&self.pool), reading));
    }

    /// The next chunk that has been read; `None` if none is being read.
    pub(crate) async fn next(&mut self) -> Result<Option<Chunk>, Error> {
        match self.running.join_next().await {
            None => Ok(None),
            Some(Ok(chunk)) => chunk.map(Some),
            Some(Err(error)) => Err(crashed(&error)),
        }
    }
}

/// A task of ours that ended abnormally.
pub(crate) fn crashed(error: &tokio::task::JoinError) -> Error {
    source::Error::Unexpected { doing: "reading", what: error.to_string() }.into()
}

async fn read(pool: Arc<Pool>, mut reading: Reading) -> Result<Chunk, Error> {
    let mut loan = pool.take().await?;
    let started = Instant::now();
    let chunk = reading.rows.read(&mut loan.client, &reading.left, reading.limit, CHUNK_BYTES).await?;
    loan.give_back();
    if let Some(last) = chunk.rows.last() {
        reading.left = reading.left.after(reading.rows.key_of(last)?);
    }
    if let Some(average) = chunk.bytes.checked_div(chunk.rows.len()) {
        reading.limit = (CHUNK_BYTES / average.max(1)).clamp(1, reading.most_rows);
    }
    Ok(Chunk { rows: chunk.rows, done: chunk.at_end, took: started.elapsed(), next: reading })
}

/// Collects rows into batches, bounded by count and by bytes.
pub(crate) struct Batch {
    rows: Vec<Row>,
    bytes: usize,
    most_rows: usize,
}

impl Batch {
    pub(crate) fn new(most_rows: usize) -> Self {
        Self { rows: Vec::new(), bytes: 0, most_rows: most_rows.max(1) }
    }

    /// Answers the batch when the row has made it full.
    pub(crate) fn push(&mut self, row: Row) -> Option<Vec<Row>> {
        self.bytes += row.iter().map(size).sum::<usize>();
        self.rows.push(row);
        (self.rows.len() >= self.most_rows || self.bytes >= CHUNK_BYTES).then(|| self.take())
    }

    pub(crate) fn take(&mut self) -> Vec<Row> {
        self.bytes = 0;
        std::mem::take(&mut self.rows)
    }
}

#[cfg(test)]
mod tests {
    use schemas::value::Value;

    use super::*;

    #[test]
    fn batches_are_cut_by_rows_and_by_bytes() {
        let mut batch = Batch::new(3);
        let large = || vec![Value::Bytes(vec![0; CHUNK_BYTES / 2])];
        assert!(batch.push(large()).is_none());
        assert_eq!(batch.push(large()).map(|rows| rows.len()), Some(2));
        let small = || vec![Value::Null];
        assert!(batch.push(small()).is_none() && batch.push(small()).is_none());
        assert_eq!(batch.push(small()).map(|rows| rows.len()), Some(3));
        assert!(batch.take().is_empty());
    }
}
