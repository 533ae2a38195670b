//! What the archive has to know of a record: which table it is of, which day, and where it stands in the source's order.

use schemas::event::Op;
use schemas::parse::Head;
use schemas::{Position, TableName};

/// What is known of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) table: TableName,
    pub(crate) op: Op,
    pub(crate) position: Position,
    pub(crate) commit_time_ms: i64,
}

/// `None`: the record is no event of ours.
pub(crate) fn read(data: &[u8]) -> Option<Facts> {
    let head = Head::read(data).ok()?;
    Some(Facts {
        table: TableName::new(head.schema.as_ref(), head.table.as_ref()),
        op: head.op,
        position: head.position,
        commit_time_ms: head.commit_time_ms,
    })
}

/// A day in UTC, `2026-11-22`.
pub(crate) fn date(time_ms: i64) -> String {
    let time = jiff::Timestamp::from_millisecond(time_ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.to_zoned(jiff::tz::TimeZone::UTC).date().to_string()
}
