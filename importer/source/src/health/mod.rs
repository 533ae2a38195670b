//! How capture is doing, as far as the login may see it.
//!
//! Each thing is asked for on its own ([`Item`]): what a permission hides says which grant would show it, and the rest is judged without it. [`Diagnosis`] is what
//! follows from all of it together, with the T-SQL that mends it; it is a pure function of what was seen.
//!
//! The capture job is watched on three levels, because each may be hidden or be silent: Agent's own view of the job (msdb), the scans that it makes
//! of the log (the moment a scan last ended moves on with every polling interval, whether there was anything to capture or not), and the captured transactions, of which
//! even an idle database is given one about every five minutes. The first two tell of a job that stands within the minute, the last one without any permission.

mod diagnosis;

use schemas::Lsn;
use serde::Serialize;
use tiberius::Row;

pub use diagnosis::Diagnosis;

use super::client::Client;
use super::decode::Columns;
use super::error::Error;
use super::sql;

/// Something that may be hidden.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Item<T> {
    Seen(T),
    Hidden {
        why: String,
        /// What would show it.
        grant: String,
    },
}

impl<T> Item<T> {
    pub fn seen(&self) -> Option<&T> {
        match self {
            Self::Seen(value) => Some(value),
            Self::Hidden { .. } => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Agent {
    Running,
    Stopped,
    /// Not part of this server: capture is the platform's (Azure SQL Database).
    Absent,
}

/// The jobs as capture has set them up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Jobs {
    pub capture: Option<CaptureJob>,
    /// Present with the minutes that changes are kept for.
    pub retention_minutes: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaptureJob {
    /// Runs all the time, rather than when a schedule says so.
    pub continuous: bool,
    pub polling_seconds: i64,
}

/// The capture job as Agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobState {
    pub enabled: bool,
    pub running: bool,
}

/// How the capture job's last step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobOutcome {
    pub failed: bool,
    pub message: String,
}

/// A scan of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Scan {
    /// How long ago it ended; `None`: it is running.
    pub age_seconds: Option<i64>,
    pub errors: i64,
    pub transactions: i64,
    pub empty_scans: i64,
    /// Between a commit and its capture.
    pub latency_seconds: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaptureError {
    pub age_seconds: i64,
    pub number: i64,
    pub message: String,
}

/// The newest captured transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Newest {
    pub lsn: Lsn,
    pub age_seconds: i64,
}

/// The database's part in an availability group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Replica {
    /// `None`: not in a group.
    pub primary: Option<bool>,
    /// `SYNCHRONIZED`, …
    pub state: Option<String>,
    pub suspended: bool,
}

/// Everything that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    pub agent: Item<Agent>,
    pub jobs: Item<Jobs>,
    pub job_state: Item<Option<JobState>>,
    pub job_outcome: Item<Option<JobOutcome>>,
    /// Newest first.
    pub scans: Item<Vec<Scan>>,
    pub last_error: Item<Option<CaptureError>>,
    /// `None`: nothing has been captured yet.
    pub newest: Option<Newest>,
    pub log_reuse: Item<String>,
    pub replica: Item<Replica>,
}

const VIEW_SERVER: &str = "GRANT VIEW SERVER STATE TO [login];";
const VIEW_DATABASE: &str = "GRANT VIEW DATABASE STATE TO [login];";
const READ_MSDB: &str = "USE msdb; CREATE USER [login] FOR LOGIN [login]; GRANT SELECT ON dbo.cdc_jobs TO [login]; GRANT SELECT ON dbo.sysjobs TO [login]; \
GRANT SELECT ON dbo.sysjobactivity TO [login]; GRANT SELECT ON dbo.sysjobhistory TO [login]; GRANT SELECT ON dbo.syssessions TO [login];";
const OWNER: &str = "ALTER ROLE db_owner ADD MEMBER [login];";

impl Health {
    /// Fails only if the connection does, or if the captured transactions cannot be read, without which nothing can.
    pub async fn read(client: &mut Client) -> Result<Self, Error> {
        Ok(Self {
            agent: item(agent(client).await, VIEW_SERVER)?,
            jobs: item(jobs(client).await, OWNER)?,
            job_state: item(job_state(client).await, READ_MSDB)?,
            job_outcome: item(job_outcome(client).await, READ_MSDB)?,
            scans: item(scans(client).await, VIEW_DATABASE)?,
            last_error: item(last_error(client).await, VIEW_DATABASE)?,
            newest: newest(client).await?,
            log_reuse: item(log_reuse(client).await, VIEW_DATABASE)?,
            replica: item(replica(client).await, VIEW_SERVER)?,
        })
    }
}

/// An answer that was refused is hidden; a connection that failed is a failure.
fn item<T>(answer: Result<T, Error>, grant: &str) -> Result<Item<T>, Error> {
    match answer {
        Ok(value) => Ok(Item::Seen(value)),
        Err(error @ Error::Connection { .. }) => Err(error),
        Err(Error::Permission { message, .. } | Error::Server { message, .. }) => {
            Ok(Item::Hidden { why: message, grant: grant.to_owned() })
        }
        Err(error) => Ok(Item::Hidden { why: error.to_string(), grant: grant.to_owned() }),
    }
}

async fn first(client: &mut Client, doing: &'static str, sql: &str) -> Result<Option<Columns>, Error> {
    Ok(client.rows(doing, sql, vec![]).await?.into_iter().next().map(|row| Columns::new(doing, row)))
}

async fn agent(client: &mut Client) -> Result<Agent, Error> {
    let status = first(client, "asking for SQL Server Agent", sql::AGENT).await?.map(|mut row| row.int()).transpose()?;
    Ok(match status {
        Some(4) => Agent::Running,
        Some(_) => Agent::Stopped,
        None => Agent::Absent,
    })
}

async fn jobs(client: &mut Client) -> Result<Jobs, Error> {
    let mut jobs = Jobs::default();
    for row in client.batch("asking for the capture jobs", sql::JOBS).await? {
        let number = |column: &str| number(&row, column);
        match row.try_get::<&str, _>("job_type").ok().flatten() {
            Some("capture") => {
                let continuous = row.try_get::<bool, _>("continuous").ok().flatten().unwrap_or(true);
                jobs.capture = Some(CaptureJob { continuous, polling_seconds: number("pollinginterval").unwrap_or(5) });
            }
            Some("cleanup") => jobs.retention_minutes = number("retention"),
            _ => {}
        }
    }
    Ok(jobs)
}

fn number(row: &Row, column: &str) -> Option<i64> {
    row.try_get::<i64, _>(column).ok().flatten()
}

async fn job_state(client: &mut Client) -> Result<Option<JobState>, Error> {
    let row = first(client, "asking whether the capture job runs", sql::JOB_STATE).await?;
    row.map(|mut row| Ok(JobState { enabled: row.int()? == 1, running: row.int()? == 1 })).transpose()
}

async fn job_outcome(client: &mut Client) -> Result<Option<JobOutcome>, Error> {
    let row = first(client, "asking how the capture job ended", sql::JOB_OUTCOME).await?;
    row.map(|mut row| {
        let status = row.int()?;
        Ok(JobOutcome { failed: matches!(status, 0 | 2), message: row.optional_text()?.unwrap_or_default() })
    })
    .transpose()
}

async fn scans(client: &mut Client) -> Result<Vec<Scan>, Error> {
    let doing = "asking for the scans of the log";
    let scan = |row| {
        let mut row = Columns::new(doing, row);
        let mut count = || row.optional_int();
        let (age, errors, transactions) = (count()?, count()?.unwrap_or(0), count()?.unwrap_or(0));
        Ok(Scan {
            // The hour that autumn repeats makes what has just been look like the future.
            age_seconds: age.map(|age| age.max(0)),
            errors,
            transactions,
            empty_scans: count()?.unwrap_or(0),
            latency_seconds: count()?.unwrap_or(0),
        })
    };
    client.rows(doing, sql::SCANS, vec![]).await?.into_iter().map(scan).collect()
}

async fn last_error(client: &mut Client) -> Result<Option<CaptureError>, Error> {
    let row = first(client, "asking for the errors of capture", sql::CAPTURE_ERRORS).await?;
    row.map(|mut row| {
        let (age, number) = (row.optional_int()?, row.optional_int()?.unwrap_or(0));
        let message = row.optional_text()?.unwrap_or_default();
        Ok(CaptureError { age_seconds: age.unwrap_or(0).max(0), number, message })
    })
    .transpose()
}

async fn newest(client: &mut Client) -> Result<Option<Newest>, Error> {
    let Some(mut row) = first(client, "asking when capture last moved", sql::NEWEST_CAPTURED).await? else { return Ok(None) };
    let (lsn, age) = (row.lsn()?, row.optional_int()?);
    Ok(lsn.map(|lsn| Newest { lsn, age_seconds: age.unwrap_or(0).max(0) }))
}

async fn log_reuse(client: &mut Client) -> Result<String, Error> {
    let row = first(client, "asking what the log waits for", sql::LOG_REUSE).await?;
    Ok(row.map(|mut row| row.optional_text()).transpose()?.flatten().unwrap_or_default())
}

async fn replica(client: &mut Client) -> Result<Replica, Error> {
    let doing = "asking for the availability group";
    let primary = first(client, doing, sql::PRIMARY_REPLICA).await?.map(|mut row| row.optional_int()).transpose()?.flatten();
    let mut replica = Replica { primary: primary.map(|primary| primary == 1), ..Replica::default() };
    if replica.primary.is_some() {
        // Its part in the group is known without the right to see how it fares.
        match first(client, doing, sql::REPLICA_STATE).await {
            Ok(Some(mut row)) => (replica.state, replica.suspended) = (row.optional_text()?, row.optional_int()? == Some(1)),
            Err(error @ Error::Connection { .. }) => return Err(error),
            Ok(None) | Err(_) => {}
        }
    }
    Ok(replica)
}
