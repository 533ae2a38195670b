//! The bytes of a segment file.
//!
//! All numbers are big-endian.
//!
//! ```text
//! header   magic "TRIBLOG\n" | version u32 = 1 | shard u32 | first u64 | previous_next u64 | reserved u32 = 0 | crc u32
//! record   length u32 (< 2^32 - 1) | crc u32 | data
//! mark     2^32 - 1                | crc u32 | magic "SYNCED\r\n" | next u64
//! ```
//!
//! `first` is the sequence number of the segment's first record; the others follow by counting. `previous_next` is the number after the last record
//! before the segment (the stream's own first number where there is none), so that a missing segment is noticed. A record's CRC-32 covers its sequence
//! number, its length and its data: a record at the wrong place, a run of zeros, and half a record all fail it. A mark says that everything before it was durable
//! before it was written; its CRC covers its own offset, so that a copy of it inside a record's data is not taken for one.
//!
//! # Torn or damaged?
//! After a crash the last bytes of a log may be missing, zero or garbage; they were never acknowledged and may be cut. Bytes that *were* acknowledged must never
//! be cut silently. The marks tell the two apart: an unreadable record with a valid mark somewhere behind it had been made durable, so it is damage. Without
//! a mark behind it, it is the torn tail. (What the very last flush wrote carries no mark until the writer writes again or closes: damage done to exactly
//! these bytes between two runs is taken for a torn tail.)

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::Error;

pub(super) const HEADER_BYTES: u64 = 40;
const MAGIC: [u8; 8] = *b"TRIBLOG\n";
const VERSION: u32 = 1;
pub(super) const FRAME_BYTES: usize = 8;
const MARK: u32 = u32::MAX;
const MARK_MAGIC: [u8; 8] = *b"SYNCED\r\n";
pub(super) const MARK_BYTES: usize = FRAME_BYTES + 16;
/// The largest record.
pub(super) const MAX_RECORD_BYTES: usize = 64 << 20;
/// How much is looked through at once for a mark.
const BLOCK_BYTES: usize = 1 << 20;
/// How much is read at once. A reader of a stream that is behind holds three of them.
const READ_BYTES: usize = 1 << 20;

pub(super) fn io_error(path: &Path, source: io::Error) -> Error {
    Error::Io { path: path.display().to_string(), source }
}

pub(super) fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Error {
    Error::Damaged { path: path.display().to_string(), offset, what: what.into() }
}

/// What stands at the start of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) shard: u32,
    pub(super) first: u64,
    pub(super) previous_next: u64,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER_BYTES as usize] {
        let mut out = [0; HEADER_BYTES as usize];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_be_bytes());
        out[12..16].copy_from_slice(&self.shard.to_be_bytes());
        out[16..24].copy_from_slice(&self.first.to_be_bytes());
        out[24..32].copy_from_slice(&self.previous_next.to_be_bytes());
        let crc = crc32fast::hash(&out[..36]);
        out[36..].copy_from_slice(&crc.to_be_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() < HEADER_BYTES as usize || bytes[..8] != MAGIC {
            return Err("this is not a segment of a Tributary stream");
        }
        if u32_at(bytes, 8) != VERSION {
            return Err("the segment is of a format that this version does not know");
        }
        if crc32fast::hash(&bytes[..36]) != u32_at(bytes, 36) {
            return Err("the segment's header fails its checksum");
        }
        Ok(Self { shard: u32_at(bytes, 12), first: u64_at(bytes, 16), previous_next: u64_at(bytes, 24) })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

fn record_crc(sequence: u64, length: u32, data: &[u8]) -> u32 {
    let mut prefix = [0; 12];
    prefix[..8].copy_from_slice(&sequence.to_be_bytes());
    prefix[8..].copy_from_slice(&length.to_be_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&prefix);
    hasher.update(data);
    hasher.finalize()
}

fn mark_crc(offset: u64, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&offset.to_be_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// Appends a record to `out`. `data` is at most [`MAX_RECORD_BYTES`] long.
pub(super) fn encode_record(out: &mut Vec<u8>, sequence: u64, data: &[u8]) {
    let length = data.len() as u32;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&record_crc(sequence, length, data).to_be_bytes());
    out.extend_from_slice(data);
}

/// Appends the mark that is to stand at `offset` of the file, before the record `next`.
pub(super) fn encode_mark(out: &mut Vec<u8>, offset: u64, next: u64) {
    let mut body = [0; 16];
    body[..8].copy_from_slice(&MARK_MAGIC);
    body[8..].copy_from_slice(&next.to_be_bytes());
    out.extend_from_slice(&MARK.to_be_bytes());
    out.extend_from_slice(&mark_crc(offset, &body).to_be_bytes());
    out.extend_from_slice(&body);
}

/// Whether a valid mark stands at the start of `bytes`, which are the file's from `offset` on.
fn is_mark(bytes: &[u8], offset: u64) -> bool {
    bytes.len() >= MARK_BYTES
        && u32_at(bytes, 0) == MARK
        && bytes[8..16] == MARK_MAGIC
        && u32_at(bytes, 4) == mark_crc(offset, &bytes[FRAME_BYTES..MARK_BYTES])
}

enum Frame {
    /// A record, whose data lies between the frame's head and this end.
    Record(usize),
    Mark,
    /// The frame says that it needs this many bytes.
    Short(usize),
    Invalid,
}

/// The frame at the start of `bytes`, which are the file's from `offset` on; `sequence` is the next record's number.
fn frame(bytes: &[u8], offset: u64, sequence: u64) -> Frame {
    if bytes.len() < FRAME_BYTES {
        return Frame::Short(FRAME_BYTES);
    }
    let length = u32_at(bytes, 0);
    if length == MARK {
        if bytes.len() < MARK_BYTES {
            return Frame::Short(MARK_BYTES);
        }
        return if is_mark(bytes, offset) && u64_at(bytes, 16) == sequence { Frame::Mark } else { Frame::Invalid };
    }
    let end = FRAME_BYTES + length as usize;
    if length as usize > MAX_RECORD_BYTES {
        return Frame::Invalid;
    }
    if bytes.len() < end {
        return Frame::Short(end);
    }
    if record_crc(sequence, length, &bytes[FRAME_BYTES..end]) == u32_at(bytes, 4) { Frame::Record(end) } else { Frame::Invalid }
}

/// Why a read ended where it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Enough for one read; there is more.
    More,
    /// At the end of the file as it was when looked at.
    End,
    /// At a frame that is not, or not yet, whole or valid.
    Unreadable,
}

/// Reads a segment from its start, also while it is being written.
#[derive(Debug)]
pub(super) struct SegmentReader {
    file: File,
    pub(super) path: PathBuf,
    pub(super) header: Header,
    /// Where the next frame starts.
    pub(super) offset: u64,
    /// The number of the next record.
    pub(super) next: u64,
    /// Whether the frame before `offset` is a mark.
    pub(super) at_mark: bool,
}

impl SegmentReader {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|error| io_error(path, error))?;
        let mut bytes = [0; HEADER_BYTES as usize];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(damaged(path, 0, "the segment is shorter than its header"));
            }
            Err(error) => return Err(io_error(path, error)),
        }
        let header = Header::decode(&bytes).map_err(|what| damaged(path, 0, what))?;
        Ok(Self { file, path: path.to_owned(), header, offset: HEADER_BYTES, next: header.first, at_mark: false })
    }

    /// The number after the last record up to here: of this segment, or of the one before while this one has none.
    pub(super) fn after_last(&self) -> u64 {
        if self.next > self.header.first { self.next } else { self.header.previous_next }
    }

    pub(super) fn length(&self) -> Result<u64, Error> {
        Ok(self.file.metadata().map_err(|error| io_error(&self.path, error))?.len())
    }

    /// Up to a block of records, added to `records` as slices of that block, with their numbers.
    pub(super) fn read(&mut self, records: &mut Vec<(u64, Bytes)>) -> Result<Stop, Error> {
        let mut want = READ_BYTES;
        loop {
            let length = self.length()?;
            if length == self.offset {
                return Ok(Stop::End);
            }
            // A file shorter than what was read from it: someone else cut it. Not ours to explain here.
            let available = usize::try_from(length.saturating_sub(self.offset)).unwrap_or(usize::MAX);
            let block = self.block(want.min(available))?;
            let (used, stopped) = self.parse(&block, records);
            self.offset += used as u64;
            if used > 0 {
                return Ok(if matches!(stopped, Frame::Invalid) || used < available { Stop::More } else { Stop::End });
            }
            match stopped {
                Frame::Short(need) if need <= available && need > want => want = need,
                _ => return Ok(Stop::Unreadable),
            }
        }
    }

    fn block(&self, size: usize) -> Result<Bytes, Error> {
        let mut bytes = Vec::with_capacity(size);
        let mut file = &self.file;
        let read = file.seek(SeekFrom::Start(self.offset)).and_then(|_| file.take(size as u64).read_to_end(&mut bytes));
        read.map_err(|error| io_error(&self.path, error))?;
        Ok(bytes.into())
    }

    /// The whole frames at the start of the block: how many bytes they take, and what stopped the run.
    fn parse(&mut self, block: &Bytes, records: &mut Vec<(u64, Bytes)>) -> (usize, Frame) {
        let mut at = 0;
        loop {
            match frame(&block[at..], self.offset + at as u64, self.next) {
                Frame::Record(length) => {
                    records.push((self.next, block.slice(at + FRAME_BYTES..at + length)));
                    self.next += 1;
                    self.at_mark = false;
                    at += length;
                }
                Frame::Mark => {
                    self.at_mark = true;
                    at += MARK_BYTES;
                }
                stopped => return (at, stopped),
            }
        }
    }

    /// Whether a valid mark stands anywhere behind `offset`: then what is at `offset` had been made durable.
    pub(super) fn mark_behind(&self) -> Result<bool, Error> {
        let length = self.length()?;
        let mut base = self.offset;
        while base < length {
            let mut block = vec![0; BLOCK_BYTES.min(usize::try_from(length - base).unwrap_or(BLOCK_BYTES))];
            match self.file.read_exact_at(&mut block, base) {
                Ok(()) => {}
                // Cut meanwhile, by a writer that recovers.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                Err(error) => return Err(io_error(&self.path, error)),
            }
            // The magic stands in the middle of a mark; only a candidate's whole frame is checked.
            let candidates = block.windows(8).enumerate().filter(|(at, window)| *at >= FRAME_BYTES && **window == MARK_MAGIC);
            for (at, _) in candidates {
                let start = at - FRAME_BYTES;
                if is_mark(&block[start..], base + start as u64) {
                    return Ok(true);
                }
            }
            if (block.len() as u64) < length - base {
                // Blocks overlap, so that a mark across the border is whole in one of them.
                base += (block.len() - MARK_BYTES) as u64;
            } else {
                break;
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_reads_back(shard: u32, first: u64, previous_next: u64) {
            let header = Header { shard, first, previous_next };
            prop_assert_eq!(Header::decode(&header.encode()).unwrap(), header);
        }

        #[test]
        fn records_and_marks_read_back(runs in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..10), 1..10)) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("segment");
            let header = Header { shard: 0, first: 7, previous_next: 7 };
            let mut bytes = header.encode().to_vec();
            let mut next = 7;
            for run in &runs {
                for data in run {
                    encode_record(&mut bytes, next, data);
                    next += 1;
                }
                let offset = bytes.len() as u64;
                encode_mark(&mut bytes, offset, next);
            }
            std::fs::write(&path, &bytes).unwrap();
            let mut reader = SegmentReader::open(&path).unwrap();
            let mut records = Vec::new();
            while reader.read(&mut records).unwrap() != Stop::End {}
            prop_assert!(reader.at_mark);
            prop_assert_eq!(reader.next, next);
            let read: Vec<_> = records.into_iter().map(|(_, data)| data.to_vec()).collect();
            prop_assert_eq!(read, runs.concat());
        }
    }

    #[test]
    fn zeros_and_copied_marks_are_not_taken_for_records() {
        assert!(matches!(frame(&[0; 64], 40, 1), Frame::Invalid));
        let mut mark = Vec::new();
        encode_mark(&mut mark, 40, 1);
        assert!(matches!(frame(&mark, 40, 1), Frame::Mark));
        assert!(matches!(frame(&mark, 41, 1), Frame::Invalid));
        assert!(matches!(frame(&mark, 40, 2), Frame::Invalid));
    }
}
