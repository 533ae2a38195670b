//! The texts that ask how capture is doing. What they read is optional: each is asked on its own, so that a missing permission hides no more than its own answer. Ages are
//! taken by the server, whose clock wrote the times.

/// Agent's state: 4 is running. Needs VIEW SERVER STATE.
pub const AGENT: &str = "SELECT status FROM sys.dm_server_services WHERE servicename LIKE N'SQL Server Agent (%'";

/// The capture and cleanup jobs with interval and retention. Their absence after a failover is a classic: they live in msdb, which is not replicated.
pub const JOBS: &str = "EXEC sys.sp_cdc_help_jobs";

/// The largest value that capture takes: above it, writes of large values to captured tables fail.
pub const MAX_REPLICATED_TEXT: &str = "\
SELECT CAST(value_in_use AS int) AS value_in_use FROM sys.configurations WHERE name = N'max text repl size (B)'";

/// The capture job as Agent sees it: whether it is enabled, and whether it is running now. Needs to read msdb.
pub const JOB_STATE: &str = "\
SELECT CAST(j.enabled AS int) AS enabled, \
CASE WHEN a.start_execution_date IS NOT NULL AND a.stop_execution_date IS NULL THEN 1 ELSE 0 END AS running \
FROM msdb.dbo.cdc_jobs AS c \
JOIN msdb.dbo.sysjobs AS j ON j.job_id = c.job_id \
LEFT JOIN msdb.dbo.sysjobactivity AS a ON a.job_id = j.job_id AND a.session_id = (SELECT MAX(session_id) FROM msdb.dbo.syssessions) \
WHERE c.database_id = DB_ID() AND c.job_type = N'capture'";

/// How the capture job's last step ended: 0 is failed, 1 succeeded, 2 to be tried again, 3 cancelled. Needs to read msdb.
pub const JOB_OUTCOME: &str = "\
SELECT TOP (1) h.run_status, h.message \
FROM msdb.dbo.cdc_jobs AS c \
JOIN msdb.dbo.sysjobhistory AS h ON h.job_id = c.job_id \
WHERE c.database_id = DB_ID() AND c.job_type = N'capture' AND h.step_id > 0 ORDER BY h.instance_id DESC";

/// The last scans of the log, newest first. A session that found nothing is not given a row of its own: the row before counts it and moves its end.
/// Needs VIEW DATABASE STATE.
pub const SCANS: &str = "\
SELECT TOP (5) DATEDIFF(SECOND, end_time, GETDATE()) AS age, error_count, tran_count, empty_scan_count, latency \
FROM sys.dm_cdc_log_scan_sessions WHERE session_id > 0 ORDER BY session_id DESC";

/// The last error of capture. Needs VIEW DATABASE STATE.
pub const CAPTURE_ERRORS: &str = "\
SELECT TOP (1) DATEDIFF(SECOND, entry_time, GETDATE()) AS age, error_number, error_message FROM sys.dm_cdc_errors ORDER BY entry_time DESC";

/// How long ago the newest transaction was captured, in seconds, and its LSN.
pub const NEWEST_CAPTURED: &str = "\
SELECT TOP (1) start_lsn, DATEDIFF(SECOND, tran_end_time, GETDATE()) AS age FROM cdc.lsn_time_mapping ORDER BY start_lsn DESC";

/// What the log's space waits for: REPLICATION is capture that has not read it.
pub const LOG_REUSE: &str = "SELECT log_reuse_wait_desc FROM sys.databases WHERE database_id = DB_ID()";

/// Whether this is the primary of its availability group; NULL outside of one.
pub const PRIMARY_REPLICA: &str = "SELECT CAST(sys.fn_hadr_is_primary_replica(DB_NAME()) AS int) AS is_primary";

/// How this replica of the database fares. Needs VIEW SERVER STATE.
pub const REPLICA_STATE: &str = "\
SELECT synchronization_state_desc, CAST(is_suspended AS int) AS is_suspended \
FROM sys.dm_hadr_database_replica_states WHERE is_local = 1 AND database_id = DB_ID()";
