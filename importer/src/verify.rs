//! What was published, held against the change tables: a recount.
//!
//! Every progress record says how many changes of which table its range (`from`, `to`] had. Here the change tables are counted again over the same ranges, and each change must have been
//! published or dead-lettered (INV-6). Ranges are compared together as long as they agree; where they do not, they are halved until the range is found that differs.
//!
//! Of a table with a row filter only some changes are published, and which, the server does not know: they are read again and held against the filter as it is configured now.
//!
//! What cannot be counted again is said rather than guessed: ranges that cleanup has removed, instances that are gone, and ranges in which a table was held or was read again after a gap, so that its rows came as a whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::progress::{Phase, ProgressRecord};
use schemas::{Lsn, TableName};
use serde::Serialize;
use streams::{Layout, Positions, Provider};

use crate::config::{Config, Output};
use crate::controls::{Controlled, TableControls};
use crate::error::Error;
use source::changes::{Change, ChangeTable, Cursor};
use source::recount::{Count, changes};
use source::{CapturedTable, Catalog, Client, Instance};

/// What a recount has found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Recount {
    /// By table.
    pub tables: BTreeMap<TableName, TableRecount>,
    /// The least and the greatest LSN of what was published.
    pub from: Lsn,
    pub to: Lsn,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct TableRecount {
    /// Changes published or dead-lettered, in the ranges that could be counted again.
    pub published: u64,
    /// Changes in the change tables, in the same ranges.
    pub captured: u64,
    /// Ranges in which the two differ.
    pub differences: Vec<RangeDifference>,
    /// Ranges that could not be counted again, and why.
    pub uncounted: Vec<Uncounted>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RangeDifference {
    /// Exclusive.
    pub from: Lsn,
    /// Inclusive.
    pub to: Lsn,
    pub published: u64,
    pub captured: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Uncounted {
    pub from: Lsn,
    pub to: Lsn,
    pub why: String,
}

impl Recount {
    /// Whether everything that could be counted again agrees.
    pub fn agrees(&self) -> bool {
        self.tables.values().all(|table| table.differences.is_empty())
    }
}

/// A range that was published, and what of one table.
#[derive(Debug, Clone, Copy)]
struct Range {
    from: Lsn,
    to: Lsn,
    published: u64,
    /// The table was not published change by change.
    as_a_whole: bool,
}

/// Counts again what the source holds of all that was published.
pub async fn verify(config: &Config, provider: &dyn Provider) -> Result<Recount, Error> {
    let records = in_force(records(&config.output, provider, &Positions::new()).await?);
    let mut client = Client::connect(&config.source).await?;
    let catalog = Catalog::read(&mut client).await?;
    let mut recount = Recount::default();
    if let (Some(first), Some(last)) = (records.first(), records.last()) {
        (recount.from, recount.to) = (first.from_lsn, last.to_lsn);
    }
    for table in catalog.tables.iter().filter(|table| config.tables.takes(&table.name)) {
        let ranges: Vec<Range> = records.iter().map(|record| of_table(record, &table.name)).collect();
        let found = recount.tables.entry(table.name.clone()).or_default();
        let filtered = config.controls.get(&table.name).filter(|controls| controls.filter.is_some());
        let source = Captured { table, filtered, page_rows: config.page_rows };
        compare_all(&mut client, &source, &ranges, found).await?;
    }
    Ok(recount)
}

/// The progress records of the source after these positions, in order, up to now.
pub(crate) async fn records(output: &Output, provider: &dyn Provider, after: &Positions) -> Result<Vec<ProgressRecord>, Error> {
    let stream = Layout::progress_stream(&output.prefix);
    let mut left = provider.tips(&stream).await?;
    left.retain(|shard, tip| after.get(shard).is_none_or(|after| *after < *tip));
    let mut reader = provider.reader(&stream, after).await?;
    let mut records = Vec::new();
    while !left.is_empty() {
        let batch = reader.next().await?;
        for (number, data) in &batch.records {
            if left.get(&batch.shard).is_some_and(|tip| number >= tip) {
                left.remove(&batch.shard);
            }
            let doing = "reading progress records";
            let record: ProgressRecord =
                serde_json::from_slice(data).map_err(|error| source::Error::Unexpected { doing, what: error.to_string() })?;
            if record.source == output.name {
                records.push(record);
            }
        }
    }
    Ok(records)
}

/// The records of the tail that count: of the greatest epoch so far, and of a range that was published again the later one.
fn in_force(records: Vec<ProgressRecord>) -> Vec<ProgressRecord> {
    let mut kept: Vec<ProgressRecord> = Vec::new();
    let mut epoch = 0;
    for record in records {
        if record.epoch < epoch {
            continue;
        }
        epoch = record.epoch;
        if record.phase == Phase::Tail && record.from_lsn < record.to_lsn {
            while kept.last().is_some_and(|last| last.to_lsn > record.from_lsn) {
                kept.pop();
            }
            kept.push(record);
        }
    }
    kept
}

fn of_table(record: &ProgressRecord, table: &TableName) -> Range {
    let count = |counts: &BTreeMap<TableName, u64>| counts.get(table).copied().unwrap_or(0);
    Range {
        from: record.from_lsn,
        to: record.to_lsn,
        published: count(&record.counts) + count(&record.dead_lettered),
        as_a_whole: record.rereads.get(table).is_some_and(|reread| reread.consistent_from.is_none()),
    }
}

/// A table whose changes are counted again.
struct Captured<'a> {
    table: &'a CapturedTable,
    /// Its controls, if they publish only some changes.
    filtered: Option<&'a TableControls>,
    page_rows: usize,
}

impl Captured<'_> {
    /// How many changes an instance holds in (`from`, `to`] that are to be published.
    async fn count(&self, client: &mut Client, instance: &Instance, from: Lsn, to: Lsn) -> Result<Count, Error> {
        let Some(settings) = self.filtered else {
            let counts = changes(client, &[&instance.name], from, to).await?;
            return Ok(counts.into_iter().next().unwrap_or(Count::Gone));
        };
        let Controlled { read, controls, .. } = Controlled::new(settings, &instance.schema(&self.table.name))?;
        let missing = |column| Error::ColumnNotCaptured { table: self.table.name.clone(), column };
        let changes = ChangeTable::new(&read, instance, Lsn::ZERO, self.page_rows).map_err(missing)?;
        let mut cursor = Cursor::new(Arc::new(changes), from, to, 1);
        let mut count = 0;
        loop {
            match cursor.page(client).await {
                Ok(Some(page)) => {
                    let published = |change: Change| controls.change(change.before, change.after) != (None, None);
                    count += page.into_iter().map(|change| u64::from(published(change))).sum::<u64>();
                }
                Ok(None) => return Ok(Count::Changes(count)),
                Err(source::Error::Gap { min, .. }) => return Ok(Count::Purged { min, changes: count }),
                Err(source::Error::InstanceGone { .. }) => return Ok(Count::Gone),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Compares the ranges, those together that one instance holds and that follow each other.
async fn compare_all(
    client: &mut Client,
    source: &Captured<'_>,
    ranges: &[Range],
    found: &mut TableRecount,
) -> Result<(), Error> {
    let mut start = 0;
    while start < ranges.len() {
        let instance = instance_of(source.table, ranges[start].from);
        let same = |index: &usize| {
            let (before, range) = (&ranges[*index - 1], &ranges[*index]);
            before.to == range.from
                && name_of(instance_of(source.table, range.from)) == name_of(instance)
                && before.as_a_whole == range.as_a_whole
        };
        let end = (start + 1..ranges.len()).take_while(same).last().unwrap_or(start) + 1;
        let group = &ranges[start..end];
        match instance {
            Some(instance) => compare(client, source, instance, group, found).await?,
            None => uncounted(group, "no capture instance reaches back so far", found),
        }
        start = end;
    }
    Ok(())
}

/// The instance that a range was read from: the newest that had begun.
fn instance_of(table: &CapturedTable, from: Lsn) -> Option<&Instance> {
    let begun = table.instances.iter().find(|instance| instance.start_lsn <= from.next());
    begun.or(table.instances.last())
}

fn name_of(instance: Option<&Instance>) -> Option<&str> {
    instance.map(|instance| instance.name.as_str())
}

fn uncounted(ranges: &[Range], why: &str, found: &mut TableRecount) {
    if let (Some(first), Some(last)) = (ranges.first(), ranges.last()) {
        found.uncounted.push(Uncounted { from: first.from, to: last.to, why: why.to_owned() });
    }
}

/// Compares ranges that follow each other, and halves them where they differ.
async fn compare(
    client: &mut Client,
    source: &Captured<'_>,
    instance: &Instance,
    ranges: &[Range],
    found: &mut TableRecount,
) -> Result<(), Error> {
    let name = &instance.name;
    let mut open = vec![ranges];
    while let Some(ranges) = open.pop() {
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { continue };
        let published = ranges.iter().map(|range| range.published).sum();
        let captured = match source.count(client, instance, first.from, last.to).await? {
            Count::Changes(captured) => captured,
            Count::Purged { .. } | Count::Gone if ranges.len() > 1 => {
                let (a, b) = ranges.split_at(ranges.len() / 2);
                open.extend([b, a]);
                continue;
            }
            Count::Purged { min, .. } => {
                uncounted(
                    ranges,
                    &format!("the capture instance {name} now begins at {min}: what was before has been removed"),
                    found,
                );
                continue;
            }
            Count::Gone => {
                uncounted(ranges, &format!("the capture instance {name} is gone"), found);
                continue;
            }
        };
        if captured == published {
            found.published += published;
            found.captured += captured;
        } else if first.as_a_whole {
            uncounted(ranges, "the table was held, or was being read again as a whole", found);
        } else if ranges.len() > 1 {
            let (a, b) = ranges.split_at(ranges.len() / 2);
            open.extend([b, a]);
        } else {
            found.published += published;
            found.captured += captured;
            found.differences.push(RangeDifference { from: first.from, to: last.to, published, captured });
        }
    }
    Ok(())
}
