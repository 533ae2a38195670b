//! Who works when, where there are fewer cores than work.
//!
//! A step has parts that use all threads and parts that one thread must do alone: above all the write. What is read is sorted out beside it ([`crate::consume`]). Left to the system, that takes turns with the step, which everything waits for, and is
//! done, for there is room for so much and no more, when a part begins that one thread does alone. So as many batches are sorted out at a time as the step leaves cores: none while it uses all threads, all but one while one thread
//! goes on, and on all of them between steps. The step itself waits for nobody.
//!
//! A thread that has sorted out a batch goes on with the next by itself: to be woken takes a good part of the time that a batch does.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Work {
    /// Threads of the step.
    step: usize,
    /// Threads that sort out batches.
    sorting: usize,
    waiting: VecDeque<Job>,
    /// Where threads come from, once anything has been sorted out.
    runtime: Option<Handle>,
}

pub(crate) struct Cores {
    work: Mutex<Work>,
    threads: usize,
}

impl std::fmt::Debug for Cores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cores").field("threads", &self.threads).finish_non_exhaustive()
    }
}

/// While it lives, a step uses threads.
pub(crate) struct Used<'a> {
    cores: &'a Arc<Cores>,
    /// Those that it used before.
    before: usize,
}

/// The same, until the first of several threads is done: it leaves its core to others.
pub(crate) struct Together<'a>(Mutex<Option<Used<'a>>>);

/// A thread that sorts out batches.
struct Sorts {
    cores: Arc<Cores>,
    begun: bool,
}

impl Cores {
    pub(crate) fn new(threads: usize) -> Arc<Self> {
        Arc::new(Self { work: Mutex::default(), threads: threads.max(1) })
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One thread of a step begins.
    pub(crate) fn use_one(self: &Arc<Self>) -> Used<'_> {
        self.step_uses(1)
    }

    /// A step begins to use all threads.
    pub(crate) fn use_all(self: &Arc<Self>) -> Used<'_> {
        self.step_uses(self.threads)
    }

    /// Several threads of a step begin, which are not done at the same time.
    pub(crate) fn use_together(self: &Arc<Self>) -> Together<'_> {
        Together(Mutex::new(Some(self.use_all())))
    }

    fn step_uses(self: &Arc<Self>, threads: usize) -> Used<'_> {
        let before = std::mem::replace(&mut self.work().step, threads);
        Used { cores: self, before }
    }

    /// Does work as soon as a core is left for it. It is asked for within a runtime. Answers what it makes, or that it has panicked; nothing where the runtime ends before it has begun.
    pub(crate) fn sort<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<std::thread::Result<T>> {
        let (done, result) = oneshot::channel();
        let mut waiting = self.work();
        waiting.runtime.get_or_insert_with(Handle::current);
        waiting.waiting.push_back(Box::new(move || {
            // Who asked may be gone, before or after it.
            if !done.is_closed() {
                let _ = done.send(catch_unwind(AssertUnwindSafe(work)));
            }
        }));
        self.begin(waiting);
        result
    }

    /// Has threads begin with what waits, as many as there are cores for.
    fn begin(self: &Arc<Self>, mut work: MutexGuard<'_, Work>) {
        let Some(runtime) = work.runtime.clone() else { return };
        let free = self.threads.saturating_sub(work.step + work.sorting).min(work.waiting.len());
        work.sorting += free;
        drop(work);
        for _ in 0..free {
            let mut sorts = Sorts { cores: self.clone(), begun: false };
            runtime.spawn_blocking(move || while sorts.next() {});
        }
    }
}

impl Sorts {
    /// Sorts out the next batch, if there is one, and a core for it.
    fn next(&mut self) -> bool {
        self.begun = true;
        let mut work = self.cores.work();
        if work.step + work.sorting > self.cores.threads {
            return false;
        }
        let next = work.waiting.pop_front();
        drop(work);
        next.map(|job| job()).is_some()
    }
}

impl Drop for Sorts {
    fn drop(&mut self) {
        let mut work = self.cores.work();
        work.sorting -= 1;
        if self.begun {
            // Something may have come since it looked.
            self.cores.begin(work);
            return;
        }
        // The runtime has ended: nobody begins any more.
        let waiting = std::mem::take(&mut work.waiting);
        drop(work);
        drop(waiting);
    }
}

impl Together<'_> {
    /// One of the threads is done.
    pub(crate) fn is_done(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Drop for Used<'_> {
    fn drop(&mut self) {
        let mut work = self.cores.work();
        work.step = self.before;
        self.cores.begin(work);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc;

    use super::*;

    /// Work that has begun, and goes on until it is let.
    struct Begun {
        begun: oneshot::Receiver<()>,
        let_end: mpsc::Sender<()>,
        end: oneshot::Receiver<std::thread::Result<()>>,
    }

    impl Begun {
        fn ask(cores: &Arc<Cores>) -> Self {
            let (begins, begun) = oneshot::channel();
            let (let_end, may_end) = mpsc::channel();
            let end = cores.sort(move || {
                begins.send(()).unwrap();
                may_end.recv().unwrap();
            });
            Self { begun, let_end, end }
        }

        fn has_begun(&mut self) -> bool {
            self.begun.try_recv().is_ok()
        }

        async fn begins(&mut self) {
            (&mut self.begun).await.unwrap();
        }

        async fn end(self) {
            self.let_end.send(()).unwrap();
            self.end.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn as_many_are_sorted_out_as_a_step_leaves_cores() {
        let cores = Cores::new(2);
        let [mut first, mut second, mut third, mut fourth] = std::array::from_fn(|_| Begun::ask(&cores));
        first.begins().await;
        second.begins().await;
        let busy = || {
            let work = cores.work();
            (work.sorting, work.waiting.len())
        };
        assert_eq!(busy(), (2, 2), "two cores");
        first.end().await;
        third.begins().await;
        let step = cores.use_one();
        third.end().await;
        assert!(!fourth.has_begun(), "one of the cores is the step's");
        second.end().await;
        let all = cores.use_all();
        drop(all);
        fourth.begins().await;
        fourth.end().await;
        let together = cores.use_together();
        let mut fifth = Begun::ask(&cores);
        assert_eq!(busy().1, 1, "all are the step's");
        together.is_done();
        fifth.begins().await;
        together.is_done();
        drop(step);
        fifth.end().await;
    }

    #[test]
    fn what_waits_when_the_runtime_ends_is_dropped() {
        let cores = Cores::new(1);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let step = cores.use_one();
        let mut waits = runtime.block_on(async { [cores.sort(|| 1), cores.sort(|| 2)] });
        drop(runtime);
        drop(step);
        assert!(waits.iter_mut().all(|waits| matches!(waits.try_recv(), Err(oneshot::error::TryRecvError::Closed))));
    }

    #[tokio::test]
    async fn on_one_core_they_take_turns_and_a_panic_is_nobody_elses() {
        let cores = Cores::new(1);
        let step = cores.use_one();
        let panics = cores.sort(|| panic!("as it should"));
        let answers = cores.sort(|| 7);
        assert_eq!(cores.work().sorting, 0);
        drop(step);
        assert!(panics.await.unwrap().is_err());
        assert_eq!(answers.await.unwrap().unwrap(), 7);
    }
}
