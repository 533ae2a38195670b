//! Reading streams up to where they stand now, and finding places in them.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use jiff::Timestamp;
use schemas::Lsn;
use schemas::progress::{Phase, ProgressRecord, SequenceNumber, ShardId, ShardPositions, StreamName};
use streams::{Batch, Layout, Positions, Provider, StreamReader};

use crate::config::Config;

/// A stream from some place to where it stood when this was opened.
pub(super) struct Section {
    reader: Box<dyn StreamReader>,
    /// Where each shard ends, of those that have not been read to their end.
    left: Positions,
}

impl Section {
    pub(super) async fn open(provider: &dyn Provider, stream: &StreamName, after: &Positions) -> Result<Self, streams::Error> {
        let mut left = provider.tips(stream).await?;
        left.retain(|shard, tip| after.get(shard).is_none_or(|after| *after < *tip));
        Ok(Self { reader: provider.reader(stream, after).await?, left })
    }

    /// The next records; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Batch>, streams::Error> {
        while !self.left.is_empty() {
            let mut batch = self.reader.next().await?;
            let Some(tip) = self.left.get(&batch.shard) else { continue };
            if batch.records.last().is_some_and(|(last, _)| last >= tip) {
                batch.records.retain(|(number, _)| number <= tip);
                self.left.remove(&batch.shard);
            }
            return Ok(Some(batch));
        }
        Ok(None)
    }
}

/// The progress records of a source, in their order, up to now.
pub(super) struct Records {
    section: Section,
    source: String,
    waiting: std::collections::VecDeque<(ShardId, SequenceNumber, bytes::Bytes)>,
}

impl Records {
    pub(super) async fn open(config: &Config, provider: &dyn Provider) -> anyhow::Result<Self> {
        let stream = Layout::progress_stream(config.prefix());
        let section = Section::open(provider, &stream, &Positions::new()).await?;
        Ok(Self { section, source: config.source().name.clone(), waiting: Default::default() })
    }

    pub(super) async fn next(&mut self) -> anyhow::Result<Option<ProgressRecord>> {
        loop {
            while let Some((shard, number, data)) = self.waiting.pop_front() {
                let record: ProgressRecord = serde_json::from_slice(&data)
                    .with_context(|| format!("record {number} of shard {shard} of the progress stream is no progress record"))?;
                if record.source == self.source {
                    return Ok(Some(record));
                }
            }
            let Some(batch) = self.section.next().await? else { return Ok(None) };
            self.waiting.extend(batch.records.into_iter().map(|(number, data)| (batch.shard.clone(), number, data)));
        }
    }
}

/// Where to begin to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum From {
    Start,
    End,
    /// The changes of this LSN, and later.
    Lsn(Lsn),
    /// What was committed then, or later.
    Time(Timestamp),
    /// What comes after a record of a shard; the stream's other shards from their end.
    After {
        stream: StreamName,
        shard: ShardId,
        number: SequenceNumber,
    },
}

impl From {
    /// `start`, `end`, an LSN, a time (`2026-01-31T12:00:00Z`, or how long ago: `10m`), or a position (`stream/shard/sequence number`).
    pub(super) fn parse(text: &str, now: Timestamp) -> anyhow::Result<Self> {
        match text {
            "start" => return Ok(Self::Start),
            "end" => return Ok(Self::End),
            _ => {}
        }
        if let Ok(lsn) = text.parse() {
            return Ok(Self::Lsn(lsn));
        }
        if let Ok(time) = text.parse() {
            return Ok(Self::Time(time));
        }
        if let Ok(ago) = crate::cli::duration(text) {
            return Ok(Self::Time(now.checked_sub(ago).context("--from: that is too long ago")?));
        }
        if let [stream, shard, number] = text.split('/').collect::<Vec<_>>()[..]
            && let Ok(number) = number.parse()
        {
            return Ok(Self::After { stream: StreamName(stream.to_owned()), shard: ShardId(shard.to_owned()), number });
        }
        bail!(
            "--from {text:?}: write `start`, `end`, an LSN (00000027:00000ac0:0004), a time (2026-01-31T12:00:00Z, or how long ago: 10m), or a position (stream/shard/sequence number)"
        )
    }

    /// Whether something of this LSN and time lies before the beginning. Where reading begins is at or before it.
    pub(super) fn passes_over(&self, commit_lsn: Lsn, commit_time_ms: i64) -> bool {
        match self {
            Self::Lsn(lsn) => commit_lsn < *lsn,
            Self::Time(time) => commit_time_ms < time.as_millisecond(),
            Self::Start | Self::End | Self::After { .. } => false,
        }
    }

    /// The positions that the last progress record before the beginning names: nothing at or after the beginning stands before them (INV-1).
    async fn before(&self, config: &Config, provider: &dyn Provider) -> anyhow::Result<ShardPositions> {
        let mut records = Records::open(config, provider).await?;
        let mut positions = ShardPositions::new();
        while let Some(record) = records.next().await? {
            // The rows of a snapshot have one LSN, and more of them follow each of its records.
            let passed = match (self, &record.phase) {
                (Self::Time(_), Phase::Tail) => record.commit_time_ms > 0 && self.passes_over(Lsn::ZERO, record.commit_time_ms),
                (Self::Lsn(_), _) => self.passes_over(record.to_lsn, 0),
                _ => false,
            };
            if passed {
                positions = record.positions;
            }
        }
        Ok(positions)
    }

    /// Where to begin in each of these streams. Streams that are not to be read at all are missing.
    pub(super) async fn positions(
        &self,
        config: &Config,
        provider: &dyn Provider,
        streams: &[StreamName],
    ) -> anyhow::Result<BTreeMap<StreamName, Positions>> {
        let mut places: BTreeMap<StreamName, Positions> =
            streams.iter().map(|stream| (stream.clone(), Positions::new())).collect();
        match self {
            Self::Start => {}
            Self::End => {
                for (stream, place) in &mut places {
                    *place = provider.tips(stream).await?;
                }
            }
            Self::Lsn(_) | Self::Time(_) => {
                let mut before = self.before(config, provider).await?;
                for (stream, place) in &mut places {
                    *place = before.remove(stream).unwrap_or_default();
                }
            }
            Self::After { stream, shard, number } => {
                if !places.contains_key(stream) {
                    let known: Vec<&str> = streams.iter().map(|stream| stream.0.as_str()).collect();
                    bail!("--from: {stream} is not among the streams that are read: {}", known.join(", "));
                }
                let mut place = provider.tips(stream).await?;
                place.insert(shard.clone(), number.clone());
                places = [(stream.clone(), place)].into();
            }
        }
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn beginnings_are_read_and_anything_else_is_refused() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        let read = |text: &str| From::parse(text, now);
        assert_eq!(read("start").unwrap(), From::Start);
        assert_eq!(read("end").unwrap(), From::End);
        assert_eq!(read("00000027:00000ac0:0004").unwrap(), From::Lsn("00000027:00000ac0:0004".parse().unwrap()));
        assert_eq!(read("10m").unwrap(), From::Time("2026-01-31T11:50:00Z".parse().unwrap()));
        assert_eq!(read("2026-01-31T13:00:00+01:00").unwrap(), From::Time(now));
        let position = |stream: &str, shard: &str, number: u64| From::After {
            stream: StreamName(stream.into()),
            shard: ShardId(shard.into()),
            number: SequenceNumber::from(number),
        };
        assert_eq!(read("shop.events/shard-0000/17").unwrap(), position("shop.events", "shard-0000", 17));
        for wrong in ["", "yesterday", "17", "a/b", "a/b/c", "10"] {
            assert!(read(wrong).unwrap_err().to_string().contains("position"), "{wrong}");
        }
    }
}
