//! Schemas and dictionaries beside the table contracts: written before the first event is published under them, kept for as long as anyone may read one.
//!
//! A file that has to be written anew (the table has another version of its contract) is first kept under a name with the earlier version's number, then replaced as a whole and synced; only then are events
//! published under the new one. So at every moment the folder holds what every record of the streams is under. A `.proto` is read before it is replaced, because the numbers of its fields stay.
//! Either file has its name only once all of it is on disk: whoever reads the folder meanwhile, or after a crash, finds whole files.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use schemas::TableName;
use schemas::contract::Contract;
use schemas::encoding::{
    Compression, Compressor, Dictionary, Encoding, Format, Registry, SchemaError, Written, avro, kept_name, protobuf,
};

use crate::config::Output;
use crate::error::Error;
use crate::lease::replace;

/// How events are written, by table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encodings {
    pub encoding: Encoding,
    pub compression: Compression,
    /// What single tables have instead.
    pub of_table: BTreeMap<TableName, (Option<Encoding>, Option<Compression>)>,
}

impl Encodings {
    fn of(&self, table: &TableName) -> (Encoding, Compression) {
        let (encoding, compression) = self.of_table.get(table).copied().unwrap_or_default();
        (encoding.unwrap_or(self.encoding), compression.unwrap_or(self.compression))
    }
}

fn io(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> SchemaError {
    let path = path.to_owned();
    move |error| SchemaError::Io { path, doing, what: error.to_string() }
}

/// All schemas and dictionaries of a folder of contracts.
pub fn read(folder: &Path) -> Result<Registry, SchemaError> {
    let mut registry = Registry::default();
    let entries = match std::fs::read_dir(folder) {
        // Then the contracts are missing as well, and whoever needs those says so.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(registry),
        entries => entries.map_err(io(folder, "the folder cannot be read"))?,
    };
    for entry in entries {
        let path = entry.map_err(io(folder, "the folder cannot be read"))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| Registry::takes(name)) else { continue };
        let bytes = std::fs::read(&path).map_err(io(&path, "the schema cannot be read"))?;
        registry.add_file(&path.display().to_string(), &bytes).map_err(|error| match error {
            // The path says it better than the name alone.
            SchemaError::File { problem, .. } => {
                SchemaError::File { file: path.with_file_name(name).display().to_string(), problem }
            }
            other => other,
        })?;
    }
    Ok(registry)
}

/// What a table's events are written in, with the files that it takes in their place.
pub(crate) fn format(output: &Output, contract: &Contract, database: &str) -> Result<Format, Error> {
    let table = &contract.table;
    let (encoding, compression) = output.encodings.of(&table.name);
    let mut format = Format::default();
    if encoding == Encoding::DebeziumJson && compression == Compression::None {
        return Ok(format);
    }
    let folder = output.contracts_dir.as_deref().ok_or_else(|| Error::NoSchemaFolder { table: table.name.clone() })?;
    let file = |extension: &str| {
        let contract = Contract::file_name(&table.name);
        folder.join(format!("{}.{extension}", contract.strip_suffix(".json").unwrap_or(&contract)))
    };
    match encoding {
        Encoding::DebeziumJson => {}
        Encoding::Avro => {
            let (path, schema) = (file("avsc"), Arc::new(avro::Schema::new(table, contract.version)));
            let before = existing(&path, avro::Schema::parse)?;
            // Before anything is written under a fingerprint that has another meaning in the folder.
            let mut registry = read(folder)?;
            registry.add_avro(&path.display().to_string(), schema.clone())?;
            put(&path, schema.text.as_bytes(), before.map(|before| before.version))?;
            format.schema = Written::Avro(schema);
        }
        Encoding::Protobuf => {
            let path = file("proto");
            let before = existing(&path, protobuf::Schema::parse)?;
            let schema = Arc::new(protobuf::Schema::new(table, contract.version, before.as_ref()));
            put(&path, schema.text.as_bytes(), before.map(|before| before.version))?;
            format.schema = Written::Protobuf(schema);
        }
    }
    if compression == Compression::Zstd {
        let (path, dictionary) = (file("dict"), Dictionary::new(table, &output.name, database));
        // It does not say which version it was made for: one before this one.
        put(&path, &dictionary.bytes, Some(contract.version.saturating_sub(1).max(1)))?;
        format.compressor = Some(Compressor::new(&dictionary)?);
    }
    Ok(format)
}

/// The schema that a table has until now.
fn existing<T>(path: &PathBuf, parse: impl Fn(&str, &str) -> Result<T, SchemaError>) -> Result<Option<T>, SchemaError> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&path.display().to_string(), &text).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(path, "the schema cannot be read")(error)),
    }
}

/// Has a file hold these bytes; what it held is kept beside it.
fn put(path: &Path, bytes: &[u8], before: Option<u32>) -> Result<(), Error> {
    match std::fs::read(path) {
        Ok(found) if found == bytes => return Ok(()),
        Ok(found) => keep(path, &found, before.unwrap_or(1))?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(io(path, "the schema cannot be read")(error).into()),
    }
    replace(path, bytes)
}

/// Writes a copy of what a file holds under the first free name for its version.
fn keep(path: &Path, bytes: &[u8], version: u32) -> Result<(), SchemaError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let mut count = 1;
    loop {
        let kept = path.with_file_name(kept_name(name, version, count));
        match place(&kept, bytes) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if std::fs::read(&kept).is_ok_and(|found| found == bytes) {
                    return Ok(());
                }
                count += 1;
            }
            placed => return placed.map_err(io(&kept, "an earlier schema cannot be kept")),
        }
    }
}

/// Makes a new file that has all of its bytes from its first moment on; an error if there is one of that name. What is left of a process that was killed here has a name that is no schema's.
fn place(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    // Of this attempt alone: another's must not be cut short once it has been linked.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let mut temporary = PathBuf::from(path);
    temporary.as_mut_os_string().push(format!(".{}-{now}.new", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
    // Unlike a renamed file, a linked one replaces none.
    let placed = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| std::fs::hard_link(&temporary, path));
    let removed = std::fs::remove_file(&temporary);
    placed.and(removed)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::event::{ChangeEvent, Op};
    use schemas::table::{Column, SqlType, TableSchema};
    use schemas::value::Value;
    use schemas::{Lsn, Position};

    use super::*;

    fn contract(sql_type: SqlType, version: u32) -> Contract {
        let column = |name: &str, sql_type| Column { name: name.into(), sql_type, nullable: true, case_insensitive: false };
        let columns = vec![column("id", SqlType::Int), column("total", sql_type)];
        let mut contract = Contract::from_table(&TableSchema { name: TableName::new("dbo", "orders"), columns, key: vec![0] });
        contract.version = version;
        contract
    }

    fn output(folder: &Path, encoding: Encoding, compression: Compression) -> Output {
        let encodings = Encodings { encoding, compression, ..Encodings::default() };
        Output { contracts_dir: Some(folder.to_owned()), encodings, ..Output::new("shop") }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn event(contract: &Contract, total: Value) -> ChangeEvent {
        let position =
            Position { commit_lsn: Lsn::from_bytes([1; 10]), command_id: 1, seqval: Lsn::from_bytes([2; 10]), operation: 2 };
        let after = Some(vec![Value::Int(7), total]);
        ChangeEvent { table: contract.table.clone(), op: Op::Create, before: None, after, position, commit_time_ms: 5 }
    }

    /// Whatever a contract went through, every record that was ever written is read by what the folder holds at the end.
    #[test]
    fn files_follow_the_contract_and_earlier_ones_are_kept() {
        for (encoding, kept) in [
            (Encoding::DebeziumJson, vec!["dbo.orders.dict", "dbo.orders.v1.dict", "dbo.orders.v2.dict"]),
            (
                Encoding::Avro,
                vec![
                    "dbo.orders.avsc",
                    "dbo.orders.dict",
                    "dbo.orders.v1.avsc",
                    "dbo.orders.v1.dict",
                    "dbo.orders.v2.avsc",
                    "dbo.orders.v2.dict",
                ],
            ),
            (
                Encoding::Protobuf,
                vec![
                    "dbo.orders.dict",
                    "dbo.orders.proto",
                    "dbo.orders.v1.dict",
                    "dbo.orders.v1.proto",
                    "dbo.orders.v2.dict",
                    "dbo.orders.v2.proto",
                ],
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let output = output(folder.path(), encoding, Compression::Zstd);
            let mut encoder = schemas::encoding::Encoder::new("shop", "shop");
            let (mut records, mut expected) = (Vec::new(), Vec::new());
            let versions = [
                (SqlType::Decimal { precision: 9, scale: 2 }, Value::Decimal { mantissa: 1250, scale: 2 }),
                (SqlType::Decimal { precision: 9, scale: 4 }, Value::Decimal { mantissa: 1250, scale: 4 }),
                (SqlType::NText, Value::Text("12.5".into())),
            ];
            for (version, (sql_type, total)) in (1..).zip(versions) {
                let contract = contract(sql_type, version);
                // A restart finds everything in its place.
                for _ in 0..2 {
                    let mut format = format(&output, &contract, "shop").unwrap();
                    let (event, mut record, mut json) = (event(&contract, total.clone()), Vec::new(), Vec::new());
                    encoder.encode(&mut format, &event, &mut record);
                    encoder.json().encode(&event, &mut json);
                    records.push(record);
                    expected.push(String::from_utf8(json).unwrap());
                }
            }
            assert_eq!(names(folder.path()), kept);
            let registry = read(folder.path()).unwrap();
            let (mut opener, mut rows) = (schemas::encoding::Opener::new(&registry), schemas::parse::RowBuffer::default());
            for (record, expected) in records.iter().zip(expected) {
                assert_ne!(record[0], b'{');
                let mut json = Vec::new();
                schemas::encoding::to_json(&mut opener, &mut rows, record, &mut json).unwrap();
                assert_eq!(String::from_utf8(json).unwrap(), expected);
            }
        }
    }

    #[test]
    fn an_earlier_file_is_kept_whole_and_replaces_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dbo.orders.proto");
        // What a killed process left is no schema.
        std::fs::write(folder.path().join("dbo.orders.v1.proto.7-7.new"), "mess").unwrap();
        for text in ["one", "two", "one", "two"] {
            keep(&path, text.as_bytes(), 1).unwrap();
        }
        assert_eq!(names(folder.path()), ["dbo.orders.v1-2.proto", "dbo.orders.v1.proto", "dbo.orders.v1.proto.7-7.new"]);
        let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!([text("dbo.orders.v1.proto"), text("dbo.orders.v1-2.proto")], ["one", "two"]);
        assert_eq!(place(&folder.path().join("dbo.orders.v1.proto"), b"three").unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(text("dbo.orders.v1.proto"), "one");
        std::fs::remove_file(folder.path().join("dbo.orders.v1.proto")).unwrap();
        std::fs::remove_file(folder.path().join("dbo.orders.v1-2.proto")).unwrap();
        read(folder.path()).unwrap();
    }

    #[test]
    fn a_scale_that_changes_within_a_version_is_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let output = output(folder.path(), Encoding::Avro, Compression::None);
        let decimal = |scale| SqlType::Decimal { precision: 9, scale };
        format(&output, &contract(decimal(2), 1), "shop").unwrap();
        let error = format(&output, &contract(decimal(4), 1), "shop").unwrap_err();
        assert!(error.to_string().contains("x-version"), "{error}");
        assert_eq!(names(folder.path()), ["dbo.orders.avsc"]);
    }

    #[test]
    fn a_proto_that_cannot_be_read_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dbo.orders.proto");
        std::fs::write(&path, "message Row {}").unwrap();
        let output = output(folder.path(), Encoding::Protobuf, Compression::None);
        let error = format(&output, &contract(SqlType::Int, 1), "shop").unwrap_err();
        assert!(error.to_string().contains("dbo.orders.proto"), "{error}");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "message Row {}");
    }

    #[test]
    fn tables_have_their_own_encodings() {
        let orders = TableName::new("dbo", "orders");
        let mut encodings = Encodings { encoding: Encoding::Avro, ..Encodings::default() };
        encodings.of_table.insert(orders.clone(), (None, Some(Compression::Zstd)));
        assert_eq!(encodings.of(&orders), (Encoding::Avro, Compression::Zstd));
        assert_eq!(encodings.of(&TableName::new("dbo", "items")), (Encoding::Avro, Compression::None));
    }
}
