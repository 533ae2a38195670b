//! Splits and merges in the middle of writing and reading.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use schemas::progress::{SequenceNumber, StreamName};
use streams::config::{AgedPositions, KinesisOptions};
use streams::kinesis::Kinesis;
use streams::stub::{Faults, Stub};
use streams::test_support::KinesisLocal;
use streams::{Error, Positions, Provider};

use crate::operator::Operator;
use crate::support::{Read, reader, record};

async fn connect(options: KinesisOptions) -> Arc<dyn Provider> {
    Arc::new(Kinesis::connect(options).await.unwrap())
}

/// Writes in random runs, reshards in between without waiting for them, reads at the same time; then everything again from the start, and from
/// the positions in the middle. The options may differ from reader to reader.
pub(crate) async fn write_and_read_over_reshards(options: impl Fn(usize) -> KinesisOptions, seed: u64, reshards: usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let stream = StreamName(format!("reshards.{seed}"));
    let provider: Arc<dyn Provider> = connect(options(0)).await;
    provider.ensure(&stream, 2).await.unwrap();
    let operator = Operator::new(options(0).endpoint.as_ref().unwrap(), &stream);
    let mut writer = provider.writer().await.unwrap();
    let mut follower = reader(&*provider, &stream, &Positions::new()).await;
    let mut expected: BTreeMap<String, usize> = BTreeMap::new();
    let mut read = Read::default();
    let mut flushed = BTreeMap::new();
    for round in 0..=reshards {
        for _ in 0..4 {
            let run: Vec<_> = (0..40)
                .map(|_| {
                    let key = format!("key {}", random.random_range(0..30));
                    let count = expected.entry(key.clone()).or_insert(0);
                    *count += 1;
                    record(&key, *count - 1, random.random_range(0..300))
                })
                .collect();
            writer.append(&stream, run).await.unwrap();
        }
        if random.random_bool(0.5) {
            flushed = writer.flush().await.unwrap();
            read.complete(&mut *follower, &expected).await;
        }
        if round < reshards {
            operator.reshard(&mut random).await;
        }
    }
    flushed.extend(writer.flush().await.unwrap());
    read.complete(&mut *follower, &expected).await;
    read.assert_ordered_with_repeats(&expected);

    let mut again = Read::default();
    let mut from_start = reader(&*connect(options(1)).await, &stream, &Positions::new()).await;
    again.complete(&mut *from_start, &expected).await;
    again.assert_ordered_with_repeats(&expected);
    // Whoever has read up to the answered positions has read everything.
    for (shard, number) in &flushed[&stream] {
        let seen = again.positions().remove(shard);
        assert!(seen.as_ref() >= Some(number), "{shard}: {seen:?} read, {number} answered");
    }
    for number in 2..5 {
        let begun = random.random_range(0..again.records.len());
        let mut read = Read { records: again.records[..begun].to_vec() };
        let after = read.positions();
        let provider = connect(options(number)).await;
        read.complete(&mut *reader(&*provider, &stream, &after).await, &expected).await;
        read.assert_ordered_with_repeats(&expected);
    }
}

/// A consumer's positions say what it has applied: those of children may stand while records of their parent, though read, are not behind the parent's.
#[tokio::test]
async fn a_parent_goes_on_at_its_own_position_though_its_children_have_theirs() {
    const KEYS: usize = 20;
    let stub = Stub::start().await.unwrap();
    let stream = StreamName("applied".into());
    let provider = Kinesis::connect(stub.options()).await.unwrap();
    provider.ensure(&stream, 1).await.unwrap();
    let operator = Operator::new(&stub.endpoint(), &stream);
    let mut writer = provider.writer().await.unwrap();
    // Every key's records 0 and 1 are in the parent, 2 and 3 in one of its two children.
    let mut stood = Vec::new();
    for number in 0..4 {
        if number == 2 {
            operator.reshard(&mut StdRng::seed_from_u64(0)).await;
        }
        writer.append(&stream, (0..KEYS).map(|key| record(&format!("key {key}"), number, 10)).collect()).await.unwrap();
        stood.push(writer.flush().await.unwrap().remove(&stream).unwrap());
    }
    assert_eq!(stood[3].len(), 3, "{stood:?}");
    let (parent, in_parent) = stood[0].first_key_value().unwrap();
    let children: Positions =
        stood[2].iter().filter(|(shard, _)| *shard != parent).map(|(id, at)| (id.clone(), at.clone())).collect();

    // The parent's position, and the records of each key that are to come.
    let cases: [(Option<&SequenceNumber>, &[usize]); 3] =
        [(Some(in_parent), &[1, 3]), (Some(&stood[1][parent]), &[3]), (None, &[0, 1, 3])];
    for (at, expected) in cases {
        let mut after = children.clone();
        after.extend(at.map(|at| (parent.clone(), at.clone())));
        let mut read = Read::default();
        read.count(&mut *reader(&provider, &stream, &after).await, expected.len() * KEYS).await;
        let keys = read.by_key();
        assert!(keys.len() == KEYS && keys.values().all(|numbers| numbers == expected), "after {after:?}: {keys:?}");
        // The parent before its children.
        assert!(read.records.is_sorted_by_key(|(shard, ..)| shard != parent), "after {after:?}");
    }

    // A parent whose position has aged is refused while records after it are left, and is done when nothing is.
    let refusing = Kinesis::connect(KinesisOptions { aged_positions: AgedPositions::Refuse, ..stub.options() }).await.unwrap();
    let mut after = children.clone();
    after.insert(parent.clone(), in_parent.clone());
    stub.trim(&stream, parent, 1);
    let error = reader(&refusing, &stream, &after).await.next().await.unwrap_err();
    assert!(matches!(&error, Error::Trimmed { shard, .. } if shard == parent), "{error}");
    stub.trim(&stream, parent, usize::MAX);
    let mut read = Read::default();
    read.count(&mut *reader(&refusing, &stream, &after).await, KEYS).await;
    assert!(read.by_key().values().all(|numbers| numbers == &[3]), "{:?}", read.by_key());
}

/// Consumers keep the positions of shards that Kinesis has long forgotten, over several generations. They are refused only where it is not sure that all of the shard was read.
#[tokio::test]
async fn positions_of_forgotten_generations_are_refused_only_where_something_may_be_missing() {
    const KEYS: usize = 20;
    let stub = Stub::start().await.unwrap();
    let stream = StreamName("generations".into());
    let refusing =
        KinesisOptions { aged_positions: AgedPositions::Refuse, retry_seconds: 1, retry_pause_ms: 20, ..stub.options() };
    let provider = Kinesis::connect(refusing).await.unwrap();
    provider.ensure(&stream, 1).await.unwrap();
    let operator = Operator::new(&stub.endpoint(), &stream);
    let mut writer = provider.writer().await.unwrap();
    let number = |number: usize| (0..KEYS).map(move |key| record(&format!("key {key}"), number, 10)).collect::<Vec<_>>();
    let mut generations: Vec<Positions> = Vec::new();
    for generation in 0..3 {
        if generation > 0 {
            // Every shard of the last generation.
            for (_, first, _) in operator.open_shards().await {
                operator.split(first).await;
            }
        }
        writer.append(&stream, number(generation)).await.unwrap();
        let mut stood = writer.flush().await.unwrap().remove(&stream).unwrap();
        stood.retain(|shard, _| generations.iter().all(|earlier| !earlier.contains_key(shard)));
        generations.push(stood);
    }
    assert_eq!(generations.iter().map(BTreeMap::len).collect::<Vec<_>>(), [1, 2, 4]);
    for forgotten in &generations[..2] {
        forgotten.keys().for_each(|shard| stub.expire(&stream, shard));
    }
    writer.append(&stream, number(3)).await.unwrap();
    writer.flush().await.unwrap();
    let all: Positions = generations.iter().flatten().map(|(shard, number)| (shard.clone(), number.clone())).collect();

    let mut read = Read::default();
    read.count(&mut *reader(&provider, &stream, &all).await, KEYS).await;
    assert!(read.by_key().values().all(|numbers| numbers == &[3]), "{:?}", read.by_key());

    // Of one line nobody has a position: the first shard may have gone on there, and what followed it may have been lost.
    let mut without = all.clone();
    let silent = generations[2].keys().next().unwrap();
    without.remove(silent);
    let first = generations[0].keys().next().unwrap();
    let error = provider.reader(&stream, &without).await.err().unwrap();
    assert!(matches!(&error, Error::Trimmed { shard, .. } if shard == first), "{error}");
    // A reader that does not want that line goes on.
    let (_, _, last) = operator.open_shards().await.into_iter().find(|(id, ..)| *id == silent.0).unwrap();
    assert!(provider.reader_of(&stream, &without, last + 1..=u128::MAX).await.is_ok());
    // Only forgotten shards: nothing shows that anything after them was read.
    let error = provider.reader(&stream, &generations[0]).await.err().unwrap();
    assert!(matches!(&error, Error::Trimmed { shard, .. } if shard == first), "{error}");
}

/// A shard may be forgotten between the look at the shard map and the first read of it: it has ended.
#[tokio::test]
async fn a_shard_that_is_forgotten_while_it_waits_to_be_read_has_ended() {
    let stub = Stub::start().await.unwrap();
    let stream = StreamName("forgotten".into());
    let provider = Kinesis::connect(stub.options()).await.unwrap();
    provider.ensure(&stream, 1).await.unwrap();
    let operator = Operator::new(&stub.endpoint(), &stream);
    let mut writer = provider.writer().await.unwrap();
    for number in 0..3 {
        writer.append(&stream, (0..9).map(|key| record(&format!("key {key}"), number, 10)).collect()).await.unwrap();
        writer.flush().await.unwrap();
        operator.split(0).await;
    }
    // The reader sees the map as it was, and comes to shards that are not there any more.
    let opened = reader(&provider, &stream, &Positions::new()).await;
    let shards: Vec<_> = provider.describe(&stream).await.unwrap().shards;
    shards.iter().filter(|shard| !shard.open).for_each(|shard| stub.expire(&stream, &shard.shard));
    let mut opened = opened;
    writer.append(&stream, (0..9).map(|key| record(&format!("key {key}"), 3, 10)).collect()).await.unwrap();
    writer.flush().await.unwrap();
    let mut read = Read::default();
    while (0..9).any(|key| read.by_key().get(&format!("key {key}")).is_none_or(|numbers| numbers.last() != Some(&3))) {
        read.next(&mut *opened).await;
    }
    assert!(read.by_key().values().all(|numbers| numbers.is_sorted()), "{:?}", read.by_key());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_is_kept_over_reshards_of_kinesis_local() {
    let directory = tempfile::tempdir().unwrap();
    let server = KinesisLocal::start(directory.path()).unwrap_or_else(|error| panic!("{error}"));
    for seed in 0..2 {
        write_and_read_over_reshards(|_| server.options(), seed, 8).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_is_kept_over_reshards_and_faults() {
    let mut over_quota = 0;
    for seed in 0..6 {
        let stub = Stub::start().await.unwrap();
        let mut random = StdRng::seed_from_u64(seed);
        let faults = Faults {
            every_entry: random.random_range(2..7),
            every_put: random.random_range(2..9),
            every_put_lost: random.random_range(3..11),
            every_put_cut: random.random_range(3..13),
            every_get: random.random_range(2..5),
            every_iterator: random.random_range(3..9),
            // Every other run is a storm: the writer takes the shard's quota for twenty times of what it is.
            shard_bytes_per_second: seed.is_multiple_of(2).then_some(30_000),
            shard_records_per_second: seed.is_multiple_of(2).then_some(100),
            ..Faults::default()
        };
        println!("seed {seed}: {faults:?}");
        stub.set_faults(faults);
        let options = |_| KinesisOptions { shard_bytes_per_second: 600_000, shard_records_per_second: 2000, ..stub.options() };
        write_and_read_over_reshards(options, seed, 6).await;
        assert!(stub.calls().failed > 0);
        over_quota += stub.calls().over_quota;
    }
    assert!(over_quota > 0);
}
