//! The SQL Server stand-in: T-SQL over SQLite with change data capture, spoken to over TDS.
//!
//! A statement's way: [`parse`] reads a batch into statements; [`translate`] turns each into SQLite's SQL, with the type of every result column
//! inferred; [`session`] runs it on the session's own SQLite connection and writes the rows to the protocol layer (crate `tds`). [`types`] says how values
//! lie in SQLite so that its order and equality are SQL Server's, [`functions`] adds what SQLite lacks, [`catalog`] keeps what `sys.*` shows. Change data
//! capture is the crate `cdc`; [`jobs`] runs its capture and cleanup.
//!
//! What holds, and why:
//! - *Writers take turns.* A transaction takes SQLite's write lock before its first write, so that it never sees its snapshot outrun. Waiting for it is
//!   SQL Server's lock wait (`LOCK_TIMEOUT`, error 1222).
//! - *Readers never wait.* READ COMMITTED is a new WAL snapshot for every statement, SNAPSHOT one for the transaction.
//! - *A statement is whole or nothing.* Each runs in a transaction or savepoint of its own.
//! - *Commit order is LSN order.* A commit is stamped while the write lock is held (see `cdc`).

mod capture_procedures;
mod catalog;
mod clock;
mod functions;
mod jobs;
mod message;
mod operations;
mod parse;
mod server;
mod session;
mod translate;
mod types;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use operations::{Availability, Backup};
pub use tds::{Certificate, Column, DataType, Encryption, Fault, Faults, SqlError, Value};

/// How to start the stand-in.
#[derive(Debug, Clone)]
pub struct Options {
    /// Port 0: a free one, see [`Running::address`].
    pub listen: SocketAddr,
    /// Where the databases' files lie; `None`: in memory, gone at the end.
    pub data: Option<PathBuf>,
    /// The user database, created if it is not there; the default database of `sa`.
    pub database: String,
    pub sa_password: String,
    pub encryption: Encryption,
    pub certificate: Certificate,
    /// How long the capture job waits between scans, as long as nobody changes its polling interval from the default of 5 s by
    /// `sp_cdc_change_job`. SQL Server's own is 5 s; tests and the demo want less.
    pub capture_interval: Duration,
    /// Faults of the network and of requests, to be injected now or later.
    pub faults: Faults,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data: None,
            database: "shop".into(),
            sa_password: "Tributary!1".into(),
            encryption: Encryption::default(),
            certificate: Certificate::default(),
            capture_interval: Duration::from_secs(5),
            faults: Faults::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}: {source}; choose another address or stop what holds it")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot use the data folder {path}: {source}; check that it exists and is writable")]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("cannot open the database file {path}: {source}; is it a database of the stand-in?")]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error("cannot prepare change data capture in {path}: {source}; is it a database of the stand-in?")]
    Capture { path: PathBuf, source: cdc::Error },
    #[error("the protocol server failed: {0}")]
    Protocol(#[from] tds::Error),
    #[error("the server's task ended abnormally: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// One result set of [`Running::execute`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ResultSet {
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<Value>>,
}

/// A running stand-in. Dropping it without [`Running::stop`] stops it too, without waiting.
pub struct Running {
    address: SocketAddr,
    options: Options,
    shared: Arc<server::Shared>,
    shutdown: Option<tokio::sync::oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<tds_result::Served>,
    jobs: Option<jobs::Jobs>,
}

mod tds_result {
    pub(crate) type Served = Result<(), tds::Error>;
}

/// Starts the stand-in and returns when it accepts connections.
pub async fn start(options: Options) -> Result<Running, Error> {
    let shared = server::Shared::open(&options)?;
    let listener = tokio::net::TcpListener::bind(options.listen)
        .await
        .map_err(|source| Error::Listen { address: options.listen, source })?;
    let address = listener.local_addr().map_err(|source| Error::Listen { address: options.listen, source })?;
    shared.listening_on(address);
    let (shutdown, stopped) = tokio::sync::oneshot::channel::<()>();
    let protocol = tds::Options {
        encryption: options.encryption,
        certificate: options.certificate.clone(),
        server_name: server::SERVER_NAME.into(),
        faults: options.faults.clone(),
        ..tds::Options::default()
    };
    let engine: Arc<dyn tds::Server> = Arc::new(server::Engine(shared.clone()));
    let task = tokio::spawn(tds::serve(listener, engine, protocol, async move {
        // An error means that the sender is gone: the same request to stop.
        let _ = stopped.await;
    }));
    let jobs = jobs::Jobs::start(shared.clone(), options.capture_interval);
    Ok(Running { address, options, shared, shutdown: Some(shutdown), task, jobs: Some(jobs) })
}

impl Running {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn faults(&self) -> &Faults {
        &self.options.faults
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Runs a script as `sa` in the user database, without the network; `GO` lines separate batches. Blocks: from async code, call it on a thread that
    /// may (`tokio::task::spawn_blocking`), or accept that the runtime's thread waits.
    pub fn execute(&self, script: &str) -> Result<Vec<ResultSet>, SqlError> {
        session::local::execute(&self.shared, &self.options.database, script)
    }

    /// Runs the capture job's scan of a database now, whether the job runs or not, until it has caught up.
    pub fn capture_now(&self, database: &str) -> Result<(), SqlError> {
        jobs::capture_now(&self.shared, database)
    }

    /// Runs the cleanup of a database now.
    pub fn cleanup_now(&self, database: &str) -> Result<u64, SqlError> {
        jobs::cleanup_now(&self.shared, database)
    }

    /// Lets every scan of the capture job fail with this error, or no longer.
    pub fn fail_capture(&self, database: &str, failure: Option<(i32, &str)>) -> Result<(), SqlError> {
        jobs::fail_capture(&self.shared, database, failure)
    }

    /// On: an answer from change tables is given again when the same is asked again, without looking, until this is called with off: for measurements over changes that were all captured
    /// before. Each call forgets what was kept.
    pub fn replay_changes(&self, on: bool) {
        self.shared.recordings.switch(on);
    }

    /// How SQL Server Agent shows in `sys.dm_server_services`; stopped, no capture or cleanup runs.
    pub fn set_agent_running(&self, running: bool) {
        self.shared.set_agent_running(running);
    }

    /// Sets the server's clock: it is `now`, and goes on from there. What has been written keeps its times.
    pub fn set_time(&self, now: std::time::SystemTime) {
        self.shared.clock.set(now);
    }

    /// Sets the server's time zone by its IANA name; UTC at first. GETDATE, commit times and all that is local follow it, summer time and all.
    pub fn set_time_zone(&self, iana: &str) -> Result<(), SqlError> {
        self.shared.clock.set_zone(iana)
    }

    /// Closes all connections, stops the jobs, and removes the databases if they were in memory.
    pub async fn stop(mut self) -> Result<(), Error> {
        if let Some(shutdown) = self.shutdown.take() {
            // The server may have ended by itself.
            let _ = shutdown.send(());
        }
        if let Some(jobs) = self.jobs.take() {
            jobs.stop();
        }
        let served = (&mut self.task).await?;
        Ok(served?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(shutdown) = self.shutdown.take() {
            let _ = shutdown.send(());
        }
        if let Some(jobs) = self.jobs.take() {
            jobs.stop();
        }
    }
}
