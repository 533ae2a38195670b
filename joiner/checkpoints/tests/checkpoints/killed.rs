//! kill -9 of a process that makes checkpoints and restores them, again and again: what there is, is whole.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use checkpoints::{Checkpoints, Retention, Which, is_empty, settle};
use joiner::checkpoint::DATABASE;
use objects::{Config, LocalOptions, Objects};
use rand::{RngExt, SeedableRng};

use crate::store::{facts, folder, generation, read};

const DIRECTORY: &str = "TRIBUTARY_CHECKPOINT_TEST_DIRECTORY";
const ROUNDS: usize = 25;
const LIMIT: Duration = Duration::from_secs(60);

async fn checkpoints(directory: &Path) -> Checkpoints {
    let config = Config::Local(LocalOptions { path: directory.join("checkpoints") });
    Checkpoints::open(Objects::open(&config).await.unwrap(), "shop")
}

/// Which generation a database is of; panics where it is none.
fn generation_of(database: &Path) -> u32 {
    let files = read(database);
    let current = String::from_utf8(files["CURRENT"].clone()).unwrap();
    let n = current.strip_prefix("MANIFEST-").unwrap().parse().unwrap();
    assert_eq!(files, generation(n), "a mixture");
    n
}

/// The process that is killed: this test program itself.
#[tokio::test]
#[ignore = "started by the test below"]
async fn working_process() {
    let directory = std::env::var_os(DIRECTORY).expect("it is started by another test");
    let directory = Path::new(&directory);
    let (checkpoints, state) = (checkpoints(directory).await, directory.join("state"));
    settle(&state).unwrap();
    let latest = checkpoints.find(&Which::Latest).await.unwrap();
    let mut n = 0;
    if let Some(latest) = latest {
        checkpoints.restore(&latest, &state).await.unwrap();
        n = generation_of(&state.join(DATABASE));
    }
    let mut writer = checkpoints.take_over(1).await.unwrap();
    loop {
        n += 1;
        writer.save(folder(n).path(), facts(), None, i64::from(n)).await.unwrap();
        writer.expire(Retention { keep: 2, keep_ms: i64::MAX }, 1).await.unwrap();
        if n.is_multiple_of(3) {
            checkpoints.restore(&checkpoints.expected(&Which::Latest).await.unwrap(), &state).await.unwrap();
        }
    }
}

fn start(directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::working_process", "--ignored", "--quiet"])
        .env(DIRECTORY, directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn killed_at_random_it_leaves_whole_checkpoints_and_whole_states() {
    let directory = tempfile::tempdir().unwrap();
    let (state, probe) = (directory.path().join("state"), directory.path().join("probe"));
    let checkpoints = checkpoints(directory.path()).await;
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    let (mut last, mut restored, mut interrupted) = (0, 0, 0);
    for _ in 0..ROUNDS {
        let mut child = start(directory.path());
        let since = Instant::now();
        // It makes a checkpoint, and is killed a random while later.
        let before = checkpoints.find(&Which::Latest).await.unwrap().map(|latest| latest.number);
        while checkpoints.find(&Which::Latest).await.unwrap().map(|latest| latest.number) == before {
            assert!(since.elapsed() < LIMIT && child.try_wait().unwrap().is_none(), "it makes no checkpoints");
            tokio::task::yield_now().await;
        }
        let end = Instant::now() + Duration::from_micros(random.random_range(0..60_000));
        while Instant::now() < end {
            tokio::task::yield_now().await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        interrupted += u32::from(std::fs::exists(directory.path().join("state.restoring")).unwrap());
        settle(&state).unwrap();
        if !is_empty(&state).unwrap() {
            generation_of(&state.join(DATABASE));
            restored += 1;
        }
        let latest = checkpoints.expected(&Which::Latest).await.unwrap();
        checkpoints.restore(&latest, &probe).await.unwrap();
        let n = generation_of(&probe.join(DATABASE));
        assert!(n > last, "generation {n} after {last}");
        last = n;
    }
    assert!(restored > 0, "none restored");
    println!("{ROUNDS} kills, {last} checkpoints, {interrupted} in the middle of a restore");
}
