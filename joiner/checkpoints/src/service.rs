//! Makes checkpoints beside a running joiner: every so often, and when somebody asks for a savepoint. One task does all of it, one thing after another.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use joiner::Handle;
use schemas::{ErrorClass, Lsn};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::writer::{Made, Retention, Writer, folder_error};
use crate::{Checkpoints, Config, Error, Which, is_empty, metrics, settle};

/// A failure is tried again after so long, or when the next checkpoint is due if that is sooner.
const RETRY: Duration = Duration::from_secs(30);
/// However seldom checkpoints are wanted, one is made within a year: clocks do not reach much further.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// Requests that wait.
const REQUESTS: usize = 16;
/// The latest checkpoint may be removed while it is read, because newer ones were made: then there is a newer one.
const ATTEMPTS: u32 = 5;

/// Milliseconds since 1970-01-01 UTC.
pub fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// What a process says of its checkpoints.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Status {
    pub store: String,
    pub phase: Phase,
    /// The number under which this process took over.
    pub epoch: Option<u64>,
    /// The last checkpoint that this process made.
    pub last: Option<LastMade>,
    /// The checkpoint that the state was made of when this process began.
    pub restored: Option<Restored>,
    /// Why the last attempt failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Takes over.
    #[default]
    Beginning,
    Waiting,
    Making,
    /// Another process makes the checkpoints now.
    Superseded,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LastMade {
    pub number: u64,
    pub frontier: Lsn,
    pub made_ms: i64,
    pub bytes: u64,
    pub uploaded_bytes: u64,
    pub seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restored {
    pub number: u64,
    pub frontier: Lsn,
    pub made_ms: i64,
    pub bytes: u64,
}

/// Reads the status of a running service.
#[derive(Debug, Clone, Default)]
pub struct StatusHandle(Arc<Mutex<Status>>);

impl StatusHandle {
    pub fn get(&self) -> Status {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Makes the latest checkpoint the joiner's state where there is no state yet; ends what an interrupted restore left behind. `None`: there is a state, or no checkpoint. Comes before the joiner is opened.
pub async fn begin_with(checkpoints: &Checkpoints, config: &joiner::Config, restore: bool) -> Result<Option<Restored>, Error> {
    settle(&config.state_dir)?;
    if !restore || !is_empty(&config.state_dir)? {
        return Ok(None);
    }
    for _ in 0..ATTEMPTS {
        let parts = checkpoints.latest_for(config.range).await?;
        if parts.is_empty() {
            return Ok(None);
        }
        match checkpoints.restore_parts(&parts, config, &config.state_dir).await {
            Err(Error::Vanished { number, .. }) => tracing::info!(number, "the checkpoint has given way to a newer one"),
            restored => return restored.map(Some),
        }
    }
    Err(Error::NoSuch { store: checkpoints.store(), which: Which::Latest.to_string() })
}

/// Asks a running service for savepoints.
#[derive(Debug, Clone)]
pub struct Asking(mpsc::Sender<Request>);

#[derive(Debug)]
struct Request {
    name: String,
    answer: oneshot::Sender<Result<Made, Error>>,
}

impl Asking {
    /// Makes a checkpoint now, and gives it a name.
    pub async fn savepoint(&self, name: &str) -> Result<Made, Error> {
        let ended = || Error::Ended { reason: "the process is being stopped".to_owned() };
        let (answer, answered) = oneshot::channel();
        self.0.send(Request { name: name.to_owned(), answer }).await.map_err(|_| ended())?;
        answered.await.unwrap_or_else(|_| Err(ended()))
    }
}

/// Makes the checkpoints of a joiner.
#[derive(Debug)]
pub struct Service {
    in_turn: bool,
    checkpoints: Checkpoints,
    config: Config,
    joiner: Handle,
    /// Where a checkpoint stands while it is uploaded: beside the state, because hard links do not leave a file system.
    folder: PathBuf,
    status: StatusHandle,
    asking: mpsc::Sender<Request>,
    requests: mpsc::Receiver<Request>,
}

impl Service {
    pub fn new(checkpoints: Checkpoints, config: &Config, joiner: Handle, state_dir: &Path, restored: Option<Restored>) -> Self {
        let (asking, requests) = mpsc::channel(REQUESTS);
        let status = StatusHandle::default();
        status.change(|status| (status.store, status.restored) = (checkpoints.store(), restored));
        let folder = state_dir.with_extension("checkpoint");
        Self { in_turn: false, checkpoints, config: config.clone(), joiner, folder, status, asking, requests }
    }

    /// Whether it is for a joiner that ends when its turn is over: for as long as it works, the checkpoints are its own. So it takes them back from one that woke up late and did not know yet that another works.
    #[must_use]
    pub fn in_turn(self, in_turn: bool) -> Self {
        Self { in_turn, ..self }
    }

    pub fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    pub fn asking(&self) -> Asking {
        Asking(self.asking.clone())
    }

    /// Works until the shutdown. Failures are told, and tried again: a joiner does not end because its checkpoints fail. One that another process has taken the checkpoints over from makes no more, unless it is its turn ([`Self::in_turn`]).
    pub async fn run(mut self, shutdown: CancellationToken) {
        let working = async {
            loop {
                let reason = self.work().await;
                self.refuse(&reason).await;
            }
        };
        let _: Option<()> = shutdown.run_until_cancelled(working).await;
        let _ = clear(&self.folder);
    }

    /// Refuses what is asked while the checkpoints are another's. Returns when it is time to take them back: one whose turn is over has ended by then.
    async fn refuse(&mut self, reason: &str) {
        self.status.change(|status| status.phase = Phase::Superseded);
        let again = async {
            if !self.in_turn {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(RETRY).await;
        };
        tokio::pin!(again);
        loop {
            tokio::select! {
                () = &mut again => break,
                Some(request) = self.requests.recv() => {
                    let _ = request.answer.send(Err(Error::Ended { reason: reason.to_owned() }));
                }
            }
        }
    }

    /// Ends when it is superseded, and says by what.
    async fn work(&mut self) -> String {
        let mut writer = self.take_over().await;
        let mut due = self.first_due(&writer);
        loop {
            self.status.change(|status| status.phase = Phase::Waiting);
            let request = tokio::select! {
                () = tokio::time::sleep_until(due.into()) => None,
                request = self.requests.recv() => request,
            };
            self.status.change(|status| status.phase = Phase::Making);
            let name = request.as_ref().map(|request| request.name.as_str());
            let made = self.make(&mut writer, name).await;
            let superseded =
                made.as_ref().err().filter(|error| matches!(error, Error::Superseded { .. })).map(ToString::to_string);
            let refused = made.as_ref().is_err_and(|error| matches!(error, Error::Exists { .. } | Error::BadName { .. }));
            if !refused {
                let every = self.every();
                due = Instant::now() + if made.is_ok() { every } else { every.min(RETRY) };
            }
            if let Some(request) = request {
                // Whoever asked may have gone.
                let _ = request.answer.send(made);
            }
            if let Some(reason) = superseded {
                return reason;
            }
        }
    }

    async fn take_over(&self) -> Writer {
        loop {
            match self.checkpoints.take_over(now_ms()).await {
                Ok(writer) => {
                    tracing::info!(store = self.checkpoints.name(), epoch = writer.epoch(), "this process makes the checkpoints");
                    self.status.change(|status| (status.epoch, status.error) = (Some(writer.epoch()), None));
                    return writer;
                }
                Err(error) => self.failed(&error),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn failed(&self, error: &Error) {
        metrics::failed();
        match error.class() {
            ErrorClass::Transient => tracing::warn!(%error, "checkpoint failed, trying again"),
            _ => tracing::error!(%error, "checkpoint failed"),
        }
        self.status.change(|status| status.error = Some(error.to_string()));
    }

    fn every(&self) -> Duration {
        Duration::from_secs(self.config.every_seconds.get()).min(LONGEST)
    }

    /// Restarts do not make checkpoints come more seldom, nor more often.
    fn first_due(&self, writer: &Writer) -> Instant {
        let every = self.every();
        let age = writer.newest_ms().map(|made| Duration::from_millis(u64::try_from(now_ms() - made).unwrap_or_default()));
        Instant::now() + age.map_or(every, |age| every.saturating_sub(age))
    }

    async fn make(&self, writer: &mut Writer, name: Option<&str>) -> Result<Made, Error> {
        let began = Instant::now();
        let made = self.save(writer, name).await;
        match &made {
            Ok(made) => {
                let seconds = began.elapsed().as_secs_f64();
                metrics::made(made, seconds);
                let Made { number, ref state, bytes, uploaded_bytes, made_ms } = *made;
                let frontier = state.frontier;
                tracing::info!(number, %frontier, bytes, uploaded_bytes, seconds, "checkpoint made");
                let last = LastMade { number, frontier, made_ms, bytes, uploaded_bytes, seconds };
                self.status.change(|status| (status.last, status.error) = (Some(last), None));
            }
            Err(Error::Exists { .. } | Error::BadName { .. }) => {}
            Err(error) => self.failed(error),
        }
        clear(&self.folder)?;
        if made.is_ok() {
            let retention = Retention {
                keep: self.config.keep.get(),
                keep_ms: i64::try_from(self.config.keep_seconds.get().saturating_mul(1000)).unwrap_or(i64::MAX),
            };
            // The checkpoint is there, whatever becomes of the old ones: the next one tries again.
            match writer.expire(retention, now_ms()).await {
                Ok(removed) => tracing::debug!(removed.checkpoints, removed.objects, "old checkpoints removed"),
                Err(error) => self.failed(&error),
            }
        }
        made
    }

    async fn save(&self, writer: &mut Writer, name: Option<&str>) -> Result<Made, Error> {
        clear(&self.folder)?;
        let (joiner, folder) = (self.joiner.clone(), self.folder.clone());
        let taken = self.checkpoints.beside(move || joiner.checkpoint(&folder)).await;
        let state = taken.map_err(|error| Error::Ended { reason: error.to_string() })??;
        writer.save(&self.folder, state, name, now_ms()).await
    }
}

fn clear(folder: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(folder_error(folder, "a checkpoint's folder cannot be removed")(error))
        }
        _ => Ok(()),
    }
}
