//! kill -9 of a process that archives, again and again: in the end the archive holds exactly what the streams hold.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use archive::{Archive, Archiver, verify};
use objects::{Config, LocalOptions, Objects};
use rand::{RngExt, SeedableRng};
use schemas::progress::ShardPositions;
use streams::embedded::{Embedded, Options};
use streams::{Layout, Provider};
use tokio_util::sync::CancellationToken;

use crate::support::{LIMIT, PREFIX, Shop, archive_all, config, contents, names, no_schemas, open};

const DIRECTORY: &str = "TRIBUTARY_ARCHIVE_TEST_DIRECTORY";
const ROUNDS: usize = 25;

async fn objects(directory: &Path) -> Objects {
    Objects::open(&Config::Local(LocalOptions { path: directory.join("archive") })).await.unwrap()
}

fn embedded(directory: &Path) -> Arc<dyn Provider> {
    Arc::new(Embedded::open(Options { sync: false, ..Options::new(directory.join("streams")) }).unwrap())
}

/// The process that is killed: this test program itself.
#[tokio::test]
#[ignore = "started by the test below"]
async fn archiving_process() {
    let directory = std::env::var_os(DIRECTORY).expect("it is started by another test");
    let directory = Path::new(&directory);
    let archive = Archive::open(objects(directory).await, "shop", PREFIX, no_schemas()).await.unwrap();
    Archiver::new(archive, &config(3000)).run(embedded(directory), CancellationToken::new()).await.unwrap();
}

fn start(directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::archiving_process", "--ignored", "--quiet"])
        .env(DIRECTORY, directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn killed_at_random_it_neither_loses_nor_doubles() {
    let directory = tempfile::tempdir().unwrap();
    let objects = objects(directory.path()).await;
    let mut shop = Shop::new(embedded(directory.path()), Layout::Shared).await;
    shop.snapshot(30).await;
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    let (mut killed_at, mut segments) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        let mut child = start(directory.path());
        let since = Instant::now();
        let mut goes_on = || assert!(since.elapsed() < LIMIT && child.try_wait().unwrap().is_none(), "it does not archive");
        // It begins and writes a segment.
        while names(&objects, "manifests").await.len() <= segments + 1 {
            goes_on();
            shop.tick(random.random_range(0..12)).await;
        }
        // Then it is killed a random while later, or when it is seen to write another one.
        let end = Instant::now() + Duration::from_micros(random.random_range(0..100_000));
        while Instant::now() < end || (round % 2 == 1 && names(&objects, "drafts").await.is_empty()) {
            goes_on();
            shop.tick(random.random_range(0..12)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        segments = names(&objects, "manifests").await.len();
        killed_at.push(names(&objects, "drafts").await.len());
    }
    assert!(killed_at.iter().any(|drafts| *drafts > 0), "none was killed in the middle of a segment: {killed_at:?}");
    archive_all(&shop, &objects, 3000).await;

    let live = contents(&shop, &*shop.provider, &ShardPositions::new()).await;
    let empty = embedded(&directory.path().join("elsewhere"));
    let elsewhere = Shop::new(empty, Layout::Shared).await;
    let fused = archive::Fused::new(open(&objects).await, elsewhere.provider.clone());
    assert_eq!(contents(&shop, &fused, &ShardPositions::new()).await, live);
    let found = verify(&open(&objects).await).await.unwrap();
    assert!(found.is_sound(), "{found:?}");
    let plan = open(&objects).await.plan(&Default::default()).await.unwrap();
    let mut named: Vec<String> = plan.objects.into_iter().map(|object| object.path).collect();
    named.sort();
    assert_eq!(names(&objects, "events").await, named, "objects that belong to no segment are left");
}
