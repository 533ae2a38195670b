//! Data files: rows to Parquet and back.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::reader::get_typed_column_reader;
use parquet::column::writer::{ColumnCloseResult, get_column_writer, get_typed_column_writer};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FixedLenByteArray, FixedLenByteArrayType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesPtr};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedPageWriter, TrackedWrite};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::{ColumnPath, SchemaDescriptor, TypePtr};
use schemas::Lsn;
use schemas::entity::EntityInfo;
use serde_json::json;

use super::actions::{Add, Protocol};
use super::log::{now_ms, tag};
use super::rows::{
    self, COMMITTED_AT, Column, DATE, DECIMAL_DIGITS, DOCUMENT, KEY, KeyOrder, Kind, OPERATION, Operation, Row, Scalar, VERSION,
    WRITTEN_AT,
};

/// What a row group takes in memory, more or less.
const GROUP_BYTES: usize = 16 << 20;
/// An `i128`, big-endian.
const DECIMAL_BYTES: &str = "fixed_len_byte_array(16)";

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{0}")]
    Parquet(#[from] ParquetError),
    #[error("its column {column} holds something that Tributary does not write there")]
    Content { column: &'static str },
}

/// How the rows of one table are laid out.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) columns: Arc<[Column]>,
    pub(super) order: KeyOrder,
    /// The table of changes has `_operation`, and is partitioned by `_date`.
    pub(super) changes: bool,
    schema: TypePtr,
    described: Arc<SchemaDescriptor>,
    properties: WriterPropertiesPtr,
}

/// A file that is ready to be put, and what the log says of it.
pub(super) struct Written {
    pub(super) data: Bytes,
    pub(super) add: Add,
    /// They are in the file, with null where they do not fit.
    pub(super) unfit: Vec<Misfit>,
}

/// A row whose document does not fit its columns: which, and why.
pub(super) type Misfit = (usize, String);

/// A column as it stands in a file.
pub(super) type Encoded = (Bytes, ColumnCloseResult);

/// All columns but that of the documents.
#[derive(Default)]
pub(super) struct Others {
    /// Of each row group, those before it and those behind it.
    groups: Vec<(Vec<Encoded>, Vec<Encoded>)>,
    unfit: Vec<Misfit>,
}

impl Layout {
    pub(super) fn new(info: &EntityInfo, columns: &[Column], changes: bool) -> Result<Self, ParquetError> {
        let mut schema = format!("message row {{ required binary {KEY} (STRING); required binary {VERSION} (STRING); ");
        schema += &format!(
            "optional int64 {COMMITTED_AT} (TIMESTAMP(MICROS,true)); required int64 {WRITTEN_AT} (TIMESTAMP(MICROS,true)); "
        );
        if changes {
            schema += &format!("required binary {OPERATION} (STRING); ");
        }
        schema += &format!("optional binary {DOCUMENT} (STRING); ");
        for Column { name, kind } in columns {
            let (physical, logical) = match kind {
                Kind::Boolean => ("boolean", String::new()),
                Kind::Long => ("int64", String::new()),
                Kind::Double => ("double", String::new()),
                Kind::Decimal(scale) => (DECIMAL_BYTES, format!(" (DECIMAL({DECIMAL_DIGITS},{scale}))")),
                Kind::Date => ("int32", " (DATE)".to_owned()),
                Kind::Timestamp => ("int64", " (TIMESTAMP(MICROS,true))".to_owned()),
                Kind::LocalTime => ("int64", " (TIMESTAMP(MICROS,false))".to_owned()),
                Kind::Binary => ("binary", String::new()),
                Kind::Text => ("binary", " (STRING)".to_owned()),
            };
            schema += &format!("optional {physical} {name}{logical}; ");
        }
        schema.push('}');
        let schema = Arc::new(parse_message_type(&schema)?);
        let described = Arc::new(SchemaDescriptor::new(schema.clone()));
        // Documents differ, each from the other: a dictionary of them is made in vain, and nobody asks for the least of them.
        let plain = ColumnPath::new(vec![DOCUMENT.to_owned()]);
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
            .set_column_statistics_enabled(plain.clone(), EnabledStatistics::None)
            .set_column_dictionary_enabled(plain, false)
            .set_column_dictionary_enabled(ColumnPath::new(vec![KEY.to_owned()]), false)
            .set_max_row_group_row_count(None)
            .set_created_by(concat!("Tributary ", env!("CARGO_PKG_VERSION")).to_owned());
        Ok(Self {
            columns: columns.into(),
            order: KeyOrder::of(info),
            changes,
            schema,
            described,
            properties: Arc::new(properties.build()),
        })
    }

    /// The schema as a table's metadata has it.
    pub(super) fn schema_string(&self) -> String {
        let field =
            |name: &str, kind: &str, nullable: bool| json!({"name": name, "type": kind, "nullable": nullable, "metadata": {}});
        let mut fields = vec![field(KEY, "string", false), field(VERSION, "string", false)];
        fields.extend([field(COMMITTED_AT, "timestamp", true), field(WRITTEN_AT, "timestamp", false)]);
        if self.changes {
            fields.push(field(OPERATION, "string", false));
        }
        fields.push(field(DOCUMENT, "string", true));
        fields.extend(self.columns.iter().map(|column| field(&column.name, &column.kind.delta(), true)));
        if self.changes {
            fields.push(field(DATE, "string", false));
        }
        json!({"type": "struct", "fields": fields}).to_string()
    }

    /// What it takes to read it.
    pub(super) fn protocol(&self) -> Protocol {
        Protocol::with_local_times(self.columns.iter().any(|column| column.kind == Kind::LocalTime))
    }

    /// A file of rows, of which there is at least one; in a table of changes all are of one date. Its columns come from [`Layout::documents`] and [`Layout::others`].
    pub(super) fn file(
        &self,
        rows: &[Row],
        documents: Vec<Encoded>,
        others: Others,
        moved_from: Option<i64>,
        load: Option<Lsn>,
    ) -> Result<Written, Error> {
        let mut writer = SerializedFileWriter::new(Vec::new(), self.schema.clone(), self.properties.clone())?;
        for (documents, (own, members)) in documents.into_iter().zip(others.groups) {
            let mut group = writer.next_row_group()?;
            for (bytes, closed) in own.into_iter().chain([documents]).chain(members) {
                group.append_column(&bytes, closed)?;
            }
            group.close()?;
        }
        let data: Bytes = writer.into_inner()?.into();
        Ok(Written { add: self.describe(rows, data.len(), moved_from, load), data, unfit: others.unfit })
    }

    /// The column of documents, by row group. They are most of a file, and to compress them is half of the work: it can be done beside the other half.
    pub(super) fn documents(&self, rows: &[Row]) -> Result<Vec<Encoded>, ParquetError> {
        let column = |rows: &[Row]| {
            let known: Vec<i16> = rows.iter().map(|row| i16::from(row.document.is_some())).collect();
            let texts: Vec<ByteArray> = rows.iter().filter_map(|row| row.document.clone().map(ByteArray::from)).collect();
            self.encode::<ByteArrayType>(self.documents_at(), &texts, Some(&known))
        };
        groups(rows).map(column).collect()
    }

    /// The other half: documents are read for their members.
    pub(super) fn others(&self, rows: &[Row]) -> Result<Others, ParquetError> {
        let (mut others, mut before) = (Others::default(), 0);
        for group in groups(rows) {
            let (members, unfit) = self.members(group)?;
            others.groups.push((self.own(group)?, members));
            others.unfit.extend(unfit.into_iter().map(|(nth, reason)| (before + nth, reason)));
            before += group.len();
        }
        Ok(others)
    }

    /// The column of this number.
    fn encode<T: DataType>(&self, nth: usize, values: &[T::T], known: Option<&[i16]>) -> Result<Encoded, ParquetError> {
        let mut out = TrackedWrite::new(Vec::new());
        let pages = Box::new(SerializedPageWriter::new(&mut out));
        let writer = get_column_writer(self.described.column(nth), self.properties.clone(), pages);
        let mut writer = get_typed_column_writer::<T>(writer);
        writer.write_batch(values, known, None)?;
        let closed = writer.close()?;
        Ok((out.into_inner()?.into(), closed))
    }

    /// How many columns are before that of the documents.
    fn documents_at(&self) -> usize {
        if self.changes { 5 } else { 4 }
    }

    /// The columns before that of the documents.
    fn own(&self, rows: &[Row]) -> Result<Vec<Encoded>, ParquetError> {
        let known: Vec<i16> = rows.iter().map(|row| i16::from(row.committed_ms != 0)).collect();
        let committed: Vec<i64> = rows.iter().filter(|row| row.committed_ms != 0).map(|row| row.committed_ms * 1000).collect();
        let written: Vec<i64> = rows.iter().map(|row| row.written_us).collect();
        let mut columns = vec![
            self.encode::<ByteArrayType>(0, &keys(rows), None)?,
            self.encode::<ByteArrayType>(1, &versions(rows), None)?,
            self.encode::<Int64Type>(2, &committed, Some(&known))?,
            self.encode::<Int64Type>(3, &written, None)?,
        ];
        if self.changes {
            let operation = |row: &Row| ByteArray::from(Bytes::from_static(row.operation.text().as_bytes()));
            let operations: Vec<ByteArray> = rows.iter().map(operation).collect();
            columns.push(self.encode::<ByteArrayType>(4, &operations, None)?);
        }
        Ok(columns)
    }

    /// The columns behind that of the documents, and what does not fit them.
    fn members(&self, rows: &[Row]) -> Result<(Vec<Encoded>, Vec<Misfit>), ParquetError> {
        let mut columns: Vec<Values> = self.columns.iter().map(|column| Values::new(column.kind)).collect();
        let mut unfit = Vec::new();
        let mut members = Vec::new();
        for (nth, row) in rows.iter().enumerate() {
            match (&row.members, &row.document) {
                (Some(read), _) => members.clone_from(read),
                (None, Some(document)) => {
                    if let Err(reason) = rows::read_members(document, &self.columns, &mut members) {
                        unfit.push((nth, reason));
                    }
                }
                (None, None) => members.clear(),
            }
            members.resize(columns.len(), None);
            for (column, member) in columns.iter_mut().zip(members.drain(..)) {
                column.push(member);
            }
        }
        let encoded = columns.iter().zip(self.documents_at() + 1..).map(|(Values { known, of }, nth)| match of {
            Of::Boolean(values) => self.encode::<BoolType>(nth, values, Some(known)),
            Of::Int(values) => self.encode::<Int32Type>(nth, values, Some(known)),
            Of::Long(values) => self.encode::<Int64Type>(nth, values, Some(known)),
            Of::Double(values) => self.encode::<DoubleType>(nth, values, Some(known)),
            Of::Decimal(values) => self.encode::<FixedLenByteArrayType>(nth, values, Some(known)),
            Of::Bytes(values) => self.encode::<ByteArrayType>(nth, values, Some(known)),
        });
        Ok((encoded.collect::<Result<_, _>>()?, unfit))
    }

    fn describe(&self, rows: &[Row], size: usize, moved_from: Option<i64>, load: Option<Lsn>) -> Add {
        let keys = || rows.iter().map(|row| row.key.as_ref());
        let versions = || rows.iter().map(|row| row.version);
        // Texts of LSNs sort as LSNs do.
        let text = |version: Option<Lsn>| version.unwrap_or(Lsn::ZERO).to_string();
        let (oldest, newest) = (text(versions().min()), text(versions().max()));
        let stats = json!({
            "numRecords": rows.len(),
            "minValues": {KEY: keys().min(), VERSION: oldest},
            "maxValues": {KEY: keys().max(), VERSION: newest},
            "nullCount": {KEY: 0, VERSION: 0},
        });
        let (first, last) = self.order.ends(keys());
        let bytes: usize = rows.iter().map(Row::bytes).sum();
        let mut tags: BTreeMap<String, Option<String>> = [
            (tag::BYTES, Some(bytes.to_string())),
            (tag::FIRST, first.map(str::to_owned)),
            (tag::LAST, last.map(str::to_owned)),
            (tag::ORDER, Some(self.order.name())),
            (tag::OLDEST, Some(oldest)),
            (tag::NEWEST, Some(newest)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        tags.extend(load.map(|version| (tag::LOAD.to_owned(), Some(version.to_string()))));
        tags.extend(moved_from.map(|commit| (tag::COMMIT.to_owned(), Some(commit.to_string()))));
        let name = format!("part-{}.zstd.parquet", uuid::Uuid::new_v4());
        let (path, partition_values) = if self.changes {
            let date = rows::date(rows.first().map_or(0, day_ms));
            (format!("date={date}/{name}"), BTreeMap::from([(DATE.to_owned(), Some(date))]))
        } else {
            (name, BTreeMap::new())
        };
        Add {
            path,
            partition_values,
            size: size as i64,
            modification_time: now_ms(),
            data_change: moved_from.is_none(),
            stats: Some(stats.to_string()),
            tags: Some(tags),
        }
    }

    /// All rows of a file. In a table of current entities, every one is an upsert.
    pub(super) fn read(&self, file: Bytes) -> Result<Vec<Row>, Error> {
        let reader = SerializedFileReader::new(file)?;
        let mut rows = Vec::new();
        for group in 0..reader.metadata().num_row_groups() {
            self.read_group(&*reader.get_row_group(group)?, &mut rows)?;
        }
        Ok(rows)
    }

    fn read_group(&self, group: &dyn RowGroupReader, rows: &mut Vec<Row>) -> Result<(), Error> {
        let keys = Read::<ByteArrayType>::of(group, KEY)?.all(KEY)?;
        let versions = Read::<ByteArrayType>::of(group, VERSION)?.all(VERSION)?;
        let committed = Read::<Int64Type>::of(group, COMMITTED_AT)?.each();
        let written = Read::<Int64Type>::of(group, WRITTEN_AT)?.all(WRITTEN_AT)?;
        let operations = if self.changes { Some(Read::<ByteArrayType>::of(group, OPERATION)?.all(OPERATION)?) } else { None };
        let documents = Read::<ByteArrayType>::of(group, DOCUMENT)?.each();
        let count = keys.len();
        if versions.len() != count || written.len() != count {
            return Err(Error::Content { column: VERSION });
        }
        rows.reserve(count);
        for (((((key, version), committed), written), document), nth) in
            keys.iter().zip(&versions).zip(committed).zip(written).zip(documents).zip(0..)
        {
            let operation = match &operations {
                None => Operation::Upsert,
                Some(operations) => operations
                    .get(nth)
                    .and_then(|text| Operation::parse(text.data()))
                    .ok_or(Error::Content { column: OPERATION })?,
            };
            rows.push(Row {
                key: text(key, KEY)?.into(),
                version: text(version, VERSION)?.parse().map_err(|_| Error::Content { column: VERSION })?,
                committed_ms: committed.map_or(0, |us: i64| us / 1000),
                written_us: written,
                operation,
                // Shares the page that it was read from, which other documents fill.
                document: document.map(|bytes: ByteArray| Bytes::copy_from_slice(bytes.data())),
                members: None,
            });
        }
        Ok(())
    }
}

fn text<'a>(bytes: &'a ByteArray, column: &'static str) -> Result<&'a str, Error> {
    std::str::from_utf8(bytes.data()).map_err(|_| Error::Content { column })
}

/// The rows of each row group.
fn groups(mut rows: &[Row]) -> impl Iterator<Item = &[Row]> {
    std::iter::from_fn(move || {
        let (group, rest) = rows.split_at(leading(rows, GROUP_BYTES, Row::bytes));
        rows = rest;
        (!group.is_empty()).then_some(group)
    })
}

/// How many of the leading items it takes to reach `limit` bytes; all, where they do not.
pub(super) fn leading<T>(items: &[T], limit: usize, bytes: impl Fn(&T) -> usize) -> usize {
    let mut sum = 0;
    let reached = items.iter().position(|item| {
        sum += bytes(item);
        sum >= limit
    });
    reached.map_or(items.len(), |last| last + 1)
}

/// The moment whose day a row's partition is: the commit's, and where that is not known the writing's.
pub(super) fn day_ms(row: &Row) -> i64 {
    if row.committed_ms == 0 { row.written_us / 1000 } else { row.committed_ms }
}

/// The rows' keys, all in one allocation.
fn keys(rows: &[Row]) -> Vec<ByteArray> {
    let all: String = rows.iter().map(|row| row.key.as_ref()).collect();
    let all = Bytes::from(all);
    let mut end = 0;
    let each = rows.iter().map(|row| {
        let start = end;
        end += row.key.len();
        ByteArray::from(all.slice(start..end))
    });
    each.collect()
}

/// The rows' versions as texts: those of one source transaction, or of a load, have one.
fn versions(rows: &[Row]) -> Vec<ByteArray> {
    let mut last = (Lsn::ZERO, ByteArray::from(Lsn::ZERO.to_string().into_bytes()));
    let each = rows.iter().map(|row| {
        if row.version != last.0 {
            last = (row.version, ByteArray::from(row.version.to_string().into_bytes()));
        }
        last.1.clone()
    });
    each.collect()
}

/// The values of one member's column.
struct Values {
    known: Vec<i16>,
    of: Of,
}

enum Of {
    Boolean(Vec<bool>),
    Int(Vec<i32>),
    Long(Vec<i64>),
    Double(Vec<f64>),
    Decimal(Vec<FixedLenByteArray>),
    Bytes(Vec<ByteArray>),
}

impl Values {
    fn new(kind: Kind) -> Self {
        let of = match kind {
            Kind::Boolean => Of::Boolean(Vec::new()),
            Kind::Date => Of::Int(Vec::new()),
            Kind::Long | Kind::Timestamp | Kind::LocalTime => Of::Long(Vec::new()),
            Kind::Double => Of::Double(Vec::new()),
            Kind::Decimal(_) => Of::Decimal(Vec::new()),
            Kind::Binary | Kind::Text => Of::Bytes(Vec::new()),
        };
        Self { known: Vec::new(), of }
    }

    fn push(&mut self, value: Option<Scalar>) {
        self.known.push(i16::from(value.is_some()));
        match (&mut self.of, value) {
            (Of::Boolean(values), Some(Scalar::Boolean(value))) => values.push(value),
            (Of::Int(values), Some(Scalar::Date(value))) => values.push(value),
            (Of::Long(values), Some(Scalar::Long(value) | Scalar::Timestamp(value))) => values.push(value),
            (Of::Double(values), Some(Scalar::Double(value))) => values.push(value),
            (Of::Decimal(values), Some(Scalar::Decimal(value))) => values.push(value.to_be_bytes().to_vec().into()),
            (Of::Bytes(values), Some(Scalar::Bytes(value))) => values.push(value.into()),
            // `rows::read_members` gives each column its own kind of value, or none.
            _ => {}
        }
    }
}

/// A column as it was read.
struct Read<T: DataType> {
    values: Vec<T::T>,
    known: Vec<i16>,
    optional: bool,
}

impl<T: DataType> Read<T> {
    fn of(group: &dyn RowGroupReader, name: &'static str) -> Result<Self, Error> {
        let columns = group.metadata().columns();
        let index = columns.iter().position(|column| column.column_path().parts() == [name.to_owned()]);
        let index = index.ok_or(Error::Content { column: name })?;
        let optional = columns[index].column_descr().max_def_level() > 0;
        let count = usize::try_from(group.metadata().num_rows()).unwrap_or_default();
        let mut reader = get_typed_column_reader::<T>(group.get_column_reader(index)?);
        let (mut values, mut known) = (Vec::with_capacity(count), Vec::new());
        let mut read = 0;
        while read < count {
            let (records, _, _) = reader.read_records(count - read, optional.then_some(&mut known), None, &mut values)?;
            if records == 0 {
                return Err(Error::Content { column: name });
            }
            read += records;
        }
        Ok(Self { values, known, optional })
    }

    /// The values of a column that has one in each row.
    fn all(self, name: &'static str) -> Result<Vec<T::T>, Error> {
        if self.optional && self.known.contains(&0) { Err(Error::Content { column: name }) } else { Ok(self.values) }
    }

    fn each(self) -> impl Iterator<Item = Option<T::T>> {
        let mut values = self.values.into_iter();
        let known = self.known;
        known.into_iter().map(move |known| if known > 0 { values.next() } else { None })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn info() -> EntityInfo {
        let properties = json!({"n": {"type": "integer"}, "ok": {"type": "boolean"}, "day": {"type": "string", "format": "date"}, "t": {"type": "string"}});
        EntityInfo { name: "order".into(), key: Vec::new(), document_schema: json!({"properties": properties}) }
    }

    fn write(layout: &Layout, rows: &[Row], moved_from: Option<i64>, load: Option<Lsn>) -> Written {
        let (documents, others) = (layout.documents(rows).unwrap(), layout.others(rows).unwrap());
        layout.file(rows, documents, others, moved_from, load).unwrap()
    }

    fn layout(changes: bool) -> Layout {
        Layout::new(&info(), &rows::columns(&info()).0, changes).unwrap()
    }

    fn row() -> impl Strategy<Value = Row> {
        let document = prop_oneof![
            Just(None),
            Just(Some("{}".to_owned())),
            (any::<i64>(), any::<bool>(), ".{0,5}")
                .prop_map(|(n, ok, t)| Some(json!({"n": n, "ok": ok, "day": "2026-11-22", "t": t}).to_string())),
        ];
        let version = any::<[u8; 10]>().prop_map(Lsn::from_bytes);
        ("[^\0]{1,6}", version, 0..3i64, any::<i64>(), document, any::<bool>()).prop_map(
            |(key, version, committed_ms, written_us, document, load)| Row {
                key: key.into(),
                version,
                committed_ms,
                written_us,
                operation: match (&document, load) {
                    (None, _) => Operation::Delete,
                    (_, true) => Operation::Load,
                    _ => Operation::Upsert,
                },
                document: document.map(Bytes::from),
                members: None,
            },
        )
    }

    proptest! {
        #[test]
        fn rows_read_back(rows in prop::collection::vec(row(), 1..40)) {
            let layout = layout(true);
            let written = write(&layout, &rows, None, None);
            prop_assert_eq!(written.add.size as usize, written.data.len());
            prop_assert_eq!(layout.read(written.data).unwrap(), rows);
        }
    }

    #[test]
    fn a_file_says_what_is_in_it() {
        let row = |key: &str, version: u8| Row {
            key: key.into(),
            version: Lsn::from_bytes([version; 10]),
            committed_ms: 1_700_000_000_000,
            written_us: 5,
            operation: Operation::Upsert,
            document: Some(Bytes::from_static(b"{\"n\": 1}")),
            members: None,
        };
        let mut ordered = layout(true);
        let key = vec![("id".to_owned(), schemas::table::SqlType::Int)];
        ordered.order = KeyOrder::of(&EntityInfo { key, ..info() });
        let add = write(&ordered, &[row("9", 2), row("10", 1)], Some(7), Some(Lsn::MAX)).add;
        assert!(add.path.starts_with("date=2023-11-14/part-") && add.partition_values["_date"].as_deref() == Some("2023-11-14"));
        let stats: serde_json::Value = serde_json::from_str(&add.stats.unwrap()).unwrap();
        // Readers compare texts; we go by the order of keys.
        assert_eq!(
            (&stats["numRecords"], &stats["minValues"][KEY], &stats["maxValues"][KEY]),
            (&json!(2), &json!("10"), &json!("9"))
        );
        let tags = add.tags.unwrap();
        assert_eq!((tags[tag::FIRST].as_deref(), tags[tag::LAST].as_deref()), (Some("9"), Some("10")));
        assert_eq!(tags[tag::COMMIT].as_deref(), Some("7"));
        assert!(!add.data_change && tags[tag::LOAD].is_some());
        assert!(!layout(false).schema_string().contains(OPERATION) && layout(true).schema_string().contains(DATE));
    }

    #[test]
    fn large_rows_make_several_groups() {
        let document = Bytes::from(format!("{{\"t\": \"{}\"}}", "x".repeat(GROUP_BYTES / 2)));
        let row = |n: usize| Row {
            key: n.to_string().into(),
            version: Lsn::MAX,
            committed_ms: 0,
            written_us: 0,
            operation: Operation::Upsert,
            document: Some(document.clone()),
            members: None,
        };
        let rows: Vec<Row> = (0..5).map(row).collect();
        let written = write(&layout(false), &rows, None, None);
        assert_eq!(SerializedFileReader::new(written.data.clone()).unwrap().metadata().num_row_groups(), 3);
        assert_eq!(layout(false).read(written.data).unwrap(), rows);
    }
}
