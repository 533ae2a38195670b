//! The agent's side: the capture and the cleanup job, and what the dynamic management views tell of them.
//!
//! Jobs come with the first captured table, already running. What `sys.sp_cdc_change_job` changes takes effect when the job is started next, as in SQL
//! Server; retention and threshold are read by every run of the cleanup job, which starts anew each time.

use rusqlite::{Connection, OptionalExtension as _, params};

use crate::{DateTime, Error, Lsn, Result, Select, schema, time};

/// Rows that one statement of the cleanup job deletes, unless told otherwise.
pub(crate) const DEFAULT_THRESHOLD: i64 = 5000;
/// Scan sessions that are remembered.
const SESSIONS: i64 = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobType {
    Capture,
    Cleanup,
}

impl JobType {
    /// From `@job_type`.
    pub fn parse(job_type: &str) -> Result<JobType> {
        match job_type.trim().to_ascii_lowercase().as_str() {
            "capture" => Ok(JobType::Capture),
            "cleanup" => Ok(JobType::Cleanup),
            _ => Err(Error::JobType { job_type: job_type.to_owned() }),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            JobType::Capture => "capture",
            JobType::Cleanup => "cleanup",
        }
    }
}

/// The options of `sys.sp_cdc_add_job` and `sys.sp_cdc_change_job`; `None` leaves a value as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobOptions {
    /// Transactions in one scan cycle.
    pub maxtrans: Option<i64>,
    /// Scan cycles in one pass.
    pub maxscans: Option<i64>,
    /// Kept and shown; the stand-in's job goes on until it is stopped either way.
    pub continuous: Option<bool>,
    /// Seconds between passes.
    pub pollinginterval: Option<i64>,
    /// Minutes.
    pub retention: Option<i64>,
    pub threshold: Option<i64>,
}

/// What a job runs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    pub running: bool,
    pub maxtrans: i64,
    pub maxscans: i64,
    /// Seconds.
    pub pollinginterval: i64,
    /// Minutes.
    pub retention: i64,
    pub threshold: i64,
}

/// A fault that the capture job is told to run into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub number: i32,
    pub message: String,
}

/// What a job runs with now.
pub fn parameters(conn: &Connection, job: JobType) -> Result<Parameters> {
    let sql = "SELECT running, active_maxtrans, active_maxscans, active_pollinginterval, retention, threshold FROM __cdc_job WHERE job_type = ?1";
    let found = conn
        .prepare_cached(sql)?
        .query_row([job.name()], |row| {
            Ok(Parameters {
                running: row.get(0)?,
                maxtrans: row.get(1)?,
                maxscans: row.get(2)?,
                pollinginterval: row.get(3)?,
                retention: row.get(4)?,
                threshold: row.get(5)?,
            })
        })
        .optional()?;
    found.ok_or_else(|| no_such_job(job))
}

fn no_such_job(job: JobType) -> Error {
    Error::NoSuchJob { job_type: job.name().to_owned() }
}

fn job_name(conn: &Connection, job: JobType) -> Result<String> {
    Ok(format!("cdc.{}_{}", schema::database_name(conn)?, job.name()))
}

/// Creates the jobs that are missing; whether there were any.
pub(crate) fn create_missing(conn: &Connection, now: DateTime) -> Result<bool> {
    let mut created = false;
    for job in [JobType::Capture, JobType::Cleanup] {
        match parameters(conn, job) {
            Err(Error::NoSuchJob { .. }) => add(conn, job, &JobOptions::default(), now)?,
            Err(error) => return Err(error),
            Ok(_) => continue,
        }
        created = true;
    }
    Ok(created)
}

/// `sys.sp_cdc_add_job`: creates a job, running. One that exists is replaced.
pub fn add(conn: &Connection, job: JobType, options: &JobOptions, now: DateTime) -> Result<()> {
    schema::require_enabled(conn)?;
    check(job, options)?;
    // A job id only has to look like one and to be its own.
    let job_id: String = conn.query_row(
        "SELECT hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-A' || substr(hex(randomblob(2)), 2)
                || '-' || hex(randomblob(6))",
        [],
        |row| row.get(0),
    )?;
    let capture = job == JobType::Capture;
    let of_capture = |value: i64| if capture { value } else { 0 };
    let (maxtrans, maxscans) = (of_capture(options.maxtrans.unwrap_or(500)), of_capture(options.maxscans.unwrap_or(10)));
    let interval = of_capture(options.pollinginterval.unwrap_or(5));
    conn.execute(
        "INSERT OR REPLACE INTO __cdc_job VALUES (?1, ?2, 1, ?3, ?4, ?5, ?6, ?7, ?8, ?3, ?4, ?6)",
        params![
            job.name(),
            job_id,
            maxtrans,
            maxscans,
            capture && options.continuous.unwrap_or(true),
            interval,
            if capture { 0 } else { options.retention.unwrap_or(4320) },
            if capture { 0 } else { options.threshold.unwrap_or(DEFAULT_THRESHOLD) },
        ],
    )?;
    if capture {
        conn.execute("UPDATE __cdc_state SET quiet_since = ?1", [time::stored(now)])?;
    }
    Ok(())
}

/// `sys.sp_cdc_drop_job`.
pub fn drop_job(conn: &Connection, job: JobType) -> Result<()> {
    schema::require_enabled(conn)?;
    match conn.execute("DELETE FROM __cdc_job WHERE job_type = ?1", [job.name()])? {
        0 => Err(no_such_job(job)),
        _ => Ok(()),
    }
}

/// `sys.sp_cdc_change_job`.
pub fn change(conn: &Connection, job: JobType, options: &JobOptions) -> Result<()> {
    schema::require_enabled(conn)?;
    check(job, options)?;
    let changed = conn.execute(
        "UPDATE __cdc_job SET maxtrans = coalesce(?2, maxtrans), maxscans = coalesce(?3, maxscans), continuous = coalesce(?4, continuous),
             pollinginterval = coalesce(?5, pollinginterval), retention = coalesce(?6, retention), threshold = coalesce(?7, threshold)
         WHERE job_type = ?1",
        params![
            job.name(),
            options.maxtrans,
            options.maxscans,
            options.continuous,
            options.pollinginterval,
            options.retention,
            options.threshold
        ],
    )?;
    if changed == 0 { Err(no_such_job(job)) } else { Ok(()) }
}

fn check(job: JobType, options: &JobOptions) -> Result<()> {
    match job {
        JobType::Capture => {
            if options.retention.is_some() || options.threshold.is_some() {
                return Err(Error::RetentionOfCapture);
            }
            if options.pollinginterval.is_some_and(|seconds| !(0..86_400).contains(&seconds)) {
                return Err(Error::PollingInterval);
            }
            if options.maxtrans.is_some_and(|count| count <= 0) {
                return Err(Error::MaxTrans);
            }
            if options.maxscans.is_some_and(|count| count <= 0) {
                return Err(Error::MaxScans);
            }
        }
        JobType::Cleanup => {
            let capture = [options.maxtrans, options.maxscans, options.pollinginterval];
            if capture.iter().any(Option::is_some) || options.continuous.is_some() {
                return Err(Error::CaptureOptionsOfCleanup);
            }
            if options.retention.is_some_and(|minutes| !(1..=52_594_800).contains(&minutes)) {
                return Err(Error::Retention);
            }
        }
    }
    Ok(())
}

/// `sys.sp_cdc_start_job`: the job runs, with the parameters that it has by now.
pub fn start(conn: &Connection, job: JobType, now: DateTime) -> Result<()> {
    schema::require_enabled(conn)?;
    if parameters(conn, job)?.running && job == JobType::Capture {
        return Err(Error::JobAlreadyRunning { job: job_name(conn, job)? });
    }
    conn.execute(
        "UPDATE __cdc_job SET running = 1, active_maxtrans = maxtrans, active_maxscans = maxscans, active_pollinginterval = pollinginterval
         WHERE job_type = ?1",
        [job.name()],
    )?;
    if job == JobType::Capture {
        conn.execute("UPDATE __cdc_state SET quiet_since = ?1", [time::stored(now)])?;
    }
    Ok(())
}

/// `sys.sp_cdc_stop_job`.
pub fn stop(conn: &Connection, job: JobType) -> Result<()> {
    schema::require_enabled(conn)?;
    if !parameters(conn, job)?.running {
        return Err(Error::JobNotRunning { job: job_name(conn, job)? });
    }
    conn.execute("UPDATE __cdc_job SET running = 0 WHERE job_type = ?1", [job.name()])?;
    Ok(())
}

/// Makes every scan fail so, until told `None`.
pub fn fail(conn: &Connection, failure: Option<&Failure>) -> Result<()> {
    conn.execute(
        "UPDATE __cdc_state SET failure_number = ?1, failure_message = ?2",
        params![failure.map(|failure| failure.number), failure.map(|failure| &failure.message)],
    )?;
    Ok(())
}

pub(crate) fn failure(conn: &Connection) -> Result<Option<Failure>> {
    let found = conn
        .query_row("SELECT failure_number, failure_message FROM __cdc_state WHERE failure_number IS NOT NULL", [], |row| {
            Ok(Failure { number: row.get(0)?, message: row.get(1)? })
        })
        .optional()?;
    Ok(found)
}

/// What a scan session did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Session {
    pub(crate) started: String,
    pub(crate) first_begin_lsn: Lsn,
    pub(crate) last_commit_lsn: Lsn,
    pub(crate) last_commit_time: Option<String>,
    pub(crate) transactions: u64,
    pub(crate) records: u64,
    pub(crate) commands: u64,
    pub(crate) schema_changes: u64,
    pub(crate) latency: i64,
    pub(crate) failure: Option<Failure>,
}

/// Records a scan session; empty ones in a row are one row that counts them.
pub(crate) fn record_session(conn: &Connection, session: &Session) -> Result<()> {
    let empty = session.transactions == 0 && session.failure.is_none();
    if empty {
        let joined = conn.prepare_cached(
            "UPDATE __cdc_session SET end_time = ?1, empty_scan_count = empty_scan_count + 1
             WHERE session_id = (SELECT max(session_id) FROM __cdc_session) AND tran_count = 0 AND error_count = 0",
        )?;
        let mut joined = joined;
        if joined.execute([&session.started])? > 0 {
            return Ok(());
        }
    }
    let lsn = |lsn: Lsn| lsn.to_colon_form();
    conn.prepare_cached(
        "INSERT INTO __cdc_session (start_time, end_time, error_count, start_lsn, end_lsn, tran_count, last_commit_lsn, last_commit_time,
             log_record_count, schema_change_count, command_count, first_begin_cdc_lsn, last_commit_cdc_lsn, last_commit_cdc_time, latency,
             empty_scan_count, failed_sessions_count)
         VALUES (?1, ?1, ?2, ?3, ?4, ?5, ?4, ?6, ?7, ?8, ?9, ?3, ?4, ?6, ?10, ?11, ?12)",
    )?
    .execute(params![
        session.started,
        session.failure.is_some(),
        lsn(session.first_begin_lsn),
        lsn(session.last_commit_lsn),
        session.transactions as i64,
        session.last_commit_time,
        session.records as i64,
        session.schema_changes as i64,
        session.commands as i64,
        session.latency,
        empty,
        session.failure.is_some(),
    ])?;
    let session_id = conn.last_insert_rowid();
    if let Some(failure) = &session.failure {
        conn.execute(
            "INSERT INTO __cdc_error (session_id, phase_number, entry_time, error_number, error_message) VALUES (?1, 7, ?2, ?3, ?4)",
            params![session_id, session.started, failure.number, failure.message],
        )?;
    }
    conn.prepare_cached("DELETE FROM __cdc_session WHERE session_id <= ?1")?.execute([session_id - SESSIONS])?;
    conn.prepare_cached("DELETE FROM __cdc_error WHERE session_id <= ?1")?.execute([session_id - SESSIONS])?;
    Ok(())
}

const SESSION_COLUMNS: [(&str, &str); 21] = [
    ("session_id", "int"),
    ("start_time", "datetime"),
    ("end_time", "datetime"),
    ("duration", "bigint"),
    ("scan_phase", "nvarchar(200)"),
    ("error_count", "int"),
    ("start_lsn", "nvarchar(23)"),
    ("current_lsn", "nvarchar(23)"),
    ("end_lsn", "nvarchar(23)"),
    ("tran_count", "bigint"),
    ("last_commit_lsn", "nvarchar(23)"),
    ("last_commit_time", "datetime"),
    ("log_record_count", "bigint"),
    ("schema_change_count", "int"),
    ("command_count", "bigint"),
    ("first_begin_cdc_lsn", "nvarchar(23)"),
    ("last_commit_cdc_lsn", "nvarchar(23)"),
    ("last_commit_cdc_time", "datetime"),
    ("latency", "int"),
    ("empty_scan_count", "int"),
    ("failed_sessions_count", "int"),
];

/// The body of `sys.dm_cdc_log_scan_sessions`: session 0 sums up, the others are the latest.
pub fn log_scan_sessions() -> Select {
    let sql = "
SELECT 0 AS session_id, min(start_time) AS start_time, max(end_time) AS end_time, 0 AS duration, 'Aggregate' AS scan_phase,
    sum(error_count) AS error_count, min(nullif(start_lsn, '00000000:00000000:0000')) AS start_lsn, max(end_lsn) AS current_lsn,
    max(end_lsn) AS end_lsn, sum(tran_count) AS tran_count, max(last_commit_lsn) AS last_commit_lsn, max(last_commit_time) AS last_commit_time,
    sum(log_record_count) AS log_record_count, sum(schema_change_count) AS schema_change_count, sum(command_count) AS command_count,
    min(nullif(first_begin_cdc_lsn, '00000000:00000000:0000')) AS first_begin_cdc_lsn, max(last_commit_cdc_lsn) AS last_commit_cdc_lsn,
    max(last_commit_cdc_time) AS last_commit_cdc_time, (SELECT latency FROM __cdc_session WHERE tran_count > 0 ORDER BY session_id DESC LIMIT 1) AS latency,
    sum(empty_scan_count) AS empty_scan_count, sum(failed_sessions_count) AS failed_sessions_count
FROM __cdc_session HAVING count(*) > 0
UNION ALL
SELECT session_id, start_time, end_time, CAST(strftime('%s', end_time) AS INTEGER) - CAST(strftime('%s', start_time) AS INTEGER),
    CASE WHEN error_count > 0 THEN 'Aborted' ELSE 'Done' END, error_count, start_lsn, end_lsn, end_lsn, tran_count, last_commit_lsn, last_commit_time,
    log_record_count, schema_change_count, command_count, first_begin_cdc_lsn, last_commit_cdc_lsn, last_commit_cdc_time, latency,
    empty_scan_count, failed_sessions_count
FROM __cdc_session";
    Select::new(&SESSION_COLUMNS, sql)
}

/// The body of `sys.dm_cdc_errors`.
pub fn errors() -> Select {
    let columns = [
        ("session_id", "int"),
        ("phase_number", "int"),
        ("entry_time", "datetime"),
        ("error_number", "int"),
        ("error_severity", "int"),
        ("error_state", "int"),
        ("error_message", "nvarchar(1024)"),
        ("start_lsn", "nvarchar(23)"),
        ("begin_lsn", "nvarchar(23)"),
        ("sequence_value", "nvarchar(23)"),
    ];
    let none = "'00000000:00000000:0000'";
    let sql = format!(
        "SELECT session_id, phase_number, entry_time, error_number, 16 AS error_severity, 1 AS error_state, error_message,
             {none} AS start_lsn, {none} AS begin_lsn, {none} AS sequence_value FROM __cdc_error"
    );
    Select::new(&columns, sql)
}

/// A job as msdb has it: what it was told, which may not be what it runs with yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub job_type: JobType,
    pub job_id: String,
    pub continuous: bool,
    pub maxtrans: i64,
    pub maxscans: i64,
    /// Seconds.
    pub pollinginterval: i64,
    pub parameters: Parameters,
}

/// The jobs of a database, as `msdb.dbo.cdc_jobs` and the agent's tables show them.
pub fn listed(conn: &Connection) -> Result<Vec<Listed>> {
    let mut list = Vec::new();
    for job_type in [JobType::Capture, JobType::Cleanup] {
        let parameters = match parameters(conn, job_type) {
            Err(Error::NoSuchJob { .. }) => continue,
            other => other?,
        };
        let sql = "SELECT job_id, continuous, maxtrans, maxscans, pollinginterval FROM __cdc_job WHERE job_type = ?1";
        list.push(conn.prepare_cached(sql)?.query_row([job_type.name()], |row| {
            Ok(Listed {
                job_type,
                job_id: row.get(0)?,
                continuous: row.get(1)?,
                maxtrans: row.get(2)?,
                maxscans: row.get(3)?,
                pollinginterval: row.get(4)?,
                parameters,
            })
        })?);
    }
    Ok(list)
}

/// A scan that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Stored form of a `datetime`.
    pub at: String,
    pub failure: Failure,
}

/// The scans that failed, of those that are remembered.
pub fn failures(conn: &Connection) -> Result<Vec<Failed>> {
    let mut statement = conn.prepare_cached("SELECT entry_time, error_number, error_message FROM __cdc_error ORDER BY id")?;
    let rows = statement
        .query_map([], |row| Ok(Failed { at: row.get(0)?, failure: Failure { number: row.get(1)?, message: row.get(2)? } }))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Takes away both jobs and what they remember, as a failover to a server with another msdb does.
pub fn lose_all(conn: &Connection) -> Result<()> {
    conn.execute_batch("DELETE FROM __cdc_job; DELETE FROM __cdc_session; DELETE FROM __cdc_error")?;
    Ok(())
}
