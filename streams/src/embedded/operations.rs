//! What operators ask of the streams in a directory. They have shards and a retention; tags, encryption and record sizes are a service's.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use schemas::progress::StreamName;

use super::segment::{MAX_RECORD_BYTES, io_error};
use super::{Options, directory, reader};
use crate::hash::range_of;
use crate::{Capacity, Created, Description, Error, ShardDescription, StreamSettings, Summary};

/// A stream that is to grow on demand gets one shard: the disk is the limit, not the shard.
pub(super) fn create(options: &Options, stream: &StreamName, settings: &StreamSettings) -> Result<Created, Error> {
    let shards = match settings.capacity {
        Capacity::Shards(count) => count,
        Capacity::OnDemand => 1,
    };
    let retention = settings.retention.map(|retention| retention.as_secs());
    if directory::create_stream(&options.path, stream, shards, retention, options.sync)? {
        return Ok(Created::New);
    }
    let kept = StreamSettings { retention: settings.retention, ..StreamSettings::shards(shards) };
    Ok(Created::Existing { differs: describe(options, stream)?.differences(&kept) })
}

pub(super) fn list(options: &Options, prefix: &str) -> Result<Vec<Summary>, Error> {
    let mut found = Vec::new();
    for stream in directory::streams(&options.path)?.into_iter().filter(|stream| stream.0.starts_with(prefix)) {
        let open_shards = directory::read_meta(&directory::stream_folder(&options.path, &stream), &stream)?.shards;
        found.push(Summary { stream, open_shards });
    }
    Ok(found)
}

/// The oldest segment of a shard that nothing was removed from begins where the stream did, or behind a crash that left nothing before it.
pub(super) fn is_whole(options: &Options, stream: &StreamName) -> Result<bool, Error> {
    let folder = directory::stream_folder(&options.path, stream);
    let meta = directory::read_meta(&folder, stream)?;
    for shard in 0..meta.shards {
        let segments = directory::segments(&folder.join(directory::shard_folder(shard)))?;
        if let Some(oldest) = segments.first() {
            match reader::open(oldest)? {
                Some(oldest) if oldest.header.previous_next == meta.first_sequence => {}
                _ => return Ok(false),
            }
        }
    }
    Ok(true)
}

pub(super) fn describe(options: &Options, stream: &StreamName) -> Result<Description, Error> {
    let folder = directory::stream_folder(&options.path, stream);
    let meta = directory::read_meta(&folder, stream)?;
    let mut shards = Vec::new();
    for shard in 0..meta.shards {
        let mut bytes = 0;
        for segment in directory::segments(&folder.join(directory::shard_folder(shard)))? {
            // One that retention has removed since counts nothing.
            match fs::metadata(&segment.path) {
                Ok(metadata) => bytes += metadata.len(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(io_error(&segment.path, error)),
            }
        }
        shards.push(ShardDescription {
            shard: directory::shard_id(shard),
            hashes: range_of(shard, meta.shards),
            open: true,
            parents: Vec::new(),
            records: None,
            bytes: Some(bytes),
        });
    }
    Ok(Description {
        stream: stream.clone(),
        capacity: Capacity::Shards(meta.shards),
        retention: meta.retention_seconds.or(options.retention_seconds).map(Duration::from_secs),
        encryption_key: None,
        tags: BTreeMap::new(),
        max_record_bytes: Some(MAX_RECORD_BYTES),
        shards,
    })
}
