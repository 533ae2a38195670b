//! Change events: what the importer publishes about one row of one source table.

use std::sync::Arc;

use crate::lsn::Position;
use crate::table::TableSchema;
use crate::value::Value;

/// What happened to the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Inserted after the snapshot.
    Create,
    Update,
    Delete,
    /// Read by the initial snapshot.
    Read,
    /// Read again while the tail goes on ([`crate::progress::Reread`]).
    Reread,
}

impl Op {
    /// Whether the event is a row that was read, not a change.
    pub const fn is_read(self) -> bool {
        matches!(self, Self::Read | Self::Reread)
    }

    /// Debezium's letter.
    pub const fn letter(self) -> char {
        match self {
            Self::Create => 'c',
            Self::Update => 'u',
            Self::Delete => 'd',
            Self::Read | Self::Reread => 'r',
        }
    }

    /// Of `r`, `source.snapshot` says which it is.
    pub const fn from_letter(letter: u8) -> Option<Self> {
        match letter {
            b'c' => Some(Self::Create),
            b'u' => Some(Self::Update),
            b'd' => Some(Self::Delete),
            b'r' => Some(Self::Read),
            _ => None,
        }
    }
}

/// The values of a row, in the order of [`TableSchema::columns`].
pub type Row = Vec<Value>;

/// A change to one row. Its identity is (source, table, commit LSN, seqval, operation).
#[derive(Debug, Clone, PartialEq)]
pub struct ChangeEvent {
    pub table: Arc<TableSchema>,
    pub op: Op,
    /// The row before the change: present for updates and deletes.
    pub before: Option<Row>,
    /// The row after the change: present for all but deletes.
    pub after: Option<Row>,
    /// For a row that was read: the LSN from which the tail follows, and zero for the rest; but for a row that was read again the command id is the number of who read it
    /// ([`Reread::reading`](crate::progress::Reread::reading)).
    pub position: Position,
    /// When the transaction was committed (for a snapshot row: read), in milliseconds since 1970-01-01 UTC.
    pub commit_time_ms: i64,
}

impl ChangeEvent {
    /// The row that the event leaves, or the one that it removes.
    pub fn row(&self) -> Option<&Row> {
        self.after.as_ref().or(self.before.as_ref())
    }
}
