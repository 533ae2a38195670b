//! From what was cut to the objects of a segment; pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use objects::ObjectPath;
use schemas::Lsn;
use schemas::encoding::Schemas;
use schemas::progress::{SequenceNumber, ShardId, StreamName};
use schemas::value::write_string;
use sha2::{Digest, Sha256};

use crate::account;
use crate::collect::{Cut, Run, ends};
use crate::facts::{self, Read};
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

/// Makes the segment that follows `last`. Costs time: the records are looked at, hashed and compressed.
pub(crate) fn build(
    last: &Manifest,
    writer: &str,
    (progress_stream, schemas): (&StreamName, &Schemas),
    cut: &Cut,
) -> std::io::Result<Segment> {
    let mut manifest = last.next(writer);
    let look = |run: &Run| facts::read(schemas, run.records.iter().map(|(_, data)| data));
    let reads: Vec<Vec<Read>> = cut.runs.iter().map(look).collect();
    compare(&mut manifest, progress_stream, cut, &reads);
    let fallback_ms = cut.ticks.iter().map(|tick| tick.record.commit_time_ms).max().unwrap_or_default();
    let mut sheets: BTreeMap<(StreamName, String, String), Sheet> = BTreeMap::new();
    for (run, reads) in cut.runs.iter().zip(&reads) {
        manifest.shards.entry(run.stream.clone()).or_default().push(run.shard.clone());
        write_run(run, reads, fallback_ms, &mut sheets);
    }
    let mut segment = Segment { manifest, data: Vec::new() };
    let mut index = Sheet::default();
    for ((stream, table, date), sheet) in sheets {
        *segment.manifest.counts.entry(table.clone()).or_default() += sheet.records;
        index.list(segment.data.len(), &table, &sheet);
        let path = |number, sha: &str| manifest::events_path(&table, &date, number, sha);
        segment.add(Kind::Events, &sheet, (Some(stream), Some(table.clone())), path)?;
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
    if segment.manifest.complete.as_ref() == Some(&segment.manifest.positions) {
        segment.manifest.complete = None;
    }
    Ok(segment)
}

/// Holds the ticks against the events.
fn compare(manifest: &mut Manifest, progress_stream: &StreamName, cut: &Cut, reads: &[Vec<Read>]) {
    let facts = || reads.iter().flatten().map(|read| read.facts.as_ref());
    let unknown = facts().filter(Option::is_none).count() as u64;
    manifest.account.events(facts().flatten(), unknown);
    let mut stood = manifest.complete().clone();
    for tick in &cut.ticks {
        let between = account::between(&mut stood, &tick.record);
        manifest.missing.extend(manifest.account.record(&tick.record, &between));
        stood.entry(progress_stream.clone()).or_default().insert(tick.shard.clone(), tick.sequence.clone());
    }
    manifest.complete = Some(stood);
    manifest.account.end(cut.within);
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
