//! From which LSN on everything that was read is as of one moment.
//!
//! Rows are read without locks, each at a moment of its own, and the tail repeats and completes what they show. So once the tail has passed the last change that any read may
//! have seen, the tables are as of that LSN. The greatest captured LSN after the last read would *not* do: it trails the log, and a read may have seen a transaction
//! that is not captured yet, of which another table was read before. So after the last read a place in the log is marked ([`source::fence::mark`]), and the tables count as
//! consistent from the first captured transaction above it: what was visible to a read had its commit in the log before. On an idle database there may be none for minutes; then two scans of the capture job that ended after that moment
//! and found nothing say the same, because the second began after it and a scan reads the log to its end. Scans are told apart by their numbers, so no clock is asked.
//!
//! # Where the mark cannot be seen
//! That takes a permission (VIEW SERVER STATE). Without it the server's clock is noted instead, and the tables count as consistent from the first captured transaction that was committed after it: LSNs follow the order of commits, so it is
//! above everything that was visible. The clock is the server's local time and goes back in autumn, or when it is set. So the LSN captured at the noted moment bounds the search as well; and when the clock shows less
//! than the moment noted, or than the commit of a transaction that is found, a new moment is noted: a later one is always right, for it only asks for a later transaction. A restart notes a new one for the same reason. What that does not
//! see: a clock that goes back before the moment is noted, by less than capture is behind, while transactions of before are not captured yet. Only the permission helps against that.
//!
//! # Where scans cannot be seen
//! They need a permission (VIEW DATABASE STATE). Without it there is nothing else that moves on an idle database: what an ordinary login sees of capture is its captured transactions, of which SQL Server makes one by itself
//! every five minutes. So the wait is told ([`BLIND`]), with both ways of ending it: the permission, and a change to any captured table. `check` tells it before the first start.

use std::time::{Duration, Instant};

use schemas::Lsn;
use schemas::value::Value;
use tiberius::ColumnData;

use crate::error::Error;
use source::decode::Columns;
use source::{Client, sql};

const DOING: &str = "waiting until capture has passed what was read";
/// Told while what was read waits for a captured transaction alone.
pub(crate) const BLIND: &str = "what was read waits for the next transaction that changes a captured table, on an idle database for up to 5 minutes, because the login may not \
     see the capture job's scans. To end the wait now, change any row of a captured table; to see them: GRANT VIEW DATABASE STATE TO [login]; (from SQL Server 2022 on VIEW DATABASE PERFORMANCE STATE is enough)";
/// How often capture is looked at: the first wait, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// The search for that LSN. It begins after the last read.
pub(crate) struct Settling {
    from: From,
    /// The last empty scan that was seen, and how many have followed the one that was the last when the search began.
    last: Option<Scan>,
    followed: u32,
    may_see_scans: bool,
    wait: Duration,
    next: Instant,
}

/// What every transaction that a read has seen lies before.
enum From {
    Mark(Lsn),
    Moment(Moment),
}

impl Settling {
    pub(crate) async fn begin(client: &mut Client) -> Result<Self, Error> {
        let from = match source::fence::mark(client).await? {
            Some(lsn) => From::Mark(lsn),
            None => From::Moment(Moment::now(client).await?),
        };
        let (last, may_see_scans) = match last_empty_scan(client).await? {
            Seen::NotAllowed => (None, false),
            Seen::Nothing => (None, true),
            Seen::Scan(scan) => (Some(scan), true),
        };
        Ok(Self { from, last, followed: 0, may_see_scans, wait: FIRST_WAIT, next: Instant::now() })
    }

    /// What an operator should know of the wait.
    pub(crate) fn warning(&self) -> Option<&'static str> {
        (!self.may_see_scans).then_some(BLIND)
    }

    /// When to look again.
    pub(crate) fn due(&self) -> Instant {
        self.next
    }

    /// The LSN, if it is known by now.
    pub(crate) async fn look_if_due(&mut self, client: &mut Client) -> Result<Option<Lsn>, Error> {
        if Instant::now() < self.next {
            return Ok(None);
        }
        let found = self.look(client).await?;
        self.next = Instant::now() + self.wait;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        Ok(found)
    }

    async fn look(&mut self, client: &mut Client) -> Result<Option<Lsn>, Error> {
        let found = match &mut self.from {
            From::Mark(mark) => first_captured(client, *mark).await?,
            From::Moment(moment) => moment.passed(client).await?,
        };
        if found.is_some() || !self.may_see_scans {
            return Ok(found);
        }
        match last_empty_scan(client).await? {
            Seen::NotAllowed => self.may_see_scans = false,
            Seen::Scan(scan) if self.last.as_ref() != Some(&scan) => {
                (self.last, self.followed) = (Some(scan), self.followed + 1);
                if self.followed >= 2 {
                    return Ok(Some(max_lsn(client).await?.unwrap_or(Lsn::ZERO)));
                }
            }
            Seen::Scan(_) | Seen::Nothing => {}
        }
        Ok(None)
    }
}

/// The first captured transaction after an LSN.
async fn first_captured(client: &mut Client, after: Lsn) -> Result<Option<Lsn>, Error> {
    let after = ColumnData::Binary(Some(after.as_bytes().to_vec().into()));
    match client.rows(DOING, sql::FIRST_CAPTURED_AFTER, vec![after]).await?.into_iter().next() {
        Some(row) => Ok(Columns::new(DOING, row).lsn()?),
        None => Ok(None),
    }
}

/// A moment after the last read, by the server's clock and by how far capture had come.
struct Moment {
    time: String,
    captured: Lsn,
}

impl Moment {
    async fn now(client: &mut Client) -> Result<Self, Error> {
        let row = client.rows(DOING, sql::CLOCK, vec![]).await?.into_iter().next();
        let row = row.ok_or_else(|| source::Error::Unexpected { doing: DOING, what: "the server tells no time".into() })?;
        let mut row = Columns::new(DOING, row);
        let time = match row.value()? {
            time @ Value::DateTime { .. } => time.to_json().as_str().unwrap_or_default().to_owned(),
            other => return Err(source::Error::Unexpected { doing: DOING, what: format!("GETDATE() is {other:?}") }.into()),
        };
        Ok(Self { time, captured: row.lsn()?.unwrap_or(Lsn::ZERO) })
    }

    /// The first captured transaction that was committed later. A clock that has gone back makes this another moment.
    async fn passed(&mut self, client: &mut Client) -> Result<Option<Lsn>, Error> {
        let first = client.rows(DOING, sql::FIRST_COMMIT_AFTER, vec![self.time(), self.captured()]).await?;
        let Some(row) = first.into_iter().next() else { return Ok(None) };
        let mut row = Columns::new(DOING, row);
        let (lsn, went_back) = (row.lsn()?, row.int()? == 1);
        if went_back {
            *self = Self::now(client).await?;
            return Ok(None);
        }
        Ok(lsn)
    }

    fn time(&self) -> ColumnData<'static> {
        ColumnData::String(Some(self.time.clone().into()))
    }

    fn captured(&self) -> ColumnData<'static> {
        ColumnData::Binary(Some(self.captured.as_bytes().to_vec().into()))
    }
}

/// A scan that found nothing: the session's number, how many it stands for, and when the last of them ended.
type Scan = [Value; 3];

enum Seen {
    Nothing,
    NotAllowed,
    Scan(Scan),
}

async fn last_empty_scan(client: &mut Client) -> Result<Seen, Error> {
    match client.rows(DOING, sql::LAST_EMPTY_SCAN, vec![]).await {
        Ok(rows) => match rows.into_iter().next() {
            Some(row) => {
                let mut row = Columns::new(DOING, row);
                Ok(Seen::Scan([row.value()?, row.value()?, row.value()?]))
            }
            None => Ok(Seen::Nothing),
        },
        Err(error @ source::Error::Connection { .. }) => Err(error.into()),
        // Without permission to look at the capture job there is still the entry that capture makes every few minutes.
        Err(error) => {
            tracing::info!(%error, "the capture job's scans cannot be seen; waiting for the next captured transaction");
            Ok(Seen::NotAllowed)
        }
    }
}

/// How far capture has come.
pub(crate) async fn max_lsn(client: &mut Client) -> Result<Option<Lsn>, source::Error> {
    let doing = "asking how far capture has come";
    match client.rows(doing, sql::MAX_LSN, vec![]).await?.into_iter().next() {
        Some(row) => Columns::new(doing, row).lsn(),
        None => Ok(None),
    }
}
