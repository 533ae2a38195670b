//! The embedded log when its writer dies: a process that is killed with SIGKILL at any moment, again and again, and what a power failure leaves at a file's end.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use schemas::progress::StreamName;
use streams::embedded::{Embedded, Options};
use streams::{Positions, Provider as _};
use tokio::sync::oneshot;

#[path = "../support/mod.rs"]
mod support;

use support::{PATIENCE, Read, record};

const DIRECTORY: &str = "STREAMS_TEST_DIRECTORY";
const ROUND: &str = "STREAMS_TEST_ROUND";
const SEED: u64 = 7;
const ROUNDS: usize = 40;
const SHARDS: u32 = 3;
const KEYS: usize = 10;
/// More records than a round comes to: each round has numbers of its own.
const STRIDE: usize = 10_000_000;

fn stream() -> StreamName {
    StreamName("shop.dbo.orders".into())
}

/// Small segments, so that many rounds end in the middle of beginning one. Now and then flushes wait for the disk.
fn store(directory: &Path, round: usize) -> Embedded {
    Embedded::open(Options { segment_bytes: 20_000, sync: round.is_multiple_of(4), ..Options::new(directory) }).unwrap()
}

/// Not a test by itself: the process that is killed. Appends for ever, and prints up to which number everything has been flushed.
#[tokio::test]
#[ignore = "run, and killed, by the test of kills"]
async fn child_writer() {
    let (Ok(directory), Ok(round)) = (std::env::var(DIRECTORY), std::env::var(ROUND)) else { return };
    let round: usize = round.parse().unwrap();
    let mut random = StdRng::seed_from_u64(SEED + round as u64);
    let mut writer = store(Path::new(&directory), round).writer().await.unwrap();
    let mut next = round * STRIDE;
    loop {
        for _ in 0..random.random_range(1..4) {
            let end = next + random.random_range(1..60);
            let size = random.random_range(0..400);
            let records = (next..end).map(|number| record(&format!("key {}", number % KEYS), number, size));
            writer.append(&stream(), records.collect()).await.unwrap();
            next = end;
        }
        writer.flush().await.unwrap();
        println!("flushed {next}");
    }
}

/// Runs the writer until it has flushed a few times, kills it in whatever it is doing, and answers up to which number it had said that all was flushed.
fn run_and_kill(directory: &Path, round: usize, flushes: usize) -> usize {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_writer", "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let number = |line: String| line.split_once("flushed ").map(|(_, number)| number.parse::<usize>().unwrap());
    let before = lines.by_ref().filter_map(number).take(flushes).last();
    child.kill().unwrap();
    // What it had said before it died is said.
    let after = lines.filter_map(number).last();
    assert!(!child.wait().unwrap().success(), "it ended by itself");
    after.or(before).unwrap()
}

/// What a loss of power may leave behind what was durable: a write that was in flight, in part, as zeros, or as rubbish.
fn tear(directory: &Path, random: &mut StdRng) {
    let shard = directory.join(format!("{}/shard-{:04}", stream(), random.random_range(0..SHARDS)));
    let segments = fs::read_dir(&shard).unwrap().map(|entry| entry.unwrap().path());
    let Some(last) = segments.filter(|path| path.extension().is_some_and(|end| end == "log")).max() else { return };
    let bytes = fs::read(&last).unwrap();
    let mut rubbish = vec![0; random.random_range(1..3000)];
    match random.random_range(0..4) {
        0 => {}
        1 => random.fill_bytes(&mut rubbish),
        // What stood before it, once more: whole frames at the wrong place.
        2 => rubbish = bytes[bytes.len().min(40)..].iter().copied().take(rubbish.len()).collect(),
        // A frame that announces more than there is.
        _ => rubbish = [&500u32.to_be_bytes()[..], &[7; 100]].concat(),
    }
    File::options().append(true).open(&last).unwrap().write_all(&rubbish).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_is_killed_loses_nothing_that_it_flushed() {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().to_owned();
    let reading = store(&path, 0);
    reading.ensure(&stream(), SHARDS).await.unwrap();
    // One reader goes through it all, in another process than the writers.
    let mut follower = reading.reader(&stream(), &Positions::new()).await.unwrap();
    let (total, mut wanted) = oneshot::channel();
    let following = tokio::spawn(async move {
        let mut read = Read::default();
        loop {
            tokio::select! {
                batch = follower.next() => read.take(batch.unwrap()),
                total = &mut wanted => {
                    read.count(&mut *follower, total.unwrap()).await;
                    return read;
                }
            }
        }
    });
    let mut random = StdRng::seed_from_u64(SEED);
    let mut flushed = Vec::new();
    for round in 0..ROUNDS {
        let (path, flushes) = (path.clone(), random.random_range(1..30));
        let end = tokio::task::spawn_blocking(move || run_and_kill(&path, round, flushes)).await.unwrap();
        flushed.push(round * STRIDE..end);
        if random.random_bool(0.5) {
            tear(directory.path(), &mut random);
        }
    }
    // A last writer puts everything in order.
    let mut writer = store(&path, 0).writer().await.unwrap();
    let last = ROUNDS * STRIDE;
    let records = (last..last + 100).map(|number| record(&format!("key {}", number % KEYS), number, 10));
    writer.append(&stream(), records.collect()).await.unwrap();
    let tips = writer.flush().await.unwrap()[&stream()].clone();
    flushed.push(last..last + 100);

    let mut all = Read::default();
    let mut reader = reading.reader(&stream(), &Positions::new()).await.unwrap();
    while all.positions() != tips {
        all.next(&mut *reader).await;
    }
    let mut seen = BTreeSet::new();
    for (key, numbers) in all.by_key() {
        assert!(numbers.is_sorted_by(|a, b| a < b), "{key}: out of order, or repeated");
        seen.extend(numbers);
    }
    let lost: Vec<usize> = flushed.into_iter().flatten().filter(|number| !seen.contains(number)).collect();
    assert!(lost.is_empty(), "flushed, and lost: {lost:?}");
    total.send(all.records.len()).unwrap();
    let followed = tokio::time::timeout(PATIENCE, following).await.unwrap().unwrap();
    assert_eq!(followed.by_key(), all.by_key(), "who followed has seen something else than who reads it afterwards");
}
