//! One suite over every stream store: what the traits promise, and nothing of how.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use streams::Provider;
use streams::embedded::{Embedded, Options};
use streams::kinesis::Kinesis;
use streams::memory::Memory;
use streams::stub::Stub;
use streams::test_support::KinesisLocal;
use tempfile::TempDir;

mod cases;
#[path = "../support/mod.rs"]
mod support;

/// A store that can be opened again, as after a restart.
enum Fixture {
    Memory(Memory),
    Embedded(TempDir),
    KinesisLocal(KinesisLocal),
    Stub(Stub),
}

impl Fixture {
    /// One case out of so many: kinesis-local takes a while to answer.
    fn thoroughness(&self, slow: usize) -> usize {
        if matches!(self, Self::KinesisLocal(_)) { slow } else { 1 }
    }

    async fn open(&self) -> Arc<dyn Provider> {
        match self {
            Self::Memory(memory) => Arc::new(memory.clone()),
            Self::Embedded(directory) => {
                let options = Options { segment_bytes: 100_000, sync: false, ..Options::new(directory.path()) };
                Arc::new(Embedded::open(options).unwrap())
            }
            Self::KinesisLocal(server) => Arc::new(Kinesis::connect(server.options()).await.unwrap()),
            Self::Stub(stub) => Arc::new(Kinesis::connect(stub.options()).await.unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_conforms() {
    cases::all(&Fixture::Memory(Memory::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_conforms() {
    cases::all(&Fixture::Embedded(tempfile::tempdir().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinesis_local_conforms() {
    let directory = tempfile::tempdir().unwrap();
    let server = KinesisLocal::start(directory.path()).unwrap_or_else(|error| panic!("{error}"));
    cases::all(&Fixture::KinesisLocal(server)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stub_conforms() {
    cases::all(&Fixture::Stub(Stub::start().await.unwrap())).await;
}
