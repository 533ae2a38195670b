//! Reading the archive from an LSN: what that would read ([`Archive::plan`]), and the events themselves ([`Archive::replay`]).
//!
//! # What a range means
//! Changes committed after `from` and up to `to`. An LSN is looked up in the manifests by halving, then in the progress records of one segment: reading begins exactly behind the last tick at or below it. Rows of a snapshot carry
//! the LSN from which the tail follows, and count as committed there: a replay from the beginning has them, one from a later LSN does not.
//!
//! # What is missing
//! Nothing is read over: where the archive says that something of the range is missing ([`crate::gap`], [`Missing`]) the replay ends and says what, unless it was told to go on; and a range that begins before the archive does is refused.
//!
//! # Memory
//! Events wait until everything before them in the order has come; what waits may be larger than memory ([`crate::spill`]).
//!
//! # What a replay is for
//! It hands out changes, each once and in the source's order, and the rows that a snapshot read, for other tools. A row that was read and published again, as after an importer's restart, may come again. To build entities anew, a joiner with an empty state needs no replay: it reads the archive itself.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use schemas::progress::{ShardPositions, StreamName};
use schemas::{Lsn, TableName};
use serde::Serialize;

use crate::account::Missing;
use crate::error::Error;
use crate::facts::{self, Facts};
use crate::gap::Gap;
use crate::manifest::{Kind, Manifest};
use crate::read::merge;
use crate::spill::Spill;
use crate::store::Archive;

/// Events that are handed out at a time, in bytes.
const BATCH_BYTES: usize = 4 << 20;

/// Which events are wanted.
#[derive(Debug, Clone, Default)]
pub struct Range {
    /// Exclusive; from the beginning if `None`.
    pub from: Option<Lsn>,
    /// Inclusive; to the archive's end if `None`.
    pub to: Option<Lsn>,
    /// All if empty.
    pub tables: Vec<TableName>,
    /// Whether to go on where the archive says that something is missing; otherwise a replay ends there, and says what.
    pub allow_gaps: bool,
}

impl Range {
    fn wants(&self, table: &str) -> bool {
        self.tables.is_empty() || self.tables.iter().any(|wanted| wanted.to_string() == table)
    }

    fn holds(&self, lsn: Lsn) -> bool {
        self.from.is_none_or(|from| lsn > from) && self.to.is_none_or(|to| lsn <= to)
    }

    /// The gaps of a segment that touch the range. What the archive was begun without is no gap in it.
    fn gaps<'a>(&'a self, manifest: &'a Manifest) -> impl Iterator<Item = &'a Gap> {
        let wants = |gap: &&Gap| gap.table.as_ref().is_none_or(|table| self.wants(&table.to_string()));
        manifest.gaps.iter().filter(move |gap| !gap.is_beginning() && wants(gap) && gap.touches(self.from, self.to))
    }

    /// What a segment lacks of the range.
    fn missing<'a>(&'a self, manifest: &'a Manifest) -> impl Iterator<Item = &'a Missing> {
        let touches = |missing: &Missing| {
            self.from.is_none_or(|from| missing.to_lsn > from) && self.to.is_none_or(|to| missing.from_lsn <= to)
        };
        manifest.missing.iter().filter(move |missing| self.wants(&missing.table.to_string()) && touches(missing))
    }
}

/// What a replay would read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Plan {
    pub objects: Vec<PlannedObject>,
    pub tables: BTreeMap<String, PlannedTable>,
    /// What is missing in the range: changes that the streams had forgotten before they were archived, …
    pub gaps: Vec<Gap>,
    /// … and events that they lacked.
    pub missing: Vec<Missing>,
    /// The LSN after which the archive has everything but that; zero: everything since the first snapshot.
    pub begins: Lsn,
    /// The LSN up to which the archive is complete.
    pub archived_to: Lsn,
    /// Where the live streams follow, if the archive is read to its end.
    pub live_from: ShardPositions,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedObject {
    pub segment: u64,
    pub path: String,
    pub table: String,
    /// The least and the greatest commit LSN of its events.
    pub lsns: Option<(Lsn, Lsn)>,
    /// All that it holds: the replay picks out what is in the range.
    pub events: u64,
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PlannedTable {
    pub objects: u64,
    pub events: u64,
    pub bytes: u64,
}

/// Events of a range, segment by segment.
#[derive(Debug)]
pub struct Replay {
    archive: Archive,
    range: Range,
    /// The next segment.
    number: Option<u64>,
    /// The last that was there when the replay began: all up to it have to be.
    last: u64,
    at: ShardPositions,
    /// Up to here nothing is in the archive.
    begins: Lsn,
    /// Events above the LSN up to which the segments read so far are complete: what stands before them may be in the next one.
    held: Spill,
    /// The LSN up to which what is held can be handed out.
    due: Lsn,
}

impl Archive {
    /// Where reading begins for what was committed after `from`: each stream's positions, and the first segment that holds any of it. No segment: there is nothing yet.
    async fn begin(&self, from: Option<Lsn>) -> Result<(ShardPositions, Option<u64>), Error> {
        let Some(beginning) = self.beginning().await? else { return Ok((ShardPositions::new(), None)) };
        let least = beginning.segment;
        let Some(from) = from else { return Ok((ShardPositions::new(), Some(least))) };
        if from < beginning.lsn {
            return Err(Error::BeforeBeginning { store: self.objects.name().to_owned(), from, begins: beginning.lsn });
        }
        let Some(beyond) = self.first_beyond(from).await? else {
            let last = self.last().await?;
            return Ok((last.positions.clone(), None));
        };
        // A segment without a predecessor is read from its beginning.
        let mut at = match self.manifest(beyond.number.saturating_sub(1)).await? {
            Some(before) => before.complete().clone(),
            None => ShardPositions::new(),
        };
        let progress_stream = self.progress_stream();
        for (kept, record) in self.ticks(&beyond).await? {
            if record.to_lsn > from {
                break;
            }
            for (stream, positions) in &record.positions {
                merge(at.entry(stream.clone()).or_default(), positions);
            }
            at.entry(progress_stream.clone()).or_default().insert(kept.shard, kept.sequence);
        }
        // A tick that is larger than a segment began in an earlier one.
        let mut first = beyond;
        while first.number > least {
            let before = self.expected(first.number - 1).await?;
            let behind = |(stream, ends): (&StreamName, &streams::Positions)| {
                let at = at.get(stream);
                ends.iter().all(|(shard, end)| at.and_then(|at| at.get(shard)).is_some_and(|at| at >= end))
            };
            if before.positions.iter().all(behind) {
                break;
            }
            first = before;
        }
        Ok((at, Some(first.number)))
    }

    /// Where each stream stands behind the last archived tick at or below an LSN: a reader that begins there hands over what was committed later.
    pub async fn positions_at(&self, lsn: Lsn) -> Result<ShardPositions, Error> {
        Ok(self.begin(Some(lsn)).await?.0)
    }

    /// What a replay of this range would read.
    pub async fn plan(&self, range: &Range) -> Result<Plan, Error> {
        let (_, first) = self.begin(range.from).await?;
        let last = self.last().await?;
        let begins = self.beginning().await?.map_or(Lsn::ZERO, |beginning| beginning.lsn);
        let mut plan = Plan { begins, archived_to: last.frontier, live_from: last.positions.clone(), ..Plan::default() };
        for number in first.into_iter().flat_map(|first| first..=last.number) {
            let manifest = self.expected(number).await?;
            plan.add(&manifest, range);
            plan.gaps.extend(range.gaps(&manifest).cloned());
            plan.missing.extend(range.missing(&manifest).cloned());
            if ends_at(&manifest, range) {
                break;
            }
        }
        Ok(plan)
    }

    /// The events of this range, which [`Replay::next`] hands out.
    pub async fn replay(&self, range: Range) -> Result<Replay, Error> {
        let last = self.last().await?.number;
        let (at, number) = self.begin(range.from).await?;
        let begins = self.beginning().await?.map_or(Lsn::ZERO, |beginning| beginning.lsn);
        Ok(Replay { archive: self.clone(), range, number, last, at, begins, held: Spill::new(), due: Lsn::ZERO })
    }
}

/// Whether what follows the segment is beyond the range. Not yet where it is complete just up to the range's end: the rows of a snapshot fill many segments with one LSN.
fn ends_at(manifest: &Manifest, range: &Range) -> bool {
    range.to.is_some_and(|to| manifest.frontier > to)
}

impl Plan {
    fn add(&mut self, manifest: &Manifest, range: &Range) {
        for object in manifest.objects_of(Kind::Events) {
            let table = object.table.clone().unwrap_or_default();
            let outside = object.lsns.is_some_and(|(least, greatest)| {
                range.from.is_some_and(|from| greatest <= from) || range.to.is_some_and(|to| least > to)
            });
            if outside || !range.wants(&table) {
                continue;
            }
            let sum = self.tables.entry(table.clone()).or_default();
            sum.objects += 1;
            sum.events += object.records;
            sum.bytes += object.bytes;
            self.objects.push(PlannedObject {
                segment: manifest.number,
                path: object.path.clone(),
                table,
                lsns: object.lsns,
                events: object.records,
                bytes: object.bytes,
            });
        }
    }
}

impl Replay {
    /// The next events, as JSON, in the source's order, each identity once; `None` behind the last. What is of a tick that is not complete in the archive is left out. An event that came again long after it was archived, as after
    /// an importer's restart, is told by its LSN: the ticks before are complete.
    pub async fn next(&mut self) -> Result<Option<Vec<Bytes>>, Error> {
        loop {
            let events = self.due()?;
            if !events.is_empty() {
                return Ok(Some(events));
            }
            let Some(number) = self.number else { return Ok(None) };
            let manifest = if number <= self.last {
                self.archive.expected(number).await?
            } else if let Some(archived_since) = self.archive.manifest(number).await? {
                archived_since
            } else {
                self.number = None;
                continue;
            };
            self.check(&manifest)?;
            self.take(&manifest).await?;
            self.number = (!ends_at(&manifest, &self.range)).then_some(number + 1);
        }
    }

    /// Nothing is read over that is missing.
    fn check(&self, manifest: &Manifest) -> Result<(), Error> {
        let (store, segment) = (self.archive.objects.name(), manifest.number);
        for gap in self.range.gaps(manifest) {
            if !self.range.allow_gaps {
                return Err(manifest.gap_error(store, gap));
            }
            tracing::warn!(segment, %gap, "the archive has a gap: what is replayed is not everything");
        }
        for missing in self.range.missing(manifest) {
            if !self.range.allow_gaps {
                return Err(Error::Missing { store: store.to_owned(), segment, missing: Box::new(missing.clone()) });
            }
            tracing::warn!(segment, %missing, "events are missing: what is replayed is not everything");
        }
        Ok(())
    }

    /// Takes in what a segment has of the range.
    async fn take(&mut self, manifest: &Manifest) -> Result<(), Error> {
        let complete = match self.archive.manifest(manifest.number.saturating_sub(1)).await? {
            Some(before) => before.frontier,
            None => self.begins,
        };
        let streams: BTreeSet<&StreamName> =
            manifest.objects_of(Kind::Events).filter_map(|object| object.stream.as_ref()).collect();
        for stream in streams {
            let after = self.at.get(stream).cloned().unwrap_or_default();
            for batch in self.archive.records(manifest, stream, &after).await? {
                let reads = facts::read(&self.archive.schemas, batch.records.iter().map(|(_, data)| data));
                for ((_, data), read) in batch.records.into_iter().zip(reads) {
                    let Some(Facts { table, op, position, .. }) = read.facts else { continue };
                    let lsn = position.commit_lsn;
                    let repeat = !op.is_read() && lsn <= complete;
                    if self.range.holds(lsn) && self.range.wants(&table.to_string()) && !repeat {
                        self.held.push(table, position, op.is_read(), read.json.unwrap_or(data)).map_err(spilling)?;
                    }
                }
            }
        }
        self.due = self.due.max(manifest.frontier);
        Ok(())
    }

    /// Some of what is complete.
    fn due(&mut self) -> Result<Vec<Bytes>, Error> {
        let (mut events, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES {
            let Some(event) = self.held.next(self.due).map_err(spilling)? else { break };
            bytes += event.data.len();
            events.push(event.data);
        }
        Ok(events)
    }
}

fn spilling(source: std::io::Error) -> Error {
    Error::Spill { folder: std::env::temp_dir(), source }
}
