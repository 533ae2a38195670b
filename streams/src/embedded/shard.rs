//! One shard as its writer holds it: recovery, appending, rolling, retention.
//!
//! # Why a crash loses nothing that was flushed, and repeats no number
//! [`ShardWriter::open`] reads the last segment to its end. What cannot be read there is cut if no mark stands behind it and refused as damage otherwise (see
//! [`segment`](super::segment)). Older segments were made durable before the next was begun, so nothing in them is cut, ever.
//!
//! Readers see records as soon as they are in the file, before they are durable. After a loss of power such records may be gone while a reader's
//! saved position counts them. If their numbers were given out again, that reader would skip the new records silently. Therefore a writer that does not find a
//! mark at the very end (the sign that the former one closed with everything durable) begins a new segment [`GAP`] numbers further: more than a
//! segment, and so an undurable tail, can hold.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::Options;
use super::directory::{self, GAP, Meta};
use super::retention::{self, Limits};
use super::segment::{self, FRAME_BYTES, HEADER_BYTES, Header, MARK_BYTES, SegmentReader, Stop, damaged, io_error};
use crate::Error;

/// Buffered records are written when they come to this.
pub(super) const WRITE_BYTES: usize = 1 << 20;

pub(super) struct ShardWriter {
    pub(super) shard: u32,
    folder: PathBuf,
    path: PathBuf,
    file: Arc<File>,
    /// The file's length. `buffer` goes behind it.
    length: u64,
    buffer: Vec<u8>,
    first_in_segment: u64,
    /// The number after the last record before this segment.
    previous_next: u64,
    next: u64,
    /// The number after the last durable record.
    durable: u64,
    /// Everything in the file is durable, and the mark that says so is still to be written.
    mark_due: bool,
    options: Options,
}

impl ShardWriter {
    pub(super) fn open(stream_folder: &std::path::Path, meta: Meta, shard: u32, options: &Options) -> Result<Self, Error> {
        let folder = stream_folder.join(directory::shard_folder(shard));
        let (path, file, length, header, next, clean) = match directory::segments(&folder)?.pop() {
            None => {
                let header = Header { shard, first: meta.first_sequence, previous_next: meta.first_sequence };
                let (path, file) = directory::create_segment(&folder, header, options.sync)?;
                (path, file, HEADER_BYTES, header, header.first, true)
            }
            Some(last) => {
                let reader = recover(&last.path, options.sync)?;
                let file = File::options().write(true).open(&last.path).map_err(|error| io_error(&last.path, error))?;
                (last.path, file, reader.offset, reader.header, reader.next, reader.at_mark)
            }
        };
        let mut this = Self {
            shard,
            folder,
            path,
            file: Arc::new(file),
            length,
            buffer: Vec::new(),
            first_in_segment: header.first,
            previous_next: header.previous_next,
            next,
            durable: next,
            mark_due: false,
            options: meta.limited(options),
        };
        if !clean {
            let former = (next == header.first).then(|| this.path.clone());
            this.begin_segment(next + GAP)?;
            if let Some(empty) = former {
                // It holds nothing, and the new one knows what was before it.
                std::fs::remove_file(&empty).map_err(|error| io_error(&empty, error))?;
            }
        }
        this.enforce_retention()?;
        Ok(this)
    }

    /// Takes a record and answers its number.
    pub(super) fn append(&mut self, data: &[u8]) -> Result<u64, Error> {
        let size = (FRAME_BYTES + data.len()) as u64;
        if self.next > self.first_in_segment && self.length + self.buffer.len() as u64 + size > self.options.segment_bytes {
            self.write()?;
            self.sync()?;
            self.begin_segment(self.next)?;
            self.enforce_retention()?;
        }
        if std::mem::take(&mut self.mark_due) {
            segment::encode_mark(&mut self.buffer, self.length, self.next);
        }
        segment::encode_record(&mut self.buffer, self.next, data);
        self.next += 1;
        if self.buffer.len() >= WRITE_BYTES {
            self.write()?;
        }
        Ok(self.next - 1)
    }

    pub(super) fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Whether records of so many bytes, with their frames, would go into the buffer without any work on files.
    pub(super) fn only_buffers(&self, bytes: usize) -> bool {
        let buffered = self.buffer.len() + MARK_BYTES + bytes;
        buffered < WRITE_BYTES && self.length + buffered as u64 <= self.options.segment_bytes
    }

    /// Hands the buffered records to the operating system: readers see them from here on.
    pub(super) fn write(&mut self) -> Result<(), Error> {
        if !self.buffer.is_empty() {
            self.write_at_end().map_err(|error| io_error(&self.path, error))?;
            self.length += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    #[cfg(not(test))]
    fn write_at_end(&self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.length)
    }

    #[cfg(test)]
    fn write_at_end(&self) -> io::Result<()> {
        let granted = self.options.disk.grant(self.buffer.len());
        self.file.write_all_at(&self.buffer[..granted], self.length)?;
        if granted < self.buffer.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    /// The file to be made durable, if something in it is not; [`synced`](Self::synced) is to follow.
    pub(super) fn unsynced(&self) -> Option<Arc<File>> {
        (self.options.sync && self.durable < self.next).then(|| Arc::clone(&self.file))
    }

    pub(super) fn synced(&mut self) {
        self.durable = self.next;
        self.mark_due = self.options.sync;
    }

    fn sync(&mut self) -> Result<(), Error> {
        if let Some(file) = self.unsynced() {
            file.sync_data().map_err(|error| io_error(&self.path, error))?;
            self.synced();
        }
        Ok(())
    }

    pub(super) fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Begins a segment whose first record is `first`. Everything in the one before is durable.
    fn begin_segment(&mut self, first: u64) -> Result<(), Error> {
        self.write_mark();
        let previous_next = if self.next > self.first_in_segment { self.next } else { self.previous_next };
        let header = Header { shard: self.shard, first, previous_next };
        let (path, file) = directory::create_segment(&self.folder, header, self.options.sync)?;
        (self.path, self.file, self.length) = (path, Arc::new(file), HEADER_BYTES);
        (self.first_in_segment, self.previous_next) = (first, previous_next);
        (self.next, self.durable) = (first, first);
        Ok(())
    }

    /// Writes the mark that is due, at the end of work with this file. It is a help to the next opening, no more: a failure to write it is no loss.
    fn write_mark(&mut self) {
        if std::mem::take(&mut self.mark_due) {
            let mut mark = Vec::new();
            segment::encode_mark(&mut mark, self.length, self.next);
            // The time of the last write stays that of the last record, for retention.
            let written = self.file.metadata().and_then(|metadata| metadata.modified());
            let marked = self.file.write_all_at(&mark, self.length);
            if let Err(error) = marked.and_then(|()| self.file.set_modified(written?)) {
                tracing::debug!(path = %self.path.display(), %error, "could not write the closing mark");
            }
        }
    }

    fn enforce_retention(&self) -> Result<(), Error> {
        retention::enforce(&self.folder, self.limits())
    }

    fn limits(&self) -> Limits {
        Limits::of(&self.options)
    }

    /// Retention for a shard that is not written to: a last segment that is too old is ended, so that it can go as well.
    pub(super) fn keep(&mut self) -> Result<(), Error> {
        if self.buffer.is_empty() && self.next > self.first_in_segment && retention::is_stale(&self.path, self.limits())? {
            self.sync()?;
            self.begin_segment(self.next)?;
            // Nothing was lost before it: whoever opens it next goes on counting.
            self.mark_due = self.options.sync;
        }
        self.enforce_retention()
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        self.write_mark();
    }
}

/// Reads the last segment to its end and cuts a torn tail. The reader stands at the end; `at_mark` only when everything was durable and nothing was cut.
fn recover(path: &std::path::Path, sync: bool) -> Result<SegmentReader, Error> {
    let mut reader = SegmentReader::open(path)?;
    let mut records = Vec::new();
    loop {
        records.clear();
        match reader.read(&mut records)? {
            Stop::More => {}
            Stop::End => break,
            Stop::Unreadable => {
                let offset = reader.offset;
                if reader.mark_behind()? {
                    return Err(damaged(path, offset, "a record that had been made durable fails its checksum"));
                }
                let cut = reader.length()?.saturating_sub(offset);
                tracing::warn!(path = %path.display(), offset, bytes = cut, "cut an unfinished record at the end of the stream");
                let file = File::options().write(true).open(path).map_err(|error| io_error(path, error))?;
                file.set_len(offset).map_err(|error| io_error(path, error))?;
                reader.at_mark = false;
                break;
            }
        }
    }
    if sync && !reader.at_mark {
        // What a killed writer had written but not flushed is kept: it becomes durable before anything follows it.
        File::open(path).and_then(|file| file.sync_all()).map_err(|error| io_error(path, error))?;
    }
    Ok(reader)
}
