//! How long what waits to be read is safe from the cleanup job.
//!
//! Two questions, asked together: whether anything *is* lost (the instances' low watermarks against the saved position: a gap, told at once and not only when the range is read),
//! and how long the oldest change that waits is safe yet (the cleanup job's retention less its age: a forecast). The retention is the database's, so the forecast is the same for all
//! tables; where somebody cleans up single instances by hand, the watermarks tell.
//!
//! What is done where little is left: it is warned of, the initial snapshot goes on beside the tail, and tables that are being read again wait until the tail has caught up, so that
//! all effort goes to the changes that are in danger.

use std::time::Duration;

use crate::error::Error;
use crate::metrics;
use crate::session::Session;
use source::health::Health;
use source::retention::Retention;

/// What warnings of it begin with.
const WARNING: &str = "retention headroom";

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
    let left = retention.left_ms(minutes).unwrap_or_else(|| minutes.saturating_mul(60_000));
    metrics::headroom(left as f64 / 1000.0);
    let names: Vec<_> = session.tables.iter().map(|table| table.schema.name.clone()).collect();
    for name in names {
        session.status.table(&name, |table| table.headroom_ms = Some(left));
    }
    let enough = enough(session.config.headroom_warning, minutes);
    session.status.unwarn(WARNING);
    if retention.next_ms.is_none() || left > enough {
        return Ok(Headroom::Plenty);
    }
    tracing::warn!(seconds_left = left / 1000, "changes that wait to be read will soon be removed by the cleanup job");
    session.status.warn(&format!(
        "{WARNING}: changes that wait to be read are safe for {} more minutes of the retention of {minutes}. Lengthen it (EXEC sys.sp_cdc_change_job @job_type = N'cleanup', \
         @retention = {};), and look what keeps the importer",
        left / 60_000,
        minutes.saturating_mul(2).max(10_080)
    ));
    Ok(Headroom::Short)
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
    fn a_short_retention_is_not_always_too_little() {
        let half_a_day = Duration::from_secs(12 * 3600);
        assert_eq!(enough(half_a_day, 3 * 24 * 60), 12 * 3_600_000);
        assert_eq!(enough(half_a_day, 60), 15 * 60_000);
    }
}
