//! Counting changes again, for holding what was published against what was captured.
//!
//! An update is two rows and one change, so before images are not counted. What cleanup has removed cannot be counted: an instance that begins after `from` answers
//! [`Count::Purged`] rather than a number that would look like a loss.

use std::collections::BTreeMap;

use schemas::Lsn;
use tiberius::ColumnData;

use super::changes::begins;
use super::client::Client;
use super::decode::Columns;
use super::error::Error;
use super::sql;

/// How many changes an instance holds in a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    Changes(u64),
    /// The instance begins within the range: what was before has been removed, or it is younger. The rest holds so many.
    Purged {
        min: Lsn,
        changes: u64,
    },
    /// There is no such instance any more.
    Gone,
}

/// Counts the changes in (`from`, `to`] of each instance, in their order.
pub async fn changes(client: &mut Client, instances: &[&str], from: Lsn, to: Lsn) -> Result<Vec<Count>, Error> {
    if instances.is_empty() {
        return Ok(Vec::new());
    }
    let doing = "counting captured changes";
    let bytes = |lsn: Lsn| ColumnData::Binary(Some(lsn.as_bytes().to_vec().into()));
    let mut results = client.query(doing, &sql::recount(instances), vec![bytes(from), bytes(to)]).await?.into_iter();
    let (rows, watermarks) = (results.next().unwrap_or_default(), results.next().unwrap_or_default());
    let begins = begins(doing, watermarks)?;
    let mut counts = BTreeMap::new();
    for row in rows {
        let mut row = Columns::new(doing, row);
        counts.insert(row.int()?, row.int()?.unsigned_abs());
    }
    let count = |(index, instance): (usize, &&str)| {
        let counted = i64::try_from(index).ok().and_then(|index| counts.get(&index));
        let counted = counted.ok_or_else(|| Error::Unexpected { doing, what: format!("no count for {instance}") })?;
        Ok(judge(*counted, begins.get(*instance).copied(), from))
    };
    instances.iter().enumerate().map(count).collect()
}

/// `begins` is where the instance begins, if it is there.
fn judge(counted: u64, begins: Option<Option<Lsn>>, from: Lsn) -> Count {
    match begins {
        None => Count::Gone,
        Some(Some(min)) if min > from.next() => Count::Purged { min, changes: counted },
        Some(_) => Count::Changes(counted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purged_range_is_not_counted() {
        let lsn = |byte| Lsn::from_bytes([byte; 10]);
        assert_eq!(judge(3, Some(Some(lsn(1).next())), lsn(1)), Count::Changes(3));
        assert_eq!(judge(3, Some(Some(lsn(2))), lsn(1)), Count::Purged { min: lsn(2), changes: 3 });
        assert_eq!(judge(3, Some(None), lsn(1)), Count::Changes(3));
        assert_eq!(judge(0, None, lsn(1)), Count::Gone);
    }
}
