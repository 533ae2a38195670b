//! How long what is still to be read is safe from the cleanup job.
//!
//! Cleanup removes what was committed longer ago than the retention. So the change that is lost first is the oldest that is not published yet, and it is safe
//! for the retention less its age ([`Retention::left_ms`]), which is a question to each table ([`Retention::waiting`]). That is a forecast, for warnings; whether anything *is* lost, only the instances' low watermarks say, and they are
//! checked with every read ([`ChangeTable::check_watermark`](super::changes::ChangeTable::check_watermark)).

use schemas::Lsn;
use tiberius::ColumnData;

use super::client::Client;
use super::clock::Clock;
use super::decode::Columns;
use super::error::Error;
use super::sql;

/// Where the instances begin, and how old what is to be read next is. Times are milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    pub instances: Vec<Beginning>,
    /// When the first captured transaction after the position was committed; `None`: there is none, so that nothing can be lost.
    pub next_ms: Option<i64>,
    /// The server's clock.
    pub now_ms: i64,
}

/// Where a capture instance begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    pub instance: String,
    /// `None`: not known, which is not "from the start".
    pub min_lsn: Option<Lsn>,
    /// When the first transaction that it may hold was committed; `None`: nothing has been captured since.
    pub begins_ms: Option<i64>,
}

impl Retention {
    /// As seen from `position`: everything up to it has been published.
    pub async fn read(client: &mut Client, clock: &Clock, position: Lsn) -> Result<Self, Error> {
        let doing = "asking how much of the retention is left";
        let parameter = ColumnData::Binary(Some(position.as_bytes().to_vec().into()));
        let mut results = client.query(doing, sql::HEADROOM, vec![parameter]).await?.into_iter();
        let (instances, position) = (results.next().unwrap_or_default(), results.next().unwrap_or_default());
        let row = position.into_iter().next();
        let mut row = Columns::new(doing, row.ok_or_else(|| Error::Unexpected { doing, what: "no clock in the answer".into() })?);
        let (next, now, offset) = (row.value()?, row.value()?, row.int()?);
        let moment = |time| clock.unix_ms(&time, offset).map(|ms| Some(ms).filter(|ms| *ms != 0));
        let beginning = |row| {
            let mut row = Columns::new(doing, row);
            Ok(Beginning { instance: row.text()?, min_lsn: row.lsn()?, begins_ms: moment(row.value()?)? })
        };
        Ok(Self {
            instances: instances.into_iter().map(beginning).collect::<Result<_, Error>>()?,
            next_ms: moment(next)?,
            now_ms: moment(now)?.unwrap_or_default(),
        })
    }

    /// How long what was committed at a moment is safe yet, given the cleanup job's retention; negative: it may be removed any moment.
    pub fn left_ms(&self, committed_ms: i64, retention_minutes: i64) -> i64 {
        retention_minutes.saturating_mul(60_000) - (self.now_ms - committed_ms)
    }

    /// When the oldest change after `position` was committed, by instance in their order; `None`: none waits there.
    pub async fn waiting(
        client: &mut Client,
        clock: &Clock,
        instances: &[&str],
        position: Lsn,
    ) -> Result<Vec<Option<i64>>, Error> {
        let doing = "asking which tables' changes wait";
        let mut waiting = vec![None; instances.len()];
        if instances.is_empty() {
            return Ok(waiting);
        }
        let parameter = ColumnData::Binary(Some(position.as_bytes().to_vec().into()));
        for row in client.rows(doing, &sql::oldest_waiting(instances), vec![parameter]).await? {
            let mut row = Columns::new(doing, row);
            let (index, time, offset) = (row.int()?, row.value()?, row.int()?);
            let place = usize::try_from(index).ok().and_then(|index| waiting.get_mut(index));
            let place = place.ok_or_else(|| Error::Unexpected { doing, what: format!("an instance {index}") })?;
            *place = Some(clock.unix_ms(&time, offset)?).filter(|ms| *ms != 0);
        }
        Ok(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_safe_for_the_retention_less_its_age() {
        let beginning = Beginning { instance: "dbo_a".into(), min_lsn: None, begins_ms: Some(1_000) };
        let retention = Retention { instances: vec![beginning], next_ms: Some(61_000), now_ms: 121_000 };
        assert_eq!((retention.left_ms(61_000, 3), retention.left_ms(61_000, 0)), (120_000, -60_000));
    }
}
