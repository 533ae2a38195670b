//! Other people's producers and consumers: what they write is handed over as it is, and what we write they read.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use schemas::progress::{SequenceNumber, ShardId, StreamName};
use serde_json::{Value, json};
use streams::hash::key_hash;
use streams::kinesis::Kinesis;
use streams::stub::Stub;
use streams::{Positions, Provider, Record};

use crate::operator::Operator;
use crate::support::{Read, reader, record};

/// PyPI's aws-kinesis-agg.
struct Python {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Python {
    fn start() -> Self {
        let interpreter = streams::test_support::python().unwrap_or_else(|error| panic!("{error}"));
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kinesis/aggregation.py");
        let mut child = Command::new(interpreter).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.child.stdin.as_mut().unwrap(), "{request}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}, asked for {request}"))
    }

    /// The partition key and the data of the Kinesis record that it makes of these.
    fn encode(&mut self, records: &[Record]) -> (String, Vec<u8>) {
        let records: Vec<_> = records.iter().map(|record| json!([record.partition_key, BASE64.encode(&record.data)])).collect();
        let answer = self.ask(&json!({"encode": records}));
        (answer[0].as_str().unwrap().to_owned(), BASE64.decode(answer[1].as_str().unwrap()).unwrap())
    }

    /// The partition keys and the data that it finds in a Kinesis record.
    fn decode(&mut self, data: &[u8]) -> Vec<Record> {
        let answer = self.ask(&json!({"decode": BASE64.encode(data)}));
        let records = answer.as_array().unwrap().iter().map(|record| Record {
            partition_key: record[0].as_str().unwrap().to_owned(),
            data: BASE64.decode(record[1].as_str().unwrap()).unwrap().into(),
        });
        records.collect()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn random_records(random: &mut StdRng, count: usize) -> Vec<Record> {
    let record = |_| {
        let size = random.random_range(0..400);
        Record {
            partition_key: format!("ключ {}", random.random_range(0..count)),
            data: (0..size).map(|_| random.random()).collect::<Vec<u8>>().into(),
        }
    };
    (0..count).map(record).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aggregates_are_those_of_aws_kinesis_agg_to_the_byte_and_either_reads_the_other() {
    let (mut python, mut random) = (Python::start(), StdRng::seed_from_u64(4));
    let stub = Stub::start().await.unwrap();
    let kinesis = Kinesis::connect(stub.options()).await.unwrap();
    for count in [2, 3, 130, 1000] {
        let records = random_records(&mut random, count);
        let (theirs_key, theirs) = python.encode(&records);

        let stream = StreamName(format!("ours.{count}"));
        kinesis.ensure(&stream, 1).await.unwrap();
        let mut writer = kinesis.writer().await.unwrap();
        writer.append(&stream, records.clone()).await.unwrap();
        writer.flush().await.unwrap();
        let raw = Operator::new(&stub.endpoint(), &stream).raw().await;
        assert_eq!(raw.len(), 1);
        assert!(raw[0].data == theirs, "{count} records: the bytes differ");
        assert_eq!(python.decode(&raw[0].data), records);

        // Theirs holds keys of all shards, and is routed by the first.
        let stream = StreamName(format!("theirs.{count}"));
        kinesis.ensure(&stream, 3).await.unwrap();
        Operator::new(&stub.endpoint(), &stream).put(&theirs_key, &theirs).await;
        let mut read = Read::default();
        read.count(&mut *reader(&kinesis, &stream, &Positions::new()).await, count).await;
        let data: Vec<_> = read.records.into_iter().map(|(.., data)| data).collect();
        assert_eq!(data, records.into_iter().map(|record| record.data).collect::<Vec<_>>());
    }
}

/// Of other producers nothing is changed and nothing dropped, whatever its shape: plain records, aggregates, and what only looks like one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_write_is_handed_over_as_it_is() {
    let (mut python, mut random) = (Python::start(), StdRng::seed_from_u64(5));
    let stub = Stub::start().await.unwrap();
    let kinesis = Kinesis::connect(stub.options()).await.unwrap();
    let stream = StreamName("others".into());
    kinesis.ensure(&stream, 1).await.unwrap();
    let operator = Operator::new(&stub.endpoint(), &stream);
    let mut expected: Vec<bytes::Bytes> = Vec::new();
    for round in 0..30 {
        let records = random_records(&mut random, 1 + round);
        match round % 4 {
            0 => {
                let (key, data) = python.encode(&records);
                operator.put(&key, &data).await;
                expected.extend(records.into_iter().map(|record| record.data));
            }
            // Cut off, or changed: it is a record like any other.
            1 => {
                let (key, mut data) = python.encode(&records);
                let at = random.random_range(0..data.len());
                data[at] ^= 1;
                operator.put(&key, &data).await;
                expected.push(data.into());
            }
            _ => {
                for record in records {
                    operator.put(&record.partition_key, &record.data).await;
                    expected.push(record.data);
                }
            }
        }
        if round == 15 {
            operator.split(0).await;
        }
    }
    let mut read = Read::default();
    read.count(&mut *reader(&kinesis, &stream, &Positions::new()).await, expected.len()).await;
    let mut found: Vec<_> = read.records.iter().map(|(.., data)| data.clone()).collect();
    // Two shards at the end: their order among each other is open.
    found.sort();
    expected.sort();
    assert!(found == expected, "{} records read, {} written", found.len(), expected.len());

    // From any position, aggregates of others too, the rest and nothing twice.
    for _ in 0..5 {
        let begun = random.random_range(0..read.records.len());
        let mut again = Read { records: read.records[..begun].to_vec() };
        let after = again.positions();
        again.count(&mut *reader(&kinesis, &stream, &after).await, expected.len()).await;
        let mut found: Vec<_> = again.records.into_iter().map(|(.., data)| data).collect();
        found.sort();
        assert!(found == expected);
    }
}

/// The KCL drops an aggregate whole when one of its records is not of its shard. What a split scatters must be there for it all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_drop_scattered_aggregates_whole_lose_nothing_over_a_split() {
    const MAGIC: &[u8] = b"\xf3\x89\x9a\xc2";
    let mut python = Python::start();
    let stub = Stub::start().await.unwrap();
    let kinesis = Kinesis::connect(stub.options()).await.unwrap();
    let stream = StreamName("scattered".into());
    kinesis.ensure(&stream, 1).await.unwrap();
    let operator = Operator::new(&stub.endpoint(), &stream);
    let mut writer = kinesis.writer().await.unwrap();
    let (keys, mut expected) = (40, BTreeMap::new());
    for number in 0..60 {
        writer.append(&stream, (0..keys).map(|key| record(&format!("k{key}"), number, 60)).collect()).await.unwrap();
        if number % 20 == 10 {
            operator.split(0).await;
        }
    }
    writer.flush().await.unwrap();
    expected.extend((0..keys).map(|key| (format!("k{key}"), 60)));
    let (mut read, mut dropped) = (Read::default(), 0);
    for raw in operator.raw().await {
        let records = if raw.data.starts_with(MAGIC) {
            python.decode(&raw.data)
        } else {
            vec![Record { partition_key: raw.key.clone(), data: raw.data.clone().into() }]
        };
        if records.iter().all(|record| raw.hashes.contains(&key_hash(&record.partition_key))) {
            let shard = ShardId(raw.hashes.start().to_string());
            read.records.extend(records.into_iter().map(|record| (shard.clone(), SequenceNumber::from(0), record.data)));
        } else {
            dropped += 1;
        }
    }
    assert!(dropped > 0, "no aggregate was scattered");
    read.assert_ordered_with_repeats(&expected);
}
