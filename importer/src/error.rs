//! What can stop the importer.

use std::path::PathBuf;

use schemas::contract::Difference;
use schemas::progress::{SequenceNumber, ShardId, StreamName};
use schemas::{ErrorClass, Lsn, TableName};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Source(#[from] source::Error),
    #[error(transparent)]
    Stream(#[from] streams::Error),
    #[error(transparent)]
    Controls(#[from] crate::controls::ControlsError),
    #[error(transparent)]
    Schema(#[from] schemas::encoding::SchemaError),
    #[error(
        "{table}: the schema of its events has to lie beside the contracts, and no folder of contracts is configured: name one, or publish it as uncompressed JSON"
    )]
    NoSchemaFolder { table: TableName },
    #[error(transparent)]
    TimeZone(#[from] source::clock::UnknownZone),
    #[error("{path}: {doing}: {source}")]
    Io { path: PathBuf, doing: &'static str, source: std::io::Error },
    #[error("{place}: {what}. Check the address and the rights of the lease's store")]
    LeaseStore { place: String, what: String, class: ErrorClass },
    #[error("{place}: another importer has taken over this source's lease, which was held under epoch {epoch}")]
    LeaseLost { place: String, epoch: u64 },
    #[error(
        "{path}: {what}. Restore the file from a copy, or remove the importer's data directory for a new snapshot into an empty joiner state"
    )]
    Damaged { path: PathBuf, what: String },
    #[error(
        "{path} is the progress of source {found}, and this is {expected}: give each source a data directory of its own, or remove this one for a new snapshot into an \
         empty joiner state"
    )]
    OtherSource { path: PathBuf, found: String, expected: String },
    #[error(
        "{table}: the contract does not fit the table: {}. Bring the contract file and the table together (`tributary init` writes what the catalog says now)",
        differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Contract { table: TableName, differences: Vec<Difference> },
    #[error(
        "{table}: column {column} of the contract cannot be read: it is not captured. Enable capture for it in a new capture instance, or take it out of the contract"
    )]
    ColumnNotCaptured { table: TableName, column: String },
    #[error(
        "{table}: the contract names the computed column {column}, of which change data capture records no values. Take it out of the contract, and compute it from the \
         other columns where it is needed"
    )]
    ComputedColumn { table: TableName, column: String },
    #[error(
        "{table}: its key holds the computed column {column}, of which change data capture records no values: changes could not be told apart by it. Capture the table \
         with a unique index of plain columns (EXEC sys.sp_cdc_enable_table … @index_name = N'…'), or leave it out of `tables`"
    )]
    ComputedKey { table: TableName, column: String },
    #[error("{table}: partition_by names column {column}, which the contract does not have: it has {known}")]
    PartitionColumn { table: TableName, column: String, known: String },
    #[error(
        "the database was restored or replaced: {what}. Its changes would repeat LSNs that the streams already hold with other contents. Take a new snapshot into new streams: give \
         another `streams.prefix` (or, with embedded streams, remove their folder), remove the importer's data directory, and start into an empty joiner state"
    )]
    Restored { what: String },
    #[error(
        "{table}: `keys` names column {column}, which is not captured or may be NULL: name columns that are captured and NOT NULL"
    )]
    ConfiguredKey { table: TableName, column: String },
    #[error("the mapping of {} is wrong: {what}: {remedy}", table.as_ref().map_or_else(|| "the stream".to_owned(), ToString::to_string))]
    Mapping { table: Option<TableName>, what: String, remedy: String },
    #[error("stream {stream}, the service's, does not exist: correct its name or its provider in `source.stream`")]
    NoInput { stream: StreamName },
    #[error(
        "stream {stream}, the service's, shard {shard}: records after {after} may have been removed before they were read (the oldest kept is {oldest}). Lengthen its retention, \
         remove the importer's data directory, and start: the stream is read from the oldest record that it keeps, and the joiner builds its state anew; have the service publish again \
         what older records said. Where the stream was merely quiet for longer than its retention, `aged_positions: trust` in the provider of `source.stream` goes on"
    )]
    InputGap { stream: StreamName, shard: ShardId, after: SequenceNumber, oldest: SequenceNumber },
    #[error(
        "stream {stream}, the service's, shard {shard}: record {sequence}, up to which it was read, is not in it any more, or never was: it is another stream of that name, or records \
         were taken out. Correct its name or its provider in `source.stream`, or remove the importer's data directory to begin with the oldest record that it keeps"
    )]
    InputChanged { stream: StreamName, shard: ShardId, sequence: SequenceNumber },
    #[error(transparent)]
    BadRecord(Box<BadRecord>),
    #[error(
        "mapping or contracts have changed while tick {lsn} was being published, and some of it is out under the earlier ones: start once with the earlier ones, until that tick is \
         published, and change them then"
    )]
    MappingChanged { lsn: Lsn },
    #[error(
        "{path}: the last tick that it knows is {known}, and {published} has been published: the directory is of an earlier time. Bring back the latest one, or remove it to begin with the \
         oldest record that the service's stream keeps, with a joiner that builds its state anew"
    )]
    BehindItsStreams { path: PathBuf, known: Lsn, published: Lsn },
    #[error(
        "{path} is the progress over stream {found}, and `source.stream` names {expected}: give each source a data directory of its own, or remove this one to begin anew"
    )]
    OtherStream { path: PathBuf, found: StreamName, expected: StreamName },
    #[error(
        "{path}: the rows that are kept of a service's stream cannot be used: {what}. Look at the disk and the rights; a copy of the data directory may stand in, or remove it to begin anew"
    )]
    Rows { path: PathBuf, what: String, class: ErrorClass },
}

/// A record of a service's stream that cannot be what it is to be.
#[derive(Debug, thiserror::Error)]
#[error(
    "stream {stream}, the service's, shard {shard}, record {sequence}{}: {problem}. Have the mapping or the contract fit it, or set such records aside with \
     `on_bad_record: dead_letter` (`on_unmatched` for those of no table); nothing of its tick has been published",
    table.as_ref().map_or_else(String::new, |table| format!(", of {table}"))
)]
pub struct BadRecord {
    /// The table that it was to be of, if that is known.
    pub table: Option<TableName>,
    pub stream: StreamName,
    pub shard: ShardId,
    pub sequence: SequenceNumber,
    pub problem: String,
}

impl Error {
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Source(error) => error.class(),
            Self::Stream(error) => error.class(),
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::Interrupted | std::io::ErrorKind::TimedOut => ErrorClass::Transient,
                _ => ErrorClass::Misconfigured,
            },
            Self::LeaseLost { .. } => ErrorClass::Transient,
            Self::LeaseStore { class, .. } | Self::Rows { class, .. } => *class,
            _ => ErrorClass::Misconfigured,
        }
    }
}
