//! The records of a segment, checked; and what is missing where a check fails.
//!
//! An object is read whole and its checksum compared before anything of it is used: whatever was removed or changed in it shows. To say *what* is missing, the segment's index is read, which names the place of every event, and the
//! progress records, which say to which tick a place belongs.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use schemas::Lsn;
use schemas::progress::{ProgressRecord, SequenceNumber, ShardId, StreamName};
use serde::Deserialize;
use streams::{Batch, Positions};

use crate::error::{Error, Lost};
use crate::line::{self, Kept};
use crate::manifest::{Kind, Manifest, Object};
use crate::segment::checksum;
use crate::store::Archive;

/// Records of a batch that a reader hands over, at most.
const BATCH_RECORDS: usize = 2000;
/// Events that an error names.
const NAMED: usize = 10;

/// A line of the index.
#[derive(Deserialize)]
struct Place {
    object: usize,
    shard: ShardId,
    sequence: SequenceNumber,
    commit_lsn: Option<Lsn>,
    table: String,
}

impl Archive {
    /// A segment's records of one stream after these positions, shard by shard, as a reader of the stream would hand them over.
    pub(crate) async fn records(&self, manifest: &Manifest, stream: &StreamName, after: &Positions) -> Result<Vec<Batch>, Error> {
        let objects: Vec<&Object> = manifest.objects.iter().filter(|object| object.stream.as_ref() == Some(stream)).collect();
        let mut shards: BTreeMap<ShardId, Vec<(SequenceNumber, Bytes)>> = BTreeMap::new();
        for object in self.load(manifest, &objects).await? {
            for Kept { shard, sequence, data } in object {
                if after.get(&shard).is_none_or(|after| sequence > *after) {
                    shards.entry(shard).or_default().push((sequence, data));
                }
            }
        }
        let mut batches = Vec::new();
        for shard in manifest.shards.get(stream).into_iter().flatten() {
            let Some(mut records) = shards.remove(shard) else { continue };
            records.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            while !records.is_empty() {
                let rest = records.split_off(records.len().min(BATCH_RECORDS));
                batches.push(Batch { stream: stream.clone(), shard: shard.clone(), records });
                records = rest;
            }
        }
        match shards.into_keys().next() {
            None => Ok(batches),
            Some(shard) => {
                let path = objects.first().map_or("", |object| object.path.as_str());
                Err(self.damaged(path, format!("the manifest does not name its shard {shard}")))
            }
        }
    }

    /// What objects of a segment hold, each checked.
    pub(crate) async fn load(&self, manifest: &Manifest, objects: &[&Object]) -> Result<Vec<Vec<Kept>>, Error> {
        let found = self.get_all(objects).await?;
        let mut loaded = Vec::with_capacity(objects.len());
        for (object, data) in objects.iter().zip(found) {
            let wrong = match &data {
                None => Some("is gone".to_owned()),
                Some(data) => changed(object, data),
            };
            if let Some(state) = wrong {
                if let Some(expired) = self.expired(manifest.number).await? {
                    return Err(expired);
                }
                return Err(self.diagnose(manifest, object, state, data).await?);
            }
            let raw_bytes = object.raw_bytes;
            let unpacked = tokio::task::spawn_blocking(move || unpack(&data.unwrap_or_default(), raw_bytes)).await;
            let kept = unpacked.map_err(|error| Error::Task { what: error.to_string() })?;
            loaded.push(kept.map_err(|what| self.damaged(&object.path, what))?);
        }
        Ok(loaded)
    }

    /// Whether an object that holds no records is what the manifest says.
    pub(crate) async fn check(&self, object: &Object) -> Result<(), Error> {
        let found = self.get_all(&[object]).await?.pop().flatten();
        match found.map_or_else(|| Some("is gone".to_owned()), |data| changed(object, &data)) {
            None => Ok(()),
            Some(state) => Err(self.damaged(&object.path, format!("it {state}"))),
        }
    }

    /// A segment's progress records.
    pub(crate) async fn ticks(&self, manifest: &Manifest) -> Result<Vec<(Kept, ProgressRecord)>, Error> {
        let stream = self.progress_stream();
        let objects: Vec<&Object> = manifest.objects_of(Kind::Progress).collect();
        let mut ticks = Vec::new();
        for kept in self.load(manifest, &objects).await?.into_iter().flatten() {
            let record = serde_json::from_slice(&kept.data).map_err(|error| Error::ProgressRecord {
                stream: stream.clone(),
                sequence: kept.sequence.clone(),
                what: error.to_string(),
            })?;
            ticks.push((kept, record));
        }
        Ok(ticks)
    }

    /// The error for an object that is not what the manifest says: with what is missing of it, as far as index and progress records are there and whole.
    async fn diagnose(&self, manifest: &Manifest, object: &Object, state: String, data: Option<Bytes>) -> Result<Error, Error> {
        let (store, path) = (self.objects.name().to_owned(), object.path.clone());
        if object.kind != Kind::Events {
            return Ok(self.damaged(&path, format!("it {state}")));
        }
        // Whatever can still be read of it is there.
        let text = data.and_then(|data| zstd::stream::decode_all(&data[..]).ok()).map(Bytes::from).unwrap_or_default();
        let there: HashSet<(ShardId, SequenceNumber)> =
            line::read_all(&text).filter_map(Result::ok).map(|kept| (kept.shard, kept.sequence)).collect();
        let ticks = match Box::pin(self.ticks(manifest)).await {
            Ok(ticks) => ticks.into_iter().map(|(_, record)| record).collect(),
            // It is damaged as well: which ticks they were cannot be told.
            Err(Error::Damaged { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        let Some(places) = self.index(manifest).await? else {
            return Ok(
                self.damaged(&path, format!("it {state}, and so is the segment's index, so that its events cannot be named"))
            );
        };
        let which = manifest.objects.iter().position(|other| other == object);
        let stream = object.stream.clone().unwrap_or_else(|| StreamName(String::new()));
        let gone = places.into_iter().filter(|place| Some(place.object) == which);
        let gone: Vec<Place> = gone.filter(|place| !there.contains(&(place.shard.clone(), place.sequence.clone()))).collect();
        let lost_count = gone.len() as u64;
        let lost = gone.into_iter().take(NAMED).map(|place| named(place, &stream, &ticks)).collect();
        Ok(Error::Lost { store, path, state, lost, lost_count })
    }

    /// The segment's index, unless it is gone or changed itself.
    async fn index(&self, manifest: &Manifest) -> Result<Option<Vec<Place>>, Error> {
        let Some(object) = manifest.objects_of(Kind::Index).next() else { return Ok(None) };
        let found = self.get_all(&[object]).await?.pop().flatten();
        let whole = found.filter(|data| changed(object, data).is_none());
        let text = whole.and_then(|data| zstd::stream::decode_all(&data[..]).ok());
        Ok(text.and_then(|text| {
            let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            lines.map(|line| serde_json::from_slice(line).ok()).collect()
        }))
    }
}

/// What is wrong with an object's bytes.
fn changed(object: &Object, data: &[u8]) -> Option<String> {
    let found = checksum(data);
    (found != object.sha256).then(|| {
        let (bytes, expected, expected_bytes) = (data.len(), &object.sha256, object.bytes);
        format!("was changed (SHA-256 {found} of {bytes} bytes, the manifest says {expected} of {expected_bytes})")
    })
}

fn unpack(data: &[u8], raw_bytes: u64) -> Result<Vec<Kept>, String> {
    let capacity = usize::try_from(raw_bytes).map_err(|error| error.to_string())?;
    let text = zstd::bulk::decompress(data, capacity).map_err(|error| error.to_string())?;
    line::read_all(&Bytes::from(text)).collect()
}

fn named(place: Place, stream: &StreamName, ticks: &[ProgressRecord]) -> Lost {
    // The first record that speaks of the place is that of its tick.
    let speaks = |record: &&ProgressRecord| {
        let position = record.positions.get(stream).and_then(|shards| shards.get(&place.shard));
        position.is_some_and(|position| *position >= place.sequence)
    };
    let tick = ticks.iter().find(speaks).map(|record| (record.from_lsn, record.to_lsn));
    let Place { shard, sequence, commit_lsn, table, .. } = place;
    Lost { table, tick, stream: stream.clone(), shard, sequence, commit_lsn }
}

/// Where each shard stands when these records have been handed over.
pub(crate) fn advance(at: &mut Positions, batch: &Batch) {
    if let Some((last, _)) = batch.records.last() {
        at.insert(batch.shard.clone(), last.clone());
    }
}

/// The greater position of each shard.
pub(crate) fn merge(into: &mut Positions, other: &Positions) {
    for (shard, sequence) in other {
        if into.get(shard).is_none_or(|known| known < sequence) {
            into.insert(shard.clone(), sequence.clone());
        }
    }
}
