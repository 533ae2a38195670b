//! Takes a record out of a log on purpose, as nothing does by itself: for tests of what readers then say.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::Bytes;
use schemas::progress::{ShardId, StreamName};

use super::directory::{Segment, read_meta, segments, shard_folder, shard_id};
use super::segment::{Header, SegmentReader, Stop, damaged, encode_mark, encode_record, io_error};
use super::{Embedded, directory};
use crate::Error;

impl Embedded {
    /// Rewrites the segment that holds record `number` as two, which lack it: every other record keeps its number, and every checksum is right. No writer may have the stream open.
    pub fn remove(&self, stream: &StreamName, shard: &ShardId, number: u64) -> Result<(), Error> {
        let folder = self.folder(stream);
        let meta = read_meta(&folder, stream)?;
        for index in (0..meta.shards).filter(|index| shard_id(*index) == *shard) {
            let folder = folder.join(shard_folder(index));
            let found = segments(&folder)?;
            let at = found.partition_point(|segment| segment.first <= number);
            if let Some(Segment { path, .. }) = at.checked_sub(1).and_then(|at| found.get(at)) {
                return split(&folder, path, found.get(at).map(|segment| segment.path.as_path()), number);
            }
        }
        Err(damaged(&folder, 0, format!("there is no record {number} in {shard}")))
    }
}

fn split(folder: &Path, path: &Path, following: Option<&Path>, number: u64) -> Result<(), Error> {
    let mut reader = SegmentReader::open(path)?;
    let mut records = Vec::new();
    while reader.read(&mut records)? == Stop::More {}
    let header = reader.header;
    let at = records.partition_point(|(other, _)| *other < number);
    if records.get(at).is_none_or(|(other, _)| *other != number) {
        return Err(damaged(path, 0, format!("there is no record {number}")));
    }
    let (before, after) = (&records[..at], &records[at + 1..]);
    let previous_next = if before.is_empty() { header.previous_next } else { number };
    match following.filter(|_| after.is_empty()) {
        None => write(folder, Header { first: number + 1, previous_next, ..header }, after)?,
        Some(path) => {
            let header = Header { previous_next, ..SegmentReader::open(path)?.header };
            let file = fs::File::options().write(true).open(path);
            file.and_then(|file| file.write_all_at(&header.encode(), 0)).map_err(|error| io_error(path, error))?;
        }
    }
    if before.is_empty() { fs::remove_file(path).map_err(|error| io_error(path, error)) } else { write(folder, header, before) }
}

fn write(folder: &Path, header: Header, records: &[(u64, Bytes)]) -> Result<(), Error> {
    let mut bytes = header.encode().to_vec();
    records.iter().for_each(|(number, data)| encode_record(&mut bytes, *number, data));
    let (offset, next) = (bytes.len() as u64, header.first + records.len() as u64);
    encode_mark(&mut bytes, offset, next);
    let path = folder.join(directory::segment_file(header.first));
    fs::write(&path, bytes).map_err(|error| io_error(&path, error))
}
