//! From what was cut to the objects of a segment; pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use objects::ObjectPath;
use schemas::encoding::Schemas;
use schemas::progress::{SequenceNumber, ShardId, ShardPositions, StreamName};
use schemas::value::write_string;
use schemas::{Lsn, TableName};
use sha2::{Digest, Sha256};
use streams::Layout;

use crate::account;
use crate::collect::{Cut, Run, ends};
use crate::facts::{self, Read};
use crate::gap::{self, Gap, Surroundings};
use crate::line;
use crate::manifest::{self, Kind, Manifest, Object, Ticks, UNREADABLE};

/// zstd's own default: further levels cost several times the time for some percent.
const LEVEL: i32 = 3;

/// A segment that is ready to be written.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) manifest: Manifest,
    /// In the order of the manifest's objects.
    pub(crate) data: Vec<(ObjectPath, Bytes)>,
}

/// Lines of one object before they are compressed.
#[derive(Default)]
struct Sheet {
    text: Vec<u8>,
    records: u64,
    lsns: Option<(Lsn, Lsn)>,
    /// Where its events stand, for the index.
    places: Vec<(ShardId, SequenceNumber, Option<Lsn>)>,
}

/// What stays the same from segment to segment.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// What the streams' names begin with.
    pub(crate) prefix: String,
    pub(crate) progress_stream: StreamName,
    pub(crate) dead_letters: Option<StreamName>,
    pub(crate) schemas: Arc<Schemas>,
}

impl Source {
    fn is_dead_letters(&self, stream: &StreamName) -> bool {
        self.dead_letters.as_ref() == Some(stream)
    }
}

/// Makes the segment that follows `last`. Costs time: the records are looked at, hashed and compressed.
pub(crate) fn build(last: &Manifest, writer: &str, source: &Source, cut: &Cut) -> std::io::Result<Segment> {
    let mut manifest = last.next(writer);
    let progress_stream = &source.progress_stream;
    let look = |run: &Run| match source.is_dead_letters(&run.stream) {
        true => Vec::new(),
        false => facts::read(&source.schemas, run.records.iter().map(|(_, data)| data)),
    };
    let reads: Vec<Vec<Read>> = cut.runs.iter().map(look).collect();
    compare(&mut manifest, source, cut, &reads);
    for run in cut.runs.iter().filter(|run| stood(&last.positions, &run.stream, &run.shard).is_none()) {
        let first = run.records.iter().map(|(sequence, _)| (run.shard.clone(), sequence.clone())).take(1);
        manifest.begins.entry(run.stream.clone()).or_default().extend(first);
    }
    for tick in cut.ticks.iter().filter(|tick| stood(&last.positions, progress_stream, &tick.shard).is_none()) {
        let shards = manifest.begins.entry(progress_stream.clone()).or_default();
        shards.entry(tick.shard.clone()).or_insert_with(|| tick.sequence.clone());
    }
    let fallback_ms = cut.ticks.iter().map(|tick| tick.record.commit_time_ms).max().unwrap_or_default();
    let mut sheets: BTreeMap<(StreamName, String, String), Sheet> = BTreeMap::new();
    let mut dead_letters = Sheet::default();
    for (run, reads) in cut.runs.iter().zip(&reads) {
        manifest.shards.entry(run.stream.clone()).or_default().push(run.shard.clone());
        if source.is_dead_letters(&run.stream) {
            dead_letters.write(run);
        } else {
            write_run(run, reads, fallback_ms, &mut sheets);
        }
    }
    let mut segment = Segment { manifest, data: Vec::new() };
    let mut index = Sheet::default();
    for ((stream, table, date), sheet) in sheets {
        *segment.manifest.counts.entry(table.clone()).or_default() += sheet.records;
        index.list(segment.data.len(), &table, &sheet);
        let path = |number, sha: &str| manifest::events_path(&table, &date, number, sha);
        segment.add(Kind::Events, &sheet, (Some(stream), Some(table.clone())), path)?;
    }
    if dead_letters.records > 0 {
        let stream = source.dead_letters.clone();
        segment.add(Kind::DeadLetters, &dead_letters, (stream, None), |number, sha| {
            manifest::other_path(Kind::DeadLetters, number, sha)
        })?;
    }
    if !cut.ticks.is_empty() {
        segment.add_progress(cut, progress_stream)?;
    }
    if index.records > 0 {
        segment.add(Kind::Index, &index, (None, None), |number, sha| manifest::other_path(Kind::Index, number, sha))?;
    }
    let Manifest { starts, shards, positions, .. } = &mut segment.manifest;
    for (stream, shards) in shards {
        let stood = shards.iter().filter_map(|shard| Some((shard.clone(), positions.get(stream)?.get(shard)?.clone())));
        starts.insert(stream.clone(), stood.collect());
    }
    ends(cut, progress_stream, positions);
    // Dead letters are of no tick: wherever they stand is the end of what is complete.
    if let (Some(stream), Some(complete)) = (&source.dead_letters, &mut segment.manifest.complete)
        && let Some(ends) = segment.manifest.positions.get(stream)
    {
        complete.insert(stream.clone(), ends.clone());
    }
    if segment.manifest.complete.as_ref() == Some(&segment.manifest.positions) {
        segment.manifest.complete = None;
    }
    Ok(segment)
}

fn stood<'a>(positions: &'a ShardPositions, stream: &StreamName, shard: &ShardId) -> Option<&'a SequenceNumber> {
    positions.get(stream).and_then(|shards| shards.get(shard))
}

/// Holds the ticks against the events.
fn compare(manifest: &mut Manifest, source: &Source, cut: &Cut, reads: &[Vec<Read>]) {
    let (frontier, rows, load) = (manifest.frontier, manifest.account.is_loading(), manifest.account.load());
    let facts = || reads.iter().flatten().map(|read| read.facts.as_ref());
    manifest.account.unknown(facts().filter(Option::is_none).count() as u64);
    for (run, reads) in cut.runs.iter().zip(reads) {
        manifest.account.events((&run.stream, &run.shard), reads.iter().filter_map(|read| read.facts.as_ref()));
    }
    let mut unspoken = Vec::new();
    let mut stood = manifest.complete().clone();
    for tick in &cut.ticks {
        let between = account::between(&mut stood, &tick.record);
        let is_new = manifest.account.is_new();
        let told = manifest.account.record(&tick.record, &between);
        manifest.missing.extend(told.missing);
        // Before the first record lies what the archive was begun without, which is a gap, but none in it.
        match told.unspoken {
            Some((from_lsn, to)) if is_new => {
                manifest.gaps.push(Gap { table: None, from_lsn, to_lsn: Some(to), rows: true, holes: Vec::new() });
            }
            told => unspoken.extend(told),
        }
        stood.entry(source.progress_stream.clone()).or_default().insert(tick.shard.clone(), tick.sequence.clone());
    }
    manifest.complete = Some(stood);
    let tables: BTreeSet<&TableName> = facts().flatten().map(|facts| &facts.table).chain(manifest.account.tables()).collect();
    let table_of = |stream: &StreamName| {
        let mut tables = tables.iter().filter(|table| Layout::Table.stream(&source.prefix, table) == *stream);
        tables.next().map(|table| (*table).clone())
    };
    let around =
        Surroundings { progress_stream: &source.progress_stream, frontier, rows, unspoken: &unspoken, table_of: &table_of };
    let gaps = gap::gaps(cut, &around);
    if !gaps.is_empty() {
        manifest.last_gap = Some(manifest.number);
    }
    manifest.gaps.extend(gaps);
    manifest.ended = cut.ended.clone();
    manifest.account.end(cut.within);
    if manifest.account.load() != load {
        manifest.snapshot = Some(manifest.number);
    }
    manifest.frontier = manifest.account.frontier().max(manifest.frontier);
    if let (Some(first), Some(last)) = (cut.ticks.first(), cut.ticks.last()) {
        manifest.ticks = Some(Ticks {
            from_lsn: first.record.from_lsn,
            to_lsn: last.record.to_lsn,
            count: cut.ticks.len() as u64,
            commit_time_ms: last.record.commit_time_ms,
        });
    }
}

fn write_run(run: &Run, reads: &[Read], fallback_ms: i64, sheets: &mut BTreeMap<(StreamName, String, String), Sheet>) {
    for ((sequence, data), Read { facts, json }) in run.records.iter().zip(reads) {
        let (table, time_ms) = match facts {
            Some(facts) => (manifest::table_text(&facts.table), facts.commit_time_ms),
            None => (UNREADABLE.to_owned(), fallback_ms),
        };
        let sheet = sheets.entry((run.stream.clone(), table, facts::date(time_ms))).or_default();
        line::write(&mut sheet.text, (&run.stream, &run.shard), sequence, data, json.as_deref());
        sheet.records += 1;
        let lsn = facts.as_ref().map(|facts| facts.position.commit_lsn);
        if let Some(lsn) = lsn {
            let (least, greatest) = sheet.lsns.unwrap_or((lsn, lsn));
            sheet.lsns = Some((least.min(lsn), greatest.max(lsn)));
        }
        sheet.places.push((run.shard.clone(), sequence.clone(), lsn));
    }
}

impl Sheet {
    fn write(&mut self, run: &Run) {
        for (sequence, data) in &run.records {
            line::write(&mut self.text, (&run.stream, &run.shard), sequence, data, None);
            self.records += 1;
        }
    }

    /// Adds the places of an object's events.
    fn list(&mut self, object: usize, table: &str, sheet: &Self) {
        let mut end = b",\"table\":".to_vec();
        write_string(&mut end, table);
        end.extend_from_slice(b"}\n");
        for (shard, sequence, commit_lsn) in &sheet.places {
            self.text.extend_from_slice(format!("{{\"object\":{object},\"shard\":").as_bytes());
            write_string(&mut self.text, &shard.0);
            self.text.extend_from_slice(format!(",\"sequence\":\"{sequence}\",\"commit_lsn\":").as_bytes());
            match commit_lsn {
                Some(lsn) => self.text.extend_from_slice(format!("\"{lsn}\"").as_bytes()),
                None => self.text.extend_from_slice(b"null"),
            }
            self.text.extend_from_slice(&end);
            self.records += 1;
        }
    }
}

impl Segment {
    fn add(
        &mut self,
        kind: Kind,
        sheet: &Sheet,
        (stream, table): (Option<StreamName>, Option<String>),
        path: impl FnOnce(u64, &str) -> ObjectPath,
    ) -> std::io::Result<()> {
        let data: Bytes = zstd::bulk::compress(&sheet.text, LEVEL)?.into();
        let sha256 = checksum(&data);
        let path = path(self.manifest.number, &sha256);
        self.manifest.objects.push(Object {
            kind,
            path: path.to_string(),
            stream,
            table,
            records: sheet.records,
            bytes: data.len() as u64,
            raw_bytes: sheet.text.len() as u64,
            sha256,
            lsns: sheet.lsns,
        });
        self.data.push((path, data));
        Ok(())
    }

    fn add_progress(&mut self, cut: &Cut, stream: &StreamName) -> std::io::Result<()> {
        let mut sheet = Sheet::default();
        let shards = self.manifest.shards.entry(stream.clone()).or_default();
        for tick in &cut.ticks {
            line::write(&mut sheet.text, (stream, &tick.shard), &tick.sequence, &tick.data, None);
            sheet.records += 1;
            if !shards.contains(&tick.shard) {
                shards.push(tick.shard.clone());
            }
        }
        let path = |number, sha: &str| manifest::other_path(Kind::Progress, number, sha);
        self.add(Kind::Progress, &sheet, (Some(stream.clone()), None), path)
    }
}

pub(crate) fn checksum(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}
