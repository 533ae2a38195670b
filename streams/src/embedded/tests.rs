//! What only this store can be asked: crashes, damage, full disks, retention, locks, other processes. The rest is the conformance suite's.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::directory::segments;
use super::*;
use crate::Record;

/// A disk with so many bytes left; unlimited by default.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk(Option<Arc<AtomicUsize>>);

impl Disk {
    /// How many of `wanted` bytes fit.
    pub(super) fn grant(&self, wanted: usize) -> usize {
        let Some(left) = &self.0 else { return wanted };
        let before = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(wanted))).unwrap();
        before.min(wanted)
    }
}

impl PartialEq for Disk {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Disk {}

fn name() -> StreamName {
    StreamName("shop.dbo.orders".into())
}

fn record(data: impl Into<Bytes>) -> Record {
    Record { partition_key: "k".into(), data: data.into() }
}

/// Options for a folder; everything of the first and only shard is there.
fn options(directory: &TempDir) -> Options {
    Options::new(directory.path())
}

fn shard_folder_of(directory: &TempDir) -> PathBuf {
    directory.path().join("shop.dbo.orders").join("shard-0000")
}

fn last_segment(directory: &TempDir) -> PathBuf {
    segments(&shard_folder_of(directory)).unwrap().pop().unwrap().path
}

async fn open(options: Options) -> Embedded {
    let store = Embedded::open(options).unwrap();
    store.ensure(&name(), 1).await.unwrap();
    store
}

/// Appends, flushes, and answers the last number.
async fn write(store: &Embedded, records: impl IntoIterator<Item = Vec<u8>>) -> SequenceNumber {
    let mut writer = store.writer().await.unwrap();
    writer.append(&name(), records.into_iter().map(record).collect()).await.unwrap();
    writer.flush().await.unwrap()[&name()].values().next().unwrap().clone()
}

/// Reads from after `after` until there are `count` records.
async fn read(store: &Embedded, after: &Positions, count: usize) -> Result<Vec<(SequenceNumber, Bytes)>, Error> {
    let mut reader = store.reader(&name(), after).await?;
    let mut records = Vec::new();
    while records.len() < count {
        records.extend(reader.next().await?.records);
    }
    Ok(records)
}

fn after(number: &SequenceNumber) -> Positions {
    BTreeMap::from([(directory::shard_id(0), number.clone())])
}

fn bodies(records: &[(SequenceNumber, Bytes)]) -> Vec<Vec<u8>> {
    records.iter().map(|(_, data)| data.to_vec()).collect()
}

#[tokio::test]
async fn a_tail_torn_at_any_byte_loses_only_what_was_not_whole() {
    let original = tempfile::tempdir().unwrap();
    let flushed: Vec<Vec<u8>> = (0..3u8).map(|at| vec![at; 5 + usize::from(at)]).collect();
    let tail: Vec<Vec<u8>> = (3..6u8).map(|at| vec![at; 9]).collect();
    let flushed_end;
    {
        let store = open(options(&original)).await;
        let mut writer = store.writer().await.unwrap();
        writer.append(&name(), flushed.iter().cloned().map(record).collect()).await.unwrap();
        writer.flush().await.unwrap();
        flushed_end = fs::metadata(last_segment(&original)).unwrap().len();
        writer.append(&name(), tail.iter().cloned().map(record).collect()).await.unwrap();
        writer.flush().await.unwrap();
        // Killed: the closing mark is never written.
        std::mem::forget(writer);
    }
    let bytes = fs::read(last_segment(&original)).unwrap();
    let frame = segment::FRAME_BYTES + 9;
    for cut in usize::try_from(flushed_end).unwrap()..=bytes.len() {
        for garbage in [&[][..], &[0; 30], b"garbage that was never a record"] {
            let directory = tempfile::tempdir().unwrap();
            let store = open(Options { sync: false, ..options(&directory) }).await;
            let folder = shard_folder_of(&directory);
            fs::copy(original.path().join("shop.dbo.orders/stream.json"), directory.path().join("shop.dbo.orders/stream.json"))
                .unwrap();
            let torn = [&bytes[..cut], garbage].concat();
            fs::write(folder.join(last_segment(&original).file_name().unwrap()), torn).unwrap();
            let whole = (cut.saturating_sub(flushed_end as usize + segment::MARK_BYTES)) / frame;
            let mut expected = [&flushed[..], &tail[..whole]].concat();
            // A reader before recovery sees the whole records and no more.
            assert_eq!(bodies(&read(&store, &Positions::new(), expected.len()).await.unwrap()), expected);
            let seen = store.tips(&name()).await.unwrap();
            write(&store, [b"after".to_vec()]).await;
            expected.push(b"after".to_vec());
            let all = read(&store, &Positions::new(), expected.len()).await.unwrap();
            assert_eq!(bodies(&all), expected, "cut at {cut}");
            assert!(all.is_sorted_by(|(a, _), (b, _)| a < b));
            // A reader from before the crash goes on with what came after it.
            assert_eq!(bodies(&read(&store, &seen, 1).await.unwrap()), [b"after"]);
        }
    }
}

#[tokio::test]
async fn acknowledged_records_are_never_cut() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(options(&directory)).await;
    write(&store, [b"one".to_vec(), b"two".to_vec()]).await;
    let path = last_segment(&directory);
    let whole = fs::read(&path).unwrap();
    // Every byte of the two records; the closing mark behind them says that they were durable.
    for at in usize::try_from(segment::HEADER_BYTES).unwrap()..whole.len() - segment::MARK_BYTES {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        let mut writer = store.writer().await.unwrap();
        let error = writer.append(&name(), vec![record("three")]).await.unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "byte {at}: {error}");
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    let mut header = whole.clone();
    header[20] ^= 1;
    fs::write(&path, &header).unwrap();
    assert!(matches!(read(&store, &Positions::new(), 1).await, Err(Error::Damaged { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_reader_reports_damage_instead_of_waiting_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(options(&directory)).await;
    write(&store, [b"one".to_vec()]).await;
    let path = last_segment(&directory);
    let mut bytes = fs::read(&path).unwrap();
    bytes[usize::try_from(segment::HEADER_BYTES).unwrap() + segment::FRAME_BYTES] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(read(&store, &Positions::new(), 1).await, Err(Error::Damaged { .. })));
}

#[tokio::test]
async fn a_clean_close_goes_on_in_the_same_segment() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(options(&directory)).await;
    let first = write(&store, [b"one".to_vec()]).await.to_u64().unwrap();
    let second = write(&store, [b"two".to_vec()]).await.to_u64().unwrap();
    assert_eq!(second, first + 1);
    assert_eq!(segments(&shard_folder_of(&directory)).unwrap().len(), 1);
}

#[tokio::test]
async fn the_second_writer_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(options(&directory)).await;
    let mut writer = store.writer().await.unwrap();
    writer.append(&name(), vec![record("one")]).await.unwrap();
    let mut second = store.writer().await.unwrap();
    assert!(matches!(second.append(&name(), vec![record("two")]).await, Err(Error::Locked { .. })));
    drop(writer);
    second.append(&name(), vec![record("two")]).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_is_reported_and_survived() {
    let directory = tempfile::tempdir().unwrap();
    let left = Arc::new(AtomicUsize::new(100));
    let store = open(Options { disk: Disk(Some(Arc::clone(&left))), ..options(&directory) }).await;
    let mut writer = store.writer().await.unwrap();
    writer.append(&name(), vec![record(vec![1; 50])]).await.unwrap();
    writer.flush().await.unwrap();
    writer.append(&name(), vec![record(vec![2; 50])]).await.unwrap();
    for _ in 0..2 {
        let error = writer.flush().await.unwrap_err();
        assert!(matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull), "{error}");
        assert_eq!(error.class(), schemas::ErrorClass::Misconfigured);
    }
    drop(writer);
    left.store(1000, Ordering::SeqCst);
    write(&store, [vec![3; 50]]).await;
    assert_eq!(bodies(&read(&store, &Positions::new(), 2).await.unwrap()), [vec![1; 50], vec![3; 50]]);
}

#[tokio::test]
async fn retention_removes_whole_segments_and_tells_who_is_behind() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(Options { segment_bytes: 1000, retention_bytes: Some(3000), sync: false, ..options(&directory) }).await;
    let first = write(&store, [vec![0; 300]]).await;
    let mut slow = store.reader(&name(), &Positions::new()).await.unwrap();
    assert_eq!(slow.next().await.unwrap().records[0].1[0], 0);
    let mut writer = store.writer().await.unwrap();
    writer.append(&name(), (1..=40u8).map(|at| record(vec![at; 300])).collect()).await.unwrap();
    let last = writer.flush().await.unwrap()[&name()][&directory::shard_id(0)].clone();
    // What the writer's look from time to time would remove as well, whenever that comes.
    retention::enforce(&shard_folder_of(&directory), retention::Limits::of(&store.options)).unwrap();
    let kept: u64 =
        segments(&shard_folder_of(&directory)).unwrap().iter().map(|segment| fs::metadata(&segment.path).unwrap().len()).sum();
    assert!(kept <= 3000, "{kept}");
    assert!(matches!(read(&store, &after(&first), 1).await, Err(Error::Trimmed { .. })));
    let from_start = read(&store, &Positions::new(), 1).await.unwrap();
    assert!(from_start[0].1[0] > 20);
    // Nothing is missing between the last trimmed and the oldest kept record.
    let before_oldest = SequenceNumber::from(from_start[0].0.to_u64().unwrap() - 1);
    assert_eq!(read(&store, &after(&before_oldest), 1).await.unwrap()[0], from_start[0]);
    writer.append(&name(), vec![record("new")]).await.unwrap();
    writer.flush().await.unwrap();
    assert_eq!(bodies(&read(&store, &after(&last), 1).await.unwrap()), [b"new"]);
    // A reader that was following finds the gap as well, unless it had read on in time.
    let slow_end = loop {
        match slow.next().await {
            Ok(batch) if batch.records.last().unwrap().1 == "new" => break None,
            Ok(_) => {}
            Err(error) => break Some(error),
        }
    };
    assert!(slow_end.is_none_or(|error| matches!(error, Error::Trimmed { .. })));
}

#[tokio::test]
async fn retention_by_age_spares_the_segment_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(Options { segment_bytes: 1000, retention_seconds: Some(3600), sync: false, ..options(&directory) }).await;
    write(&store, (0..10u8).map(|at| vec![at; 300])).await;
    let before = segments(&shard_folder_of(&directory)).unwrap();
    make_old(&directory);
    write(&store, [b"new".to_vec()]).await;
    assert!(before.len() > 3);
    assert_eq!(bodies(&read(&store, &Positions::new(), 1).await.unwrap()).pop().unwrap(), b"new");
}

fn make_old(directory: &TempDir) {
    for segment in segments(&shard_folder_of(directory)).unwrap() {
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
        match fs::File::options().write(true).open(&segment.path) {
            Ok(file) => file.set_modified(old).unwrap(),
            // It has been removed meanwhile.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
        }
    }
}

/// Makes what is there old, and waits until nothing is kept but an empty segment. Time is paused: it goes on as soon as everybody waits for it. A writer that was dropped may write a last time after that, which makes a segment young again:
/// so it is made old each time.
async fn all_is_gone(store: &Embedded, directory: &TempDir) {
    while !store.tips(&name()).await.unwrap().is_empty() {
        make_old(directory);
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_quiet_shard_holds_goes_when_it_is_too_old() {
    let directory = tempfile::tempdir().unwrap();
    let limited = Options { segment_bytes: 1000, retention_seconds: Some(3600), ..options(&directory) };
    let store = open(limited).await;
    let first = write(&store, (0..10u8).map(|at| vec![at; 300])).await;
    let (mut writer, mut follower) = (store.writer().await.unwrap(), store.reader(&name(), &after(&first)).await.unwrap());
    // One that the writer does not have open, then one that it has.
    for number in 1..3 {
        assert!(!store.tips(&name()).await.unwrap().is_empty());
        all_is_gone(&store, &directory).await;
        assert_eq!(segments(&shard_folder_of(&directory)).unwrap().len(), 1);
        writer.append(&name(), vec![record(format!("new {number}"))]).await.unwrap();
        let last = writer.flush().await.unwrap()[&name()][&directory::shard_id(0)].clone();
        assert_eq!(last.to_u64().unwrap(), first.to_u64().unwrap() + number);
        // Who had everything goes on, who had not is told, who begins anew begins here.
        assert_eq!(follower.next().await.unwrap().records[0].1, format!("new {number}"));
        let missed = SequenceNumber::from(first.to_u64().unwrap() - 1);
        assert!(matches!(read(&store, &after(&missed), 1).await, Err(Error::Trimmed { .. })));
        assert_eq!(bodies(&read(&store, &Positions::new(), 1).await.unwrap()), [format!("new {number}").into_bytes()]);
    }
    // Nobody looks any more.
    drop(writer);
    assert_eq!(store.tips(&name()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_writer_waits_for_retention_however_long_it_takes() {
    let directory = tempfile::tempdir().unwrap();
    open(options(&directory)).await;
    let folder = directory.path().join("shop.dbo.orders");
    let (hub, held) = (hub::Hub::of(&folder), fs::File::create(folder.join("writer.lock")).unwrap());
    let opens = || writer::OpenStream::open(&options(&directory), &name()).map(drop);
    std::thread::scope(|scope| {
        // As retention holds them.
        let turn = hub.turn();
        held.try_lock().unwrap();
        let (done, opened) = std::sync::mpsc::channel();
        scope.spawn(move || done.send(opens()));
        let bound = writer::LOCK_PAUSE * writer::LOCK_ATTEMPTS * 3 / 2;
        assert!(opened.recv_timeout(bound).is_err(), "it gave up, or did not wait");
        held.unlock().unwrap();
        drop(turn);
        opened.recv().unwrap().unwrap();
    });
}

#[tokio::test(start_paused = true)]
async fn a_stream_may_keep_for_another_time_than_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(options(&directory)).unwrap();
    let settings = StreamSettings { retention: Some(std::time::Duration::from_secs(3600)), ..StreamSettings::shards(1) };
    store.create(&name(), &settings).await.unwrap();
    write(&store, [b"one".to_vec()]).await;
    let writer = store.writer().await.unwrap();
    all_is_gone(&store, &directory).await;
    drop(writer);
}

#[tokio::test]
async fn a_record_that_was_taken_out_leaves_its_number() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(Options { segment_bytes: 1000, sync: false, ..options(&directory) }).await;
    let last = write(&store, (0..10u8).map(|at| vec![at; 300])).await.to_u64().unwrap();
    let shard = directory::shard_id(0);
    // The first of all, in the middle, the first of a segment, two together, the last.
    let first = last - 9;
    for at in [0, 4, 3, 6, 9] {
        store.remove(&name(), &shard, first + at).unwrap();
    }
    assert!(matches!(store.remove(&name(), &shard, first), Err(Error::Damaged { .. })));
    write(&store, [vec![10; 300]]).await;
    let read = read(&store, &Positions::new(), 6).await.unwrap();
    let numbers: Vec<u64> = read.iter().map(|(number, _)| number.to_u64().unwrap() - first).collect();
    assert_eq!(numbers, [1, 2, 5, 7, 8, 10]);
    assert!(read.iter().all(|(number, data)| u64::from(data[0]) == number.to_u64().unwrap() - first));
    let removed: Vec<_> = read.windows(2).filter_map(|pair| removed_between(pair[0].0.to_u64()?, pair[1].0.to_u64()?)).collect();
    assert_eq!(removed, [first + 3..=first + 4, first + 6..=first + 6, first + 9..=first + 9]);
}

#[test]
fn numbers_that_a_crash_leaves_out_are_not_taken_for_removed() {
    assert_eq!(removed_between(7, 8), None);
    assert_eq!(removed_between(7, 7), None);
    assert_eq!(removed_between(7, 10), Some(8..=9));
    assert_eq!(removed_between(u64::MAX, 3), None);
    // Whatever of a segment's records was read before it was lost.
    let in_a_segment = LARGEST_SEGMENT_BYTES / segment::FRAME_BYTES as u64;
    for lost in [0, 1, in_a_segment] {
        assert_eq!(removed_between(7 + lost, 8 + directory::GAP), None);
    }
}

#[tokio::test]
async fn a_missing_segment_in_the_middle_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(Options { segment_bytes: 1000, sync: false, ..options(&directory) }).await;
    write(&store, (0..20u8).map(|at| vec![at; 300])).await;
    fs::remove_file(&segments(&shard_folder_of(&directory)).unwrap()[2].path).unwrap();
    assert!(matches!(read(&store, &Positions::new(), 20).await, Err(Error::Damaged { .. })));
}

#[tokio::test]
async fn positions_of_another_stream_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(options(&directory)).await;
    write(&store, [b"one".to_vec()]).await;
    // Of a stream that was removed and made again: its numbers were lower.
    assert!(matches!(read(&store, &after(&SequenceNumber::from(7)), 1).await, Err(Error::Trimmed { .. })));
    // Of a much later one, and of Kinesis.
    assert!(matches!(read(&store, &after(&SequenceNumber::from(u64::MAX)), 1).await, Err(Error::ForeignPosition { .. })));
    let kinesis = "49590338271490256608559692538361571095921575989136588898000000".parse().unwrap();
    assert!(matches!(read(&store, &after(&kinesis), 1).await, Err(Error::ForeignPosition { .. })));
}

#[tokio::test]
async fn writers_that_wrote_nothing_leave_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(Options { segment_bytes: 1000, retention_bytes: Some(1000), sync: false, ..options(&directory) }).await;
    let last = write(&store, [b"one".to_vec()]).await;
    let mut follower = store.reader(&name(), &after(&last)).await.unwrap();
    for _ in 0..3 {
        let mut writer = store.writer().await.unwrap();
        writer.append(&name(), Vec::new()).await.unwrap();
        writer.append(&name(), vec![record("lost: never flushed")]).await.unwrap();
        // The follower is in whichever segment is the last one now.
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), follower.next()).await.is_err());
    }
    assert_eq!(segments(&shard_folder_of(&directory)).unwrap().len(), 2);
    assert_eq!(store.tips(&name()).await.unwrap(), after(&last));
    // What the reader has read is gone, and it has missed nothing.
    fs::remove_file(&segments(&shard_folder_of(&directory)).unwrap()[0].path).unwrap();
    assert!(store.tips(&name()).await.unwrap().is_empty());
    write(&store, [b"two".to_vec()]).await;
    assert_eq!(bodies(&read(&store, &after(&last), 1).await.unwrap()), [b"two"]);
    assert_eq!(follower.next().await.unwrap().records[0].1, "two");
}

const CHILD_DIRECTORY: &str = "STREAMS_TEST_CHILD_DIRECTORY";

/// Not a test by itself: the other process of the next one. Prints what it reads.
#[tokio::test]
#[ignore = "run by another_process_reads_what_is_written_here"]
async fn child_reader() {
    let Ok(directory) = std::env::var(CHILD_DIRECTORY) else { return };
    let store = Embedded::open(Options::new(directory)).unwrap();
    let mut reader = store.reader(&name(), &Positions::new()).await.unwrap();
    loop {
        for (_, data) in reader.next().await.unwrap().records {
            println!("read {}", String::from_utf8(data.to_vec()).unwrap().trim());
        }
    }
}

#[tokio::test]
async fn another_process_reads_what_is_written_here() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(Options { segment_bytes: 20_000, ..options(&directory) }).await;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "embedded::tests::child_reader", "--ignored", "--nocapture"])
        .env(CHILD_DIRECTORY, directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let mut writer = store.writer().await.unwrap();
    for at in 0..500 {
        writer.append(&name(), vec![record(format!("{at}{}", " ".repeat(at)))]).await.unwrap();
        if at % 7 == 0 {
            writer.flush().await.unwrap();
        }
    }
    writer.flush().await.unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let lines = output.lines().map(Result::unwrap);
        lines
            .filter_map(|line| line.split_once("read ").map(|(_, text)| text.parse::<usize>().unwrap()))
            .take(500)
            .collect::<Vec<_>>()
    });
    assert_eq!(read.await.unwrap(), (0..500).collect::<Vec<_>>());
    child.kill().unwrap();
    child.wait().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any run of appends, flushes, kills and clean restarts, with small segments: everything flushed is there, in order, once.
    #[test]
    fn what_was_flushed_is_read(steps in prop::collection::vec((0usize..400, 0u8..6), 1..40)) {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let store = open(Options { segment_bytes: 2000, sync: false, ..options(&directory) }).await;
            let mut writer = store.writer().await.unwrap();
            let (mut flushed, mut pending) = (Vec::new(), Vec::new());
            for (at, (size, action)) in steps.into_iter().enumerate() {
                let data = [at.to_string().into_bytes(), vec![b'.'; size]].concat();
                writer.append(&name(), vec![record(data.clone())]).await.unwrap();
                pending.push(data);
                if action >= 3 {
                    writer.flush().await.unwrap();
                    flushed.append(&mut pending);
                }
                if action == 0 {
                    drop(writer);
                    pending.clear();
                    writer = store.writer().await.unwrap();
                }
            }
            // What was appended and not flushed may be there or not.
            let mut read = Vec::new();
            if let Some(tip) = store.tips(&name()).await.unwrap().into_values().next() {
                let mut reader = store.reader(&name(), &Positions::new()).await.unwrap();
                while read.last().is_none_or(|(number, _)| *number < tip) {
                    read.extend(reader.next().await.unwrap().records);
                }
            }
            let read = bodies(&read);
            let kept: Vec<_> = read.into_iter().filter(|data| flushed.contains(data)).collect();
            assert_eq!(kept, flushed);
        });
    }
}
