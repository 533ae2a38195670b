//! Whether the database is still the one that was read from.
//!
//! A restore puts an older history in the place of the one that was published. Nothing in the change tables says so: their LSNs are of the same form and may even
//! go beyond the saved position again. Three things tell, each weaker or stronger than the others:
//! - the *recovery fork*: SQL Server begins a new one when a restore leaves the old history. Where the login may see it, it decides;
//! - the *saved position itself* ([`History`]): it is the LSN of a captured transaction, and within the retention that transaction must be in
//!   `cdc.lsn_time_mapping` with the commit time it had. Needs no permission beyond that on the change tables;
//! - `create_date`, which a restore sets, and which also differs between the replicas of an availability group: a suspicion.

use schemas::Lsn;
use serde::{Deserialize, Serialize};
use tiberius::ColumnData;

use super::client::Client;
use super::decode::Columns;
use super::error::Error;
use super::sql;

/// What a database is known by. Saved with the progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub name: String,
    pub database_id: i64,
    /// By the server's clock.
    pub create_date: Option<String>,
    /// `None` where the login may not see it.
    pub recovery_fork: Option<String>,
}

/// How an identity stands to the one that was saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Continuity {
    Same,
    /// It may be another replica, or a restored database: the history decides.
    Doubtful {
        what: String,
    },
    /// It was restored.
    Restored {
        what: String,
    },
}

/// Where a published position stands in the captured history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum History {
    /// The transaction is there.
    Present { commit_time: Option<String> },
    /// The history begins after it: nothing can be said.
    Purged,
    /// The history begins before it and does not know it, or ends before it: it is another history.
    Absent { ends: Option<Lsn> },
}

impl Identity {
    pub async fn read(client: &mut Client) -> Result<Self, Error> {
        let doing = "reading the database's identity";
        let row = client.rows(doing, sql::IDENTITY, vec![]).await?.into_iter().next();
        let row = row.ok_or_else(|| Error::Unexpected { doing, what: "sys.databases does not show this database".into() })?;
        let mut row = Columns::new(doing, row);
        let (name, database_id, create_date) = (row.text()?, row.int()?, row.optional_time()?);
        let recovery_fork = match client.rows(doing, sql::RECOVERY_FORK, vec![]).await {
            Ok(rows) => {
                let row = rows.into_iter().next();
                row.map(|row| Columns::new(doing, row).optional_uuid()).transpose()?.flatten()
            }
            Err(error @ Error::Connection { .. }) => return Err(error),
            // Not every login may see it, and not every edition has it.
            Err(_) => None,
        };
        Ok(Self { name, database_id, create_date, recovery_fork })
    }

    /// What has become of the database since `saved`.
    pub fn since(&self, saved: &Self) -> Continuity {
        if let (Some(now), Some(then)) = (&self.recovery_fork, &saved.recovery_fork) {
            return if now == then {
                Continuity::Same
            } else {
                Continuity::Restored { what: format!("its recovery fork is {now} and was {then}") }
            };
        }
        match (&self.create_date, &saved.create_date) {
            (Some(now), Some(then)) if now != then => {
                Continuity::Doubtful { what: format!("it was created at {now}, and the one that was read from at {then}") }
            }
            _ => Continuity::Same,
        }
    }
}

impl History {
    /// Where `lsn` stands, which must be the LSN of a captured transaction.
    pub async fn of(client: &mut Client, lsn: Lsn) -> Result<Self, Error> {
        let doing = "looking for the last published transaction";
        let parameter = ColumnData::Binary(Some(lsn.as_bytes().to_vec().into()));
        let row = client.rows(doing, sql::HISTORY, vec![parameter]).await?.into_iter().next();
        let row = row.ok_or_else(|| Error::Unexpected { doing, what: "the answer is empty".into() })?;
        let mut row = Columns::new(doing, row);
        let (commit_time, begins, ends) = (row.optional_time()?, row.lsn()?, row.lsn()?);
        Ok(judge(lsn, commit_time, row.int()? > 0, begins, ends))
    }
}

fn judge(lsn: Lsn, commit_time: Option<String>, present: bool, begins: Option<Lsn>, ends: Option<Lsn>) -> History {
    match begins {
        _ if present => History::Present { commit_time },
        Some(begins) if begins > lsn => History::Purged,
        _ => History::Absent { ends },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(created: &str, fork: Option<&str>) -> Identity {
        let (created, fork) = (Some(created.to_owned()), fork.map(str::to_owned));
        Identity { name: "shop".into(), database_id: 5, create_date: created, recovery_fork: fork }
    }

    #[test]
    fn the_recovery_fork_decides_where_it_is_seen() {
        let saved = identity("2024-01-01", Some("A"));
        assert_eq!(identity("2024-02-02", Some("A")).since(&saved), Continuity::Same);
        assert!(matches!(identity("2024-01-01", Some("B")).since(&saved), Continuity::Restored { .. }));
        assert!(matches!(identity("2024-02-02", None).since(&saved), Continuity::Doubtful { .. }));
        assert_eq!(identity("2024-01-01", None).since(&saved), Continuity::Same);
    }

    #[test]
    fn a_position_is_judged_by_the_history_around_it() {
        let lsn = |byte| Lsn::from_bytes([byte; 10]);
        let judge = |present, begins, ends| judge(lsn(5), None, present, begins, ends);
        assert_eq!(judge(true, Some(lsn(1)), Some(lsn(9))), History::Present { commit_time: None });
        assert_eq!(judge(false, Some(lsn(6)), Some(lsn(9))), History::Purged);
        assert_eq!(judge(false, Some(lsn(1)), Some(lsn(9))), History::Absent { ends: Some(lsn(9)) });
        assert_eq!(judge(false, None, None), History::Absent { ends: None });
    }
}
