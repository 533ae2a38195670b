//! The cleanup job: retention.
//!
//! In SQL Server's order, which importers build on: first every instance's low water mark (`change_tables.start_lsn`) moves, in a transaction of its own;
//! then rows below it are deleted, a threshold at a time; then the entries of `cdc.lsn_time_mapping` below every mark. So a reader that finds the mark at
//! or below its position *after* reading a range knows that it read the whole of it.

use rusqlite::{Connection, OptionalExtension as _, params};

use crate::capture::Joined;
use crate::jobs::{self, JobType};
use crate::select::storage;
use crate::{DateTime, Error, Lsn, Result, schema, time};

/// One run of the cleanup job: forgets what is older than the retention. Answers how many rows it deleted from change tables.
pub fn cleanup(conn: &Connection, now: DateTime) -> Result<u64> {
    schema::require_enabled(conn)?;
    let job = jobs::parameters(conn, JobType::Cleanup)?;
    let horizon = now.saturating_sub(jiff::SignedDuration::from_mins(job.retention));
    let Some(mark) = mark_at(conn, horizon)? else { return Ok(0) };
    let transaction = Joined::begin(conn)?;
    move_low_mark(conn, None, mark)?;
    transaction.commit()?;
    delete_below(conn, job.threshold)
}

/// The first position that is young enough to stay; the newest of all if none is, so that the timeline never becomes empty.
fn mark_at(conn: &Connection, horizon: DateTime) -> Result<Option<Lsn>> {
    let mapping = storage("cdc", "lsn_time_mapping");
    let sql = format!(
        "SELECT coalesce((SELECT min(start_lsn) FROM {mapping} WHERE tran_end_time >= ?1), (SELECT max(start_lsn) FROM {mapping}))"
    );
    Ok(conn.query_row(&sql, [time::stored(horizon)], |row| row.get(0))?)
}

/// `sys.sp_cdc_cleanup_change_table`: moves one instance's low water mark (or, without one, keeps it) and deletes what lies below.
pub fn cleanup_change_table(
    conn: &Connection,
    capture_instance: &str,
    low_water_mark: Option<Lsn>,
    threshold: Option<i64>,
) -> Result<u64> {
    schema::require_enabled(conn)?;
    let Some(instance) = schema::find_instance(conn, capture_instance)? else {
        return Err(Error::NoSuchInstance { instance: capture_instance.to_owned(), database: schema::database_name(conn)? });
    };
    if let Some(lsn) = low_water_mark {
        let mapping = storage("cdc", "lsn_time_mapping");
        let mapped: Option<i64> =
            conn.query_row(&format!("SELECT 1 FROM {mapping} WHERE start_lsn = ?1"), [lsn], |row| row.get(0)).optional()?;
        if mapped.is_none() {
            return Err(Error::LowEndNotMapped { lsn });
        }
        if lsn < instance.start_lsn {
            let high: Lsn = conn.query_row(&format!("SELECT max(start_lsn) FROM {mapping}"), [], |row| row.get(0))?;
            return Err(Error::LowEndOutOfTimeline { lsn, instance: instance.name, low: instance.start_lsn, high });
        }
        let transaction = Joined::begin(conn)?;
        move_low_mark(conn, Some(&instance.name), lsn)?;
        transaction.commit()?;
    }
    delete_below(conn, threshold.filter(|threshold| *threshold > 0).unwrap_or(jobs::DEFAULT_THRESHOLD))
}

/// Moves the low water mark of one instance, or of all, up to `lsn`; it never moves back.
pub fn move_low_mark(conn: &Connection, capture_instance: Option<&str>, lsn: Lsn) -> Result<()> {
    let sql = format!(
        "UPDATE {} SET start_lsn = ?1 WHERE start_lsn < ?1 AND (?2 IS NULL OR capture_instance = ?2 COLLATE NOCASE)",
        storage("cdc", "change_tables")
    );
    conn.execute(&sql, params![lsn, capture_instance])?;
    Ok(())
}

/// Deletes what lies below the marks, at most `threshold` rows a statement, each statement in a transaction of its own.
pub fn delete_below(conn: &Connection, threshold: i64) -> Result<u64> {
    let marks: Vec<(String, Lsn)> = conn
        .prepare(&format!("SELECT capture_instance, start_lsn FROM {}", storage("cdc", "change_tables")))?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut deleted = 0;
    for (instance, mark) in &marks {
        deleted += delete_in_steps(conn, &storage("cdc", &format!("{instance}_CT")), "\"__$start_lsn\"", *mark, threshold)?;
    }
    if let Some(lowest) = marks.iter().map(|(_, mark)| *mark).min() {
        delete_in_steps(conn, &storage("cdc", "lsn_time_mapping"), "start_lsn", lowest, threshold)?;
    }
    Ok(deleted)
}

fn delete_in_steps(conn: &Connection, table: &str, column: &str, mark: Lsn, threshold: i64) -> Result<u64> {
    let sql = format!("DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE {column} < ?1 LIMIT ?2)");
    let mut deleted = 0;
    loop {
        let transaction = Joined::begin(conn)?;
        let step = conn.execute(&sql, params![mark, threshold])? as u64;
        transaction.commit()?;
        if step == 0 {
            return Ok(deleted);
        }
        deleted += step;
    }
}
