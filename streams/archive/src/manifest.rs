//! What is in the bucket, and the manifests that say what of it counts.
//!
//! ```text
//! archive.json                                                      whose archive it is, and its format
//! manifests/000000000/000000000042.json                             segment 42; a folder for each thousand
//! events/table=dbo.orders/date=2026-11-22/000000000042-<sha>.jsonl.zst   its events of a table and a day (of the commit, UTC)
//! events/table=_unreadable/…                                        its records that are no events of ours
//! dead-letters/000000000042-<sha>.jsonl.zst                         what the importer set aside meanwhile
//! progress/000000000042-<sha>.jsonl.zst                             its progress records
//! index/000000000042-<sha>.jsonl.zst                                where each of its events stands
//! drafts/000000000042-<writer>.json                                 a manifest whose objects are being written
//! ```
//! Lines of events and progress records: [`line`](crate) in this crate (`{"stream":…,"shard":…,"sequence":…,"event":{…}}`). Lines of the index:
//! `{"object":0,"shard":"shard-0000","sequence":"17","commit_lsn":"…","table":"dbo.orders"}`, `object` being the place among the manifest's objects. Names carry the beginning of the content's SHA-256:
//! what two attempts at one segment write never has one name and different content.
//!
//! # A segment
//! Segment n is what stands in each shard after the positions at which segment n−1 ends, up to those at which it ends itself (`positions`), of all streams, the progress stream among them. A segment without
//! objects is what an archiver begins with (see [`store`](crate)). Numbers are dense; the oldest segments may be removed, by number, with all that they name.

use std::collections::BTreeMap;

use objects::{ObjectPath, PathPart};
use schemas::progress::{SequenceNumber, ShardId, ShardPositions, StreamName};
use schemas::{Lsn, TableName};
use serde::{Deserialize, Serialize};
use streams::Positions;

use crate::account::{Account, Missing};
use crate::error::Error;
use crate::gap::{Gap, Hole, reaches};

/// Of everything that this module describes.
pub(crate) const FORMAT: u32 = 1;

const GROUP: u64 = 1000;

/// `archive.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub format: u32,
    pub source: String,
    pub prefix: String,
}

/// What a segment is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub number: u64,
    /// Who wrote it.
    pub writer: String,
    /// The ticks whose progress records are in the segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticks: Option<Ticks>,
    /// The greatest LSN up to which the archive is complete, with this segment.
    pub frontier: Lsn,
    /// Records of the segment, by table.
    pub counts: BTreeMap<String, u64>,
    /// What its progress records promise and the streams did not hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Missing>,
    /// What was gone before it could be archived, where the segment goes on after it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<Gap>,
    /// The last segment with a gap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_gap: Option<u64>,
    /// The segment in which the last initial snapshot begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<u64>,
    pub objects: Vec<Object>,
    /// The shards of the segment's records, by stream, in the order in which they are to be read: a shard that was split or merged before what came of it.
    pub shards: BTreeMap<StreamName, Vec<ShardId>>,
    /// Where these shards stood before it; one that is not named held nothing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub starts: ShardPositions,
    /// Of the shards of which it is the first segment, the first record that the archive has: whether the stream held others before it is not known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub begins: ShardPositions,
    /// Numbers up to which shards are taken as read although nothing comes there any more: progress records name them, and the store has nothing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ended: ShardPositions,
    /// Where every shard stands at the segment's end.
    pub positions: ShardPositions,
    /// Where every shard stood at the last tick, if the segment ends within one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete: Option<ShardPositions>,
    pub account: Account,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticks {
    /// Exclusive.
    pub from_lsn: Lsn,
    /// Inclusive.
    pub to_lsn: Lsn,
    pub count: u64,
    /// Commit time of `to_lsn`, in milliseconds since 1970-01-01 UTC; 0 when it is not known.
    pub commit_time_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Events,
    /// What the importer set aside.
    DeadLetters,
    Progress,
    Index,
}

/// An object of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    pub kind: Kind,
    pub path: String,
    /// Of events and progress records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    pub records: u64,
    /// As it is stored, and before compression.
    pub bytes: u64,
    pub raw_bytes: u64,
    pub sha256: String,
    /// The least and the greatest commit LSN of its events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsns: Option<(Lsn, Lsn)>,
}

impl Manifest {
    /// What an archive begins with, before its first segment.
    pub(crate) fn origin() -> Self {
        Self {
            number: 0,
            writer: String::new(),
            ticks: None,
            frontier: Lsn::ZERO,
            counts: BTreeMap::new(),
            missing: Vec::new(),
            gaps: Vec::new(),
            last_gap: None,
            snapshot: None,
            objects: Vec::new(),
            shards: BTreeMap::new(),
            starts: ShardPositions::new(),
            begins: ShardPositions::new(),
            ended: ShardPositions::new(),
            positions: ShardPositions::new(),
            complete: None,
            account: Account::default(),
        }
    }

    /// The segment that follows with nothing in it.
    pub(crate) fn next(&self, writer: &str) -> Self {
        Self {
            number: self.number + 1,
            writer: writer.to_owned(),
            frontier: self.frontier,
            last_gap: self.last_gap,
            snapshot: self.snapshot,
            ended: self.ended.clone(),
            positions: self.positions.clone(),
            complete: self.complete.clone(),
            account: self.account.clone(),
            ..Self::origin()
        }
    }

    /// Whether nothing lies between these positions of a stream and the segment, as far as the archive can tell. To a reader without any position it may be the first that is there; one that has begun has read what was before it in every shard.
    pub(crate) fn follows(&self, stream: &StreamName, after: &Positions) -> bool {
        fn of<'a>(positions: &'a ShardPositions, stream: &StreamName, shard: &ShardId) -> Option<&'a SequenceNumber> {
            positions.get(stream).and_then(|shards| shards.get(shard))
        }
        let mut before = self.starts.get(stream).into_iter().flatten();
        let begun = after.is_empty() || before.all(|(shard, _)| after.contains_key(shard));
        begun
            && after.iter().all(|(shard, after)| {
                let within = self.shards.get(stream).is_some_and(|shards| shards.contains(shard));
                if !within {
                    return of(&self.positions, stream, shard).is_none_or(|stood| stood <= after);
                }
                match (of(&self.starts, stream, shard), of(&self.begins, stream, shard)) {
                    (Some(start), _) => start <= after,
                    (None, Some(begin)) => reaches(after, begin),
                    (None, None) => true,
                }
            })
    }

    /// The gap that lies between these positions of a stream and what the segment holds.
    pub(crate) fn gap_after(&self, stream: &StreamName, after: &Positions) -> Option<&Gap> {
        let ahead = |hole: &Hole| hole.stream == *stream && after.get(&hole.shard).is_some_and(|at| hole.is_ahead(at));
        self.gaps.iter().find(|gap| gap.holes.iter().any(ahead))
    }

    /// The error for a gap of this segment.
    pub(crate) fn gap_error(&self, store: &str, gap: &Gap) -> Error {
        Error::Gap { store: store.to_owned(), segment: self.number, gap: Box::new(gap.clone()) }
    }

    /// Where every shard stood at the last tick.
    pub(crate) fn complete(&self) -> &ShardPositions {
        self.complete.as_ref().unwrap_or(&self.positions)
    }

    pub(crate) fn objects_of(&self, kind: Kind) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(move |object| object.kind == kind)
    }
}

pub(crate) fn header_path() -> ObjectPath {
    ObjectPath::from("archive.json")
}

pub(crate) fn manifests_folder() -> ObjectPath {
    ObjectPath::from("manifests")
}

pub(crate) fn drafts_folder() -> ObjectPath {
    ObjectPath::from("drafts")
}

pub(crate) fn manifest_path(number: u64) -> ObjectPath {
    manifests_folder().join(format!("{:09}", number / GROUP)).join(format!("{number:012}.json"))
}

pub(crate) fn draft_path(number: u64, writer: &str) -> ObjectPath {
    drafts_folder().join(format!("{number:012}-{writer}.json"))
}

/// The number of a manifest or draft by its path.
pub(crate) fn number_of(path: &ObjectPath) -> Option<u64> {
    let name = path.filename()?;
    let digits = name.get(..12).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

/// The folder for records that are no events of ours.
pub(crate) const UNREADABLE: &str = "_unreadable";

pub(crate) fn events_path(table: &str, date: &str, number: u64, sha256: &str) -> ObjectPath {
    let folders = ["events".to_owned(), format!("table={table}"), format!("date={date}"), object_name(number, sha256)];
    ObjectPath::from_iter(folders.iter().map(|part| PathPart::from(part.as_str())))
}

pub(crate) fn other_path(kind: Kind, number: u64, sha256: &str) -> ObjectPath {
    let folder = match kind {
        Kind::Events => "events",
        Kind::DeadLetters => "dead-letters",
        Kind::Progress => "progress",
        Kind::Index => "index",
    };
    ObjectPath::from(folder).join(object_name(number, sha256))
}

fn object_name(number: u64, sha256: &str) -> String {
    format!("{number:012}-{}.jsonl.zst", &sha256[..sha256.len().min(12)])
}

/// A table's name in paths and counts.
pub(crate) fn table_text(table: &TableName) -> String {
    table.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_carry_the_number_and_keep_tables_apart() {
        assert_eq!(manifest_path(1042).as_ref(), "manifests/000000001/000000001042.json");
        assert_eq!(number_of(&manifest_path(1042)), Some(1042));
        assert_eq!(number_of(&draft_path(7, "w")), Some(7));
        assert_eq!(number_of(&ObjectPath::from("manifests/x")), None);
        let path = events_path("dbo.a/b c", "2026-11-22", 3, "0123456789abcdef");
        assert_eq!(path.as_ref(), "events/table=dbo.a%2Fb c/date=2026-11-22/000000000003-0123456789ab.jsonl.zst");
        assert_eq!(ObjectPath::parse(path.as_ref()).unwrap(), path);
    }

    #[test]
    fn a_manifest_reads_back() {
        let mut manifest = Manifest::origin().next("w");
        manifest.ticks = Some(Ticks { from_lsn: Lsn::ZERO, to_lsn: Lsn::from_bytes([1; 10]), count: 2, commit_time_ms: 5 });
        manifest.objects.push(Object {
            kind: Kind::Events,
            path: "events/x".into(),
            stream: Some(StreamName("s".into())),
            table: Some("dbo.orders".into()),
            records: 1,
            bytes: 2,
            raw_bytes: 3,
            sha256: "00".into(),
            lsns: Some((Lsn::ZERO, Lsn::from_bytes([1; 10]))),
        });
        let text = serde_json::to_vec(&manifest).unwrap();
        assert_eq!(serde_json::from_slice::<Manifest>(&text).unwrap(), manifest);
    }

    #[test]
    fn a_segment_follows_what_was_read_of_every_shard() {
        let stream = StreamName("s".into());
        let at = |shards: &[(&str, u64)]| -> Positions {
            shards.iter().map(|(shard, number)| (ShardId((*shard).into()), SequenceNumber::from(*number))).collect()
        };
        let of = |shards: &[(&str, u64)]| -> ShardPositions { [(stream.clone(), at(shards))].into() };
        let mut manifest = Manifest::origin().next("w");
        manifest.shards = [(stream.clone(), ["old", "new"].map(|shard| ShardId(shard.into())).into())].into();
        (manifest.starts, manifest.begins) = (of(&[("old", 5)]), of(&[("new", 100)]));
        manifest.positions = of(&[("old", 9), ("new", 110), ("gone", 4)]);
        // Of the old shard there is more before it, of the new one perhaps, of the one that is not in it nothing.
        for (after, follows) in [
            (&[][..], true),
            (&[("old", 5)], true),
            (&[("old", 4)], false),
            (&[("new", 99)], false),
            (&[("old", 7), ("new", 99)], true),
            (&[("old", 7), ("new", 98)], false),
            (&[("old", 5), ("gone", 3)], false),
            (&[("old", 5), ("gone", 4), ("elsewhere", 1)], true),
        ] {
            assert_eq!(manifest.follows(&stream, &at(after)), follows, "{after:?}");
        }
    }
}
