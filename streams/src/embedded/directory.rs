//! The folders and files of a stream.
//!
//! ```text
//! <path>/<stream>/stream.json                      {"format": 1, "shards": 4, "first_sequence": …}
//! <path>/<stream>/writer.lock                      locked while a writer has the stream open
//! <path>/<stream>/shard-0000/<first sequence, 20 digits>.log
//! ```
//!
//! A stream's folder is made under another name and renamed into place, and so is each segment with its header, so that neither is ever seen half made.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use schemas::progress::{ShardId, StreamName};
use serde::{Deserialize, Serialize};

use super::Options;
use super::segment::{Header, damaged, io_error};
use crate::Error;

const FORMAT: u32 = 1;
/// How far the numbers jump where records may have been seen and then lost; see [`Meta::first_sequence`].
pub(super) const GAP: u64 = 1_000_000_000;

/// What is fixed when a stream is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Meta {
    format: u32,
    pub(super) shards: u32,
    /// The first record's number: the seconds since 1970 times [`GAP`]. A stream that is removed and made again thus starts above any position in the old one (which
    /// would need a billion records a second to be overtaken), and a reader that comes with an old position is told that it missed something.
    pub(super) first_sequence: u64,
    /// The stream's own retention; without one the store's holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) retention_seconds: Option<u64>,
}

impl Meta {
    /// The store's options, with the stream's own retention if it has one.
    pub(super) fn limited(&self, options: &Options) -> Options {
        Options { retention_seconds: self.retention_seconds.or(options.retention_seconds), ..options.clone() }
    }
}

pub(super) fn shard_folder(shard: u32) -> String {
    format!("shard-{shard:04}")
}

pub(super) fn shard_id(shard: u32) -> ShardId {
    ShardId(shard_folder(shard))
}

/// The folder of a stream. Characters that are special in a path, and a leading dot, are written as `%` and two hexadecimal digits a byte.
pub(super) fn stream_folder(root: &Path, stream: &StreamName) -> PathBuf {
    let mut name = String::new();
    for (at, byte) in stream.0.bytes().enumerate() {
        match byte {
            b'.' if at == 0 => name.push_str("%2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => name.push(byte.into()),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    root.join(name)
}

/// The streams below `root`, in the order of their names.
pub(super) fn streams(root: &Path) -> Result<Vec<StreamName>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(|error| io_error(root, error))? {
        let entry = entry.map_err(|error| io_error(root, error))?;
        // A leading dot is of a stream that is being made; what no stream's name comes to is not ours.
        let name = entry.file_name().to_str().filter(|name| !name.starts_with('.')).and_then(stream_name);
        if let Some(name) = name.filter(|_| entry.path().join("stream.json").exists()) {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

/// The stream whose folder has this name.
fn stream_name(folder: &str) -> Option<StreamName> {
    let mut parts = folder.split('%');
    let mut name = parts.next()?.as_bytes().to_vec();
    for part in parts {
        name.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        name.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(name).ok().map(StreamName)
}

pub(super) fn read_meta(folder: &Path, stream: &StreamName) -> Result<Meta, Error> {
    let path = folder.join("stream.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NoSuchStream { stream: stream.clone() }),
        Err(error) => return Err(io_error(&path, error)),
    };
    let meta: Meta = serde_json::from_slice(&text).map_err(|error| damaged(&path, 0, error.to_string()))?;
    if meta.format != FORMAT || meta.shards == 0 {
        return Err(damaged(
            &path,
            0,
            format!("format {} with {} shards is not known to this version", meta.format, meta.shards),
        ));
    }
    Ok(meta)
}

pub(super) fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(|error| io_error(folder, error))
}

/// Makes the stream where it does not exist; answers whether it did not.
pub(super) fn create_stream(
    root: &Path,
    stream: &StreamName,
    shards: u32,
    retention_seconds: Option<u64>,
    sync: bool,
) -> Result<bool, Error> {
    static UNIQUE: AtomicU64 = AtomicU64::new(0);
    let folder = stream_folder(root, stream);
    if folder.join("stream.json").exists() {
        return Ok(false);
    }
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let meta = Meta { format: FORMAT, shards: shards.max(1), first_sequence: seconds * GAP + 1, retention_seconds };
    let new = root.join(format!(".new-{}-{}", std::process::id(), UNIQUE.fetch_add(1, Ordering::Relaxed)));
    for shard in 0..meta.shards {
        let folder = new.join(shard_folder(shard));
        fs::create_dir_all(&folder).map_err(|error| io_error(&folder, error))?;
    }
    let path = new.join("stream.json");
    let text = serde_json::to_vec(&meta).map_err(|error| io_error(&path, error.into()))?;
    write_new(&path, &text, sync)?;
    if sync {
        sync_folder(&new)?;
    }
    match fs::rename(&new, &folder) {
        Ok(()) if sync => sync_folder(root).map(|()| true),
        Ok(()) => Ok(true),
        // Somebody else made it meanwhile.
        Err(_) if folder.join("stream.json").exists() => {
            fs::remove_dir_all(&new).map_err(|error| io_error(&new, error))?;
            Ok(false)
        }
        Err(error) => {
            let _ = fs::remove_dir_all(&new);
            Err(io_error(&folder, error))
        }
    }
}

fn write_new(path: &Path, bytes: &[u8], sync: bool) -> Result<File, Error> {
    let write = || {
        let mut file = File::options().write(true).create(true).truncate(true).open(path)?;
        file.write_all(bytes)?;
        if sync {
            file.sync_all()?;
        }
        Ok(file)
    };
    write().map_err(|error| io_error(path, error))
}

/// A segment as the folder names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) first: u64,
    pub(super) path: PathBuf,
}

/// The segments of a shard, oldest first.
pub(super) fn segments(folder: &Path) -> Result<Vec<Segment>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| io_error(folder, error))? {
        let name = entry.map_err(|error| io_error(folder, error))?.file_name();
        let first = name.to_str().and_then(|name| name.strip_suffix(".log")).and_then(|digits| digits.parse().ok());
        if let Some(first) = first {
            found.push(Segment { first, path: folder.join(name) });
        }
    }
    found.sort_by_key(|segment: &Segment| segment.first);
    Ok(found)
}

/// The name of the segment that begins with a record.
pub(super) fn segment_file(first: u64) -> String {
    format!("{first:020}.log")
}

/// Makes a segment; its header is in place, and with `sync` durable, before its name is.
pub(super) fn create_segment(folder: &Path, header: Header, sync: bool) -> Result<(PathBuf, File), Error> {
    let path = folder.join(segment_file(header.first));
    let new = folder.join("new-segment");
    let file = write_new(&new, &header.encode(), sync)?;
    fs::rename(&new, &path).map_err(|error| io_error(&path, error))?;
    if sync {
        sync_folder(folder)?;
    }
    Ok((path, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_stream_leaves_its_root() {
        let folder = |name: &str| stream_folder(Path::new("r"), &StreamName(name.into()));
        assert_eq!(folder("shop.dbo.orders"), Path::new("r/shop.dbo.orders"));
        assert_eq!(folder(".."), Path::new("r/%2e."));
        assert_eq!(folder("a/é%"), Path::new("r/a%2f%c3%a9%25"));
        for name in ["shop.dbo.orders", "..", "a/é%"] {
            let folder = folder(name);
            assert_eq!(folder.file_name().and_then(|name| name.to_str()).and_then(stream_name), Some(StreamName(name.into())));
        }
    }
}
