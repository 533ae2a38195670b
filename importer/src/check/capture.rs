//! What the state of capture means to an operator: a pure function of what could be seen.

use source::health::{Agent, Diagnosis, Health, Item};

use super::CheckItem;

/// Retention below it leaves little time to mend a stopped importer, in minutes.
const SHORT_RETENTION_MINUTES: i64 = 24 * 60;

/// One item a thing that was looked at.
pub(super) fn items(health: &Health) -> Vec<CheckItem> {
    let mut items = vec![agent(health), capture_job(health), cleanup_job(health), scans(health), errors(health)];
    items.push(capture(health));
    items.push(log(health));
    items.push(replica(health));
    items
}

fn hidden(name: &str, why: &str, grant: &str) -> CheckItem {
    CheckItem::warning(name, format!("cannot be seen: {why}"), format!("To see it: {grant}"))
}

fn agent(health: &Health) -> CheckItem {
    let name = "SQL Server Agent";
    match &health.agent {
        Item::Hidden { why, grant } => hidden(name, why, grant),
        Item::Seen(Agent::Running) => CheckItem::ok(name, "running"),
        Item::Seen(Agent::Absent) => CheckItem::ok(name, "not part of this server: capture is the platform's"),
        Item::Seen(Agent::Stopped) => CheckItem::problem(
            name,
            "not running: nothing is captured, and the log cannot be truncated",
            "Start the service SQL Server Agent, and set it to start automatically",
        ),
    }
}

fn missing_job(kind: &str) -> (String, String) {
    (
        format!(
            "there is no {kind} job. After a failover of an availability group that is normal: jobs live in msdb, which is not replicated"
        ),
        format!("EXEC sys.sp_cdc_add_job @job_type = N'{kind}';"),
    )
}

fn capture_job(health: &Health) -> CheckItem {
    let name = "capture job";
    let jobs = match &health.jobs {
        Item::Hidden { why, grant } => return hidden(name, why, grant),
        Item::Seen(jobs) => jobs,
    };
    let Some(job) = &jobs.capture else {
        if health.agent.seen() == Some(&Agent::Absent) {
            return CheckItem::ok(name, "not part of this server: capture is the platform's");
        }
        let (detail, remedy) = missing_job("capture");
        return CheckItem::problem(name, detail, remedy);
    };
    if job.continuous {
        CheckItem::ok(name, format!("scans every {} s", job.polling_seconds))
    } else {
        let remedy = "EXEC sys.sp_cdc_change_job @job_type = N'capture', @continuous = 1; then stop and start the job";
        CheckItem::warning(name, "runs when its schedule says so: changes come as late as that", remedy)
    }
}

fn cleanup_job(health: &Health) -> CheckItem {
    let name = "cleanup job";
    let jobs = match &health.jobs {
        Item::Hidden { why, grant } => return hidden(name, why, grant),
        Item::Seen(jobs) => jobs,
    };
    match jobs.retention_minutes {
        None if health.agent.seen() == Some(&Agent::Absent) => {
            CheckItem::ok(name, "not part of this server: cleanup is the platform's")
        }
        None => {
            let (detail, remedy) = missing_job("cleanup");
            CheckItem::warning(name, detail, remedy)
        }
        Some(minutes) if minutes < SHORT_RETENTION_MINUTES => CheckItem::warning(
            name,
            format!("keeps changes for {}: an importer that stands still for longer loses changes", duration(minutes * 60)),
            "EXEC sys.sp_cdc_change_job @job_type = N'cleanup', @retention = 10080;",
        ),
        Some(minutes) => CheckItem::ok(name, format!("keeps changes for {}", duration(minutes * 60))),
    }
}

fn scans(health: &Health) -> CheckItem {
    let name = "log scans";
    match &health.scans {
        Item::Hidden { why, grant } => CheckItem::warning(
            name,
            format!(
                "cannot be seen: {why}. A snapshot, and every table that is read again, then ends with the next transaction that changes a captured table, on an idle database after up to 5 minutes"
            ),
            format!("To see them: {grant}"),
        ),
        Item::Seen(scans) => match scans.first() {
            None => CheckItem::ok(name, "none yet"),
            Some(scan) => {
                let when = scan.age_seconds.map_or_else(|| "running".to_owned(), |age| format!("{} ago", duration(age)));
                CheckItem::ok(name, format!("last {when}, {} s behind the log", scan.latency_seconds))
            }
        },
    }
}

fn errors(health: &Health) -> CheckItem {
    let name = "capture errors";
    match &health.last_error {
        Item::Hidden { why, grant } => hidden(name, why, grant),
        Item::Seen(None) => CheckItem::ok(name, "none"),
        Item::Seen(Some(error)) => CheckItem::warning(
            name,
            format!("{} ago: {} (error {})", duration(error.age_seconds), error.message, error.number),
            "SELECT * FROM sys.dm_cdc_errors;",
        ),
    }
}

fn capture(health: &Health) -> CheckItem {
    let name = "capture";
    let diagnosis = Diagnosis::of(health);
    let newest =
        health.newest.as_ref().map(|newest| format!("the last captured transaction is {} old", duration(newest.age_seconds)));
    match (&diagnosis, newest) {
        (Diagnosis::Working, newest) => {
            CheckItem::ok(name, newest.unwrap_or_else(|| "works; nothing has been captured yet".to_owned()))
        }
        // Nothing has been written since capture was enabled, or it never ran: both look alike.
        (Diagnosis::Unknown { .. }, None) => CheckItem::ok(name, "nothing has been captured yet"),
        (diagnosis, _) => CheckItem::problem(name, diagnosis.to_string(), diagnosis.remedy().unwrap_or_default()),
    }
}

fn log(health: &Health) -> CheckItem {
    let name = "log truncation";
    match &health.log_reuse {
        Item::Hidden { why, grant } => hidden(name, why, grant),
        Item::Seen(wait) => {
            let late = health.scans.seen().and_then(|scans| scans.first()).map_or(0, |scan| scan.latency_seconds);
            if wait == "REPLICATION" && late > 0 {
                CheckItem::ok(name, format!("waits for capture, which is {late} s behind"))
            } else {
                CheckItem::ok(name, format!("waits for {wait}"))
            }
        }
    }
}

fn replica(health: &Health) -> CheckItem {
    let name = "availability group";
    match &health.replica {
        Item::Hidden { why, grant } => hidden(name, why, grant),
        Item::Seen(replica) => match replica.primary {
            None => CheckItem::ok(name, "in none"),
            Some(false) => CheckItem::problem(
                name,
                "this is a secondary replica, where nothing is captured",
                "Connect to the group's listener, without read-only intent",
            ),
            Some(true) if replica.suspended => {
                let remedy = "ALTER DATABASE [database] SET HADR RESUME;";
                CheckItem::warning(
                    name,
                    "primary, and data movement is suspended: the log grows, and a failover would lose what is not there",
                    remedy,
                )
            }
            Some(true) => {
                CheckItem::ok(name, format!("primary, {}", replica.state.as_deref().unwrap_or("state unknown").to_lowercase()))
            }
        },
    }
}

/// `90 s`, `12 min`, `30 h`, `7 days`.
fn duration(seconds: i64) -> String {
    match seconds {
        ..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::Lsn;
    use source::health::{CaptureError, CaptureJob, JobState, Jobs, Newest, Replica, Scan};

    use super::super::Level;
    use super::*;

    fn well() -> Health {
        Health {
            agent: Item::Seen(Agent::Running),
            jobs: Item::Seen(Jobs {
                capture: Some(CaptureJob { continuous: true, polling_seconds: 5 }),
                retention_minutes: Some(4320),
            }),
            job_state: Item::Seen(Some(JobState { enabled: true, running: true })),
            job_outcome: Item::Seen(None),
            scans: Item::Seen(vec![Scan {
                age_seconds: Some(3),
                errors: 0,
                transactions: 0,
                empty_scans: 1,
                latency_seconds: 0,
            }]),
            last_error: Item::Seen(None),
            newest: Some(Newest { lsn: Lsn::ZERO, age_seconds: 200 }),
            log_reuse: Item::Seen("NOTHING".into()),
            replica: Item::Seen(Replica::default()),
        }
    }

    fn worst(health: &Health) -> Vec<(String, Level)> {
        items(health).into_iter().filter(|item| item.level != Level::Ok).map(|item| (item.name, item.level)).collect()
    }

    #[test]
    fn a_healthy_server_has_nothing_to_mend() {
        assert_eq!(worst(&well()), []);
        assert_eq!(items(&well()).len(), 8);
        assert_eq!(worst(&Health { newest: None, ..well() }), []);
    }

    #[test]
    fn each_ailment_is_named_with_its_remedy() {
        let named = |health: &Health| worst(health).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(named(&Health { agent: Item::Seen(Agent::Stopped), ..well() }), ["SQL Server Agent", "capture"]);
        assert_eq!(named(&Health { jobs: Item::Seen(Jobs::default()), ..well() }), ["capture job", "cleanup job", "capture"]);
        let short = Jobs { retention_minutes: Some(60), capture: Some(CaptureJob { continuous: false, polling_seconds: 5 }) };
        assert_eq!(named(&Health { jobs: Item::Seen(short), ..well() }), ["capture job", "cleanup job"]);
        let error = Some(CaptureError { age_seconds: 86_400, number: 22_858, message: "full".into() });
        assert_eq!(named(&Health { last_error: Item::Seen(error), ..well() }), ["capture errors"]);
        let secondary = Replica { primary: Some(false), ..Replica::default() };
        assert_eq!(named(&Health { replica: Item::Seen(secondary), ..well() }), ["availability group"]);
        for item in items(&Health { agent: Item::Seen(Agent::Stopped), jobs: Item::Seen(Jobs::default()), ..well() }) {
            assert_eq!(item.remedy.is_some(), item.level != Level::Ok, "{item:?}");
        }
    }

    #[test]
    fn what_is_hidden_is_a_warning_with_its_grant() {
        let hidden = Health { agent: Item::Hidden { why: "denied".into(), grant: "GRANT IT".into() }, ..well() };
        assert_eq!(worst(&hidden), [("SQL Server Agent".to_owned(), Level::Warning)]);
        assert_eq!(items(&hidden)[0].remedy.as_deref(), Some("To see it: GRANT IT"));
        let blind = Health { scans: Item::Hidden { why: "denied".into(), grant: "GRANT IT".into() }, ..well() };
        let scans = items(&blind).into_iter().find(|item| item.level != Level::Ok).unwrap();
        assert!(scans.detail.contains("up to 5 minutes") && scans.remedy.unwrap().contains("GRANT IT"), "{}", scans.detail);
    }

    #[test]
    fn durations_are_short() {
        assert_eq!([90, 120, 7_200, 259_200].map(duration), ["90 s", "2 min", "2 h", "3 days"]);
    }
}
