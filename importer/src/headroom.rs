//! How long what waits to be read is safe from the cleanup job, and what is done when that is not long.
//!
//! Two questions, asked together: whether anything *is* lost (the instances' low watermarks against the saved position: a gap, told at once and not only when the range is read),
//! and how long the oldest change of each table that waits is safe yet (the cleanup job's retention less its age: a forecast). The retention is the database's, but what waits is
//! not: a table of which nothing waits is in no danger, and one whose oldest change waits longest is in danger first.
//!
//! # What helps a table in danger
//! Cleanup removes rows of change tables. What has been *read* is safe from it, published or not, for as long as the process lives. Publishing cannot be hurried for one table: a range is published in an
//! order over all tables. Reading can, and is mostly not what limits; so where little is left:
//! - the tail's reader favours the tables in danger ([`Session::favoured`]): they are first in line for connections, and are read many pages ahead of what is merged instead of one, within a bound of memory. The range is then
//!   read as one part, because what is read ahead ends with the part. A stream that takes events slowly, or a table that changes more than all others, does not keep their changes in the source any longer.
//! - everything else waits: the initial snapshot goes on beside the tail, tables are read again when the tail has caught up, so that neither takes connections, nor the source's attention, nor room in the streams;
//! - it is warned of, by table, with the statement that lengthens the retention.
//!
//! Smaller ranges would not help, though a restart would repeat less: a range's first changes are read first whatever its size. What was read and not published is lost with the process; where that is feared, a longer
//! retention is the remedy.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::metrics;
use crate::session::Session;
use source::health::Health;
use source::retention::Retention;

/// What warnings of it begin with.
const WARNING: &str = "retention headroom";
/// Tables named in one.
const MOST_NAMED: usize = 5;

/// How long what waits is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Headroom {
    /// Nothing waits, or the retention is not known.
    Plenty,
    Short,
}

impl Headroom {
    pub(crate) fn is_short(self) -> bool {
        self == Self::Short
    }
}

/// Looks; fails if changes after the saved position have been removed.
pub(crate) async fn look(session: &mut Session<'_>) -> Result<Headroom, Error> {
    let from = session.saved.lsn();
    let retention = Retention::read(&mut session.client, &session.clock, from).await?;
    for table in session.tables.iter() {
        let begins = retention.instances.iter().find(|beginning| beginning.instance == table.changes.instance);
        table.changes.check_watermark(from, begins.and_then(|beginning| beginning.min_lsn))?;
    }
    judge(session, &retention).await
}

/// Looks at how long what waits is safe, without asking whether anything is lost: the tail's reader, which is ahead of what has been published, asks that itself.
pub(crate) async fn forecast(session: &mut Session<'_>) -> Result<Headroom, Error> {
    let retention = Retention::read(&mut session.client, &session.clock, session.saved.lsn()).await?;
    judge(session, &retention).await
}

async fn judge(session: &mut Session<'_>, retention: &Retention) -> Result<Headroom, Error> {
    let Some(minutes) = retention_minutes(session).await? else { return Ok(Headroom::Plenty) };
    let tables = Arc::clone(&session.tables);
    let instances: Vec<&str> = tables.iter().map(|table| table.changes.instance.as_str()).collect();
    // Where nothing has been captured since, nothing waits anywhere.
    let waiting = match retention.next_ms {
        Some(_) => Retention::waiting(&mut session.client, &session.clock, &instances, session.saved.lsn()).await?,
        None => vec![None; tables.len()],
    };
    let all = minutes.saturating_mul(60_000);
    let left: Vec<i64> = waiting.iter().map(|oldest| oldest.map_or(all, |oldest| retention.left_ms(oldest, minutes))).collect();
    for (table, left) in tables.iter().zip(&left) {
        session.status.table(&table.schema.name, |status| status.headroom_ms = Some(*left));
    }
    let endangered = endangered(&waiting, &left, enough(session.config.headroom_warning, minutes));
    let least = left.iter().copied().min().unwrap_or(all);
    metrics::headroom(&session.config.output.name, least as f64 / 1000.0);
    session.status.unwarn(WARNING);
    session.favoured.send_replace(endangered.clone());
    if endangered.is_empty() {
        return Ok(Headroom::Plenty);
    }
    let names: Vec<String> = endangered.iter().map(|&index| tables[index].schema.name.to_string()).collect();
    tracing::warn!(
        seconds_left = least / 1000,
        tables = names.join(", "),
        "changes that wait to be read will soon be removed by the cleanup job"
    );
    session.status.warn(&format!(
        "{WARNING}: changes of {} that wait to be read are safe for {} more minutes of the retention of {minutes}. Lengthen it (EXEC sys.sp_cdc_change_job @job_type = N'cleanup', \
         @retention = {};), and look what keeps the importer",
        listed(&names),
        least / 60_000,
        minutes.saturating_mul(2).max(10_080)
    ));
    Ok(Headroom::Short)
}

/// The tables of which something waits that is not safe for long, the most endangered first.
fn endangered(waiting: &[Option<i64>], left: &[i64], enough: i64) -> Vec<usize> {
    let mut endangered: Vec<usize> = (0..left.len()).filter(|&index| waiting[index].is_some() && left[index] <= enough).collect();
    endangered.sort_by_key(|&index| left[index]);
    endangered
}

/// The first few names.
fn listed(names: &[String]) -> String {
    match names.get(MOST_NAMED..).map_or(0, <[String]>::len) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names[..MOST_NAMED].join(", ")),
    }
}

/// What counts as enough, in milliseconds: as configured, but no more than a quarter of the retention, because a shorter one would never be enough.
fn enough(warning: Duration, retention_minutes: i64) -> i64 {
    let warning = i64::try_from(warning.as_millis()).unwrap_or(i64::MAX);
    warning.min(retention_minutes.saturating_mul(60_000) / 4)
}

/// The cleanup job's retention, asked for once a session; `None` where it cannot be seen.
async fn retention_minutes(session: &mut Session<'_>) -> Result<Option<i64>, Error> {
    if let Some(known) = session.retention_minutes {
        return Ok(known);
    }
    let health = Health::read(&mut session.client).await?;
    let minutes = health.jobs.seen().and_then(|jobs| jobs.retention_minutes);
    session.retention_minutes = Some(minutes);
    Ok(minutes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_longest_is_most_endangered_and_what_does_not_wait_is_not() {
        let (waiting, left) = ([Some(5), None, Some(1), Some(9)], [50, 10, 20, 500]);
        assert_eq!(endangered(&waiting, &left, 100), [2, 0]);
        assert!(endangered(&waiting, &left, 10).is_empty());
        let names: Vec<String> = (0..7).map(|n| format!("t{n}")).collect();
        assert_eq!((listed(&names[..2]), listed(&names)), ("t0, t1".to_owned(), "t0, t1, t2, t3, t4 and 2 more".to_owned()));
    }

    #[test]
    fn a_short_retention_is_not_always_too_little() {
        let half_a_day = Duration::from_secs(12 * 3600);
        assert_eq!(enough(half_a_day, 3 * 24 * 60), 12 * 3_600_000);
        assert_eq!(enough(half_a_day, 60), 15 * 60_000);
    }
}
