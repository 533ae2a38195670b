//! Events that are larger than a record may be.

use std::collections::BTreeMap;

use bytes::Bytes;
use schemas::ErrorClass;
use schemas::progress::StreamName;
use streams::config::{KinesisOptions, Oversize};
use streams::kinesis::Kinesis;
use streams::stub::Stub;
use streams::{Error, Positions, Provider, Record};

use crate::operator::Operator;
use crate::support::{Read, reader, record};

fn stream() -> StreamName {
    StreamName("shop.dbo.pictures".into())
}

async fn connect(options: KinesisOptions) -> Kinesis {
    let kinesis = Kinesis::connect(options).await.unwrap();
    kinesis.ensure(&stream(), 2).await.unwrap();
    kinesis
}

#[tokio::test]
async fn pointers_are_followed_and_keep_the_order() {
    let (stub, directory) = (Stub::start().await.unwrap(), tempfile::tempdir().unwrap());
    let outside = objects::Config::Local(objects::LocalOptions { path: directory.path().join("outside") });
    let options =
        KinesisOptions { max_record_bytes: 1000, oversize: Oversize::Pointer(outside), read_ahead_bytes: 5000, ..stub.options() };
    let kinesis = connect(options).await;
    let mut writer = kinesis.writer().await.unwrap();
    // Every third of a key is too large, and one is much larger than all that is read ahead.
    let mut expected = BTreeMap::new();
    for key in ["a", "b", "c", "d"] {
        let sizes = (0..30).map(|number| if number == 10 { 3 << 20 } else { 100 + 1000 * (number % 3) });
        writer.append(&stream(), sizes.enumerate().map(|(number, size)| record(key, number, size)).collect()).await.unwrap();
        expected.insert(key.to_owned(), 30);
    }
    writer.flush().await.unwrap();
    let raw = Operator::new(&stub.endpoint(), &stream()).raw().await;
    assert!(raw.iter().all(|record| record.data.len() <= 1000));
    let mut read = Read::default();
    read.count(&mut *reader(&kinesis, &stream(), &Positions::new()).await, 120).await;
    read.assert_exact(&expected);
    assert_eq!(read.records.iter().filter(|(.., data)| data.len() == 3 << 20).count(), 4);
}

/// Pointers are small and what they point to is not: one answer's are not all in memory at once.
#[tokio::test]
async fn what_pointers_point_to_is_handed_over_in_batches_of_bounded_size() {
    const SIZE: usize = 3 << 20;
    let (stub, directory) = (Stub::start().await.unwrap(), tempfile::tempdir().unwrap());
    let outside = objects::Config::Local(objects::LocalOptions { path: directory.path().to_owned() });
    // All that is read ahead is less than one of them.
    let options = KinesisOptions { oversize: Oversize::Pointer(outside), read_ahead_bytes: 1 << 20, ..stub.options() };
    let kinesis = connect(options).await;
    let mut writer = kinesis.writer().await.unwrap();
    writer.append(&stream(), (0..7).map(|number| record("k", number, SIZE)).collect()).await.unwrap();
    writer.flush().await.unwrap();
    let mut reader = reader(&kinesis, &stream(), &Positions::new()).await;
    let (mut batches, mut numbers) = (Vec::new(), Vec::new());
    while numbers.len() < 7 {
        let batch = reader.next().await.unwrap();
        assert!(batch.records.iter().all(|(_, data)| data.len() == SIZE));
        batches.push(batch.records.len());
        numbers.extend(batch.records.into_iter().map(|(number, _)| number));
    }
    assert!(numbers.is_sorted() && batches.iter().all(|records| *records <= 3), "{batches:?}");
}

#[tokio::test]
async fn what_only_looks_like_a_pointer_comes_back_as_it_was() {
    let (stub, directory) = (Stub::start().await.unwrap(), tempfile::tempdir().unwrap());
    let outside = objects::Config::Local(objects::LocalOptions { path: directory.path().to_owned() });
    let kinesis = connect(KinesisOptions { oversize: Oversize::Pointer(outside.clone()), ..stub.options() }).await;
    let data = Bytes::from_static(br#"{"tributary_pointer":{"object":"shop/nowhere","bytes":1,"sha256":"00"}}"#);
    let mut writer = kinesis.writer().await.unwrap();
    writer.append(&stream(), vec![Record { partition_key: "k".into(), data: data.clone() }]).await.unwrap();
    writer.flush().await.unwrap();
    let mut read = Read::default();
    read.count(&mut *reader(&kinesis, &stream(), &Positions::new()).await, 1).await;
    assert_eq!(read.records[0].2, data);
    // A reader without the setting says what it lacks, and one whose object is gone what is gone.
    let without = connect(stub.options()).await;
    let error = reader(&without, &stream(), &Positions::new()).await.next().await.unwrap_err();
    assert!(matches!(&error, Error::Pointer { what, .. } if what.contains("configured")), "{error}");
    std::fs::remove_dir_all(directory.path()).unwrap();
    std::fs::create_dir(directory.path()).unwrap();
    let error = reader(&kinesis, &stream(), &Positions::new()).await.next().await.unwrap_err();
    assert!(matches!(&error, Error::Pointer { what, .. } if what.contains("missing")), "{error}");
    assert_eq!(error.class(), ErrorClass::Misconfigured);
}

#[tokio::test]
async fn stop_stops_and_dead_letter_leaves_it_to_the_writer() {
    let stub = Stub::start().await.unwrap();
    let kinesis = connect(KinesisOptions { max_record_bytes: 1000, oversize: Oversize::Stop, ..stub.options() }).await;
    let error = kinesis.writer().await.unwrap().append(&stream(), vec![record("k", 0, 1000)]).await.unwrap_err();
    assert!(matches!(error, Error::Oversize { bytes: 1001, limit: 1000, .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Misconfigured);
    let kinesis = connect(KinesisOptions { max_record_bytes: 1000, ..stub.options() }).await;
    let error = kinesis.writer().await.unwrap().append(&stream(), vec![record("k", 0, 1000)]).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { bytes: 1001, limit: 1000, .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Definite);
}
