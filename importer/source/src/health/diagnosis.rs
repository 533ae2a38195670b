//! What is wrong with capture, from what was seen of it.

use std::fmt;

use serde::Serialize;

use super::{Agent, Health, Item, JobState, Scan};

/// Below it, a scan that has not ended is no sign of anything, whatever the polling interval.
const LEAST_SILENCE_SECONDS: i64 = 30;
/// An idle database is given an entry about every five minutes: without one for so long, nothing is captured.
const STALLED_SECONDS: i64 = 11 * 60;
/// A job that scans and is so far behind is too slow, or something holds it.
const LATE_SECONDS: i64 = 5 * 60;

/// The state of capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Diagnosis {
    Working,
    /// The capture job stands, though Agent runs.
    JobStopped {
        enabled: bool,
        how: String,
    },
    /// It runs and fails.
    JobFailing {
        message: String,
    },
    AgentDown,
    /// There is no capture job. They live in msdb, which an availability group does not replicate: the usual cause is a failover.
    NoJobs {
        secondary: bool,
    },
    /// Capture scans and is far behind: the log grows.
    LogNotTruncating {
        latency_seconds: i64,
    },
    /// Nothing says that it works, and what would say so is hidden.
    Unknown {
        why: String,
    },
}

impl Diagnosis {
    pub fn of(health: &Health) -> Self {
        if let Some(jobs) = health.jobs.seen()
            && jobs.capture.is_none()
            && health.agent.seen() != Some(&Agent::Absent)
        {
            let primary = health.replica.seen().and_then(|replica| replica.primary);
            return Self::NoJobs { secondary: primary == Some(false) };
        }
        if health.agent.seen() == Some(&Agent::Stopped) {
            return Self::AgentDown;
        }
        if let Some(message) = failure(health) {
            return Self::JobFailing { message };
        }
        if let Some(how) = standstill(health) {
            let enabled = job_state(health).is_none_or(|job| job.enabled);
            return Self::JobStopped { enabled, how };
        }
        let latency = health.scans.seen().and_then(|scans| scans.first()).map_or(0, |scan| scan.latency_seconds);
        if latency > LATE_SECONDS && health.log_reuse.seen().is_some_and(|wait| wait == "REPLICATION") {
            return Self::LogNotTruncating { latency_seconds: latency };
        }
        match &health.newest {
            // Proof of life from the job itself counts for more than a quiet mapping.
            _ if alive(health) => Self::Working,
            Some(newest) if newest.age_seconds <= STALLED_SECONDS => Self::Working,
            Some(newest) => Self::Unknown {
                why: format!("nothing has been captured for {} minutes{}", newest.age_seconds / 60, hidden(health)),
            },
            None => Self::Unknown { why: format!("nothing has been captured yet{}", hidden(health)) },
        }
    }

    pub fn is_problem(&self) -> bool {
        !matches!(self, Self::Working)
    }

    /// What mends it: T-SQL where that is what it takes.
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Working => return None,
            Self::JobStopped { enabled: true, .. } => "EXEC sys.sp_cdc_start_job @job_type = N'capture';".to_owned(),
            Self::JobStopped { enabled: false, .. } => "DECLARE @job sysname = (SELECT j.name FROM msdb.dbo.cdc_jobs AS c JOIN msdb.dbo.sysjobs AS j ON j.job_id = c.job_id \
                 WHERE c.database_id = DB_ID() AND c.job_type = N'capture'); EXEC msdb.dbo.sp_update_job @job_name = @job, @enabled = 1; \
                 EXEC sys.sp_cdc_start_job @job_type = N'capture';"
                .to_owned(),
            Self::JobFailing { .. } => {
                "Mend what the message says (SELECT * FROM sys.dm_cdc_errors;), then: EXEC sys.sp_cdc_start_job @job_type = N'capture';".to_owned()
            }
            Self::AgentDown => "Start the service SQL Server Agent, and set it to start automatically".to_owned(),
            Self::NoJobs { secondary: true } => {
                "This is a secondary replica, where nothing is captured: connect to the availability group's listener".to_owned()
            }
            Self::NoJobs { secondary: false } => {
                "EXEC sys.sp_cdc_add_job @job_type = N'capture'; EXEC sys.sp_cdc_add_job @job_type = N'cleanup'; and the same on every replica".to_owned()
            }
            Self::LogNotTruncating { .. } => {
                "Let the job take more at a time: EXEC sys.sp_cdc_change_job @job_type = N'capture', @maxtrans = 5000, @maxscans = 100; \
                 EXEC sys.sp_cdc_stop_job @job_type = N'capture'; EXEC sys.sp_cdc_start_job @job_type = N'capture'; and look for a long open transaction (DBCC OPENTRAN)"
                    .to_owned()
            }
            Self::Unknown { .. } => {
                "Check that SQL Server Agent and the capture job run (EXEC sys.sp_cdc_help_jobs; EXEC sys.sp_cdc_start_job @job_type = N'capture';), and sys.dm_cdc_errors"
                    .to_owned()
            }
        })
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Working => f.write_str("capture works"),
            Self::JobStopped { enabled, how } => {
                write!(f, "the capture job is {}: {how}", if *enabled { "stopped" } else { "disabled and stopped" })
            }
            Self::JobFailing { message } => write!(f, "the capture job fails: {message}"),
            Self::AgentDown => {
                f.write_str("SQL Server Agent is not running: nothing is captured, and the log cannot be truncated")
            }
            Self::NoJobs { secondary: true } => f.write_str("there is no capture job on this secondary replica"),
            Self::NoJobs { secondary: false } => {
                f.write_str("there is no capture job: jobs live in msdb, which a failover or a restore does not bring along")
            }
            Self::LogNotTruncating { latency_seconds } => write!(
                f,
                "capture is {} minutes behind, and the log cannot be truncated until it has caught up (REPLICATION)",
                latency_seconds / 60
            ),
            Self::Unknown { why } => write!(f, "it cannot be seen whether capture works: {why}"),
        }
    }
}

fn job_state(health: &Health) -> Option<&JobState> {
    health.job_state.seen().and_then(Option::as_ref)
}

/// How long ago a scan last ended well; 0 while one is running.
fn last_good_scan(health: &Health) -> Option<i64> {
    health.scans.seen()?.iter().filter(|scan| scan.errors == 0).map(|scan| scan.age_seconds.unwrap_or(0)).min()
}

/// The error that capture fails with: one that no good scan has followed.
fn failure(health: &Health) -> Option<String> {
    if let Some(Some(error)) = health.last_error.seen()
        && last_good_scan(health).is_none_or(|good| error.age_seconds < good)
        && health.scans.seen().is_some()
    {
        return Some(format!("error {}: {}", error.number, error.message));
    }
    if let Some(scan) = health.scans.seen().and_then(|scans| scans.first())
        && scan.errors > 0
    {
        return Some(format!("its last scan of the log ended with {} errors", scan.errors));
    }
    let running = job_state(health).is_some_and(|job| job.running);
    let outcome = health.job_outcome.seen().and_then(Option::as_ref);
    outcome.filter(|outcome| outcome.failed && !running).map(|outcome| outcome.message.clone())
}

/// How it is seen that the job stands.
fn standstill(health: &Health) -> Option<String> {
    let job = health.jobs.seen().and_then(|jobs| jobs.capture.as_ref());
    // A job with a schedule stands most of the time.
    if job.is_some_and(|job| !job.continuous) {
        return None;
    }
    match job_state(health) {
        Some(JobState { running: true, .. }) => return None,
        Some(JobState { running: false, .. }) => return Some("Agent does not run it".to_owned()),
        None => {}
    }
    let most = LEAST_SILENCE_SECONDS.max(job.map_or(5, |job| job.polling_seconds).saturating_mul(4));
    let ages: Vec<i64> = health.scans.seen()?.iter().map(age).collect();
    let silent = *ages.iter().min()?;
    (silent > most).then(|| format!("it has not looked at the log for {silent} s"))
}

fn age(scan: &Scan) -> i64 {
    scan.age_seconds.unwrap_or(0)
}

/// The job itself has given a sign of life.
fn alive(health: &Health) -> bool {
    job_state(health).is_some_and(|job| job.running)
        || health.scans.seen().is_some_and(|scans| scans.iter().any(|scan| age(scan) <= STALLED_SECONDS))
}

/// What could not be looked at.
fn hidden(health: &Health) -> String {
    let mut grants = Vec::new();
    for (name, grant) in [
        ("SQL Server Agent", grant(&health.agent)),
        ("the capture job", grant(&health.job_state)),
        ("the scans of the log", grant(&health.scans)),
    ] {
        grants.extend(grant.map(|grant| format!("; {name} cannot be seen (to see it: {grant})")));
    }
    grants.concat()
}

fn grant<T>(item: &Item<T>) -> Option<&str> {
    match item {
        Item::Hidden { grant, .. } => Some(grant),
        Item::Seen(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::Lsn;

    use super::super::{CaptureError, CaptureJob, JobOutcome, Jobs, Newest, Replica};
    use super::*;

    fn scan(age_seconds: i64) -> Scan {
        Scan { age_seconds: Some(age_seconds), errors: 0, transactions: 0, empty_scans: 1, latency_seconds: 0 }
    }

    fn well() -> Health {
        Health {
            agent: Item::Seen(Agent::Running),
            jobs: Item::Seen(Jobs {
                capture: Some(CaptureJob { continuous: true, polling_seconds: 5 }),
                retention_minutes: Some(4320),
            }),
            job_state: Item::Seen(Some(JobState { enabled: true, running: true })),
            job_outcome: Item::Seen(None),
            scans: Item::Seen(vec![scan(3)]),
            last_error: Item::Seen(None),
            newest: Some(Newest { lsn: Lsn::ZERO, age_seconds: 200 }),
            log_reuse: Item::Seen("NOTHING".into()),
            replica: Item::Seen(Replica::default()),
        }
    }

    fn no<T>() -> Item<T> {
        Item::Hidden { why: "refused".into(), grant: "GRANT …".into() }
    }

    fn blind() -> Health {
        Health {
            agent: no(),
            jobs: no(),
            job_state: no(),
            job_outcome: no(),
            scans: no(),
            last_error: no(),
            log_reuse: no(),
            replica: no(),
            ..well()
        }
    }

    #[test]
    fn a_job_that_works_works() {
        assert_eq!(Diagnosis::of(&well()), Diagnosis::Working);
        assert_eq!(Diagnosis::of(&Health { job_state: no(), agent: no(), jobs: no(), ..well() }), Diagnosis::Working);
        assert_eq!(Diagnosis::of(&blind()), Diagnosis::Working);
        let quiet = Some(Newest { lsn: Lsn::ZERO, age_seconds: 100_000 });
        assert_eq!(Diagnosis::of(&Health { newest: quiet, ..well() }), Diagnosis::Working);
        assert_eq!(Diagnosis::Working.remedy(), None);
    }

    #[test]
    fn the_capture_job_alone_being_stopped_is_seen() {
        let stopped = |enabled| Health { job_state: Item::Seen(Some(JobState { enabled, running: false })), ..well() };
        assert!(matches!(Diagnosis::of(&stopped(true)), Diagnosis::JobStopped { enabled: true, .. }));
        let disabled = Diagnosis::of(&stopped(false));
        assert!(disabled.remedy().unwrap().contains("@enabled = 1"), "{disabled}");
        // Without a look into msdb, the scans stop.
        let silent = Health { job_state: no(), scans: Item::Seen(vec![scan(31), scan(90)]), ..well() };
        assert!(matches!(Diagnosis::of(&silent), Diagnosis::JobStopped { .. }));
        let running = Scan { age_seconds: None, ..scan(0) };
        let scanning = Health { job_state: no(), scans: Item::Seen(vec![running, scan(90)]), ..well() };
        assert_eq!(Diagnosis::of(&scanning), Diagnosis::Working);
        let slow = Jobs { capture: Some(CaptureJob { continuous: true, polling_seconds: 60 }), retention_minutes: None };
        let patient = Health { jobs: Item::Seen(slow), job_state: no(), scans: Item::Seen(vec![scan(200)]), ..well() };
        assert_eq!(Diagnosis::of(&patient), Diagnosis::Working);
    }

    #[test]
    fn a_failing_job_gives_its_message_until_a_scan_goes_well() {
        let error = |age_seconds| Item::Seen(Some(CaptureError { age_seconds, number: 22864, message: "no space".into() }));
        let failing = Diagnosis::of(&Health { last_error: error(1), ..well() });
        assert_eq!(failing, Diagnosis::JobFailing { message: "error 22864: no space".into() });
        assert_eq!(Diagnosis::of(&Health { last_error: error(60), ..well() }), Diagnosis::Working);
        let outcome = Item::Seen(Some(JobOutcome { failed: true, message: "step failed".into() }));
        let ended = Item::Seen(Some(JobState { enabled: true, running: false }));
        let failed = Health { job_outcome: outcome, job_state: ended, ..well() };
        assert_eq!(Diagnosis::of(&failed), Diagnosis::JobFailing { message: "step failed".into() });
        let errors = Item::Seen(vec![Scan { errors: 2, ..scan(1) }, scan(9)]);
        assert!(matches!(Diagnosis::of(&Health { scans: errors, ..well() }), Diagnosis::JobFailing { .. }));
    }

    #[test]
    fn agent_jobs_and_log_are_told_apart() {
        assert_eq!(Diagnosis::of(&Health { agent: Item::Seen(Agent::Stopped), ..well() }), Diagnosis::AgentDown);
        let jobless = Health { jobs: Item::Seen(Jobs::default()), ..well() };
        let diagnosis = Diagnosis::of(&jobless);
        assert_eq!(diagnosis, Diagnosis::NoJobs { secondary: false });
        assert!(diagnosis.remedy().unwrap().contains("sp_cdc_add_job"));
        let secondary = Item::Seen(Replica { primary: Some(false), ..Replica::default() });
        assert_eq!(Diagnosis::of(&Health { replica: secondary, ..jobless }), Diagnosis::NoJobs { secondary: true });
        let late = Item::Seen(vec![Scan { latency_seconds: 900, ..scan(1) }]);
        let growing = Health { scans: late, log_reuse: Item::Seen("REPLICATION".into()), ..well() };
        assert_eq!(Diagnosis::of(&growing), Diagnosis::LogNotTruncating { latency_seconds: 900 });
    }

    #[test]
    fn without_permission_a_long_silence_is_still_told() {
        let silent = Health { newest: Some(Newest { lsn: Lsn::ZERO, age_seconds: 700 }), ..blind() };
        let Diagnosis::Unknown { why } = Diagnosis::of(&silent) else { panic!() };
        assert!(
            why.starts_with("nothing has been captured for 11 minutes; SQL Server Agent cannot be seen (to see it: GRANT …)"),
            "{why}"
        );
        assert!(matches!(Diagnosis::of(&Health { newest: None, ..blind() }), Diagnosis::Unknown { .. }));
    }
}
