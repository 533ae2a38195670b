//! What the tests of the stream stores share: records that know their key and number, and the check that none is lost or out of order.

// Each test takes what it needs.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use schemas::progress::{SequenceNumber, ShardId, StreamName};
use streams::{Positions, Provider, Record, StreamReader};

/// No wait in these tests takes so long unless something is lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Record `number` of `key`, filled up to about `size` bytes.
pub(crate) fn record(key: &str, number: usize, size: usize) -> Record {
    let head = format!("{key}\n{number}\n");
    let filling = size.saturating_sub(head.len());
    Record { partition_key: key.to_owned(), data: Bytes::from([head.into_bytes(), vec![b'.'; filling]].concat()) }
}

fn parse(data: &[u8]) -> (String, usize) {
    let text = std::str::from_utf8(data).unwrap();
    let (key, rest) = text.split_once('\n').unwrap();
    (key.to_owned(), rest.split_once('\n').unwrap().0.parse().unwrap())
}

/// What has been read, in the order in which it was.
#[derive(Debug, Default, Clone)]
pub(crate) struct Read {
    pub(crate) records: Vec<(ShardId, SequenceNumber, Bytes)>,
}

impl Read {
    /// Reads one batch, and checks that the shard's numbers grow.
    pub(crate) async fn next(&mut self, reader: &mut dyn StreamReader) {
        let batch = tokio::time::timeout(PATIENCE, reader.next()).await.expect("no record has come").unwrap();
        self.take(batch);
    }

    pub(crate) fn take(&mut self, batch: streams::Batch) {
        assert!(!batch.records.is_empty());
        for (number, data) in batch.records {
            if let Some((_, last, _)) = self.records.iter().rev().find(|(shard, ..)| *shard == batch.shard) {
                assert!(*last < number, "{last} before {number} in {}", batch.shard);
            }
            self.records.push((batch.shard.clone(), number, data));
        }
    }

    pub(crate) async fn count(&mut self, reader: &mut dyn StreamReader, count: usize) {
        while self.records.len() < count {
            self.next(reader).await;
        }
    }

    /// Reads until every key has had all its records at least once.
    pub(crate) async fn complete(&mut self, reader: &mut dyn StreamReader, expected: &BTreeMap<String, usize>) {
        let mut seen: BTreeMap<(String, usize), ()> = BTreeMap::new();
        let total: usize = expected.values().sum();
        let mut parsed = 0;
        loop {
            seen.extend(self.records[parsed..].iter().map(|(.., data)| (parse(data), ())));
            parsed = self.records.len();
            if seen.len() >= total {
                return;
            }
            self.next(reader).await;
        }
    }

    /// The last number read in each shard.
    pub(crate) fn positions(&self) -> Positions {
        self.records.iter().map(|(shard, number, _)| (shard.clone(), number.clone())).collect()
    }

    /// The records' numbers by key, in the order read.
    pub(crate) fn by_key(&self) -> BTreeMap<String, Vec<usize>> {
        let mut keys: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (.., data) in &self.records {
            let (key, number) = parse(data);
            keys.entry(key).or_default().push(number);
        }
        keys
    }

    /// Every key's records are exactly 0, 1, …, n-1.
    pub(crate) fn assert_exact(&self, expected: &BTreeMap<String, usize>) {
        let keys = self.by_key();
        assert_eq!(keys.len(), expected.len());
        for (key, count) in expected {
            assert_eq!(keys[key], (0..*count).collect::<Vec<_>>(), "key {key}");
        }
    }

    /// Every key's records are 0, 1, …, n-1, where runs may be repeated: a number is the next, or one that has been.
    pub(crate) fn assert_ordered_with_repeats(&self, expected: &BTreeMap<String, usize>) {
        for (key, numbers) in self.by_key() {
            let mut next = 0;
            let mut last = None;
            for number in numbers {
                // A repeat begins again at an earlier record and goes on from there, one by one.
                assert!(
                    number <= next && (last.is_none_or(|last| number <= last + 1)),
                    "key {key}: {number} after {last:?}, {next} was next"
                );
                next = next.max(number + 1);
                last = Some(number);
            }
            assert_eq!(next, expected[&key], "key {key}");
        }
    }
}

pub(crate) async fn reader(provider: &dyn Provider, stream: &StreamName, after: &Positions) -> Box<dyn StreamReader> {
    provider.reader(stream, after).await.unwrap()
}
