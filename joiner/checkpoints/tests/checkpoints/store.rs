//! Object storage in memory, reached by processes that die at a step, and folders that stand for a database's.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use checkpoints::manifest::Manifest;
use checkpoints::{Checkpoints, Which};
use joiner::checkpoint::{DATABASE, Facts};
use object_store::memory::InMemory;
use objects::Objects;
use objects::test_support::{Control, Controlled, Fate, Operation};
use tokio::sync::{Notify, Semaphore};

/// What a process's way to the storage goes through, step by step.
#[derive(Debug)]
pub(crate) struct Steps {
    begun: AtomicUsize,
    /// From this step on nothing succeeds; of that step itself, either nothing comes to be, or only the answer is lost.
    last: usize,
    answer_lost: bool,
    /// That step alone fails, and the process lives on.
    once: bool,
    /// The process falls asleep before this step.
    sleep_at: AtomicUsize,
    pub(crate) asleep: Notify,
    pub(crate) wake: Semaphore,
}

impl Steps {
    fn new(last: usize, answer_lost: bool, once: bool) -> Arc<Self> {
        let (begun, sleep_at) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
        Arc::new(Self { begun, last, answer_lost, once, sleep_at, asleep: Notify::new(), wake: Semaphore::new(0) })
    }

    pub(crate) fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    pub(crate) fn sleep_after(&self, steps: usize) {
        self.sleep_at.store(self.begun() + steps, Ordering::SeqCst);
    }

    /// Whether the step is taken, and whether its answer comes.
    async fn step(&self) -> (bool, bool) {
        let step = self.begun.fetch_add(1, Ordering::SeqCst);
        if step >= self.sleep_at.load(Ordering::SeqCst) {
            self.asleep.notify_one();
            let _awake = self.wake.acquire().await;
        }
        let answered = step < self.last || (self.once && step > self.last);
        (answered || (step == self.last && self.answer_lost), answered)
    }
}

fn dead() -> object_store::Error {
    object_store::Error::Generic { store: "test", source: "the process is dead".into() }
}

#[async_trait::async_trait]
impl Control for Steps {
    async fn fate(&self, _: Operation<'_>) -> Fate {
        match self.step().await {
            (true, true) => Fate::Done,
            (true, false) => Fate::Lost(dead()),
            (false, _) => Fate::Refused(dead()),
        }
    }
}

#[derive(Clone, Default)]
pub(crate) struct World {
    memory: Arc<InMemory>,
}

impl World {
    pub(crate) fn objects(&self) -> Objects {
        Objects::over(self.memory.clone(), "memory")
    }

    pub(crate) fn checkpoints(&self) -> Checkpoints {
        Checkpoints::open(self.objects(), "shop")
    }

    fn process(&self, steps: Arc<Steps>) -> (Checkpoints, Arc<Steps>) {
        (Checkpoints::open(Controlled::objects(self.memory.clone(), steps.clone()), "shop"), steps)
    }

    /// The same, of a process that dies at a step.
    pub(crate) fn dying(&self, last: usize, answer_lost: bool) -> (Checkpoints, Arc<Steps>) {
        self.process(Steps::new(last, answer_lost, false))
    }

    /// The same, of a process for which one step fails.
    pub(crate) fn stumbling(&self, at: usize, answer_lost: bool) -> (Checkpoints, Arc<Steps>) {
        self.process(Steps::new(at, answer_lost, true))
    }

    /// The same, of a process that can be put to sleep.
    pub(crate) fn sleeping(&self) -> (Checkpoints, Arc<Steps>) {
        self.process(Steps::new(usize::MAX, false, false))
    }

    pub(crate) async fn names(&self, folder: &str) -> Vec<String> {
        let listed = self.objects().list(&objects::ObjectPath::from(folder)).await.unwrap();
        let mut names: Vec<String> = listed.into_iter().map(|object| object.path.to_string()).collect();
        names.sort();
        names
    }

    /// The parts of files that the checkpoints there are name, and no others.
    pub(crate) async fn holds_only_what_is_named(&self) {
        let mut named: Vec<String> = Vec::new();
        for listed in self.checkpoints().list().await.unwrap() {
            // All files of these tests have one part.
            named.extend(listed.checkpoint.files.iter().map(|file| format!("{}.0000", file.object)));
        }
        named.sort();
        named.dedup();
        assert_eq!(self.names("files").await, named);
    }

    pub(crate) async fn latest(&self) -> Manifest {
        self.checkpoints().expected(&Which::Latest).await.unwrap()
    }

    /// What a checkpoint is restored to.
    pub(crate) async fn restored(&self, manifest: &Manifest) -> Files {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        self.checkpoints().restore(manifest, &state).await.unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "something is left beside the state");
        read(&state.join(DATABASE))
    }
}

pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// The files of a database at a generation: tables that stay, one that is new, and files that change under their names.
pub(crate) fn generation(n: u32) -> Files {
    let table = |n: u32| (format!("{n:06}.sst"), format!("table {n} ").repeat(100 + n as usize).into_bytes());
    let mut files: Files = (n.saturating_sub(3)..=n).map(table).collect();
    files.insert("CURRENT".into(), format!("MANIFEST-{n}").into_bytes());
    files.insert(format!("MANIFEST-{n}"), n.to_string().into_bytes());
    files.insert("000001.log".into(), Vec::new());
    files
}

pub(crate) fn write(files: &Files, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for (name, data) in files {
        std::fs::write(folder.join(name), data).unwrap();
    }
}

pub(crate) fn read(folder: &Path) -> Files {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())).collect()
}

/// A generation in a folder of its own.
pub(crate) fn folder(n: u32) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    write(&generation(n), directory.path());
    directory
}

pub(crate) fn facts() -> Facts {
    Facts { format: 1, source: "shop".into(), ..Facts::default() }
}
