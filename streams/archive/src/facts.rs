//! What the archive has to know of a record: which table it is of, which day, and where it stands in the source's order.
//!
//! Records of any encoding are read, with the schemas that lie beside the contracts. One whose schema is not there, even when they have been looked through again, is kept all the same: as a record that is no event of ours.

use bytes::Bytes;
use schemas::encoding::{Opener, Registry, Schemas, to_json};
use schemas::event::Op;
use schemas::parse::{Head, ParseError, RowBuffer};
use schemas::{Position, TableName};

/// What is known of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) table: TableName,
    pub(crate) op: Op,
    pub(crate) position: Position,
    pub(crate) commit_time_ms: i64,
}

impl Facts {
    fn of(head: &Head<'_>) -> Self {
        Self {
            table: TableName::new(head.schema.as_ref(), head.table.as_ref()),
            op: head.op,
            position: head.position,
            commit_time_ms: head.commit_time_ms,
        }
    }
}

/// A record, looked at.
#[derive(Debug)]
pub(crate) struct Read {
    /// `None`: it is no event of ours, or cannot be read.
    pub(crate) facts: Option<Facts>,
    /// The event as JSON, where the record itself is none.
    pub(crate) json: Option<Bytes>,
}

/// Looks at records.
pub(crate) fn read<'a>(schemas: &Schemas, records: impl Iterator<Item = &'a Bytes>) -> Vec<Read> {
    let mut records = records.peekable();
    let mut taken = Vec::new();
    if let Some(unknown) = read_with(&schemas.known(), &mut records, &mut taken, true) {
        tracing::debug!(error = %unknown, "looking for schemas again");
        let found = schemas.look_again().inspect_err(|error| tracing::warn!(error = %error, "schemas cannot be read"));
        read_with(&found.unwrap_or_else(|_| schemas.known()), &mut records, &mut taken, false);
    }
    taken
}

/// Looks at records until one is under a schema that is not known, if it is to `stop` there.
fn read_with<'a>(
    registry: &Registry,
    records: &mut std::iter::Peekable<impl Iterator<Item = &'a Bytes>>,
    taken: &mut Vec<Read>,
    stop: bool,
) -> Option<ParseError> {
    let (mut opener, mut rows) = (Opener::new(registry), RowBuffer::default());
    while let Some(record) = records.peek() {
        let facts = match opener.head(record) {
            Ok(head) => Some(Facts::of(&head)),
            Err(error @ ParseError::UnknownSchema { .. }) if stop => return Some(error),
            Err(_) => None,
        };
        let is_json = record.first().is_some_and(|byte| *byte == b'{' || byte.is_ascii_whitespace());
        let mut json = Vec::new();
        let has_json = facts.is_some() && !is_json && to_json(&mut opener, &mut rows, record, &mut json).is_ok();
        taken.push(Read { facts, json: has_json.then(|| json.into()) });
        records.next();
    }
    None
}

/// A day in UTC, `2026-11-22`.
pub(crate) fn date(time_ms: i64) -> String {
    let time = jiff::Timestamp::from_millisecond(time_ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.to_zoned(jiff::tz::TimeZone::UTC).date().to_string()
}
