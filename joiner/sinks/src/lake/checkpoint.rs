//! Checkpoints of a table's log, as version 1 of Delta's checkpoints has them: one Parquet file with a row for each action that still counts.

use bytes::Bytes;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::actions::{self, Add, Line, Metadata, Protocol};
use super::log::Snapshot;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Parquet(#[from] ParquetError),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

const SCHEMA: &str = "message checkpoint {
  optional group txn { required binary appId (STRING); required int64 version; optional int64 lastUpdated; }
  optional group add {
    required binary path (STRING);
    required group partitionValues (MAP) { repeated group key_value { required binary key (STRING); optional binary value (STRING); } }
    required int64 size;
    required int64 modificationTime;
    required boolean dataChange;
    optional binary stats (STRING);
    optional group tags (MAP) { repeated group key_value { required binary key (STRING); optional binary value (STRING); } }
  }
  optional group remove { required binary path (STRING); optional int64 deletionTimestamp; required boolean dataChange; }
  optional group metaData {
    required binary id (STRING);
    optional binary name (STRING);
    required group format {
      required binary provider (STRING);
      required group options (MAP) { repeated group key_value { required binary key (STRING); optional binary value (STRING); } }
    }
    required binary schemaString (STRING);
    required group partitionColumns (LIST) { repeated group list { required binary element (STRING); } }
    required group configuration (MAP) { repeated group key_value { required binary key (STRING); optional binary value (STRING); } }
    optional int64 createdTime;
  }
  optional group protocol {
    required int32 minReaderVersion;
    required int32 minWriterVersion;
    optional group readerFeatures (LIST) { repeated group list { required binary element (STRING); } }
    optional group writerFeatures (LIST) { repeated group list { required binary element (STRING); } }
  }
}";

/// The rows of one column: values, and for each row (or element) how deep it is defined and whether it goes on with the list before.
struct Leaf<T: DataType> {
    values: Vec<T::T>,
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
}

impl<T: DataType> Leaf<T> {
    fn new() -> Self {
        Self { values: Vec::new(), definitions: Vec::new(), repetitions: Vec::new() }
    }

    fn push(&mut self, definition: i16, repetition: i16, value: Option<T::T>) {
        self.values.extend(value);
        self.definitions.push(definition);
        self.repetitions.push(repetition);
    }

    fn write<W: std::io::Write + Send>(self, group: &mut SerializedRowGroupWriter<'_, W>) -> Result<(), ParquetError> {
        let mut column = group.next_column()?.ok_or_else(|| ParquetError::General("no column is left".to_owned()))?;
        column.typed::<T>().write_batch(&self.values, Some(&self.definitions), Some(&self.repetitions))?;
        column.close()
    }
}

/// Rows in their order: the actions of each kind are those of a run of them.
struct Rows {
    txns: Vec<(String, i64)>,
    adds: Vec<Add>,
    removes: Vec<(String, i64)>,
    metadata: Option<Metadata>,
    protocol: Protocol,
}

impl Rows {
    /// The protocol stands last, always.
    fn len(&self) -> usize {
        self.txns.len() + self.adds.len() + self.removes.len() + usize::from(self.metadata.is_some()) + 1
    }

    /// A column of actions that stand `before` others: nothing, then theirs, then nothing.
    fn leaf<T: DataType, A>(&self, before: usize, actions: &[A], mut push: impl FnMut(&mut Leaf<T>, &A)) -> Leaf<T> {
        let mut leaf = Leaf::new();
        for _ in 0..before {
            leaf.push(0, 0, None);
        }
        for action in actions {
            push(&mut leaf, action);
        }
        for _ in before + actions.len()..self.len() {
            leaf.push(0, 0, None);
        }
        leaf
    }
}

fn text(text: &str) -> ByteArray {
    ByteArray::from(text)
}

/// Text that is there wherever its group is, `depth` groups deep that may be missing.
fn required<T: DataType>(leaf: &mut Leaf<T>, value: T::T) {
    leaf.push(1, 0, Some(value));
}

fn optional<T: DataType>(leaf: &mut Leaf<T>, value: Option<T::T>) {
    leaf.push(if value.is_some() { 2 } else { 1 }, 0, value);
}

/// The keys or the values of a map; `depth` is the definition of the map itself where it is empty.
fn entries(leaf: &mut Leaf<ByteArrayType>, map: &BTreeMap<String, Option<String>>, depth: i16, keys: bool) {
    if map.is_empty() {
        leaf.push(depth, 0, None);
    }
    for ((key, value), nth) in map.iter().zip(0..) {
        let repetition = i16::from(nth > 0);
        match (keys, value) {
            (true, _) => leaf.push(depth + 1, repetition, Some(text(key))),
            (false, Some(value)) => leaf.push(depth + 2, repetition, Some(text(value))),
            (false, None) => leaf.push(depth + 1, repetition, None),
        }
    }
}

/// The elements of a list of texts; `depth` is the definition of the list itself where it is empty.
fn elements(leaf: &mut Leaf<ByteArrayType>, list: &[String], depth: i16) {
    if list.is_empty() {
        leaf.push(depth, 0, None);
    }
    for (element, nth) in list.iter().zip(0..) {
        leaf.push(depth + 1, i16::from(nth > 0), Some(text(element)));
    }
}

/// The file, and how many actions it holds.
pub(super) fn write(snapshot: &Snapshot) -> Result<(Bytes, i64), Error> {
    let rows = Rows {
        txns: snapshot.txns.iter().map(|(app, version)| (app.clone(), *version)).collect(),
        adds: snapshot.files.values().map(|file| Add { data_change: false, ..file.add.clone() }).collect(),
        removes: snapshot.removed.iter().map(|(path, at)| (path.clone(), *at)).collect(),
        metadata: snapshot.metadata.clone(),
        protocol: snapshot.protocol.clone(),
    };
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?)).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), Arc::new(parse_message_type(SCHEMA)?), Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    write_files(&rows, &mut group)?;
    write_table(&rows, &mut group)?;
    group.close()?;
    Ok((writer.into_inner()?.into(), rows.len() as i64))
}

fn write_files<W: std::io::Write + Send>(rows: &Rows, group: &mut SerializedRowGroupWriter<'_, W>) -> Result<(), ParquetError> {
    let txns = &rows.txns;
    rows.leaf::<ByteArrayType, _>(0, txns, |leaf, (app, _)| required(leaf, text(app))).write(group)?;
    rows.leaf::<Int64Type, _>(0, txns, |leaf, (_, version)| required(leaf, *version)).write(group)?;
    rows.leaf::<Int64Type, _>(0, txns, |leaf, _| optional(leaf, None)).write(group)?;
    let (before, adds) = (txns.len(), &rows.adds);
    rows.leaf::<ByteArrayType, _>(before, adds, |leaf, add| required(leaf, text(&add.path))).write(group)?;
    for keys in [true, false] {
        rows.leaf::<ByteArrayType, _>(before, adds, |leaf, add| entries(leaf, &add.partition_values, 1, keys)).write(group)?;
    }
    rows.leaf::<Int64Type, _>(before, adds, |leaf, add| required(leaf, add.size)).write(group)?;
    rows.leaf::<Int64Type, _>(before, adds, |leaf, add| required(leaf, add.modification_time)).write(group)?;
    rows.leaf::<BoolType, _>(before, adds, |leaf, add| required(leaf, add.data_change)).write(group)?;
    rows.leaf::<ByteArrayType, _>(before, adds, |leaf, add| optional(leaf, add.stats.as_deref().map(text))).write(group)?;
    for keys in [true, false] {
        rows.leaf::<ByteArrayType, _>(before, adds, |leaf, add| match &add.tags {
            None => leaf.push(1, 0, None),
            Some(tags) => entries(leaf, tags, 2, keys),
        })
        .write(group)?;
    }
    let (before, removes) = (before + adds.len(), &rows.removes);
    rows.leaf::<ByteArrayType, _>(before, removes, |leaf, (path, _)| required(leaf, text(path))).write(group)?;
    rows.leaf::<Int64Type, _>(before, removes, |leaf, (_, at)| optional(leaf, Some(*at))).write(group)?;
    rows.leaf::<BoolType, _>(before, removes, |leaf, _| required(leaf, false)).write(group)
}

fn write_table<W: std::io::Write + Send>(rows: &Rows, group: &mut SerializedRowGroupWriter<'_, W>) -> Result<(), ParquetError> {
    let before = rows.txns.len() + rows.adds.len() + rows.removes.len();
    let metadata = rows.metadata.as_slice();
    let string = |leaf: &mut Leaf<ByteArrayType>, value: &str| required(leaf, text(value));
    rows.leaf::<ByteArrayType, _>(before, metadata, |leaf, it| string(leaf, &it.id)).write(group)?;
    rows.leaf::<ByteArrayType, _>(before, metadata, |leaf, it| optional(leaf, it.name.as_deref().map(text))).write(group)?;
    rows.leaf::<ByteArrayType, _>(before, metadata, |leaf, it| string(leaf, &it.format.provider)).write(group)?;
    for keys in [true, false] {
        rows.leaf::<ByteArrayType, _>(before, metadata, |leaf, it| entries(leaf, &it.format.options, 1, keys)).write(group)?;
    }
    rows.leaf::<ByteArrayType, _>(before, metadata, |leaf, it| string(leaf, &it.schema_string)).write(group)?;
    rows.leaf::<ByteArrayType, _>(before, metadata, |leaf, it| elements(leaf, &it.partition_columns, 1)).write(group)?;
    for keys in [true, false] {
        rows.leaf::<ByteArrayType, _>(before, metadata, |leaf, it| entries(leaf, &it.configuration, 1, keys)).write(group)?;
    }
    rows.leaf::<Int64Type, _>(before, metadata, |leaf, it| optional(leaf, it.created_time)).write(group)?;
    let before = before + metadata.len();
    let Protocol { min_reader_version, min_writer_version, reader_features, writer_features } = &rows.protocol;
    for version in [min_reader_version, min_writer_version] {
        rows.leaf::<Int32Type, _>(before, &[version], |leaf, version| required(leaf, **version)).write(group)?;
    }
    for features in [reader_features, writer_features] {
        let leaf = rows.leaf::<ByteArrayType, _>(before, &[features], |leaf, features| match features {
            None => leaf.push(1, 0, None),
            Some(features) => elements(leaf, features, 2),
        });
        leaf.write(group)?;
    }
    Ok(())
}

/// The actions of a checkpoint, whoever wrote it.
pub(super) fn read(file: Bytes) -> Result<Vec<Line>, Error> {
    let reader = SerializedFileReader::new(file)?;
    reader.get_row_iter(None)?.map(|row| Ok(actions::from_row(row?.to_json_value())?)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::super::log::{File, tag};
    use super::*;

    fn add(path: &str, tags: Option<&str>, date: Option<&str>) -> Add {
        let tags = tags.map(|tags| {
            let names = [tag::COMMIT, tag::BYTES, tag::FIRST, tag::LAST, tag::OLDEST, tag::NEWEST];
            names.into_iter().map(|name| (name.to_owned(), (!tags.is_empty()).then(|| tags.to_owned()))).collect()
        });
        Add {
            path: path.to_owned(),
            partition_values: date.map(|date| ("_date".to_owned(), Some(date.to_owned()))).into_iter().collect(),
            size: path.len() as i64,
            modification_time: 5,
            data_change: false,
            stats: tags.is_some().then(|| "{}".to_owned()),
            tags,
        }
    }

    fn file(add: Add) -> File {
        let (oldest, newest) = (schemas::Lsn::ZERO, schemas::Lsn::MAX);
        File {
            add,
            commit: 0,
            bytes: 0,
            first: "".into(),
            last: "".into(),
            order: "".into(),
            oldest,
            newest,
            load: None,
            share: schemas::KeyRange::ALL,
        }
    }

    proptest! {
        #[test]
        fn a_checkpoint_reads_back(
            paths in prop::collection::btree_set("[a-z]{1,5}", 0..12), removed in prop::collection::btree_set("[A-Z]{1,5}", 0..4),
            txns in prop::collection::btree_map("[a-z]{1,3}", any::<i64>(), 0..3), table in any::<bool>(), local_times in any::<bool>(),
        ) {
            let protocol = Protocol::with_local_times(local_times);
            let mut snapshot = Snapshot { version: 3, protocol: protocol.clone(), txns: txns.clone(), ..Snapshot::default() };
            for (path, nth) in paths.iter().zip(0..) {
                let tags = [None, Some(""), Some("é")][nth % 3];
                snapshot.files.insert(path.clone(), file(add(path, tags, (nth % 2 == 0).then_some("2026-01-01"))));
            }
            snapshot.removed = removed.iter().map(|path| (path.clone(), 9)).collect();
            snapshot.metadata = table.then(|| Metadata {
                id: "i".into(), name: None, format: actions::Format { provider: "parquet".into(), options: BTreeMap::new() },
                schema_string: "{}".into(), partition_columns: vec!["a".into(), "b".into()],
                configuration: [("x".to_owned(), Some("y".to_owned()))].into(), created_time: Some(4),
            });
            let (bytes, actions) = write(&snapshot).unwrap();
            let lines = read(bytes).unwrap();
            prop_assert_eq!(lines.len() as i64, actions);
            let adds: Vec<&Add> = lines.iter().filter_map(|line| line.add.as_ref()).collect();
            prop_assert_eq!(adds, snapshot.files.values().map(|file| &file.add).collect::<Vec<_>>());
            let gone: Vec<&str> = lines.iter().filter_map(|line| Some(line.remove.as_ref()?.path.as_str())).collect();
            prop_assert_eq!(gone, removed.iter().map(String::as_str).collect::<Vec<_>>());
            let read: BTreeMap<String, i64> = lines.iter().filter_map(|line| line.txn.as_ref()).map(|txn| (txn.app_id.clone(), txn.version)).collect();
            prop_assert_eq!(read, txns);
            prop_assert_eq!(lines.iter().find_map(|line| line.meta_data.as_ref()), snapshot.metadata.as_ref());
            prop_assert_eq!(lines.iter().find_map(|line| line.protocol.as_ref()), Some(&protocol));
        }
    }
}
