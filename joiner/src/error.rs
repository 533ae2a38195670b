//! What can go wrong in the joiner.

use std::path::PathBuf;

use schemas::progress::{SequenceNumber, ShardId, StreamName};
use schemas::{ErrorClass, KeyRange, Lsn, TableName};

use crate::accounting::{Miscount, listed};
use crate::catalog::Lacking;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} holds files, but no joiner state: nothing was touched. Name an empty directory, or the one that the joiner has used", path = .path.display())]
    Foreign { path: PathBuf },
    #[error("there is no joiner state in {path}: name the configuration of a joiner that has run", path = .path.display())]
    NoState { path: PathBuf },
    #[error("the joiner state in {path} is damaged: {what}. Restore it from a copy, or name an empty directory and take a new snapshot with the importer", path = .path.display())]
    Corrupt { path: PathBuf, what: String },
    #[error("the joiner state in {path} has format {found}, this version reads {oldest} to {expected}: {advice}; it was not touched", path = .path.display(), advice = of_format(*.found, *.expected))]
    Format { path: PathBuf, found: u32, oldest: u32, expected: u32 },
    #[error("the joiner state in {path} belongs to source {found:?}, the configuration says {expected:?}. Correct the source's name, or name another directory", path = .path.display())]
    OtherSource { path: PathBuf, found: String, expected: String },
    #[error(
        "the joiner state in {path} was built for other entity definitions, or other contracts of their tables, and does not have what these need{}. Build it anew beside the old one (`tributary run` and `tributary joiner` do so by \
         themselves), or name an empty state directory and take a new snapshot with the importer; this one was not touched", needs(.lacking), path = .path.display()
    )]
    OtherDefinitions { path: PathBuf, lacking: Vec<Lacking> },
    #[error(
        "the joiner state in {path} is of the entities {found}, and this instance is to make {expected}. Put the range back; or make a savepoint of it (for a greater range, of each of the instances), stop the process, and have `tributary restore` make a state of the new range of them", path = .path.display()
    )]
    OtherRange { path: PathBuf, found: KeyRange, expected: KeyRange },
    #[error("{path} is of the entities {found}, which do not cover {expected}: name checkpoints that together do, each beginning where another ends", path = .path.display())]
    NotCovered { path: PathBuf, found: KeyRange, expected: KeyRange },
    #[error("the checkpoint in {path} cannot be merged with others: {what}. Make another savepoint of that instance, and merge that", path = .path.display())]
    NotMerged { path: PathBuf, what: String },
    #[error(
        "several instances cannot write to sink {sink}: what one of them loads would remove what the others have written. Give each instance a target of its own, or have one instance make all entities"
    )]
    NotShared { sink: String },
    #[error("the joiner state in {path} is in use by another process: stop that one first", path = .path.display())]
    Locked { path: PathBuf },
    #[error("the joiner state in {path} cannot be written: {what}. Make room on the disk or correct its permissions, then start again: nothing is lost", path = .path.display())]
    Disk { path: PathBuf, what: String },
    #[error(
        "entity {entity} rolls up the documents of another one, which takes all of them: an instance that makes a part of the entities cannot. Have one instance make all entities, or give the roll-ups to a joiner of their own that does"
    )]
    RollUpOfShare { entity: String },
    #[error("entity {entity:?} is defined twice")]
    DuplicateEntity { entity: String },
    #[error("no entities are defined: add a definition to the configuration's `entities`")]
    NoEntities,
    #[error(
        "table {table} has no key of its own, and two entity definitions name different keys for it. Name the key's columns in the table's contract (`x-key`)"
    )]
    KeyConflict { table: TableName },
    #[error("too many indexes for one joiner ({count}): split the entities over several joiners")]
    TooManyIndexes { count: usize },
    #[error(transparent)]
    Stream(#[from] streams::Error),
    #[error(
        "stream {stream}, record {sequence}: not a progress record: {what}. Is this stream written by something else than the importer?"
    )]
    ProgressRecord { stream: StreamName, sequence: SequenceNumber, what: String },
    #[error(transparent)]
    UnknownSchema(Box<UnknownSchema>),
    #[error("looking for schemas: {0}")]
    Schemas(#[from] schemas::encoding::SchemaError),
    #[error(
        "the progress stream speaks of source {found:?}, the configuration says {expected:?}: correct the stream prefix or the source's name"
    )]
    StreamOfOtherSource { found: String, expected: String },
    #[error(
        "table {table} is of none of the configured sources: with several, an entity's tables are called source.schema.table"
    )]
    UnknownSource { table: TableName },
    #[error(
        "changes are missing (INV-6): record {sequence} of the progress stream {stream} (shard {shard}) goes on at {from}, everything up to {frontier} has been applied, and nothing tells of what is \
         between. Name an empty state directory, and take a new snapshot with the importer"
    )]
    Gap { frontier: Lsn, from: Lsn, stream: StreamName, shard: ShardId, sequence: SequenceNumber },
    #[error(
        "changes are missing (INV-6): {}. Nothing from there on has been applied. Name an empty state directory, take a new snapshot with the importer, and find out who removed them",
        listed(.miscounts)
    )]
    Missing { miscounts: Vec<Miscount> },
    #[error(
        "{table} was being read again, and the progress stream no longer speaks of it: its rows are of different ages. Start the importer with the data directory that it had, or take a new snapshot with the importer"
    )]
    RereadAbandoned { table: TableName },
    #[error("stream {stream}, shard {shard} is not among the joiner's streams")]
    UnknownShard { stream: StreamName, shard: ShardId },
    #[error("no entity {entity:?} is defined")]
    UnknownEntity { entity: String },
    #[error(
        "entity {entity}, key {key}: the document has more than {limit}, and its definition's `limits` say to stop. Find out why it has grown and mend the source, or raise the limit or have lists cut (`exceeded: truncate`), then start again: nothing is lost"
    )]
    OverLimit { entity: String, key: String, limit: String },
    #[error("a task of the joiner ended unexpectedly: {what}")]
    Task { what: String },
}

/// A record that cannot be read yet.
#[derive(Debug, thiserror::Error)]
#[error(
    "stream {stream}, shard {shard}, record {sequence}: {error}. Then start again: reading goes on with this record, nothing is lost"
)]
pub struct UnknownSchema {
    pub stream: StreamName,
    pub shard: ShardId,
    pub sequence: SequenceNumber,
    pub error: schemas::parse::ParseError,
}

/// What to do about a state of another format.
const fn of_format(found: u32, expected: u32) -> &'static str {
    if found > expected {
        "a later version has made it, or opened it. Start that version, or restore a checkpoint of before the upgrade into an empty directory, or name an empty directory and take a new snapshot with the importer"
    } else {
        "it was made by an early version whose states are no longer converted. Name an empty directory and take a new snapshot with the importer"
    }
}

/// What a state lacks, in words.
fn needs(lacking: &[Lacking]) -> String {
    let listed: Vec<String> = lacking.iter().map(Lacking::to_string).collect();
    if listed.is_empty() { String::new() } else { format!(": {}", listed.join("; ")) }
}

impl Error {
    pub(crate) fn unless_complete(miscounts: Vec<Miscount>) -> Result<(), Self> {
        if miscounts.is_empty() { Ok(()) } else { Err(Self::Missing { miscounts }) }
    }

    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Stream(error) => error.class(),
            Self::Task { .. } | Self::UnknownShard { .. } | Self::TooManyIndexes { .. } => ErrorClass::Bug,
            Self::UnknownEntity { .. } => ErrorClass::Definite,
            _ => ErrorClass::Misconfigured,
        }
    }

    /// What a failure of RocksDB means to the operator.
    pub(crate) fn rocksdb(path: &std::path::Path, error: &rocksdb::Error) -> Self {
        let (path, what) = (path.to_owned(), error.to_string());
        match error.kind() {
            rocksdb::ErrorKind::IOError if what.contains("lock") || what.contains("LOCK") => Self::Locked { path },
            rocksdb::ErrorKind::IOError if !what.contains("No such file") => Self::Disk { path, what },
            _ => Self::Corrupt { path, what },
        }
    }
}
