//! SQL Server Agent's part: the capture and cleanup jobs of every database that has change data capture.
//!
//! One thread looks at all databases in turn, with connections of its own. A scan takes the database's write lock, as any writer does; so a commit is
//! either stamped before the scan looks or found by the next.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tds::SqlError;

use crate::capture_procedures::error;
use crate::catalog::capture::CaptureCatalog;
use crate::clock;
use crate::functions::SharedCounters;
use crate::message;
use crate::server::{Database, Shared, connect_file, lock};
use crate::session::fault;

/// SQL Server's default polling interval, which [`crate::Options::capture_interval`] stands in for.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);
const CLEANUP_INTERVAL: Duration = Duration::from_secs(60);

pub(crate) struct Jobs {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Job {
    db: Connection,
    id: i64,
    scan_at: Instant,
    clean_at: Instant,
}

impl Jobs {
    pub(crate) fn start(shared: Arc<Shared>, interval: Duration) -> Jobs {
        let own = shared.clone();
        let thread = std::thread::Builder::new().name("agent".into()).spawn(move || run(&own, interval));
        if let Err(e) = &thread {
            tracing::error!(error = %e, "no thread for the capture jobs: change data capture stands still");
        }
        Jobs { shared, thread: thread.ok() }
    }

    pub(crate) fn stop(mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake_jobs();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed; there is nothing more to end.
            let _ = thread.join();
        }
    }
}

fn run(shared: &Arc<Shared>, interval: Duration) {
    let mut jobs: HashMap<String, Job> = HashMap::new();
    while !shared.stopping.load(Ordering::Acquire) {
        let databases: Vec<Database> = shared.databases().into_iter().filter(|d| d.id > 4).collect();
        jobs.retain(|name, job| databases.iter().any(|d| d.name == *name && d.id == job.id));
        if shared.agent_running() && !shared.is_secondary() {
            for d in &databases {
                if let Err(e) = visit(shared, d, &mut jobs, interval) {
                    tracing::warn!(database = %d.name, error = %e.message, "the capture job failed");
                }
            }
        }
        let asleep = lock(&shared.wake.0);
        let pause = interval.min(Duration::from_millis(500));
        let mut woken = shared.wake.1.wait_timeout_while(asleep, pause, |w| !*w).unwrap_or_else(PoisonError::into_inner).0;
        *woken = false;
    }
}

fn visit(shared: &Arc<Shared>, d: &Database, jobs: &mut HashMap<String, Job>, interval: Duration) -> Result<(), SqlError> {
    if !jobs.contains_key(&d.name) {
        let db = connect_file(&d.path, &SharedCounters::default()).map_err(|e| fault::from_sqlite(&e))?;
        let now = Instant::now();
        jobs.insert(d.name.clone(), Job { db, id: d.id, scan_at: now, clean_at: now + CLEANUP_INTERVAL });
    }
    let Some(job) = jobs.get_mut(&d.name) else { return Ok(()) };
    let now = Instant::now();
    let Some(every) = cdc::capture::due(&job.db).map_err(|e| error(&e))? else { return Ok(()) };
    let every = if every == DEFAULT_INTERVAL { interval } else { every };
    if now + every < job.scan_at {
        job.scan_at = now;
    }
    if now >= job.scan_at {
        job.scan_at = now + every;
        scan(shared, d, &job.db)?;
    }
    if now >= job.clean_at {
        job.clean_at = now + CLEANUP_INTERVAL;
        clean(shared, d, &job.db)?;
    }
    Ok(())
}

fn guarded<T>(shared: &Arc<Shared>, d: &Database, f: impl FnOnce() -> Result<T, SqlError>) -> Result<T, SqlError> {
    let stopping = || shared.stopping.load(Ordering::Acquire);
    let _guard = d.writers.acquire(None, &stopping).ok_or_else(|| message::error(3617, 16, "The server is stopping.".into()))?;
    f()
}

/// Scans until nothing committed is left, giving the lock back in between.
fn scan(shared: &Arc<Shared>, d: &Database, db: &Connection) -> Result<(), SqlError> {
    loop {
        let outcome = guarded(shared, d, || {
            let now = shared.clock.local_ticks();
            let mut catalog = CaptureCatalog { db, now };
            cdc::capture::scan(db, &mut catalog, clock::civil(now)).map_err(|e| error(&e))
        })?;
        if outcome.caught_up || outcome.failure.is_some() || shared.stopping.load(Ordering::Acquire) {
            return Ok(());
        }
    }
}

fn clean(shared: &Arc<Shared>, d: &Database, db: &Connection) -> Result<u64, SqlError> {
    guarded(shared, d, || match cdc::cleanup::cleanup(db, clock::civil(shared.clock.local_ticks())) {
        Ok(rows) => Ok(rows),
        Err(cdc::Error::NoSuchJob { .. }) => Ok(0),
        Err(e) => Err(error(&e)),
    })
}

fn connection(shared: &Arc<Shared>, database: &str) -> Result<(Database, Connection), SqlError> {
    let d = shared.database(database).ok_or_else(|| message::error(911, 16, format!("Database '{database}' does not exist.")))?;
    let db = connect_file(&d.path, &SharedCounters::default()).map_err(|e| fault::from_sqlite(&e))?;
    Ok((d, db))
}

pub(crate) fn capture_now(shared: &Arc<Shared>, database: &str) -> Result<(), SqlError> {
    let (d, db) = connection(shared, database)?;
    scan(shared, &d, &db)
}

pub(crate) fn cleanup_now(shared: &Arc<Shared>, database: &str) -> Result<u64, SqlError> {
    let (d, db) = connection(shared, database)?;
    clean(shared, &d, &db)
}

pub(crate) fn fail_capture(shared: &Arc<Shared>, database: &str, failure: Option<(i32, &str)>) -> Result<(), SqlError> {
    let (d, db) = connection(shared, database)?;
    let failure = failure.map(|(number, message)| cdc::jobs::Failure { number, message: message.into() });
    guarded(shared, &d, || cdc::jobs::fail(&db, failure.as_ref()).map_err(|e| error(&e)))
}
