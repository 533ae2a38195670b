//! The cases. Each has a stream of its own.

use std::collections::BTreeMap;

use futures_util::FutureExt as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use schemas::ErrorClass;
use schemas::progress::StreamName;
use streams::{Error, Positions, Record};

use crate::Fixture;
use crate::support::{Read, reader, record};

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        pub(crate) async fn all(fixture: &Fixture) {
            $(
                println!("{}", stringify!($case));
                Box::pin($case(fixture, &StreamName(format!("conformance.{}", stringify!($case))))).await;
            )*
        }
    };
}

cases![
    keeps_the_order_of_every_key_over_shards,
    resumes_after_any_position,
    answers_the_positions_of_a_flush,
    serves_several_readers,
    carries_large_records,
    flushes_nothing,
    loses_nothing_when_next_is_cancelled,
    goes_on_after_a_restart,
    tells_that_a_stream_is_missing,
    takes_every_key,
    leaves_an_existing_stream_as_it_is,
    wakes_a_waiting_reader,
    carries_what_looks_like_something_else,
    survives_random_use,
];

/// Runs of `per_key` records for keys `k0`, `k1`, …, dealt out in turn.
fn interleaved(keys: usize, per_key: usize, size: usize) -> Vec<Record> {
    (0..per_key).flat_map(|number| (0..keys).map(move |key| record(&format!("k{key}"), number, size))).collect()
}

fn counts(keys: usize, per_key: usize) -> BTreeMap<String, usize> {
    (0..keys).map(|key| (format!("k{key}"), per_key)).collect()
}

async fn keeps_the_order_of_every_key_over_shards(fixture: &Fixture, stream: &StreamName) {
    let provider = fixture.open().await;
    provider.ensure(stream, 4).await.unwrap();
    let mut writer = provider.writer().await.unwrap();
    for (index, run) in interleaved(20, 60, 100).chunks(37).enumerate() {
        writer.append(stream, run.to_vec()).await.unwrap();
        if index % 5 == 0 {
            writer.flush().await.unwrap();
        }
    }
    writer.flush().await.unwrap();
    let mut read = Read::default();
    read.count(&mut *reader(&*provider, stream, &Positions::new()).await, 1200).await;
    read.assert_exact(&counts(20, 60));
    assert!(read.positions().len() > 1, "all keys in one shard");
}

async fn resumes_after_any_position(fixture: &Fixture, stream: &StreamName) {
    let provider = fixture.open().await;
    provider.ensure(stream, 2).await.unwrap();
    let mut writer = provider.writer().await.unwrap();
    for run in interleaved(5, 6, 30).chunks(10) {
        writer.append(stream, run.to_vec()).await.unwrap();
        writer.flush().await.unwrap();
    }
    let mut all = Read::default();
    all.count(&mut *reader(&*provider, stream, &Positions::new()).await, 30).await;
    for begun in (0..30).step_by(fixture.thoroughness(3)) {
        let mut read = Read { records: all.records[..begun].to_vec() };
        let after = read.positions();
        read.count(&mut *reader(&*provider, stream, &after).await, 30).await;
        read.assert_exact(&counts(5, 6));
    }
}

async fn answers_the_positions_of_a_flush(fixture: &Fixture, stream: &StreamName) {
    let provider = fixture.open().await;
    provider.ensure(stream, 3).await.unwrap();
    let other = StreamName(format!("{stream}.other"));
    provider.ensure(&other, 1).await.unwrap();
    let mut writer = provider.writer().await.unwrap();
    writer.append(stream, interleaved(10, 3, 50)).await.unwrap();
    writer.append(&other, vec![record("k", 0, 10)]).await.unwrap();
    let positions = writer.flush().await.unwrap();
    assert_eq!(positions.len(), 2);
    let mut read = Read::default();
    read.count(&mut *reader(&*provider, stream, &Positions::new()).await, 30).await;
    assert_eq!(read.positions(), positions[stream]);
    assert_eq!(provider.tips(stream).await.unwrap(), positions[stream]);
    // They are those of the writer's whole life.
    writer.append(&other, vec![record("k", 1, 10)]).await.unwrap();
    let later = writer.flush().await.unwrap();
    assert_eq!(later[stream], positions[stream]);
    assert_ne!(later[&other], positions[&other]);
    assert_eq!(writer.flush().await.unwrap(), later);
    assert_eq!(provider.tips(&other).await.unwrap(), later[&other]);
}

async fn serves_several_readers(fixture: &Fixture, stream: &StreamName) {
    let provider = fixture.open().await;
    provider.ensure(stream, 2).await.unwrap();
    let early = reader(&*provider, stream, &Positions::new()).await;
    let mut writer = provider.writer().await.unwrap();
    writer.append(stream, interleaved(7, 20, 200)).await.unwrap();
    writer.flush().await.unwrap();
    let late = reader(&*provider, stream, &Positions::new()).await;
    let readers = [early, late].map(|mut reader| {
        tokio::spawn(async move {
            let mut read = Read::default();
            read.count(&mut *reader, 140).await;
            read.assert_exact(&counts(7, 20));
        })
    });
    for reader in readers {
        reader.await.unwrap();
    }
}

async fn carries_large_records(fixture: &Fixture, stream: &StreamName) {
    let provider = fixture.open().await;
    provider.ensure(stream, 1).await.unwrap();
    let mut writer = provider.writer().await.unwrap();
    let sizes = [900_000, 10, 700_000, 1_000_000, 10, 300_000, 300_000, 300_000, 300_000, 10];
    let records: Vec<_> = sizes.iter().enumerate().map(|(number, size)| record("k0", number, *size)).collect();
    writer.append(stream, records.clone()).await.unwrap();
    writer.flush().await.unwrap();
    let mut read = Read::default();
    read.count(&mut *reader(&*provider, stream, &Positions::new()).await, sizes.len()).await;
    let data: Vec<_> = read.records.into_iter().map(|(.., data)| data).collect();
    assert!(data == records.into_iter().map(|record| record.data).collect::<Vec<_>>());
}

async fn flushes_nothing(fixture: &Fixture, stream: &StreamName) {
    let provider = fixture.open().await;
    provider.ensure(stream, 1).await.unwrap();
    let mut writer = provider.writer().await.unwrap();
    assert!(writer.flush().await.unwrap().is_empty());
    writer.append(stream, Vec::new()).await.unwrap();
    assert!(writer.flush().await.unwrap().values().all(BTreeMap::is_empty));
    assert!(provider.tips(stream).await.unwrap().is_empty());
}

async fn loses_nothing_when_next_is_cancelled(fixture: &Fixture, stream: &StreamName) {
    let provider = fixture.open().await;
    provider.ensure(stream, 2).await.unwrap();
    let mut reader = reader(&*provider, stream, &Positions::new()).await;
    let mut writer = provider.writer().await.unwrap();
    let mut read = Read::default();
    for run in interleaved(3, 100, 50).chunks(9) {
        writer.append(stream, run.to_vec()).await.unwrap();
        writer.flush().await.unwrap();
        // Asked once, and dropped when there is nothing yet.
        if let Some(batch) = reader.next().now_or_never() {
            read.take(batch.unwrap());
        }
    }
    read.count(&mut *reader, 300).await;
    read.assert_exact(&counts(3, 100));
}

async fn goes_on_after_a_restart(fixture: &Fixture, stream: &StreamName) {
    let all = interleaved(6, 40, 60);
    let mut read = Read::default();
    for (index, run) in all.chunks(60).enumerate() {
        let provider = fixture.open().await;
        provider.ensure(stream, 3).await.unwrap();
        let mut writer = provider.writer().await.unwrap();
        writer.append(stream, run.to_vec()).await.unwrap();
        writer.flush().await.unwrap();
        let after = read.positions();
        read.count(&mut *reader(&*provider, stream, &after).await, 60 * (index + 1)).await;
    }
    read.assert_exact(&counts(6, 40));
    let mut again = Read::default();
    again.count(&mut *reader(&*fixture.open().await, stream, &Positions::new()).await, all.len()).await;
    again.assert_exact(&counts(6, 40));
}

async fn tells_that_a_stream_is_missing(fixture: &Fixture, stream: &StreamName) {
    let provider = fixture.open().await;
    let missing = |error: Error| {
        assert_eq!(error.class(), ErrorClass::Misconfigured);
        assert!(matches!(&error, Error::NoSuchStream { stream: named } if named == stream), "{error}");
    };
    missing(provider.reader(stream, &Positions::new()).await.err().unwrap());
    missing(provider.tips(stream).await.unwrap_err());
    let mut writer = provider.writer().await.unwrap();
    missing(writer.append(stream, vec![record("k", 0, 1)]).await.unwrap_err());
}

async fn takes_every_key(fixture: &Fixture, stream: &StreamName) {
    let provider = fixture.open().await;
    provider.ensure(stream, 3).await.unwrap();
    let keys = ["", "k", "ключ", "键", "🦀", "a b\tc/%", &"x".repeat(256), &"é".repeat(256), &"🦀".repeat(256)];
    let mut writer = provider.writer().await.unwrap();
    for number in 0..4 {
        for key in keys {
            writer.append(stream, vec![record(key, number, 0)]).await.unwrap();
            if number == 0 {
                // One at a time as well as many together.
                writer.flush().await.unwrap();
            }
        }
    }
    writer.flush().await.unwrap();
    let mut read = Read::default();
    read.count(&mut *reader(&*provider, stream, &Positions::new()).await, 4 * keys.len()).await;
    read.assert_exact(&keys.iter().map(|key| ((*key).to_owned(), 4)).collect());
    for key in ["x".repeat(257), "é".repeat(257)] {
        let error = writer.append(stream, vec![record(&key, 0, 0)]).await.unwrap_err();
        assert!(matches!(error, Error::PartitionKey { length: 257, .. }), "{error}");
        assert_eq!(error.class(), ErrorClass::Definite);
    }
}

async fn leaves_an_existing_stream_as_it_is(fixture: &Fixture, stream: &StreamName) {
    let provider = fixture.open().await;
    let both = tokio::join!(provider.ensure(stream, 2), provider.ensure(stream, 2));
    both.0.unwrap();
    both.1.unwrap();
    let mut writer = provider.writer().await.unwrap();
    writer.append(stream, interleaved(4, 2, 0)).await.unwrap();
    let positions = writer.flush().await.unwrap();
    provider.ensure(stream, 7).await.unwrap();
    assert_eq!(provider.tips(stream).await.unwrap(), positions[stream]);
}

async fn wakes_a_waiting_reader(fixture: &Fixture, stream: &StreamName) {
    let provider = fixture.open().await;
    provider.ensure(stream, 2).await.unwrap();
    let mut reader = reader(&*provider, stream, &Positions::new()).await;
    let mut writer = provider.writer().await.unwrap();
    let mut read = Read::default();
    for number in 0..20 {
        writer.append(stream, vec![record("k0", number, 0)]).await.unwrap();
        writer.flush().await.unwrap();
        read.count(&mut *reader, number + 1).await;
    }
    read.assert_exact(&counts(1, 20));
}

async fn carries_what_looks_like_something_else(fixture: &Fixture, stream: &StreamName) {
    let provider = fixture.open().await;
    provider.ensure(stream, 1).await.unwrap();
    let mut writer = provider.writer().await.unwrap();
    // An aggregate of one record in the producer library's format, its magic alone, and the embedded log's own mark.
    let aggregate =
        b"\xf3\x89\x9a\xc2\x0a\x01a\x1a\x05\x08\x00\x1a\x01x\x27\x4f\xa4\xa2\x21\x60\x92\x41\x96\x6b\x02\xc7\xaf\xbf\x42\x83";
    let data = [&aggregate[..], b"\xf3\x89\x9a\xc2", b"\xff\xff\xff\xff\0\0\0\0SYNCED\r\n\0\0\0\0\0\0\0\0", b"", b"\0"];
    for data in data {
        let data = bytes::Bytes::copy_from_slice(data);
        writer.append(stream, vec![Record { partition_key: "k".into(), data }]).await.unwrap();
        writer.flush().await.unwrap();
    }
    let mut read = Read::default();
    read.count(&mut *reader(&*provider, stream, &Positions::new()).await, data.len()).await;
    assert_eq!(read.records.iter().map(|(.., data)| &data[..]).collect::<Vec<_>>(), data);
}

async fn survives_random_use(fixture: &Fixture, stream: &StreamName) {
    for seed in 0..4u64.div_ceil(fixture.thoroughness(2) as u64) {
        let stream = StreamName(format!("{stream}.{seed}"));
        let mut random = StdRng::seed_from_u64(seed);
        let provider = fixture.open().await;
        provider.ensure(&stream, random.random_range(1..5)).await.unwrap();
        let mut writer = provider.writer().await.unwrap();
        let mut expected = BTreeMap::new();
        let (mut read, mut reader) = (Read::default(), reader(&*provider, &stream, &Positions::new()).await);
        for _ in 0..60 {
            match random.random_range(0..6) {
                0 => drop(writer.flush().await.unwrap()),
                1 => {
                    if let Some(batch) = reader.next().now_or_never() {
                        read.take(batch.unwrap());
                    }
                }
                2 => {
                    let after = read.positions();
                    reader = provider.reader(&stream, &after).await.unwrap();
                }
                _ => {
                    let run = (0..random.random_range(0..30)).map(|_| {
                        let key = format!("key {}", random.random_range(0..12));
                        let count = expected.entry(key.clone()).or_insert(0);
                        *count += 1;
                        record(&key, *count - 1, random.random_range(0..2000))
                    });
                    writer.append(&stream, run.collect()).await.unwrap();
                }
            }
        }
        writer.flush().await.unwrap();
        read.complete(&mut *reader, &expected).await;
        read.assert_exact(&expected);
    }
}
